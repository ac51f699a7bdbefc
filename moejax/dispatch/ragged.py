"""Exchange by ragged all-to-all, one run of rows per rank and expert."""

import jax.numpy as jnp
from jax import lax

from moejax.dispatch import rounds, segments, traffic
from moejax.dispatch.pick import pick, put
from pallas_kernels.route.api import permutation


class RaggedAllToAll(rounds.InRounds):
  """Choices to the ranks of their experts, no more rows than there are.

  Each rank sends each expert its rows as one run, and they arrive in the order
  of experts. A rank receives into a buffer of ceil(room * N * K) rows (N is of
  one device); what is past that waits for the next round, until none is left.
  CPUs have no such collective: there all rows go to all ranks.

  Attributes: see `rounds.InRounds`.
  """

  def collective_bytes(
    self, layer: traffic.Layer, num_rounds: int = 1, emulated: bool = False
  ) -> dict[str, float]:
    """Bytes that a device sends, by kind of collective."""
    if emulated:
      choices = layer.tokens // self.stages * layer.k
      size = rounds.buffer_rows(self.room, choices)
      return traffic.emulated(layer, size, num_rounds, self.stages)
    return traffic.ragged(layer, num_rounds, self.stages)

  def _exchange(self, group, call, x_ND, slots_NK, weights_NK, matrices):
    n, k = slots_NK.shape
    size = rounds.buffer_rows(self.room, n * k)
    plan = permutation(slots_NK, group.slots)
    counts_PS = lax.all_gather(plan.sizes_E, group.axes)
    load_P = counts_PS.sum(0).reshape(group.ranks, group.held).sum(1)

    def one(i, given, args):
      plan, counts_PS = given
      x_ND, weights_NK, matrices = args
      rank = lax.axis_index(group.axes)
      runs = segments.window(counts_PS, rank, i * size, size)

      def send(a_R):
        return segments.ship(a_R, runs, size, group.axes)

      x_RD = send(pick(x_ND, plan.token_R, plan.place_NK))
      weight_R = send(weights_NK.reshape(-1)[plan.pair_R])
      sizes_E = runs.in_sizes.reshape(group.ranks, group.held).sum(0)
      # The place among the rank's experts; `held` past the last row.
      local_R = jnp.searchsorted(
        jnp.cumsum(sizes_E), jnp.arange(size), side='right'
      ).astype(jnp.int32)
      y_RD = call(x_RD, local_R[:, None], weight_R[:, None], matrices)
      y_RD = segments.ship(y_RD, runs.back(), n * k, group.axes)
      return put(y_RD, plan.token_R, plan.place_NK)

    return rounds.run(
      one,
      group,
      load_P,
      size,
      most=group.ranks * n * k,
      given=(plan, counts_PS),
      args=(x_ND, weights_NK, matrices),
      keep_first=self.keep_first,
    )
