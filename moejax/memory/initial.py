"""Initial scales of memories whose scores are not normalised."""

from __future__ import annotations

import functools

import numpy as np


@functools.cache
def chosen_scores(
  keys: int, k: int, ranks: int, cores: int
) -> tuple[float, float]:
  """Mean and deviation of the k best scores where halves are standard normal.

  By Monte Carlo over 64 tokens and four draws of the cores, uniform in (0, 1);
  a score is the sum over the cores.  Source: 2508.18756 app. A.
  Differs: the paper leaves open whether the sum or each core's own is meant.
  """
  draw, found = np.random.default_rng(0), []
  for _ in range(4):
    core = draw.uniform(size=(cores, ranks, ranks)).sum(0)
    u, _, v = np.linalg.svd(core)
    sides = []
    for vector in (u[:, 0], v[0]):
      side = draw.normal(size=(64, keys, ranks))
      rank = side @ (vector * np.sign(vector.sum()))
      best = np.argpartition(-rank, k - 1, axis=1)[:, :k]
      sides.append(np.take_along_axis(side, best[..., None], 1))
    grid = np.einsum('nar,rq,nbq->nab', sides[0], core, sides[1])
    found.append(-np.sort(-grid.reshape(64, -1), axis=1)[:, :k])
  return float(np.mean(found)), float(np.std(found))


def gain(keys: int, dim: int, k: int, ranks: int, cores: int) -> float:
  """Scale of both norms at which the mean of the chosen scores is 1.

  A half's score has deviation gain^2 * sqrt(dim), and a slot's score is a
  product of two.
  """
  mean, _ = chosen_scores(keys, k, ranks, cores)
  return (mean * dim) ** -0.25


def matched_std(
  width: int,
  hidden: int,
  layers: int,
  rows: int,
  pre_dim: int,
  value_dim: int,
  score_std: float,
) -> float:
  """Deviation of both tables at which a memory's output varies as a GLU's.

  Source: 2508.18756 eq. 26.
  Differs: the fourth power of the deviation, as eq. 22 and 25 give it; the
  stored text has lost a root.

  Args:
    width: of the model; projections have variance 2 / (5 width).
    hidden: of the feed-forward, whose last matrix has 1 / (2 layers) of that.
    layers: of the model.
    rows: read by a token, over all heads.
    pre_dim: numbers of a row of the pre-values.
    value_dim: of the values.
    score_std: deviation of scores whose mean is 1.
  """
  over = rows * (1 + score_std**2) * pre_dim * value_dim * layers
  return float((0.2 * hidden / over) ** 0.25)
