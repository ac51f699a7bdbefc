"""The core of softmax attention."""

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
  batch, length, heads, size = q_BTHK.shape
  groups, value_size = v_BSGV.shape[2:]
  scale = size**-0.5 if scale is None else scale
  q = (q_BTHK * scale).reshape(batch, length, groups, -1, size)
  q = q.transpose(0, 2, 3, 1, 4).reshape(batch, groups, -1, size)
  if mask_BTS.ndim == 3:
    mask = mask_BTS[:, None, None]
  else:
    mask = mask_BTS.reshape(batch, groups, -1, *mask_BTS.shape[2:])
  y = _core(q, k_BSGK.swapaxes(1, 2), v_BSGV.swapaxes(1, 2), mask)
  y = y.reshape(batch, groups, -1, length, value_size)
  y = y.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, value_size)
  return y.astype(q_BTHK.dtype)


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
