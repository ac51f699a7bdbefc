"""Named shapes of a layer of experts, and routing drawn for them.

Shared by tests and benchmarks.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layer:
  """One gated layer: `k` of `experts` experts for each token.

  Attributes:
    tokens: N (T in the tables of papers).
    d: width.
    n: hidden width of one expert (F).
    experts: E.
    k: experts of a token.
  """

  tokens: int
  d: int
  n: int
  experts: int
  k: int

  @property
  def rows(self) -> int:
    """Pairs of token and expert."""
    return self.tokens * self.k

  def flops(self, backward: bool = False) -> int:
    """Ideal FLOPs of the three matrices, forward or backward."""
    return 6 * (1 + backward) * self.rows * self.d * self.n

  @property
  def sizes(self) -> tuple[int, ...]:
    """Rows of each expert in exact balance."""
    even, rest = divmod(self.rows, self.experts)
    return tuple(even + (e < rest) for e in range(self.experts))


# Source: arXiv 2512.14080, benchmark configurations; (T, d, n, E, K).
PUBLISHED = {
  '1.4B n256': Layer(40960, 768, 256, 128, 8),
  '1.4B n512': Layer(40960, 768, 512, 64, 4),
  '1.4B n1024': Layer(40960, 768, 1024, 32, 2),
  '7B n256': Layer(24576, 1536, 256, 128, 8),
  '7B n512': Layer(24576, 1536, 512, 64, 4),
  '7B n1024': Layer(24576, 1536, 1024, 32, 2),
  '30B n256': Layer(32768, 4096, 256, 256, 16),
  '30B n512': Layer(32768, 4096, 512, 128, 8),
  '30B n1024': Layer(32768, 4096, 1024, 64, 4),
  '120B n512': Layer(32768, 4096, 512, 256, 16),
  '120B n1024': Layer(32768, 4096, 1024, 128, 8),
  '120B n2048': Layer(32768, 4096, 2048, 64, 4),
}

# Finer experts with equal FLOPs (K n) and equal parameters (E n), after
# https://github.com/AI-Hypercomputer/maxtext/issues/1256.
FINE_GRAINED = {
  8: Layer(8192, 4096, 14336, 8, 2),
  56: Layer(8192, 4096, 2048, 56, 14),
  256: Layer(8192, 4096, 448, 256, 64),
}

# For the CPU.
HOST = {
  'fine': Layer(4096, 256, 128, 64, 8),
  'coarse': Layer(4096, 256, 512, 8, 2),
  'large': Layer(8192, 512, 256, 64, 8),
}


def draw_ids(layer: Layer, seed: int, exponent: float = 0.0) -> np.ndarray:
  """int32 [N, K]: K different experts for each token.

  The expert of rank r = 1, 2, ... is drawn with a weight of r^-exponent: 0 is
  balanced but for chance, 1 is Zipf's law. Ranks are shuffled over experts.
  """
  rng = np.random.default_rng(seed)
  rank_E = 1 + rng.permutation(layer.experts)
  # The largest of log-weights plus Gumbel noise: a draw without replacement.
  score_NE = rng.gumbel(size=(layer.tokens, layer.experts))
  score_NE -= exponent * np.log(rank_E)
  if layer.k == layer.experts:
    return np.argsort(-score_NE, axis=1).astype(np.int32)
  ids_NK = np.argpartition(-score_NE, layer.k, axis=1)[:, : layer.k]
  return ids_NK.astype(np.int32)


def draw_sizes(layer: Layer, seed: int, exponent: float = 0.0) -> np.ndarray:
  """int32 [E]: rows of each expert in the routing that `draw_ids` draws."""
  ids_NK = draw_ids(layer, seed, exponent)
  return np.bincount(ids_NK.reshape(-1), minlength=layer.experts).astype(
    np.int32
  )
