"""The one switch between implementations of an operation.

The choice is made when a program is lowered, because only then is the platform
known: a host without an accelerator may well compile for one. Shapes and
dtypes are known earlier, while tracing, and decide what is eligible.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


def _takes_everything(*_args) -> None:
  return None


@dataclasses.dataclass(frozen=True)
class Entry:
  """One implementation of an operation.

  Attributes:
    call: the function; all entries of a table take and return the same.
    platforms: where it runs; `None` is everywhere.
    refuses: from the arguments (their static shapes and dtypes only), the
      reason why this entry does not take them, or `None`.
  """

  call: Callable[..., Any]
  platforms: tuple[str, ...] | None = None
  refuses: Callable[..., str | None] = _takes_everything

  def runs_on(self, platform: str) -> bool:
    return self.platforms is None or platform in self.platforms


def choose(
  op: str,
  table: Mapping[str, Entry],
  *args,
  implementation: str | None = None,
):
  """Calls one implementation of `op` on `args`.

  Args:
    op: the operation's name, for messages.
    table: name to entry, best first.
    *args: trees of arrays.
    implementation: `None` takes, on each platform, the first entry that runs
      there and takes these arguments; a name takes that one or fails.

  Raises:
    ValueError: the name is not in the table.
    NotImplementedError: the named entry does not take these arguments (while
      tracing) or does not run on the platform (while lowering).
  """
  if implementation is not None:
    return _named(op, table, args, implementation)
  best = {p: _names(table, args, p)[:1] for p in PLATFORMS}
  if len(set(map(tuple, best.values()))) == 1 and best['cpu']:
    return table[best['cpu'][0]].call(*args)
  calls = {p: table[n[0]].call for p, n in best.items() if n}
  message = f'{op}: nothing runs here; {_here(table, args)}'
  if not calls:
    raise NotImplementedError(message)
  refuse = _refusal(next(iter(calls.values())), message)
  return jax.lax.platform_dependent(*args, default=refuse, **calls)


def _named(op, table, args, name):
  if name not in table:
    raise ValueError(
      f'{op}: implementation={name!r} is unknown; use None or one of '
      f'{", ".join(table)}.'
    )
  entry = table[name]
  here = _here(table, args)
  reason = entry.refuses(*args)
  if reason is not None:
    raise NotImplementedError(
      f'{op}: implementation={name!r} refuses: {reason}; {here}'
    )
  if entry.platforms is None:
    return entry.call(*args)
  refuse = _refusal(
    entry.call,
    f'{op}: implementation={name!r} runs on {", ".join(entry.platforms)} '
    f'only; {here}',
  )
  calls = {p: entry.call for p in PLATFORMS if entry.runs_on(p)}
  return jax.lax.platform_dependent(*args, default=refuse, **calls)


def _names(table, args, platform) -> list[str]:
  return [
    name
    for name, entry in table.items()
    if entry.runs_on(platform) and entry.refuses(*args) is None
  ]


def _here(table, args) -> str:
  """Says what runs where, for messages."""
  places = (
    f'{p}: {", ".join(_names(table, args, p)) or "nothing"}' for p in PLATFORMS
  )
  return f'for these arguments there is {"; ".join(places)}.'


# A primitive that can be traced but not lowered: a branch of it turns into an
# error exactly when a program is lowered for a platform that needs it.
_refuse_p = core.Primitive('refuse')
_refuse_p.multiple_results = True
_refuse_p.def_abstract_eval(lambda *_, avals, message: avals)


def _refuse(*_, avals, message):
  raise NotImplementedError(message)


def _refuse_batched(args, axes, *, avals, message):
  size = next(
    x.shape[axis]
    for x, axis in zip(args, axes, strict=True)
    if axis is not None
  )
  avals = tuple(
    jax.core.ShapedArray((size, *aval.shape), aval.dtype) for aval in avals
  )
  outs = _refuse_p.bind(*args, avals=avals, message=message)
  return outs, [0] * len(outs)


def _refuse_jvp(primals, _tangents, **params):
  outs = _refuse_p.bind(*primals, **params)
  return outs, [ad.Zero(jax.typeof(o).to_tangent_aval()) for o in outs]


_refuse_p.def_impl(_refuse)
ad.primitive_jvps[_refuse_p] = _refuse_jvp
mlir.register_lowering(_refuse_p, _refuse)
batching.primitive_batchers[_refuse_p] = _refuse_batched


def _refusal(call, message):
  """A function with the results of `call` that fails when it is lowered."""

  def refuse(*args):
    leaves, tree = jax.tree.flatten(jax.eval_shape(call, *args))
    avals = tuple(jax.core.ShapedArray(x.shape, x.dtype) for x in leaves)
    outs = _refuse_p.bind(*jax.tree.leaves(args), avals=avals, message=message)
    return jax.tree.unflatten(tree, outs)

  return refuse
