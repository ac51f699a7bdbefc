"""What the chunked recurrences take: checks, and borders as decays."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# The log decay of a token before which nothing counts. Finite, so that its
# products are never NaN, and so low that its exponential is 0.
FORGET = -1e30


def prepare(op, q_BTHK, k_BTHK, v_BTGV, log_decay, state_BGKV, starts_BT):
  """Checks, and fills in: `log_decay` with borders, and a state.

  Returns:
    `log_decay`, which is FORGET, without a gradient, where a document starts,
    and `None` if there is neither decay nor border; and the state, in f32
    (f64 for f64 inputs), zeros if `None` was given.
  """
  _check_sequences(op, q_BTHK, k_BTHK, v_BTGV)
  B, T, H, K = q_BTHK.shape
  G, V = v_BTGV.shape[2:]
  wide = wide_dtype(v_BTGV.dtype)
  if log_decay is not None:
    check_array(
      op, 'log_decay', log_decay, wide, ((B, T, G), (B, T, G, K)), 'BTG or BTGK'
    )
  if starts_BT is not None:
    check_array(op, 'starts_BT', starts_BT, jnp.bool_, ((B, T),), 'BT')
    log_decay = _with_borders(log_decay, starts_BT, (B, T, G), wide)
  if state_BGKV is None:
    return log_decay, jnp.zeros((B, G, K, V), wide)
  check_array(op, 'state_BGKV', state_BGKV, wide, ((B, G, K, V),), 'BGKV')
  return log_decay, state_BGKV


def _with_borders(log_decay, starts_BT, shape, wide):
  if log_decay is None:
    log_decay = jnp.zeros(shape, wide)
  starts = jnp.expand_dims(starts_BT, range(2, log_decay.ndim))
  return jnp.where(starts, jnp.asarray(FORGET, wide), log_decay)


def wide_dtype(dtype):
  """Of gates, state and sums: f32, or f64 for f64."""
  return jnp.promote_types(dtype, jnp.float32)


def check_array(op, name, array, dtype, shapes, axes):
  """That `array` has the dtype and one of the shapes."""
  if array.shape not in shapes:
    raise ValueError(
      f'{op}: {name} is {array.shape}; with these q, k and v it must be '
      f'[{axes}], {" or ".join(map(str, shapes))}.'
    )
  if array.dtype != dtype:
    raise ValueError(
      f'{op}: {name} is {array.dtype}; with these q, k and v it must be '
      f'{jnp.dtype(dtype)}: cast it.'
    )


def check_static(op, chunk, implementation, names):
  """That `chunk` is a power of two, and `implementation` known."""
  if chunk is not None and (chunk < 1 or chunk & (chunk - 1)):
    raise ValueError(
      f'{op}: chunk={chunk} tokens; use a positive power of two, or None for '
      'the best of the implementation.'
    )
  if implementation is not None and implementation not in names:
    raise ValueError(
      f'{op}: implementation={implementation!r} is unknown; use None or one of '
      f'{", ".join(names)}.'
    )


def _check_sequences(op, q_BTHK, k_BTHK, v_BTGV):
  fits = (
    q_BTHK.ndim == v_BTGV.ndim == 4
    and q_BTHK.shape == k_BTHK.shape
    and q_BTHK.shape[:2] == v_BTGV.shape[:2]
  )
  if not fits:
    raise ValueError(
      f'{op} takes q and k [B, T, H, K] and v [B, T, G, V], not '
      f'{q_BTHK.shape}, {k_BTHK.shape} and {v_BTGV.shape}.'
    )
  H, G = q_BTHK.shape[2], v_BTGV.shape[2]
  if H == 0 or G == 0 or G % H:
    raise ValueError(
      f'{op}: {G} value heads and {H} key heads; the first must be a multiple '
      'of the second, as each key head serves equally many.'
    )
  dtypes = {q_BTHK.dtype, k_BTHK.dtype, v_BTGV.dtype}
  if len(dtypes) > 1 or jnp.dtype(v_BTGV.dtype).name not in (
    'bfloat16',
    'float32',
    'float64',
  ):
    raise ValueError(
      f'{op}: q, k and v are {q_BTHK.dtype}, {k_BTHK.dtype} and '
      f'{v_BTGV.dtype}; use float32 or bfloat16 for all three.'
    )


def is_empty(q_BTHK: jax.Array, v_BTGV: jax.Array) -> bool:
  """Whether there is nothing to compute."""
  return 0 in q_BTHK.shape or 0 in v_BTGV.shape
