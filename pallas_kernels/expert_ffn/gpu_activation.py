"""Which activations can run inside of a GPU kernel."""

from __future__ import annotations

from pallas_kernels.expert_ffn import fusible

# What Pallas translates to Triton, of what activations are made of.
_SIMPLE = (
  'abs add add_any and broadcast_in_dim cbrt ceil clamp convert_element_type '
  'cos cosh div eq erf_inv exp exp2 expm1 floor ge gt integer_pow is_finite le '
  'log log1p logistic lt max min mul ne neg not or pow reshape rsqrt select_n '
  'sign sin sinh sqrt square squeeze sub tan tanh xor'
)


def cannot_fuse(activation) -> str | None:
  """Why value or derivative cannot be computed in a kernel, or `None`."""
  return fusible.cannot_fuse(activation, _SIMPLE, 'Triton')
