"""Which activations can run inside of a GPU kernel."""

from __future__ import annotations

import functools
from collections.abc import Hashable

import jax
import jax.numpy as jnp
from jax.extend import core

# What Pallas translates to Triton, of what activations are made of.
_SIMPLE = (
  'abs add add_any and broadcast_in_dim cbrt ceil clamp convert_element_type '
  'cos cosh div eq erf_inv exp exp2 expm1 floor ge gt integer_pow is_finite le '
  'log log1p logistic lt max min mul ne neg not or pow reshape rsqrt select_n '
  'sign sin sinh sqrt square squeeze sub tan tanh xor'
)
# They call a function, which is looked into.
_CALLS = frozenset(('jit', 'pjit', 'closed_call', 'custom_jvp_call'))


def cannot_fuse(activation) -> str | None:
  """Why value or derivative cannot be computed in a kernel, or `None`."""
  if isinstance(activation, Hashable):
    return _examined(activation)
  return _examined.__wrapped__(activation)


@functools.lru_cache(maxsize=128)
def _examined(activation) -> str | None:
  x = jax.ShapeDtypeStruct((16, 16), jnp.float32)

  def both(x, dy):
    y, pull = jax.vjp(activation, x)
    return activation(x), y, pull(dy)

  jaxpr = jax.make_jaxpr(both)(x, x)
  if jaxpr.consts:
    return 'the activation holds an array'
  unknown = sorted(set(_primitives(jaxpr.jaxpr)) - set(_SIMPLE.split()))
  if unknown:
    return f'Triton kernels have no {", ".join(unknown)} for the activation'
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
