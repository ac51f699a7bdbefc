"""How many bytes the experts' feed-forward takes, by formula.

Letters: N tokens, D width, F hidden width of an expert, E experts, K chosen,
R = N K rows, b bytes of one activation. A gated expert has two pre-activations
of width F, another has one: P of them.
"""

from __future__ import annotations

import dataclasses

from pallas_kernels.expert_ffn.shapes import Layer
from pallas_kernels.grouped_matmul import tiles
from pallas_kernels.route import cpu as routing

INDEX_BYTES = 4  # ids, places and counts are int32
F32_BYTES = 4  # router logits and combine weights
LANES = 128  # the last axis of an array on TPU takes a multiple of these


@dataclasses.dataclass(frozen=True)
class Problem:
  """One layer, as its memory sees it.

  Attributes:
    layer: N, D, F, E and K.
    gated: whether there is a matrix `up` beside `gate`.
    activation_bytes: b, 2 for bf16.
    parameter_bytes: of one element of the matrices; they are cast to the
      dtype of the activations where they are used.
  """

  layer: Layer
  gated: bool = True
  activation_bytes: int = 2
  parameter_bytes: int = 4

  @property
  def products(self) -> int:
    return 1 + self.gated

  @property
  def x_bytes(self) -> int:
    """All tokens: b N D."""
    return self.activation_bytes * self.layer.tokens * self.layer.d

  @property
  def wide_bytes(self) -> int:
    """A row of width D for every pair: b R D."""
    return self.activation_bytes * self.layer.rows * self.layer.d

  @property
  def hidden_bytes(self) -> int:
    """A row of width F for every pair: b R F."""
    return self.activation_bytes * self.layer.rows * self.layer.n

  @property
  def matrix_elements(self) -> int:
    """Of all experts' matrices: (P + 1) E D F."""
    x = self.layer
    return (self.products + 1) * x.experts * x.d * x.n

  @property
  def gradient_bytes(self) -> int:
    """Gradients of the matrices, in the dtype of the parameters."""
    return self.parameter_bytes * self.matrix_elements

  @property
  def cast_bytes(self) -> int:
    """Copies of the matrices in the dtype of the activations, if it differs."""
    if self.parameter_bytes == self.activation_bytes:
      return 0
    return self.activation_bytes * self.matrix_elements


def kept(p: Problem) -> int:
  """Bytes from the forward to the backward pass, parameters not counted.

  The tokens b N D; the pre-activations P b R F; for each pair its place in the
  order of experts, the pair at each place, and its weight; for each expert how
  many rows it has.
  """
  per_pair = 2 * INDEX_BYTES + F32_BYTES
  index = per_pair * p.layer.rows + INDEX_BYTES * p.layer.experts
  return p.x_bytes + p.products * p.hidden_bytes + index


def published(p: Problem) -> int:
  """Bytes of a layer as published tables count them.

  Tokens, outputs, pre-activations, and gradients of the matrices in the dtype
  of the activations: in bf16, gated, 2 N D + 2 N D + 4 R F + 6 E D F.
  Source: arXiv 2512.14080, peak memory of one layer.
  """
  gradients = p.activation_bytes * p.matrix_elements
  return 2 * p.x_bytes + p.products * p.hidden_bytes + gradients


def temporary(p: Problem, backward: bool, fast_bytes: int = 0) -> int:
  """Peak bytes of the sorted-rows form on TPU beside arguments and results.

  Forward, the largest of what is there at once:

    rows of tokens, pre-activations, and the cast of the last matrix:
      b R D + P b R F + b E D F
    hidden rows, rows of results, and the cast of `down`:
      b R F + b R D + b E D F
    rows of results, their sum, and a chunk of them in the order of tokens:
      b R D + 2 b N D

  Forward and backward it is where the gradient of the hidden rows is there
  and those of the pre-activations take the place of what they are made from:

    rows of dy, dy, pre-activations and one more of width F, cast of `down`:
      b R D + b N D + (P + 1) b R F + b E D F

  To both come the router's logits, 4 N E, and the choice of one [N, K] array,
  whose last axis takes up 128 lanes.

  Args:
    p: the layer.
    backward: whether the backward pass follows.
    fast_bytes: what fits there the compiler may cast into fast memory, which
      is not counted; v5e does so (forward), v6e does not. 0: it does not.
  """
  cast = p.cast_bytes // (p.products + 1)
  lines = p.layer.experts + max(p.layer.k, LANES)
  router = F32_BYTES * p.layer.tokens * lines
  if backward:
    rows = p.wide_bytes + (p.products + 1) * p.hidden_bytes
    return rows + p.x_bytes + cast + router
  cast = 0 if cast <= fast_bytes else cast
  first = p.products * p.hidden_bytes + cast
  second = p.hidden_bytes + cast
  return p.wide_bytes + max(first, second, 2 * p.x_bytes) + router


def temporary_on_cpu(p: Problem, backward: bool) -> int:
  """Peak bytes of the loop over row tiles, beside arguments and results.

  In f32; bf16 is not modelled, as XLA widens all matrices there.

  A loop over tiles of up to M rows needs, whichever is largest at a time:

    forward:  tokens, pre-activations and gate and up side by side,
                D M + P F M + P D F
              or pre-activations, hidden rows and `down`,
                (P + 1) F M + D F
    backward: dy, tokens and all there is of width F,
                2 (D + (P + 1) F) M
              or these narrower, beside the tokens turned for a product over
              rows and the gradient of tokens, 4 D M + (P + 2) F M,
              and gate and up side by side, P D F

  The router's logits and copies of them, two of N E forward and three both
  ways, and four tables of the counting sort, RUNS (E + 1), are there before the
  loop; only the loop and the copies take each other's place. To them come

    forward:  the sum of each token's rows, N D
    backward: the pre-activations P R F, gradients of the matrices
              (P + 1) E D F, and both y, or what it is made to, and dx, 2 N D

  and four numbers for every pair.

  Args:
    p: the layer, in f32.
    backward: whether the backward pass follows.

  Raises:
    ValueError: the layer is not in f32.
  """
  if (p.activation_bytes, p.parameter_bytes) != (F32_BYTES, F32_BYTES):
    raise ValueError(
      f'memory on CPU is modelled in f32, not with {p.activation_bytes} bytes '
      f'of an activation and {p.parameter_bytes} of a parameter; set both to 4.'
    )
  x, wide = p.layer, p.products
  most = tiles.row_counts(x.rows, x.experts)[-1]
  logits = F32_BYTES * x.tokens * x.experts
  first = wide * x.d * x.n
  if backward:
    narrow = 4 * x.d + (wide + 2) * x.n
    loop = most * max(2 * (x.d + (wide + 1) * x.n), narrow) + first
    stays = 2 * p.x_bytes + wide * p.hidden_bytes + p.gradient_bytes + logits
  else:
    before = most * (x.d + wide * x.n) + first
    loop = max(before, most * (wide + 1) * x.n + x.d * x.n)
    stays = p.x_bytes
  tables = 4 * INDEX_BYTES * (routing.RUNS * (x.experts + 1) + x.rows)
  return stays + max(2 * logits, F32_BYTES * loop) + tables
