"""Named shapes of the chunked recurrences, shared by tests and benchmarks."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
  """B rows of T tokens; H key heads of K channels, G value heads of V."""

  B: int
  T: int
  H: int
  K: int
  G: int
  V: int

  @property
  def tokens(self) -> int:
    """Tokens times value heads."""
    return self.B * self.T * self.G


def _even(B: int, T: int, H: int, D: int) -> Shape:
  return Shape(B, T, H, D, H, D)


# For the CPU.
HOST = {
  'small': _even(1, 2048, 8, 64),
  'large': _even(2, 4096, 4, 128),
}

# For a GPU or a TPU. Source: fla-org/flash-linear-attention,
# benchmarks/ops/registry.py.
PUBLISHED = {
  'one long': _even(1, 8192, 96, 128),
  'two long': _even(2, 16384, 16, 128),
  'four': _even(4, 4096, 64, 128),
}

# Lengths about a chunk's, and widths that are no power of two, in tests.
LENGTHS = (1, 15, 63, 64, 65, 500, 1000)
WIDTHS = (60, 64, 100, 128, 256)
