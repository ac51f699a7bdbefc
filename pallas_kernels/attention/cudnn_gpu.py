"""Attention by cuDNN, through `jax.nn`.

Documents reach it as an added matrix of T^2 numbers a row, in the dtype of the
queries: `jax.nn` has no other way. Values get the size of keys, by zeros. The
backward pass runs the forward one again, as with splash.
"""

from __future__ import annotations

import functools
import importlib.util

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

# Larger heads are for Hopper, and jax asks the host for its GPU to know.
MOST_SIZE = 128


@functools.cache
def _installed() -> bool:
  plugins = ('jax_cuda12_plugin', 'jax_cuda13_plugin')
  return any(importlib.util.find_spec(name) for name in plugins)


def refuses(q, k, v, positions, segments, *_) -> str | None:
  """Why cuDNN does not take these arguments."""
  del k, positions, segments
  if not _installed():
    return "jax's CUDA plugin, which knows the version of cuDNN, is missing"
  if q.dtype not in (jnp.bfloat16, jnp.float16):
    return f'it takes bfloat16 and float16, not {q.dtype}'
  size = q.shape[3]
  if size > MOST_SIZE or size % 8 or v.shape[3] > size:
    return (
      f'heads of {size} and {v.shape[3]} are not a multiple of 8 of at most '
      f'{MOST_SIZE}, with values no larger'
    )
  if q.shape[1] % 2:
    return f'{q.shape[1]} tokens are an odd number'
  return None


def forward(q, k, v, positions, segments, *, window, scale):
  """`attention`; places stand for positions, as documents are in one piece."""
  del positions
  missing = k.shape[3] - v.shape[3]
  call = functools.partial(
    jax.nn.dot_product_attention,
    scale=scale,
    is_causal=True,
    local_window_size=None if window is None else (window - 1, 0),
    implementation='cudnn',
  )
  y = _on_one_device(lambda q, k, v, mask: call(q, k, v, mask=mask))(
    q,
    k,
    jnp.pad(v, ((0, 0),) * 3 + ((0, missing),)),
    (segments[:, :, None] == segments[:, None])[:, None],
  )
  return y[..., : v.shape[3]]


def _on_one_device(f):
  """`f` as the body of a `shard_map` over one device, if it is not in one.

  The call knows how to be spread over devices and asks the compiler for them,
  which a program that is lowered for any one device does not say.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    mesh = AbstractMesh((1,), ('device',))
  elif all(kind == AxisType.Manual for kind in mesh.axis_types):
    return f
  whole = PartitionSpec()
  return jax.shard_map(
    f, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False
  )


def backward(q, k, v, positions, segments, y, dy, **options):
  """Gradients for q, k and v."""
  del y
  _, pull = jax.vjp(
    lambda *args: forward(*args, positions, segments, **options), q, k, v
  )
  return pull(dy)
