"""The pure steps of training and evaluation, to be jitted by the caller."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from moejax import balance, optim, row_gradients, stats
from moejax.losses import scored
from moejax.memory import taps
from moejax.model import Model
from moejax.state import TrainState, context

Batch = Mapping[str, jax.Array]
# What a batch holds, each int32 [B, T].
BATCH = ('tokens', 'targets', 'segments', 'positions')
# Collections that a training call writes.
WRITTEN = ('losses', 'stats', 'balance')


def objective(
  model: Model, loss: Callable, weights: Mapping[str, float]
) -> Callable:
  """`(params, balance, batch) -> (scalar, written)`, what gradients descend.

  The scalar is the loss plus, for each sown term, its weight times its sum
  over the layers. `written` has the new `balance`, and `metrics`: scalars
  (`loss`, `losses/<term>`: the mean over layers) and raw per-layer stats.
  """
  compute = _objective(model, loss, weights)

  def without_reads(params, balance_state, batch):
    total, (written, _) = compute(params, balance_state, batch)
    return total, written

  return without_reads


def _objective(model, loss, weights):
  """The same, but `written` comes with the reads of tables that have taps."""

  def compute(params, balance_state, batch, zeros=None):
    variables = {'params': params, 'balance': balance_state}
    variables |= {} if zeros is None else {taps.TAPS: zeros}
    (outputs, _), written = model.apply(
      variables, context(batch, train=True), mutable=[*WRITTEN, taps.READS]
    )
    main = loss(outputs, batch)
    terms = stats.by_name(written.get('losses', {}))
    total = main + sum(
      weights[name] * value.sum() for name, value in terms.items()
    )
    metrics = {f'losses/{name}': term.mean() for name, term in terms.items()}
    metrics['loss'] = main
    layers = stats.per_layer(written.get('stats', {}))
    new = written.get('balance', balance_state)
    return total, ((new, metrics, layers), written.get(taps.READS, {}))

  return compute


def train_step(
  model: Model,
  tx: optim.SkipNonfinite,
  *,
  loss: Callable,
  weights: Mapping[str, float],
  accumulate: int = 1,
  bias_update: Callable | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]:
  """Makes `(state, batch) -> (state, metrics)`.

  Args:
    model: the model.
    tx: of `optim.Chain`; skips steps that are not finite.
    loss: `(outputs, batch) -> scalar`, a mean over targets that count.
    weights: of the sown balance terms, by name.
    accumulate: micro-batches per step. Each is weighed by its share of the
      targets that count, so that the sum is the gradient of the whole batch.
    bias_update: `(bias, counts) -> bias` for selection biases.
  """
  compute = _objective(model, loss, weights)
  gradient = row_gradients.gradient(model, compute, tx.tables)

  def step(state: TrainState, batch: Batch):
    counted = scored.weights_BT(batch).sum()

    def micro(carry, part):
      balance_state, grads, layers = carry
      share = scored.weights_BT(part).sum() / jnp.maximum(counted, 1)
      (_, (balance_state, metrics, new_layers)), new = gradient(
        state.params, balance_state, part
      )
      new, factors = row_gradients.split(new)
      if grads is None:
        return (balance_state, new, new_layers), (metrics, factors)
      grads = jax.tree.map(lambda a, b: a + share * b, grads, new)
      layers = stats.merge(layers, new_layers, share)
      metrics = jax.tree.map(lambda value: share * value, metrics)
      factors = row_gradients.scaled(factors, share)
      return (balance_state, grads, layers), (metrics, factors)

    if accumulate == 1:
      carry = (state.balance, None, None)
      (balance_state, grads, layers), (metrics, factors) = micro(carry, batch)
    else:
      parts = {name: _split(value, accumulate) for name, value in batch.items()}
      shapes = jax.eval_shape(
        lambda part: gradient(state.params, state.balance, part),
        jax.tree.map(lambda value: value[0], parts),
      )
      grads, layers = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype),
        (row_gradients.split(shapes[1])[0], shapes[0][1][2]),
      )
      carry = (state.balance, grads, layers)
      carry, (metrics, factors) = jax.lax.scan(micro, carry, parts)
      balance_state, grads, layers = carry
      metrics = jax.tree.map(lambda value: value.sum(0), metrics)
      factors = row_gradients.concatenated(factors)

    grads = row_gradients.by_rows(grads, factors, state.params)
    params, opt_state = tx.step(
      grads, state.opt_state, state.params, metrics['loss']
    )
    good = opt_state.consecutive == 0
    ended = balance.end_step(balance_state, bias_update)
    # A skipped step leaves the biases alone as well.
    ended = jax.tree.map(
      lambda new, old: jnp.where(good, new, old), ended, state.balance
    )
    metrics |= stats.summarise(layers)
    metrics |= {
      'grad_norm': optim.global_norm(optim.numbers(grads)),
      'tokens': (batch['segments'] > 0).sum(),
      'skipped_steps': opt_state.skipped,
      'skipped_in_a_row': opt_state.consecutive,
    }
    new_state = TrainState(
      step=state.step + 1,
      params=params,
      opt_state=opt_state,
      balance=ended,
    )
    return new_state, metrics

  return step


def evaluate_step(
  model: Model, loss: Callable
) -> Callable[[Any, Batch], dict[str, jax.Array]]:
  """Makes `(variables, batch) -> {loss, tokens}`, the mean loss and its N.

  Where a batch tells answers from prompts, also `right` of `answers`.
  """

  def step(variables, batch: Batch):
    outputs, _ = model.apply(variables, context(batch))
    tokens = scored.weights_BT(batch).sum()
    values = {'loss': loss(outputs, batch), 'tokens': tokens}
    if 'scored' in batch:
      values['right'], values['answers'] = scored.right_answers(outputs, batch)
    return values

  return step


def _split(x: jax.Array, parts: int) -> jax.Array:
  """[B, T] to [parts, B / parts, T]; rows stay on their devices."""
  return x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
