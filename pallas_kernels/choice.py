"""The primitive behind `choose`: functions of which one is traced and lowered.

The functions are traced by the lowering rule of a platform, the only place
where the platform is known. Transformations come before; they wrap the
functions and stay as lazy. So a program costs the trace of what it runs, not of
the kernels for every other platform.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import jax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')

_choice_p = core.Primitive('choice')
_choice_p.multiple_results = True
_choice_p.def_abstract_eval(lambda *_, avals, **__: avals)


def choice(
  op: str,
  calls: Mapping[str, tuple[Callable, ...]],
  like: Callable,
  message: str,
  args: tuple,
):
  """The results of the function of the platform that is lowered for.

  Args:
    op: the operation's name, for messages and printed programs.
    calls: platform to one function, or to two, of which the second is for
      programs that the compiler partitions over devices.
    like: one of the functions, traced for the shapes that all return.
    message: of the error where a program is lowered for another platform.
    args: trees of arrays.

  Raises:
    NotImplementedError: while lowering, for a platform that is not in `calls`.
  """
  leaves, tree = jax.tree.flatten(args)
  flat = {}

  def flatten(f):
    # One function for all platforms that share it.
    def call(*leaves):
      return jax.tree.leaves(f(*jax.tree.unflatten(tree, leaves)))

    return flat.setdefault(f, call)

  jaxpr, shapes = jax.make_jaxpr(like, return_shape=True)(*args)
  outs = _choice_p.bind(
    *leaves,
    op=op,
    calls=tuple((p, tuple(map(flatten, fs))) for p, fs in calls.items()),
    avals=tuple(jaxpr.out_avals),
    message=message,
    # What the functions are traced under is what holds here.
    config=(
      jax.config.jax_default_matmul_precision,
      jax.config.jax_enable_x64,
    ),
  )
  return jax.tree.unflatten(jax.tree.structure(shapes), outs)


def _lower(ctx, *args, platform, op, calls, avals, message, config):
  found = dict(calls).get(platform)
  if found is None:
    raise NotImplementedError(message)
  many = len(found) > 1 and _is_partitioned(ctx.module_context.axis_context)
  call = found[1] if many else found[0]

  def checked(*args):
    outs = call(*args)
    kinds = [[(x.shape, x.dtype) for x in xs] for xs in (outs, avals)]
    if kinds[0] != kinds[1]:
      raise TypeError(
        f'{op}: the implementation for {platform} returns {kinds[0]}, and '
        f'another {kinds[1]}; all must return the same.'
      )
    return outs

  with jax.default_matmul_precision(config[0]), jax.enable_x64(config[1]):
    return mlir.lower_fun(checked, multiple_results=True)(ctx, *args)


def _is_partitioned(where) -> bool:
  """Whether the compiler partitions code lowered here."""
  if hasattr(where, 'num_devices'):
    return where.num_devices > 1
  if not hasattr(where, 'manual_axes'):
    return False
  mesh = where.mesh
  manual = where.manual_axes | set(mesh.manual_axes)
  return bool(where.manual_axes) and manual != set(mesh.axis_names)


def _run(*args, calls, message, **params):
  """Outside of jit. Only lowering can tell one device from many."""
  if any(len(found) > 1 for _, found in calls):
    bind = partial(_choice_p.bind, calls=calls, message=message, **params)
    return jax.jit(bind)(*args)

  def refuse(*_):
    raise NotImplementedError(message)

  calls = {p: call for p, (call,) in calls}
  return jax.lax.platform_dependent(*args, default=refuse, **calls)


def _wrapped(wrap, calls):
  """`calls` with every function `f` as `wrap(f)`."""
  return tuple((p, tuple(wrap(f) for f in found)) for p, found in calls)


def _batched(args, axes, *, calls, avals, **params):
  size = next(
    x.shape[axis]
    for x, axis in zip(args, axes, strict=True)
    if axis is not None
  )
  # Traced, as an aval also says over which axes of a mesh it varies.
  grow = jax.make_jaxpr(lambda *xs: [jax.lax.broadcast(x, (size,)) for x in xs])
  avals = tuple(grow(*avals).out_avals)
  calls = _wrapped(lambda f: jax.vmap(f, in_axes=axes), calls)
  outs = _choice_p.bind(*args, calls=calls, avals=avals, **params)
  return outs, [0] * len(outs)


def _jvp(primals, tangents, *, calls, avals, **params):
  outs = _choice_p.bind(*primals, calls=calls, avals=avals, **params)
  moving = [i for i, t in enumerate(tangents) if type(t) is not ad.Zero]
  smooth = [i for i, a in enumerate(avals) if _is_smooth(a)]

  def tangent(f):
    def call(*args):
      still, moved = list(args[: len(primals)]), args[len(primals) :]

      def g(*moved):
        outs = f(*_put(still, moving, moved))
        return [outs[i] for i in smooth]

      return jax.jvp(g, tuple(still[i] for i in moving), tuple(moved))[1]

    return call

  dots = _choice_p.bind(
    *primals,
    *(tangents[i] for i in moving),
    calls=_wrapped(tangent, calls),
    avals=tuple(avals[i].to_tangent_aval() for i in smooth),
    **params,
  )
  zeros = [ad.Zero(aval.to_tangent_aval()) for aval in avals]
  return outs, _put(zeros, smooth, dots)


def _transpose(cotangents, *args, calls, avals, **params):
  """Of a choice that is linear in the arguments that are not known."""
  linear = [i for i, x in enumerate(args) if ad.is_undefined_primal(x)]
  known = [i for i in range(len(args)) if i not in linear]
  shapes = tuple(args[i].aval for i in linear)

  def transposed(f):
    def call(*xs):
      held = _put([None] * len(args), known, xs[: len(known)])

      def g(*moved):
        return f(*_put(held, linear, moved))

      return list(jax.linear_transpose(g, *shapes)(list(xs[len(known) :])))

    return call

  cotangents = [
    ct.instantiate() if type(ct) is ad.Zero else ct for ct in cotangents
  ]
  outs = _choice_p.bind(
    *(args[i] for i in known),
    *cotangents,
    calls=_wrapped(transposed, calls),
    avals=shapes,
    **params,
  )
  return _put([None] * len(args), linear, outs)


def _put(xs, places, values):
  """A copy of the list `xs` with `values` at `places`."""
  xs = list(xs)
  for i, value in zip(places, values, strict=True):
    xs[i] = value
  return xs


def _is_smooth(aval) -> bool:
  return aval.to_tangent_aval().dtype == aval.dtype


_choice_p.def_impl(_run)
ad.primitive_jvps[_choice_p] = _jvp
ad.primitive_transposes[_choice_p] = _transpose
batching.primitive_batchers[_choice_p] = _batched
for _p in PLATFORMS:
  mlir.register_lowering(_choice_p, partial(_lower, platform=_p), platform=_p)
# Any other.
mlir.register_lowering(_choice_p, partial(_lower, platform=None))
