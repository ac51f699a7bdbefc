"""The best slots of a grid whose sides are scored, without scoring all of it.

Slot i * S + j belongs to row i and column j; S is the number of keys of a side.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np


def product_top_k(
  left_NHS: jax.Array, right_NHS: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
  """The k best of S^2 slots by left + right, exactly.

  Source: 1907.05242 sec. 3.1.
  Differs: pair (a, b) of the sorted halves is looked at only where (a + 1) *
  (b + 1) <= k; any other has k pairs that are no worse.

  Args:
    left_NHS: f32, scores of the rows.
    right_NHS: f32, scores of the columns.
    k: slots per head.

  Returns:
    ids_NHK int32, best first, in [0, S^2) whatever the scores hold; scores_NHK.

  Raises:
    ValueError: if k is above S.
  """
  check_k(k, left_NHS.shape[-1])
  left, rows = jax.lax.top_k(left_NHS, k)
  right, columns = jax.lax.top_k(right_NHS, k)
  a, b = candidates(k)
  scores, place = jax.lax.top_k(left[..., a] + right[..., b], k)
  ids = rows[..., a] * right_NHS.shape[-1] + columns[..., b]
  return jnp.take_along_axis(ids, place, -1), scores


@functools.cache
def candidates(k: int) -> tuple[np.ndarray, np.ndarray]:
  """The pairs (a, b) with (a + 1)(b + 1) <= k, each axis in an array."""
  pairs = [(a, b) for a in range(k) for b in range(k // (a + 1))]
  a, b = np.array(pairs, np.int32).T
  return a, b


def tucker_top_k(
  left_NHSR: jax.Array,
  right_NHSR: jax.Array,
  cores_CHRR: jax.Array,
  direction: tuple[jax.Array, jax.Array],
  k: int,
) -> tuple[jax.Array, jax.Array]:
  """The k best of k x k filtered slots by left C right, summed over cores.

  The filter keeps the k best rows and columns by the leading singular vectors
  of the summed core; it is exact for a core of rank 1 whose halves are not
  negative.  Source: 2411.12364 sec. 3.2, 2508.18756 sec. 2.

  Args:
    left_NHSR: f32, a score of each row for each rank.
    right_NHSR: f32, likewise of each column.
    cores_CHRR: f32.
    direction: u_HR and v_HR, of `leading`; no gradient.
    k: slots per head.

  Returns:
    ids_NHK int32, best first; scores_NHKC f32, each core's own.

  Raises:
    ValueError: if k is above S.
  """
  size = left_NHSR.shape[2]
  check_k(k, size)
  sides, places = [], []
  for side, vector_HR in zip((left_NHSR, right_NHSR), direction, strict=True):
    rank = jax.lax.stop_gradient(jnp.einsum('nhsr,hr->nhs', side, vector_HR))
    place_NHK = jax.lax.top_k(rank, k)[1]
    sides.append(_taken(side, place_NHK))
    places.append(place_NHK)
  # The grid has k^2 numbers a head and token, so it is made of the cores' sum
  # and keeps no gradient: each core's scores are made for the chosen alone.
  best = _best_pairs(*jax.lax.stop_gradient((*sides, cores_CHRR.sum(0))), k)
  rows, columns = best // k, best % k
  ids = _taken(places[0], rows) * size + _taken(places[1], columns)
  left, right = _taken(sides[0], rows), _taken(sides[1], columns)
  return ids, jnp.einsum('nhkr,chrq,nhkq->nhkc', left, cores_CHRR, right)


def _best_pairs(left_NHKR, right_NHKR, core_HRR, k):
  """The k best pairs of rows and columns, as row * K + column."""
  grid = jnp.einsum('nhar,hrq,nhbq->nhab', left_NHKR, core_HRR, right_NHKR)
  return jax.lax.top_k(grid.reshape(*grid.shape[:2], -1), k)[1]


def _taken(a_NHSx, place_NHK):
  """Of axis 2, what is at each head's and token's own places."""
  place = place_NHK.reshape(place_NHK.shape + (1,) * (a_NHSx.ndim - 3))
  return jnp.take_along_axis(a_NHSx, place, 2)


def leading(
  core_HRR: jax.Array, before_HR: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Leading singular vectors u_HR and v_HR, the sign of v as before.

  By repeated squaring, which a rank of 2 or 3 does not need to factorise.
  Source: 2411.12364 sec. 3.2.
  Differs: the sign is that of the product with the v of before.
  """
  gram = jnp.einsum('hab,hac->hbc', core_HRR, core_HRR, precision='highest')

  def square(_, p):
    p = p / jnp.maximum(jnp.trace(p, axis1=1, axis2=2), 1e-30)[:, None, None]
    return jnp.einsum('hab,hbc->hac', p, p, precision='highest')

  projector = jax.lax.fori_loop(0, 24, square, gram)
  v_HR = jnp.einsum('hab,hb->ha', projector, before_HR, precision='highest')
  # All but orthogonal to before: any column of the projector is along v.
  best = jnp.argmax(jnp.diagonal(projector, axis1=1, axis2=2), -1)
  column = jnp.take_along_axis(projector, best[:, None, None], 2)[..., 0]
  lost = jnp.linalg.norm(v_HR, axis=-1) < 1e-3 * jnp.linalg.norm(
    column, axis=-1
  )
  v_HR = _unit(jnp.where(lost[:, None], column, v_HR))
  u_HR = jnp.einsum('hab,hb->ha', core_HRR, v_HR, precision='highest')
  return _unit(u_HR), v_HR


def _unit(a):
  size = jnp.linalg.norm(a, axis=-1, keepdims=True)
  return a / jnp.maximum(size, 1e-30)


def check_k(k: int, keys: int) -> None:
  if not 1 <= k <= keys:
    raise ValueError(
      f'k={k} slots per head cannot be found among keys={keys} of a side; '
      f'lower k to at most {keys}, or raise keys.'
    )
