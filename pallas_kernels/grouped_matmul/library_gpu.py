"""The three forms through libraries for NVIDIA GPUs, only when named.

Both are imported when they are called. Neither is a default:
`jax.experimental.pallas.ops.gpu` searches for the group of a tile by
instructions for each group, which spills registers at 128 groups, and tokamax
asks the host for its device while tracing.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util

import jax
import jax.numpy as jnp

from pallas_kernels.grouped_matmul.library import NT, TN, live

# Compiled for an H100 it spills no register up to here.
MOST_GROUPS = 64
_BLOCKS = dict(
  block_m=128, block_n=128, block_k=64, max_concurrent_steps=4, grid_block_n=4
)
_JAX_OPS = 'jax.experimental.pallas.ops.gpu'


@functools.cache
def _has(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:
    return False


def mosaic_refuses(form: str, a, b, sizes_E) -> str | None:
  """Why jax's ragged product for Hopper does not take these arguments."""
  name = 'transposed_ragged_dot_mgpu' if form == 'tn' else 'ragged_dot_mgpu'
  if not _has(f'{_JAX_OPS}.{name}'):
    return f'jax {jax.__version__} has no {_JAX_OPS}.{name}'
  if a.dtype != jnp.bfloat16:
    return f'it takes bfloat16, not {a.dtype}'
  groups = sizes_E.shape[0]
  if groups > MOST_GROUPS:
    return f'{groups} groups exceed the {MOST_GROUPS} it has registers for'
  widths = (a.shape[1], b.shape[1]) if form == 'tn' else b.shape[1:]
  if form == 'tn' and not hasattr(jax.devices()[0], 'core_count'):
    return 'it asks the host for the core count of its GPU, and there is none'
  if any(width % 128 for width in widths):
    return f'widths {widths} are not multiples of 128'
  return None


def mosaic(form: str, a, b, sizes_E):
  """One form by jax's kernels for Hopper."""
  sizes_E = sizes_E.astype(jnp.int32)
  name = 'transposed_ragged_dot' if form == 'tn' else 'ragged_dot'
  module = importlib.import_module(f'{_JAX_OPS}.{name}_mgpu')
  call = functools.partial(
    getattr(module, name), group_sizes=sizes_E, **_BLOCKS
  )
  if form == 'tn':
    # Rows beside a group are multiplied by zero: they must be finite.
    return call(live(a, sizes_E), live(b, sizes_E))
  return live(call(a, b, transpose_rhs=form == 'nt'), sizes_E)


def tokamax_refuses(form: str, a, b, sizes_E) -> str | None:
  """Why tokamax does not take these arguments, or `None`."""
  del form, sizes_E
  if not _has('tokamax'):
    return 'the package tokamax is not installed'
  if a.dtype != jnp.bfloat16 or b.dtype != jnp.bfloat16:
    return f'it takes bfloat16, not {a.dtype} and {b.dtype}'
  return None


def tokamax(form: str, a, b, sizes_E):
  """One form by tokamax, in Triton: its own choice may be a dense product."""
  library = importlib.import_module('tokamax')
  call = functools.partial(
    library.ragged_dot_general,
    group_sizes=sizes_E,
    preferred_element_type=a.dtype,
    implementation='triton',
  )
  if form == 'tn':
    a, b = live(a, sizes_E), live(b, sizes_E)
    return call(a, b, ragged_dot_dimension_numbers=TN)
  if form == 'nt':
    return live(call(a, b, ragged_dot_dimension_numbers=NT), sizes_E)
  y = library.ragged_dot(
    a,
    b,
    sizes_E,
    preferred_element_type=a.dtype,
    implementation='triton',
  )
  return live(y, sizes_E)
