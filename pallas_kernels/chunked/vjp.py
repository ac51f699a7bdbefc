"""An operation with a gradient, of implementations that each keep their own.

What an implementation keeps from the forward pass has shapes of its own (its
chunks), yet which one runs is known at lowering only, after the gradient was
taken. So the forward pass returns a place for what each eligible one keeps, and
the one that runs leaves zeros in the places of the others. Nobody reads those:
within one program the compiler removes them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.choose import Entry, choose


def _takes_everything(*_args, **_static) -> None:
  return None


@dataclasses.dataclass(frozen=True)
class Implementation:
  """One way to run an operation `outs = f(*args)` and its gradient.

  All functions also take the static keywords of the operation.

  Attributes:
    forward: `(*args, keep) -> (outs, kept)`; `kept` is a tree of arrays as
      `shapes` tells if `keep`, else `()`.
    shapes: `(*args) -> ` a tree of `jax.ShapeDtypeStruct`, of what is kept.
    backward: `(args, kept, d_outs) -> d_args`, a tuple as long as `args`.
    platforms, partitions: as of `choose.Entry`.
    refuses: `(*args) -> ` the reason why it does not take these, or `None`.
  """

  forward: Callable[..., Any]
  shapes: Callable[..., Any]
  backward: Callable[..., Any]
  platforms: tuple[str, ...] | None = None
  refuses: Callable[..., str | None] = _takes_everything
  partitions: bool = True


def table(tpu, gpu, everywhere) -> dict[str, Implementation]:
  """Best first: modules of kernels for a platform, and what runs on each.

  A module has `forward`, `shapes` and `backward`; those of a platform say what
  they refuse, and the compiler cannot spread them over devices.
  """

  def only(platform, module):
    return Implementation(
      module.forward,
      module.shapes,
      module.backward,
      platforms=(platform,),
      refuses=module.refuses,
      partitions=False,
    )

  return {
    'mosaic': only('tpu', tpu),
    'triton': only('cuda', gpu),
    'xla': Implementation(
      everywhere.forward, everywhere.shapes, everywhere.backward
    ),
  }


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def differentiable(which, *args):
  """The operation, by the implementation chosen at lowering.

  Args:
    which: a `Which`.
    *args: arrays, or `None`.
  """
  return _forward(which, args, keep=False)[0]


@dataclasses.dataclass(frozen=True)
class Which:
  """The static part of a call.

  Attributes:
    op: name of the operation.
    table: name to implementation as pairs, best first.
    implementation: a name, or `None`.
    static: static keywords as pairs.
  """

  op: str
  table: tuple[tuple[str, Implementation], ...]
  implementation: str | None
  static: tuple[tuple[str, Any], ...]


def _forward(which, args, keep):
  static = dict(which.static)
  shapes = _shapes(which, args) if keep else {}

  def entry(name, found):
    def call(args):
      outs, kept = found.forward(*args, keep=keep, **static)
      places = {n: kept if n == name else _zeros(s) for n, s in shapes.items()}
      return outs, places

    return call

  return _choose(which, entry, args)


def _shapes(which, args):
  """What each implementation that may come to run keeps."""
  static = dict(which.static)
  return {
    name: found.shapes(*args, **static)
    for name, found in which.table
    if which.implementation in (None, name)
    and found.refuses(*args, **static) is None
  }


def _zeros(shapes):
  return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def _keeping(which, *args):
  outs, places = _forward(which, args, keep=True)
  return outs, (args, places)


def _backward(which, saved, d_outs):
  args, places = saved

  def entry(name, found):
    def call(args, kept, d_outs):
      return found.backward(args, kept[name], d_outs, **dict(which.static))

    return call

  return _choose(which, entry, args, places, d_outs)


def _choose(which, entry, args, *rest):
  static = dict(which.static)

  def refuses(found):
    return lambda args, *_rest: found.refuses(*args, **static)

  table: Mapping[str, Entry] = {
    name: Entry(
      entry(name, found), found.platforms, refuses(found), found.partitions
    )
    for name, found in which.table
  }
  return choose(
    which.op, table, args, *rest, implementation=which.implementation
  )


differentiable.defvjp(_keeping, _backward)
