"""Feed-forwards: the dense one, and the composer of a mixture of experts."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax

from moejax import costs, sharding, stats
from moejax.types import Context, Padded


class Dense(nn.Module):
  """One expert that every token goes to: a plain feed-forward.

  Attributes:
    expert: an expert module with `num_experts` 1.
  """

  expert: nn.Module

  @nn.compact
  def __call__(self, x_BTD: jax.Array, ctx: Context) -> jax.Array:
    del ctx
    rows = x_BTD[None]
    if not sharding.cuts('time'):  # merged, all would have to be gathered
      rows = x_BTD.reshape(1, -1, x_BTD.shape[-1])
    return self.expert(Padded(rows)).rows_ECD.reshape(x_BTD.shape)

  def flops(self, width: int) -> float:
    """Forward FLOPs per token."""
    return self.expert.flops(width)


class Moe(nn.Module):
  """router -> dispatch(experts), plus shared experts.

  Sows what `stats.sow_routing` says, and `stats/dropped_frac`.

  Attributes:
    router: `(x_ND, ctx) -> Assignment`.
    dispatch: `(assignment, x_ND, experts) -> y_ND`. One that approximates in
      training has the dispatch of evaluation and decoding as `exact`.
    experts: `Rows -> Rows`.
    shared: a feed-forward that every token also goes to.
    balance: balance terms by name, `(assignment, ctx) -> scalar`; a name is
      what the recipe's `losses` weighs.
  """

  router: nn.Module
  dispatch: nn.Module
  experts: nn.Module
  shared: nn.Module | None = None
  balance: Mapping[str, Callable] | None = None

  @nn.compact
  def __call__(self, x_BTD: jax.Array, ctx: Context) -> jax.Array:
    x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
    assignment = self.router(x_ND, ctx)
    self._check(assignment)
    stats.sow_routing(self, assignment, ctx, self.balance)
    with sharding.layer_of_experts():
      y_ND = self._dispatch(ctx.train)(assignment, x_ND, self.experts)
    y_BTD = y_ND.reshape(x_BTD.shape)
    if self.shared is not None:
      y_BTD = y_BTD + self.shared(x_BTD, ctx)
    return y_BTD

  def _dispatch(self, train):
    return (
      self.dispatch if train else getattr(self.dispatch, 'exact', self.dispatch)
    )

  def _check(self, assignment):
    if not isinstance(assignment, self.dispatch.accepts):
      wanted = ' or '.join(kind.__name__ for kind in self.dispatch.accepts)
      raise ValueError(
        f'router {type(self.router).__name__} makes a '
        f'{type(assignment).__name__} assignment, but dispatch '
        f'{type(self.dispatch).__name__} takes {wanted}; choose a dispatch '
        'that accepts it.'
      )

  def active_fracs(self) -> dict[str, float]:
    """Share of the parameters under a path that one token uses."""
    return {'experts': self.router.k / self.experts.num_experts}

  def flops(self, width: int) -> float:
    """Forward FLOPs per token: of the experts that it uses.

    What a dispatch does beyond them is no work of the model: products with
    one-hot masks, slots that stay empty, experts whose output a mask hides.
    """
    return sum(self.flops_by_path(width).values())

  def flops_by_path(self, width: int) -> dict[str, float]:
    """The same for the parameters under each path."""
    parts = {
      'router': self.router.flops(width),
      'experts': self.router.k * self.experts.flops(width),
    }
    if self.shared is not None:
      parts['shared'] = self.shared.flops(width)
    return parts


class Sum(nn.Module):
  """The sum of feed-forwards of the same input, such as experts and a memory.

  Attributes:
    parts: the feed-forwards by name.
  """

  parts: Mapping[str, nn.Module]

  def __call__(self, x_BTD: jax.Array, ctx: Context) -> jax.Array:
    first, *rest = (part(x_BTD, ctx) for part in self.parts.values())
    return sum(rest, first)

  def active_fracs(self) -> dict[str, float]:
    """Share of the parameters under a path that one token uses."""
    return {
      f'parts_{name}/{path}': frac
      for name, part in self.parts.items()
      for path, frac in costs.told(part, 'active_fracs').items()
    }

  def rows_read(self) -> dict[str, int]:
    """Rows of shared tables that one token reads, by the table's name."""
    rows = collections.Counter()
    for part in self.parts.values():
      rows.update(costs.told(part, 'rows_read'))
    return dict(rows)

  def flops(self, width: int) -> float:
    """Forward FLOPs per token."""
    return sum(part.flops(width) for part in self.parts.values())
