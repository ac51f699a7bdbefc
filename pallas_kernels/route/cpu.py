"""Routing in forms that suit XLA on CPU.

There a gather or scatter of single numbers is a tight loop and costs little,
while a sort or a dense comparison with every expert costs ten times as much.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.route.plan import Plan, inverse, known_ids

# Of 16 to 512, the fastest at 8 to 256 experts and 8k to 524k pairs.
RUNS = 128


def by_count(ids_NK: jax.Array, *, experts: int) -> Plan:
  """A stable counting sort, in 3 to 5 times less time than by a sort.

  Pairs are cut into runs. All runs are walked at once, a pair of each at every
  step; a pair's rank is what its run has counted of its expert so far.
  """
  id_R = known_ids(ids_NK, experts)
  rows, kinds = id_R.size, experts + 1
  length = -(-rows // RUNS)
  runs = -(-rows // length)
  # What pads the last run counts as "no expert" and so comes after all pairs.
  id_R = jnp.pad(id_R, (0, runs * length - rows), constant_values=experts)
  first = kinds * jnp.arange(runs, dtype=jnp.int32)
  cell_LC = id_R.reshape(runs, length).T + first

  def step(counted, cell_C):
    rank_C = counted.at[cell_C].get(mode='promise_in_bounds')
    counted = counted.at[cell_C].set(
      rank_C + 1, unique_indices=True, mode='promise_in_bounds'
    )
    return counted, rank_C

  counted, rank_LC = jax.lax.scan(
    step, jnp.zeros(runs * kinds, jnp.int32), cell_LC
  )
  counted = counted.reshape(runs, kinds)
  sizes = counted.sum(0)
  start = _sums_before(counted) + _sums_before(sizes[:, None])[:, 0]
  start_LC = start.reshape(-1).at[cell_LC].get(mode='promise_in_bounds')
  place_R = (start_LC + rank_LC).T.reshape(-1)
  pair_R = inverse(place_R)[:rows]
  return Plan(pair_R, place_R[:rows].reshape(ids_NK.shape), sizes[:experts])


def _sums_before(a: jax.Array) -> jax.Array:
  """int32: the sum over all earlier rows, exact below 2**24."""
  n = a.shape[0]
  earlier = jnp.tril(jnp.ones((n, n), jnp.float32), -1)
  sums = jnp.dot(earlier, a.astype(jnp.float32), precision='highest')
  return sums.astype(jnp.int32)
