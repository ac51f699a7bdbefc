"""Counts that stop to matter below a start and above a maximum."""

import numpy as np


def saturated(
  value: np.ndarray, start: float, maximum: float, offset: float = 0.0
) -> np.ndarray:
  """1 / (1 / (value - offset + (1/start - 1/maximum)^-1) + 1 / maximum).

  It is `start` at `value = offset` and tends to `maximum`.

  Source: arXiv 2202.01169, equation 20; arXiv 2502.05172, equation 5, with
    offset 1 for numbers of experts; arXiv 2507.17702, equation 5, with offset
    0 for activation ratios.
  """
  # A fit may try a start beyond the maximum: no saturation is left then.
  gap = np.maximum(1 / start - 1 / maximum, 1e-300)
  return 1 / (1 / (value - offset + 1 / gap) + 1 / maximum)
