"""Routing: checks, gradients, choice of implementation."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.choose import Entry, choose
from pallas_kernels.route import cpu
from pallas_kernels.route.plan import Plan, by_sort


def permutation(
  ids_NK: jax.Array, experts: int, *, implementation: str | None = None
) -> Plan:
  """Where each pair of token and expert goes, in the order of experts.

  Args:
    ids_NK: int32 [N, K]; an id outside [0, experts) is "no expert" and comes
      last. An expert may be named twice by a token.
    experts: E.
    implementation: `None` chooses for the platform that the program is lowered
      for; 'count' (CPU) or 'sort'.

  Returns:
    The plan: `pair_R`, `place_NK`, `sizes_E`.

  Raises:
    ValueError: ids are no integers in two dimensions, or an unknown name.
    NotImplementedError: the named implementation does not run here.
  """
  if ids_NK.ndim != 2 or not jnp.issubdtype(ids_NK.dtype, jnp.integer):
    raise ValueError(
      f'permutation takes integer ids [N, K], not {ids_NK.dtype} '
      f'{ids_NK.shape}.'
    )
  if 0 in ids_NK.shape:
    empty = jnp.zeros(ids_NK.shape, jnp.int32)
    return Plan(empty.reshape(-1), empty, jnp.zeros(experts, jnp.int32))
  table = {
    'count': Entry(
      functools.partial(cpu.by_count, experts=experts),
      platforms=('cpu',),
      refuses=_refuses_many,
    ),
    'sort': Entry(functools.partial(by_sort, experts=experts)),
  }
  return choose('permutation', table, ids_NK, implementation=implementation)


def _refuses_many(ids_NK) -> str | None:
  if ids_NK.size >= 2**24:
    return f'it counts {2**24 - 1} pairs at most, not {ids_NK.size}'
  return None
