"""As many rounds of an exchange as it takes, in buffers of one size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from moejax.dispatch import exchange
from moejax.dispatch.group import Group
from moejax.types import Chosen


def total(
  one: Callable,
  rounds: jax.Array,
  most: int,
  given: Any,
  args: Any,
  *,
  keep_first: bool = True,
) -> Any:
  """The sum of `one(i, given, args)` over i < `rounds`, at least the first.

  The first round is differentiated as any code. Further ones run in a
  `lax.while_loop`, which keeps nothing: the backward pass has a loop of its own
  and runs each of them again. So memory is that of one round whatever the load.

  Args:
    one: a function of arrays that come as arguments; it closes over none.
    rounds: int32 scalar, the same on all devices that `one` communicates with.
    most: what `rounds` can be at most; for 1 there is no loop.
    given: a tree of integer arrays.
    args: a tree of arrays with gradients.
    keep_first: False for the first round in the loops, too. Whoever computes
      the layer again in the backward pass loses nothing, and half of the
      kernels are left to compile.
  """
  if most == 1:
    return one(0, given, args)
  first = 1 if keep_first else 0

  def more(y, rounds, given, args):
    def step(i, y):
      return _add(y, one(i, given, args))

    return lax.fori_loop(first, rounds, step, y)

  def start(given, args):
    """What rounds before the loop put out, and its pullback."""
    if keep_first:
      return jax.vjp(lambda args: one(0, given, args), args)
    return _zeros(jax.eval_shape(one, 0, given, args)), None

  @jax.custom_vjp
  def run(rounds, given, args):
    return more(start(given, args)[0], rounds, given, args)

  def forward(rounds, given, args):
    y, pull = start(given, args)
    return more(y, rounds, given, args), (rounds, given, args, pull)

  def backward(saved, dy):
    rounds, given, args, pull = saved

    def step(i, dargs):
      _, pull = jax.vjp(lambda args: one(i, given, args), args)
      return _add(dargs, *pull(dy))

    (dargs,) = pull(dy) if pull else (_zeros(args),)
    return None, None, lax.fori_loop(first, rounds, step, dargs)

  run.defvjp(forward, backward)
  return run(rounds, given, args)


def _zeros(tree):
  return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree)


def _add(a, b):
  return jax.tree.map(lax.add, a, b)


def run(
  one: Callable,
  group: Group,
  load_P: jax.Array,
  size: int,
  most: int,
  given: Any,
  args: Any,
  keep_first: bool = True,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """`total` of the rounds that all devices need, and what to tell of them.

  Args:
    one: see `total`.
    group: whose devices do the rounds together.
    load_P: int32, choices for each buffer.
    size: of a buffer.
    most: choices that a buffer could be asked to hold.
    given: see `total`.
    args: see `total`; x_ND comes first.
    keep_first: see `total`.
  """
  needed = lax.pmax(-(-load_P.max() // size), group.devices)
  needed = jnp.maximum(needed, 1)
  y_ND = total(
    one, needed, -(-most // size), given, args, keep_first=keep_first
  )
  late = lax.psum(jnp.maximum(load_P - size, 0).sum(), group.devices)
  wanted = lax.psum(load_P.sum(), group.devices)
  frac = late / jnp.maximum(wanted, 1).astype(jnp.float32)
  told = {'rounds': needed.astype(jnp.float32), 'late_frac': frac}
  return y_ND.astype(args[0].dtype), told


class InRounds(nn.Module):
  """A dispatch whose `_exchange` takes as many rounds as the load needs.

  Sows `stats/exchange_rounds`, the most of any stage, and
  `stats/exchange_late_frac`, the share of choices after the first round.

  Attributes:
    room: of a fair share, is what a round holds. At P, one round always does.
    stages: parts of the tokens, of which one can travel while another is
      computed.
    limit: `Chosen -> (Chosen, dropped share)`, such as `capacity.limit` with
      its factor; None drops nothing.
    keep_first: whether the backward pass finds what the first round computed;
      of further ones it never does. False belongs to full rematerialisation.
  """

  room: float = 1.5
  stages: int = 1
  keep_first: bool = True
  limit: Callable | None = None

  accepts = (Chosen,)

  @nn.compact
  def __call__(self, assignment: Chosen, x_ND: jax.Array, experts):
    assignment = exchange.limited(self, assignment)
    y_ND, told = exchange.across(
      self._exchange, assignment, x_ND, experts, stages=self.stages
    )
    self._sow(told)
    return y_ND

  def _sow(self, told):
    rounds = told['rounds'].max() if told else jnp.ones(())
    frac = told['late_frac'].mean() if told else jnp.zeros(())
    self.sow('stats', 'exchange_rounds', rounds)
    self.sow('stats', 'exchange_late_frac', frac)


def buffer_rows(room: float, choices: int, buffers: int = 1) -> int:
  """Rows of a buffer: `room` of its fair share of a device's choices.

  Raises:
    ValueError: if `room` is not positive.
  """
  if not room > 0:
    raise ValueError(
      f'room={room} leaves no row in a buffer; give a positive number, such as '
      '1.5: what does not fit takes further rounds.'
    )
  return max(1, math.ceil(room * choices / buffers))
