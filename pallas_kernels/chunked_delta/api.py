"""The delta rule with decay, in chunks: checks, choice of implementation."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.chunked.inputs import (
  check_array,
  check_static,
  is_empty,
  prepare,
  wide_dtype,
)
from pallas_kernels.chunked.vjp import Which, differentiable, table
from pallas_kernels.chunked_delta import (
  cpu,
  pallas_gpu,
  pallas_tpu,
  reference,
)

TABLE = table(pallas_tpu, pallas_gpu, cpu)


def chunked_delta(
  q_BTHK: jax.Array,
  k_BTHK: jax.Array,
  v_BTGV: jax.Array,
  log_decay: jax.Array | None,
  beta_BTG: jax.Array,
  *,
  state_BGKV: jax.Array | None = None,
  starts_BT: jax.Array | None = None,
  scale: float | None = None,
  chunk: int | None = None,
  implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The delta rule on a state that decays, for all tokens of a sequence.

    S~ = Diag(exp(log_decay_t)) S_{t-1}
    S_t = S~ + beta_t k_t^T (v_t - k_t S~)
    y_t = scale q_t S_t

  With a decay per channel this is Kimi Delta Attention, with one per head the
  gated delta rule, with none the delta rule. Value head g reads and writes
  with key head g // (G / H). All inputs but `starts_BT` get their gradients,
  from those of both results. Gates, states and sums are f32 throughout.

  Source: 2510.26692 eq. 1 to 9 (per channel); 2412.06464 eq. 10 (per head);
  2406.06484 (the chunked form).
  Differs: no exponent is above 0, whatever the gates; the inverse of the
  triangle is built in blocks; q and k are not normalised here.

  A token with a log decay of 0 and a beta of 0 leaves the state alone: that is
  padding.

  Args:
    q_BTHK: [B, T, H, K], f32 or bf16, T of any length.
    k_BTHK: [B, T, H, K].
    v_BTGV: [B, T, G, V], G a multiple of H.
    log_decay: f32 [B, T, G] or [B, T, G, K], at most 0; or `None`.
    beta_BTG: f32 [B, T, G], in [0, 2].
    state_BGKV: f32 [B, G, K, V], before the first token; `None` is zeros.
    starts_BT: bool [B, T], where a document starts: what was before counts as
      zero, and the log decay of that token is without effect and gradient.
    scale: of the queries; `None` is K^-1/2.
    chunk: tokens that are worked on at once, a power of two; `None` takes what
      is best for the implementation.
    implementation: `None` chooses for the platform that the program is lowered
      for; else one of `TABLE`, or 'reference'.

  Returns:
    y [B, T, G, V] in the dtype of v, and the state after the last token, f32
    [B, G, K, V].

  Raises:
    ValueError: shapes or dtypes do not fit together, or an unknown name.
    NotImplementedError: the named implementation does not run here.
  """
  op = 'chunked_delta'
  check_static(op, chunk, implementation, (*TABLE, 'reference'))
  log_decay, state_BGKV = prepare(
    op, q_BTHK, k_BTHK, v_BTGV, log_decay, state_BGKV, starts_BT
  )
  check_array(
    op,
    'beta_BTG',
    beta_BTG,
    wide_dtype(v_BTGV.dtype),
    (v_BTGV.shape[:3],),
    'BTG',
  )
  if is_empty(q_BTHK, v_BTGV):
    return jnp.zeros_like(v_BTGV), state_BGKV
  scale = q_BTHK.shape[-1] ** -0.5 if scale is None else float(scale)
  args = (q_BTHK, k_BTHK, v_BTGV, log_decay, beta_BTG, state_BGKV)
  if implementation == 'reference':
    return reference.chunked_delta(*args, scale=scale)
  static = (('scale', scale), ('chunk', chunk))
  which = Which(op, tuple(TABLE.items()), implementation, static)
  return differentiable(which, *args)
