"""Training steps of a small model on a mesh."""

import jax

from configs import common
from moejax import balance, sharding, step
from moejax.parts import Parts


def router(num_experts=4):
  """Two experts are chosen; selection biases balance them."""
  return common.node(
    'routers.Router',
    score=common.node('routers.scores.Linear', num_experts=num_experts),
    k=2,
    select=common.node('routers.select.top_k'),
    weigh=common.node('routers.weigh.sigmoid'),
    selection_bias=True,
  )


def take(small, config, steps):
  """(initial state, state, metrics of each step) of rows with padding."""
  parts = Parts(config)
  # The initial state is kept: it is not donated, as in training.
  one = jax.jit(
    step.train_step(
      parts.model,
      parts.tx,
      loss=parts.loss,
      weights=dict(parts.config.losses),
      bias_update=balance.bias_update,
    ),
    out_shardings=(parts.state_shardings, sharding.replicated(parts.mesh)),
  )
  with sharding.use(parts.mesh, parts.rules):
    first = state = parts.new_state()
    rows = []
    for seed in range(steps):
      host = small.rows(seed, batch=8, padding=(2, 0, 8, 1))
      batch = sharding.put_batch(host, parts.batch_sharding)
      state, metrics = one(state, batch)
      rows.append(metrics)
  return first, state, rows
