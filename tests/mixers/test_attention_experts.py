"""Attention experts against a loop in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import routers
from moejax.mixers import AttentionExperts
from moejax.types import Context

# Oracles and the module itself, in pieces: no claim on machine code.
pytestmark = pytest.mark.usefixtures('quick_compilation')

B, T, D, E, K, G, SIZE, THETA = 2, 7, 8, 5, 2, 3, 4, 100.0
SEGMENTS = np.array([[1] * 3 + [2] * 4, [1] * 6 + [0]])
POSITIONS = np.array([[*range(3), *range(4)], [*range(6), 0]])


def _experts(scored=E):
  router = routers.Router(
    score=routers.scores.Linear(num_experts=scored),
    k=K,
    select=routers.select.top_k,
    weigh=routers.weigh.softmax,
  )
  return AttentionExperts(
    router=router, num_experts=E, kv_heads=G, head_dim=SIZE, rope_theta=THETA
  )


def _drawn():
  segments, positions = (jnp.asarray(a) for a in (SEGMENTS, POSITIONS))
  ctx = Context(jnp.zeros_like(segments), positions, segments)
  x = jax.random.normal(jax.random.key(0), (B, T, D))
  params = _experts().init(jax.random.key(1), x, ctx)['params']
  return nn.unbox(params), x, ctx


def _turn(v, position):
  half = SIZE // 2
  z = v[:half] + 1j * v[half:]
  z = z * np.exp(1j * position * THETA ** (-np.arange(half) / half))
  return np.concatenate([z.real, z.imag])


def _softmax(z):
  e = np.exp(z - z.max())
  return e / e.sum()


def _loop(p, x):
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)
  x = np.asarray(x, np.float64)
  out = np.zeros((B, T, D))
  for b in range(B):
    for t in range(T):
      logits = x[b, t] @ p['router']['score']['kernel']
      picked = np.argsort(-logits)[:K]
      same = [s for s in range(t + 1) if SEGMENTS[b, s] == SEGMENTS[b, t]]
      for weight, e in zip(_softmax(logits[picked]), picked, strict=True):
        heads = (x[b, t] @ p['experts']['query'][e]).reshape(G, SIZE)
        y = []
        for g in range(G):
          q = _turn(heads[g], POSITIONS[b, t])
          k = [
            _turn(x[b, s] @ p['key']['kernel'][:, g], POSITIONS[b, s])
            for s in same
          ]
          v = [x[b, s] @ p['value']['kernel'][:, g] for s in same]
          y.append(_softmax(np.array(k) @ q / np.sqrt(SIZE)) @ np.array(v))
        out[b, t] += weight * np.concatenate(y) @ p['experts']['out'][e]
  return out


def test_a_token_attends_through_the_experts_that_it_picks():
  params, x, ctx = _drawn()
  got, _ = _experts().apply({'params': params}, x, ctx)
  real = SEGMENTS > 0
  want = _loop(params, x)[real]
  error = np.asarray(got)[real] - want
  assert np.sqrt((error**2).mean() / (want**2).mean()) < 1e-5
  assert (np.asarray(got)[~real] == 0).all()


def test_an_expert_that_no_token_picks_has_no_part_in_the_result():
  params, x, ctx = _drawn()
  x = jnp.abs(x)
  # Far below the others for every positive input.
  kernel = params['router']['score']['kernel'].at[:, 1].set(-100.0)
  params = params | {'router': {'score': {'kernel': kernel}}}
  poisoned = jax.tree.map(lambda w: w.at[1].set(jnp.nan), params['experts'])

  @jax.jit
  def run(experts):
    both = {'params': params | {'experts': experts}}
    return jax.value_and_grad(
      lambda x: (_experts().apply(both, x, ctx)[0] ** 2).sum()
    )(x)

  for got, want in zip(run(poisoned), run(params['experts']), strict=True):
    np.testing.assert_array_equal(got, want)
  assert np.isfinite(want).all()


def test_it_keeps_the_keys_and_values_of_the_shared_heads_only():
  state = jax.eval_shape(lambda: _experts().init_state(B, 50, D, 'bfloat16'))
  assert sum(a.size for a in state.kept) == B * 50 * 2 * G * SIZE


def test_it_counts_only_what_a_token_uses():
  module = _experts()
  assert module.active_fracs() == {'experts': K / E}
  matrices = 2 * D * G * SIZE * (K + K + 1 + 1) + 2 * D * E
  assert module.flops(D, 20) == matrices + 4 * G * SIZE * K * 10.5


def test_another_number_of_experts_than_the_router_has_is_refused():
  _, x, ctx = _drawn()
  with pytest.raises(ValueError, match='num_experts=5 differs from the 4'):
    jax.eval_shape(_experts(scored=4).init, jax.random.key(0), x, ctx)
