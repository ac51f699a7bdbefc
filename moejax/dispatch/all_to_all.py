"""Exchange by dense all-to-all, in as many rounds as the load takes."""

import jax
import jax.numpy as jnp
from jax import lax

from moejax.dispatch import rounds, traffic
from moejax.dispatch.pick import pick, put
from pallas_kernels.route.api import permutation


class AllToAll(rounds.InRounds):
  """Choices to the ranks of their experts, in buffers of one size.

  A round has ceil(room * N * K / P) rows for each pair of ranks (N is of one
  device); choices past that wait for the next round, until none is left.
  Weights travel along, and outputs come back weighted.

  Attributes: see `rounds.InRounds`.
  """

  def collective_bytes(
    self, layer: traffic.Layer, num_rounds: int = 1
  ) -> dict[str, float]:
    """Bytes that a device sends, by kind of collective."""
    choices = layer.tokens // self.stages * layer.k
    size = rounds.buffer_rows(self.room, choices, layer.ranks)
    return traffic.dense(layer, size, num_rounds, self.stages)

  def _exchange(self, group, call, x_ND, slots_NK, weights_NK, matrices):
    size = rounds.buffer_rows(self.room, slots_NK.size, group.ranks)
    args = x_ND, slots_NK, weights_NK, matrices
    return dense(group, call, *args, size, keep_first=self.keep_first)


def dense(
  group, call, x_ND, slots_NK, weights_NK, matrices, size, *, keep_first=True
):
  """An exchange (see `dispatch.exchange`) in buffers of `size` rows a rank."""
  n, k = slots_NK.shape
  plan = permutation(slots_NK, group.slots)
  sizes_P = plan.sizes_E.reshape(group.ranks, group.held).sum(1)

  def one(i, given, args):
    slots_NK, plan, sizes_P = given
    x_ND, weights_NK, matrices = args
    pair_R, place_NK = window(i, size, plan, slots_NK // group.held, sizes_P)

    def send(a):
      return lax.all_to_all(a, group.axes, 0, 0, tiled=True)

    def of_pair(a, missing):
      return a.reshape(-1).at[pair_R].get(mode='fill', fill_value=missing)

    x_RD = send(pick(x_ND, pair_R // k, place_NK))
    slot_R = send(of_pair(slots_NK, group.slots))
    weight_R = send(of_pair(weights_NK, 0))
    local_R1 = group.local(slot_R)[:, None]
    y_RD = send(call(x_RD, local_R1, weight_R[:, None], matrices))
    return put(y_RD, pair_R // k, place_NK)

  return rounds.run(
    one,
    group,
    sizes_P,
    size,
    most=n * k,
    given=(slots_NK, plan, sizes_P),
    args=(x_ND, weights_NK, matrices),
    keep_first=keep_first,
  )


def window(
  i: jax.Array, size: int, plan, rank_NK: jax.Array, sizes_P: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """What lies where in the buffers [P * size] of a round.

  Args:
    i: the round.
    size: rows for each rank.
    plan: `permutation` of the choices, by ranks or finer.
    rank_NK: int32, the rank of each choice; P for none.
    sizes_P: choices of each rank.

  Returns:
    pair_R, the choice n * K + k of each row, N * K for none; and place_NK, the
    row of each choice, P * size for one of another round.
  """
  ranks = len(sizes_P)
  starts_P = jnp.cumsum(sizes_P) - sizes_P
  own_NK = plan.place_NK - starts_P[jnp.minimum(rank_NK, ranks - 1)] - i * size
  sent_NK = (own_NK >= 0) & (own_NK < size) & (rank_NK < ranks)
  place_NK = jnp.where(sent_NK, rank_NK * size + own_NK, ranks * size)
  row_C = i * size + jnp.arange(size)
  pair_PC = plan.pair_R.at[starts_P[:, None] + row_C].get(mode='clip')
  pair_PC = jnp.where(row_C < sizes_P[:, None], pair_PC, rank_NK.size)
  return pair_PC.reshape(-1), place_NK
