"""Exchange by dense all-to-all, in as many rounds as the load takes."""

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
    n, k = slots_NK.shape
    size = rounds.buffer_rows(self.room, n * k, group.ranks)
    plan = permutation(slots_NK, group.slots)
    sizes_P = plan.sizes_E.reshape(group.ranks, group.held).sum(1)
    starts_P = jnp.cumsum(sizes_P) - sizes_P

    def one(i, given, args):
      slots_NK, plan, starts_P, sizes_P = given
      x_ND, weights_NK, matrices = args
      # Place in the buffer [P * size] of this round, and what lies there.
      rank_NK = jnp.minimum(slots_NK // group.held, group.ranks - 1)
      own_NK = plan.place_NK - starts_P[rank_NK] - i * size
      sent_NK = (own_NK >= 0) & (own_NK < size) & (slots_NK < group.slots)
      place_NK = rank_NK * size + own_NK
      place_NK = jnp.where(sent_NK, place_NK, group.ranks * size)
      row_C = i * size + jnp.arange(size)
      row_PC = starts_P[:, None] + row_C
      pair_PC = plan.pair_R.at[row_PC].get(mode='clip')
      pair_R = jnp.where(row_C < sizes_P[:, None], pair_PC, n * k).reshape(-1)

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
      given=(slots_NK, plan, starts_P, sizes_P),
      args=(x_ND, weights_NK, matrices),
      keep_first=self.keep_first,
    )
