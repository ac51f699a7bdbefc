"""Exchange in two hops: once to each node of a token, and on within it."""

import dataclasses

import jax.numpy as jnp
from jax import lax

from moejax.dispatch import all_to_all, rounds, traffic
from moejax.dispatch.pick import pick, put
from pallas_kernels.route.api import permutation


class TwoHops(rounds.InRounds):
  """A token's row goes to a node once, whatever experts it has there.

  The rules give 'expert' two mesh axes or more, such as ('node', 'expert'); the
  first counts nodes. A row goes to the like-placed rank of each of its nodes by
  one all-to-all, from there to the ranks of its experts by another, and
  outputs come back summed by node. With routing that is limited to M nodes
  (`routers.select.group_limited`), a row is sent between nodes M times at most.
  Source: 2505.09343 sec. 4.3.
  Differs: collectives, dense buffers and rounds where the paper has a kernel.

  A first hop has ceil(room * N * M / nodes) rows for each node, a second one
  ceil(room * N * K / R) for each of the R ranks of a node; both take as many
  rounds as the load needs, of which `stats/exchange_rounds` tells those of the
  first hop. Sows `stats/exchange_crossings` too, the nodes beside its own that
  a token goes to, on average.

  Attributes: see `rounds.InRounds`, and
    nodes_per_token: M, None for as many as there are.
  """

  nodes_per_token: int | None = None

  def collective_bytes(
    self, layer: traffic.Layer, nodes: int, num_rounds: int = 1
  ) -> dict[str, float]:
    """Bytes that a device sends, by kind of collective; and between nodes."""
    sizes = self._sizes(
      layer.tokens // self.stages, layer.k, nodes, layer.ranks // nodes
    )
    return traffic.two_hops(layer, nodes, sizes, num_rounds, self.stages)

  def _sizes(self, tokens, k, nodes, each):
    """Rows of the buffers of each hop, for a pair of nodes, and of ranks."""
    most = min(self.nodes_per_token or nodes, nodes, k)
    first = rounds.buffer_rows(self.room, tokens * most, nodes)
    # From every rank of its place come as many choices as it has itself.
    return min(first, tokens), rounds.buffer_rows(self.room, tokens * k, each)

  def _exchange(self, group, call, x_ND, slots_NK, weights_NK, matrices):
    n, k = slots_NK.shape
    nodes, inner = _cut(group)
    size, inner_size = self._sizes(n, k, nodes, inner.ranks)
    # The nodes of a token, each where it comes first, `nodes` for the others.
    node_NK = slots_NK // inner.slots
    again_NK = (node_NK[:, :, None] == node_NK[:, None, :]) & jnp.tri(
      k, k=-1, dtype=bool
    )
    to_NK = jnp.where(again_NK.any(-1), nodes, node_NK)
    plan = permutation(to_NK, nodes)

    def one(i, given, args):
      slots_NK, to_NK, plan = given
      x_ND, weights_NK, matrices = args
      pair_R, place_NK = all_to_all.window(i, size, plan, to_NK, plan.sizes_E)
      token_R = pair_R // k
      slot_RK = slots_NK.at[token_R].get(mode='fill', fill_value=group.slots)
      slot_RK -= jnp.repeat(jnp.arange(nodes), size)[:, None] * inner.slots
      there_RK = (slot_RK >= 0) & (slot_RK < inner.slots)
      weight_RK = weights_NK.at[token_R].get(mode='fill', fill_value=0)

      def send(a):
        return lax.all_to_all(a, group.axes[:1], 0, 0, tiled=True)

      y_RD, _ = all_to_all.dense(
        inner,
        call,
        send(pick(x_ND, token_R, place_NK)),
        send(jnp.where(there_RK, slot_RK, inner.slots)),
        send(jnp.where(there_RK, weight_RK, 0)),
        matrices,
        inner_size,
        keep_first=self.keep_first,
      )
      return put(send(y_RD), token_R, place_NK)

    y_ND, told = rounds.run(
      one,
      group,
      plan.sizes_E,
      size,
      most=n,
      given=(slots_NK, to_NK, plan),
      args=(x_ND, weights_NK, matrices),
      keep_first=self.keep_first,
    )
    own = plan.sizes_E[lax.axis_index(group.axes[:1])]
    used = (node_NK < nodes).any(-1).sum()
    away, tokens = lax.psum((plan.sizes_E.sum() - own, used), group.devices)
    return y_ND, told | {'crossings': away / jnp.maximum(tokens, 1)}

  def _sow(self, told):
    super()._sow(told)
    found = told['crossings'].mean() if told else jnp.zeros(())
    self.sow('stats', 'exchange_crossings', found)


def _cut(group):
  """The number of nodes, and the group that the ranks of a node are."""
  if len(group.axes) < 2 or group.share > 1:
    raise ValueError(
      'two hops need experts over two mesh axes and at least one for each '
      f'rank, not {group.num_experts} experts on {group.ranks} ranks of '
      f'{", ".join(group.axes)}; give them two in config.rules, or use '
      'dispatch.AllToAll.'
    )
  nodes = lax.axis_size(group.axes[0])
  return nodes, dataclasses.replace(
    group,
    axes=group.axes[1:],
    ranks=group.ranks // nodes,
    num_experts=group.num_experts // nodes,
  )
