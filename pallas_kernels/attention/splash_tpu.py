"""Attention by jax's splash kernels, which skip blocks that nothing sees.

The backward pass runs the forward one again: the library does not hand out
what its gradient keeps in any way that would cross the choice of a platform.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Larger blocks do more work for each read of keys and values.
BLOCKS = (512, 256, 128)


def refuses(q, k, v, positions, segments, *_) -> str | None:
  """Why splash does not take these arguments."""
  del k, v, positions, segments
  if q.shape[1] % BLOCKS[-1]:
    return f'{q.shape[1]} tokens are no multiple of {BLOCKS[-1]}'
  if q.dtype not in (jnp.float32, jnp.bfloat16):
    return f'it takes float32 and bfloat16, not {q.dtype}'
  return None


def forward(
  q, k, v, positions, segments, *, window, scale, interpret: bool = False
):
  """`attention`; places stand for positions, as documents are in one piece."""
  # Imported late: a process for another platform need not have it.
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  del positions
  _, length, heads, size = q.shape
  if window is None or window >= length:
    mask = splash.CausalMask((length, length))
  else:
    mask = splash.LocalMask((length, length), (window - 1, 0), 0)
  block = next(b for b in BLOCKS if length % b == 0)
  kernel = splash.make_splash_mha_single_device(
    splash.MultiHeadMask([mask] * heads),
    block_sizes=splash.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_kv_dkv_compute=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
    interpret=interpret,
  )
  scale = size**-0.5 if scale is None else scale
  q, k, v = (a.swapaxes(1, 2) for a in (q * scale, k, v))
  ids = splash.SegmentIds(segments, segments)
  return jax.vmap(kernel)(q, k, v, ids).swapaxes(1, 2)


def backward(q, k, v, positions, segments, y, dy, **options):
  """Gradients for q, k and v."""
  del y
  _, pull = jax.vjp(
    lambda *args: forward(*args, positions, segments, **options), q, k, v
  )
  return pull(dy)
