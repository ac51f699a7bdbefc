"""How many bytes the experts' feed-forward takes, by formula.

Letters: N tokens, D width, F hidden width of an expert, E experts, K chosen,
R = N K rows, b bytes of one activation. A gated expert has two pre-activations
of width F, another has one: P of them.
"""

from __future__ import annotations

import dataclasses

INDEX_BYTES = 4  # ids, places and counts are int32
WEIGHT_BYTES = 4  # combine weights are f32
LANES = 128  # the last axis of an array on TPU takes a multiple of these


@dataclasses.dataclass(frozen=True)
class Problem:
  """One layer, as its memory sees it.

  Attributes:
    tokens: N.
    width: D.
    hidden: F.
    experts: E.
    k: K.
    gated: whether there is a matrix `up` beside `gate`.
    activation_bytes: b, 2 for bf16.
    parameter_bytes: of one element of the matrices; they are cast to the
      dtype of the activations where they are used.
  """

  tokens: int
  width: int
  hidden: int
  experts: int
  k: int
  gated: bool = True
  activation_bytes: int = 2
  parameter_bytes: int = 4

  @property
  def rows(self) -> int:
    return self.tokens * self.k

  @property
  def products(self) -> int:
    return 1 + self.gated

  @property
  def x_bytes(self) -> int:
    """All tokens: b N D."""
    return self.activation_bytes * self.tokens * self.width

  @property
  def wide_bytes(self) -> int:
    """A row of width D for every pair: b R D."""
    return self.activation_bytes * self.rows * self.width

  @property
  def hidden_bytes(self) -> int:
    """A row of width F for every pair: b R F."""
    return self.activation_bytes * self.rows * self.hidden

  @property
  def matrix_elements(self) -> int:
    """Of all experts' matrices: (P + 1) E D F."""
    return (self.products + 1) * self.experts * self.width * self.hidden

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
  per_pair = 2 * INDEX_BYTES + WEIGHT_BYTES
  index = per_pair * p.rows + INDEX_BYTES * p.experts
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
  router = INDEX_BYTES * p.tokens * (p.experts + max(p.k, LANES))
  if backward:
    rows = p.wide_bytes + (p.products + 1) * p.hidden_bytes
    return rows + p.x_bytes + cast + router
  cast = 0 if cast <= fast_bytes else cast
  first = p.products * p.hidden_bytes + cast
  second = p.hidden_bytes + cast
  return p.wide_bytes + max(first, second, 2 * p.x_bytes) + router
