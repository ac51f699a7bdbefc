"""The one switch between implementations of an operation.

The choice is made when a program is lowered, because only then is the platform
known: a host without an accelerator may well compile for one. Shapes and
dtypes are known earlier, while tracing, and decide what is eligible.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
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
    partitions: whether the compiler can spread it over the devices of a mesh.
      If not, it is for programs of one device and for the inside of a
      `jax.shard_map`; elsewhere the next entry that does takes its place.
  """

  call: Callable[..., Any]
  platforms: tuple[str, ...] | None = None
  refuses: Callable[..., str | None] = _takes_everything
  partitions: bool = True

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
  best = {p: _best(table, _names(table, args, p)) for p in PLATFORMS}
  if len(set(best.values())) == 1 and best['cpu']:
    return _call(table, best['cpu'])(*args)
  calls = {p: _call(table, names) for p, names in best.items() if names}
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


def _best(table, names) -> tuple[str, ...]:
  """The first name, and the first that partitions if that one does not."""
  if not names or table[names[0]].partitions:
    return tuple(names[:1])
  return (names[0], *[n for n in names if table[n].partitions][:1])


def _call(table, names):
  calls = [table[n].call for n in names]
  return calls[0] if len(calls) == 1 else _one_or_many(*calls)


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
    jaxpr, out = jax.make_jaxpr(call, return_shape=True)(*args)
    avals, tree = tuple(jaxpr.out_avals), jax.tree.structure(out)
    outs = _refuse_p.bind(*jax.tree.leaves(args), avals=avals, message=message)
    return jax.tree.unflatten(tree, outs)

  return refuse


# Two functions of which one is lowered: only then is it known whether the
# program is for one device, or for many over which it will be partitioned.
_one_or_many_p = core.Primitive('one_or_many')
_one_or_many_p.multiple_results = True
_one_or_many_p.def_abstract_eval(lambda *_, one, many: one.out_avals)
_one_or_many_p.def_impl(
  lambda *args, **both: jax.jit(partial(_one_or_many_p.bind, **both))(*args)
)


def _one_or_many(one, many):
  """Does `one`, or `many` in programs that are partitioned over devices."""

  def call(*args):
    leaves, tree = jax.tree.flatten(args)

    def flat(f, *leaves):
      return jax.tree.leaves(f(*jax.tree.unflatten(tree, leaves)))

    both = [jax.make_jaxpr(partial(flat, f))(*leaves) for f in (one, many)]
    outs = _one_or_many_p.bind(*leaves, one=both[0], many=both[1])
    return jax.tree.unflatten(
      jax.tree.structure(jax.eval_shape(one, *args)), outs
    )

  return call


def _one_or_many_lowered(ctx, *args, one, many):
  chosen = many if _is_partitioned(ctx.module_context.axis_context) else one
  call = core.jaxpr_as_fun(chosen)
  return mlir.lower_fun(call, multiple_results=True)(ctx, *args)


def _is_partitioned(where) -> bool:
  """Whether the compiler partitions code lowered here."""
  if hasattr(where, 'num_devices'):
    return where.num_devices > 1
  if not hasattr(where, 'manual_axes'):
    return False
  mesh = where.mesh
  manual = where.manual_axes | set(mesh.manual_axes)
  return bool(where.manual_axes) and manual != set(mesh.axis_names)


def _one_or_many_batched(args, axes, *, one, many):
  one, many = (
    jax.make_jaxpr(jax.vmap(core.jaxpr_as_fun(f), in_axes=axes))(*args)
    for f in (one, many)
  )
  outs = _one_or_many_p.bind(*args, one=one, many=many)
  return outs, [0] * len(outs)


mlir.register_lowering(_one_or_many_p, _one_or_many_lowered)
batching.primitive_batchers[_one_or_many_p] = _one_or_many_batched
