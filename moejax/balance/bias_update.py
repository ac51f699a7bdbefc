"""Balance without a loss: a bias per expert that follows the load."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp


def bias_update(
  bias_E: jax.Array, counts_E: jax.Array, *, rate: float = 1e-3
) -> jax.Array:
  """Raises the bias of underloaded experts, lowers that of overloaded ones.

  Source: 2408.15664 algorithm 1.

  Args:
    bias_E: f32 [..., E].
    counts_E: f32 [..., E], tokens per expert in this optimiser step.
    rate: change of the bias per step, in units of the affinity.
  """
  mean = counts_E.mean(-1, keepdims=True)
  return bias_E + rate * jnp.sign(mean - counts_E)


def end_step(balance: Mapping, update: Callable | None) -> Mapping:
  """The `balance` collection after an optimiser step.

  Moves every `bias` that stands beside `counts` by `update(bias, counts)`,
  then clears all counts. Leading axes are those of scanned layers.
  """
  moved = {}
  for name, value in balance.items():
    if isinstance(value, Mapping):
      moved[name] = end_step(value, update)
    elif name == 'counts':
      moved[name] = jnp.zeros_like(value)
    elif name == 'bias' and update is not None and 'counts' in balance:
      moved[name] = update(value, balance['counts'])
    else:
      moved[name] = value
  return moved
