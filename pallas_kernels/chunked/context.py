"""Chunked recurrences where a mesh axis cuts time: context parallelism.

What a device's tokens do is affine in the state S that they find,

  S_out = M S + S_own,   y_t = R_t S + r_t,

with r_t and S_own what they do to a state of zeros. M and S_own of all devices
are gathered, 4 B G K (K + V) bytes of each for the delta rule and 4 B G K (V +
1) for the rules that only add, whose M is diagonal. Chained in f32 they give
every device its S. Nothing else is sent.

No device runs twice. With values [v | 0] and the state [0 | I] the delta rule
itself gives [r | R] and [S_own | M]. For K = V and chunks of C tokens that is,
per token and head, 14 K^2 + 12 C K FLOPs and one solve of the triangle, reading
R_t S included. A pass for [S_own | M] and another one from S would take 18 K^2
+ 20 C K and two solves; one device alone takes 6 K^2 + 8 C K and one. Where M
is diagonal, R_t is a decayed query: 2 K^2 on top.

All is for the inside of a `jax.shard_map` in which `axis` is manual. Gradients
are jax's own.  Source: 2510.26692 eq. 6 to 9, of one chunk there.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.chunked.inputs import prepare, wide_dtype
from pallas_kernels.chunked_delta.api import chunked_delta
from pallas_kernels.chunked_linear.api import chunked_linear


def delta(
  axis: str,
  q_BTHK: jax.Array,
  k_BTHK: jax.Array,
  v_BTGV: jax.Array,
  log_decay: jax.Array | None,
  beta_BTG: jax.Array,
  *,
  state_BGKV: jax.Array | None = None,
  **options,
) -> tuple[jax.Array, jax.Array]:
  """`chunked_delta` of the tokens of all devices along `axis`, in its order.

  Args:
    axis: the mesh axis.
    q_BTHK: this device's tokens, as are the other arrays.
    k_BTHK: likewise.
    v_BTGV: likewise.
    log_decay: likewise.
    beta_BTG: likewise.
    state_BGKV: before the first token of all, the same on every device.
    **options: of `chunked_delta`.

  Returns:
    y of this device's tokens, and the state after the last of all tokens, bit
    for bit the same on every device.
  """
  values, keys = v_BTGV.shape[-1], k_BTHK.shape[-1]
  batch, _, heads, _ = v_BTGV.shape
  v_BTGX = jnp.pad(v_BTGV, ((0, 0), (0, 0), (0, 0), (0, keys)))
  unit_KX = jnp.eye(keys, values + keys, values, wide_dtype(v_BTGV.dtype))
  y_BTGX, out_BGKX = chunked_delta(
    q_BTHK,
    k_BTHK,
    v_BTGX,
    log_decay,
    beta_BTG,
    state_BGKV=jnp.broadcast_to(unit_KX, (batch, heads, *unit_KX.shape)),
    **options,
  )

  def after(state_BGKV, out_BGKX):
    own_BGKV, gain_BGKK = jnp.split(out_BGKX, [values], axis=-1)
    return _dot('bgij,bgjv->bgiv', gain_BGKK, state_BGKV) + own_BGKV

  if state_BGKV is None:
    state_BGKV = jnp.zeros_like(out_BGKX[..., :values])
  state_BGKV, last_BGKV = _chain(axis, after, state_BGKV, out_BGKX)
  own_BTGV, read_BTGK = jnp.split(y_BTGX, [values], axis=-1)
  return _add(own_BTGV, read_BTGK, state_BGKV), last_BGKV


def linear(
  axis: str,
  q_BTHK: jax.Array,
  k_BTHK: jax.Array,
  v_BTGV: jax.Array,
  log_decay: jax.Array | None,
  *,
  state_BGKV: jax.Array | None = None,
  starts_BT: jax.Array | None = None,
  scale: float | None = None,
  **options,
) -> tuple[jax.Array, jax.Array]:
  """`chunked_linear` of the tokens of all devices along `axis`; see `delta`."""
  log_decay, state_BGKV = prepare(
    'chunked_linear', q_BTHK, k_BTHK, v_BTGV, log_decay, state_BGKV, starts_BT
  )
  scale = q_BTHK.shape[-1] ** -0.5 if scale is None else scale
  own_BTGV, own_BGKV = chunked_linear(
    q_BTHK, k_BTHK, v_BTGV, log_decay, scale=scale, **options
  )
  kept_BTGK = _kept(log_decay, v_BTGV)
  gain_BGK1 = jnp.broadcast_to(
    kept_BTGK[:, -1, ..., None], (*own_BGKV.shape[:-1], 1)
  )

  def after(state_BGKV, out_BGKX):
    return out_BGKX[..., -1:] * state_BGKV + out_BGKX[..., :-1]

  state_BGKV, last_BGKV = _chain(
    axis, after, state_BGKV, jnp.concatenate([own_BGKV, gain_BGK1], axis=-1)
  )
  q_BTGK = jnp.repeat(q_BTHK, v_BTGV.shape[2] // q_BTHK.shape[2], axis=2)
  read_BTGK = (scale * q_BTGK * kept_BTGK).astype(q_BTHK.dtype)
  return _add(own_BTGV, read_BTGK, state_BGKV), last_BGKV


def halo(x_BT: jax.Array, width: int, axis: str) -> jax.Array:
  """[B, width, ...]: the tokens before this device's first.

  They are the last of its left neighbour; the first device gets zeros. Whether
  a document ends in between is for the caller to say.

  Raises:
    ValueError: a device has fewer than `width` tokens.
  """
  length = x_BT.shape[1]
  if length < width:
    raise ValueError(
      f'{length} tokens per device along mesh axis {axis!r} are fewer than the '
      f'{width} that a neighbour looks back on; use longer sequences or a '
      f'smaller axis.'
    )
  right = [(i, i + 1) for i in range(lax.axis_size(axis) - 1)]
  return lax.ppermute(x_BT[:, length - width :], axis, right)


def _kept(log_decay, v_BTGV):
  """[B, T, G, K or 1]: what is left of the state found, after each token.

  The sums run from the first token on and only fall: no digit that counts is
  lost, and nothing is left once a document has started.
  """
  if log_decay is None:
    return jnp.ones((*v_BTGV.shape[:3], 1), wide_dtype(v_BTGV.dtype))
  log_decay = log_decay.reshape(*v_BTGV.shape[:3], -1)
  return jnp.exp(jnp.cumsum(log_decay, axis=1))


def _chain(axis, after, state_BGKV, out_BGKX):
  """-> the state that this device finds, and the state after the last device.

  Every device computes all of them, in the same order from the same numbers.
  """

  def step(state_BGKV, out_BGKX):
    return after(state_BGKV, out_BGKX), state_BGKV

  out_RBGKX = lax.all_gather(out_BGKX, axis)
  last_BGKV, found_RBGKV = lax.scan(step, state_BGKV, out_RBGKX)
  return found_RBGKV[lax.axis_index(axis)], last_BGKV


def _add(own_BTGV, read_BTGK, state_BGKV):
  """y with what is read of the state found."""
  found_BTGV = _dot(
    'btgk,bgkv->btgv', read_BTGK, state_BGKV.astype(read_BTGK.dtype)
  )
  return (own_BTGV + found_BTGV).astype(own_BTGV.dtype)


def _dot(spec, a, b):
  """A product with sums in f32, and of all digits of its operands."""
  return jnp.einsum(
    spec,
    a,
    b,
    precision=lax.Precision.HIGHEST,
    preferred_element_type=wide_dtype(a.dtype),
  )
