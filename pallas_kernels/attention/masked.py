"""Softmax attention under any mask, in plain XLA: the definition."""

import jax
import jax.numpy as jnp


def attend(
  q_BTHK: jax.Array,
  k_BSGK: jax.Array,
  v_BSGV: jax.Array,
  mask_BTS: jax.Array,
  *,
  scale: float | None = None,
) -> jax.Array:
  """softmax(scale q k) v over the keys that the mask lets through.

  The queries of one key head are rows of one matrix product: on CPU its
  gradient takes less than half the time of `jax.nn.dot_product_attention`,
  which batches over query heads. The gradient recomputes the probabilities.
  Source: 1706.03762 eq. 1, 2305.13245; gradient as in 2205.14135 sec. B.

  Args:
    q_BTHK: [B, T, H, K].
    k_BSGK: [B, S, G, K], G key heads that divide the H query heads; query
      head h belongs to key head h // (H / G).
    v_BSGV: [B, S, G, V]; V may differ from K.
    mask_BTS: bool, or [B, H, T, S]; every query sees at least one key.
    scale: of the logits, None for K^-1/2.

  Returns:
    [B, T, H, V] in the dtype of q; logits and softmax are f32.
  """
  q, k, v, mask = _grouped(q_BTHK, k_BSGK, v_BSGV, mask_BTS, scale)
  y = _ungrouped(_core(q, k, v, mask), q_BTHK.shape[1])
  return y.astype(q_BTHK.dtype)


def causal_mask(
  positions_BT: jax.Array, segments_BT: jax.Array, window: int | None
) -> jax.Array:
  """bool [B, T, T]: what each token of the same call sees."""
  return visible(
    positions_BT, segments_BT, positions_BT, segments_BT, window=window
  )


def visible(
  positions_BT: jax.Array,
  segments_BT: jax.Array,
  positions_BS: jax.Array,
  segments_BS: jax.Array,
  *,
  window: int | None,
) -> jax.Array:
  """bool [B, T, S]: same document, not later, within the window."""
  behind = positions_BT[:, :, None] - positions_BS[:, None, :]
  seen = behind >= 0
  if window is not None:
    seen &= behind < window
  # Padding (segment 0) sees padding: a row without any key would be nan.
  return seen & (segments_BT[:, :, None] == segments_BS[:, None, :])


def forward(q, k, v, positions, segments, *, window, scale):
  """`attention` by way of the whole mask."""
  mask = causal_mask(positions, segments, window)
  return attend(q, k, v, mask, scale=scale)


def backward(q, k, v, positions, segments, y, dy, *, window, scale):
  """Gradients for q, k and v out of what the forward pass returned."""
  mask = causal_mask(positions, segments, window)

  def grouped(q, k, v):
    return _grouped(q, k, v, mask, scale)

  core, pull, mask = jax.vjp(
    lambda *args: (grouped(*args)[:3], grouped(*args)[3]),
    q, k, v, has_aux=True,
  )  # fmt: skip
  groups = k.shape[2]
  y, dy = (_by_group(a, groups).astype(jnp.float32) for a in (y, dy))
  return pull(_backward((*core, mask, y), dy)[:3])


def _grouped(q_BTHK, k_BSGK, v_BSGV, mask, scale):
  """The arguments of `_core`."""
  batch, groups = q_BTHK.shape[0], k_BSGK.shape[2]
  scale = q_BTHK.shape[-1] ** -0.5 if scale is None else scale
  if mask.ndim == 3:
    mask = mask[:, None, None]
  else:
    mask = mask.reshape(batch, groups, -1, *mask.shape[2:])
  q = _by_group(q_BTHK * scale, groups)
  return q, k_BSGK.swapaxes(1, 2), v_BSGV.swapaxes(1, 2), mask


def _by_group(x_BTHK, groups):
  """[B, G, H / G * T, K]."""
  batch, length, _, size = x_BTHK.shape
  x = x_BTHK.reshape(batch, length, groups, -1, size)
  return x.transpose(0, 2, 3, 1, 4).reshape(batch, groups, -1, size)


def _ungrouped(y, length):
  batch, groups, _, size = y.shape
  y = y.reshape(batch, groups, -1, length, size).transpose(0, 3, 1, 2, 4)
  return y.reshape(batch, length, -1, size)


@jax.custom_vjp
def _core(q, k, v, mask):
  """q [B, G, Q, K], k [B, G, S, K], v [B, G, S, V] -> f32 [B, G, Q, V].

  Q is T for each of the H / G query heads of a key head, one after the other.
  The mask is [B, G or 1, H / G or 1, T, S].
  """
  return _forward(q, k, v, mask)[0]


def _exponentials(q, k, mask):
  """exp(logit - row maximum) [B, G, Q, S], and 1 / their row sums."""
  logits = _product('bgqd,bgsd->bgqs', q, k)
  shape = logits.shape
  logits = logits.reshape(*shape[:2], -1, *mask.shape[3:])
  logits = jnp.where(mask, logits, -jnp.inf).reshape(shape)
  exp = jnp.exp(logits - logits.max(-1, keepdims=True))
  return exp, 1 / exp.sum(-1, keepdims=True)


def _forward(q, k, v, mask):
  exp, inverse = _exponentials(q, k, mask)
  y = _product('bgqs,bgsd->bgqd', exp.astype(v.dtype), v) * inverse
  return y, (q, k, v, mask, y)


def _backward(saved, dy):
  q, k, v, mask, y = saved
  exp, inverse = _exponentials(q, k, mask)
  dv = _product('bgqs,bgqd->bgsd', exp.astype(v.dtype), dy * inverse)
  dweight = _product('bgqd,bgsd->bgqs', dy.astype(v.dtype), v)
  # The softmax's own term, sum_s weight * dweight, is <dy, y> of the row.
  own = jnp.sum(dy * y, -1, keepdims=True)
  dlogits = (exp * ((dweight - own) * inverse)).astype(q.dtype)
  dq = _product('bgqs,bgsd->bgqd', dlogits, k)
  dk = _product('bgqs,bgqd->bgsd', dlogits, q)
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_core.defvjp(_forward, _backward)


def _product(equation, a, b):
  b = b.astype(a.dtype)
  return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)
