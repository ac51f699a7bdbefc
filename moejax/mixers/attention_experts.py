"""Softmax attention whose queries and outputs belong to experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax

from moejax import stats
from moejax.mixers import cache
from moejax.mixers.core import Core, mean_seen
from moejax.nn import Projection, expert_matrix, rotate
from moejax.types import Chosen, Context, Ragged, Routed


class AttentionExperts(nn.Module):
  """Each token attends through the experts that its router picks.

  An expert is a query and an output projection, with a query head for each
  key head; keys and values are shared by all experts. A token's output is the
  sum over its experts, by router weight. Experts that are not picked cost
  nothing.  Source: 2404.07413 sec. 3.2, 2210.05144 eq. 4 to 9.
  Differs: no bias after the sum.

  Sows what `stats.sow_routing` says, with prefix `mixer_`.

  Attributes:
    router: `(x_ND, ctx) -> Chosen`.
    num_experts: E, as the router has it.
    kv_heads: heads of keys and values, and of each expert's queries.
    head_dim: size of a head.
    window: tokens seen, None for all of the document.
    rope_theta: base of the rotary wavelengths; None rotates nothing.
    balance: balance terms by name, `(assignment, ctx) -> scalar`.
  """

  router: nn.Module
  num_experts: int
  kv_heads: int
  head_dim: int
  window: int | None = None
  rope_theta: float | None = 10_000.0
  balance: Mapping[str, Callable] | None = None

  causal = True

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    ctx: Context,
    state: cache.Cache | None = None,
  ) -> tuple[jax.Array, cache.Cache | None]:
    batch, length, width = x_BTD.shape
    x_ND = x_BTD.reshape(-1, width)
    chosen = self.router(x_ND, ctx)
    self._check(chosen)
    stats.sow_routing(self, chosen, ctx, self.balance, prefix='mixer_')
    experts = Experts(
      self.num_experts, self.kv_heads * self.head_dim, width, name='experts'
    )
    tokens = Routed(x_ND, chosen.ids_NK, chosen.weights_NK, chosen.num_experts)
    q_NKF = tokens.spread(experts.queries(tokens))
    # A query head of each expert belongs to one key head.
    heads = self.kv_heads, self.head_dim
    q = q_NKF.reshape(batch, length, -1, *heads).swapaxes(2, 3)
    q = q.reshape(batch, length, -1, self.head_dim)
    axes = ('embed', 'heads', 'kv')
    k, v = (Projection(heads, axes, name=n)(x_BTD) for n in ('key', 'value'))
    q = rotate(q, ctx.positions_BT, self.rope_theta)
    k = rotate(k, ctx.positions_BT, self.rope_theta)
    places = None
    if state is not None:
      state, places = state.extend((k, v), ctx, self.window)
      k, v = places.kept
    y = Core(self.window, name='core')(q, k, v, ctx, places)
    y = y.reshape(batch, length, self.kv_heads, -1, self.head_dim)
    y_NKF = y.swapaxes(2, 3).reshape(q_NKF.shape)
    y_ND = tokens.combine(experts.outputs(tokens.gathered(y_NKF)))
    return y_ND.reshape(x_BTD.shape), state

  def _check(self, chosen):
    if not isinstance(chosen, Chosen):
      raise ValueError(
        f'router {type(self.router).__name__} makes a {type(chosen).__name__} '
        'assignment, but attention wants Chosen; use routers.Router.'
      )
    if chosen.num_experts != self.num_experts:
      raise ValueError(
        f'num_experts={self.num_experts} differs from the '
        f'{chosen.num_experts} that the router scores; make them equal.'
      )

  def init_state(self, batch, length, width, dtype) -> cache.Cache:
    """An empty cache of `length` places, or of the window if that is less."""
    del width
    size = (self.kv_heads, self.head_dim)
    return cache.empty(batch, length, (size, size), dtype, self.window)

  def active_fracs(self) -> dict[str, float]:
    """Share of the parameters under a path that one token uses."""
    return {'experts': self.router.k / self.num_experts}

  def flops(self, width: int, length: int) -> float:
    """Forward FLOPs per token in sequences of `length`, seen keys only."""
    inner, k = self.kv_heads * self.head_dim, self.router.k
    matrices = 2 * width * inner * (2 * k + 2)
    core = 4 * inner * k * mean_seen(length, self.window)
    return matrices + core + self.router.flops(width)


class Experts(nn.Module):
  """The query and output matrices, [E, D, F] and [E, F, D].

  Attributes:
    num_experts: E.
    inner: F, the heads of one expert.
    width: D.
  """

  num_experts: int
  inner: int
  width: int

  def setup(self):
    e, d, f = self.num_experts, self.width, self.inner
    self.query = expert_matrix(self, 'query', ('embed', 'heads'), (e, d, f))
    self.out = expert_matrix(self, 'out', ('heads', 'embed'), (e, f, d))

  def queries(self, rows: Routed) -> Ragged:
    return rows.dot(self.query)

  def outputs(self, rows: Ragged) -> Ragged:
    return rows.dot(self.out)
