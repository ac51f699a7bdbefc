"""Which activations can run inside of a kernel."""

from __future__ import annotations

import functools
from collections.abc import Hashable

import jax
import jax.numpy as jnp
from jax.extend import core

# They call a function, which is looked into.
_CALLS = frozenset(('jit', 'pjit', 'closed_call', 'custom_jvp_call'))


def cannot_fuse(activation, known: str, kernels: str) -> str | None:
  """Why value or derivative cannot be computed in a kernel, or `None`.

  Args:
    activation: an element-wise function.
    known: names of primitives that are translated, in one string.
    kernels: their kind, for the message.
  """
  if isinstance(activation, Hashable):
    return _examined(activation, known, kernels)
  return _examined.__wrapped__(activation, known, kernels)


@functools.lru_cache(maxsize=128)
def _examined(activation, known, kernels) -> str | None:
  x = jax.ShapeDtypeStruct((16, 16), jnp.float32)

  def both(x, dy):
    y, pull = jax.vjp(activation, x)
    return activation(x), y, pull(dy)

  jaxpr = jax.make_jaxpr(both)(x, x)
  if jaxpr.consts:
    return 'the activation holds an array'
  unknown = sorted(set(_primitives(jaxpr.jaxpr)) - set(known.split()))
  if unknown:
    return f'{kernels} kernels have no {", ".join(unknown)} for the activation'
  return None


def _primitives(jaxpr):
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    inner = [
      value
      for value in equation.params.values()
      if isinstance(value, core.ClosedJaxpr)
    ]
    if name not in _CALLS:
      yield name
    elif any(closed.consts for closed in inner):
      yield f'{name} with an array'
    for closed in inner:
      yield from _primitives(closed.jaxpr)
