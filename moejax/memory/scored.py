"""What memories share whose slots a small core tensor scores."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.memory import initial
from moejax.memory.halves import Halves, halves_flops, rank_dim
from moejax.memory.retrieval import check_k, leading, tucker_top_k
from moejax.nn import matrix_init


class Scored(nn.Module, kw_only=True):
  """A slot scores left C right, over R ranks with a query each.

  Sows `stats/memory_score`, the mean score. What the filter misses of the best
  slots, `analyze.memory.filter_recall` tells.

  Source: 2411.12364 sec. 3.2 (filter, cores); 2508.18756 sec. 2.
  Differs: the filter's direction is found anew at each call, in f32, from cores
  that only an optimiser step moves.

  Attributes:
    keys: S of a side; a layer sees S^2 slots.
    k: slots per head and token.
    head_dim: numbers of a query of one side, over all ranks.
    heads: H.
    ranks: R.
    cores: C, which weigh interleaved parts of the values.
    gain: initial scale of the norms; None makes the mean of the chosen scores 1
      (see `initial.gain`), the released code has (head_dim / ranks)^-0.4.
    std: of both projections; None is 1 / sqrt(fan-in).
  """

  keys: int
  k: int
  head_dim: int
  heads: int = 1
  ranks: int = 2
  cores: int = 2
  gain: float | None = None
  std: float | None = None

  def scores(self, x_ND, valid_N) -> tuple[jax.Array, jax.Array]:
    """int32 ids [N, H * K] in [0, S^2), f32 weights [N, H * K, C]."""
    ids_NHK, scores_NHKC = self._retrieve(x_ND)
    ids_NK = ids_NHK.reshape(len(x_ND), -1)
    weights = scores_NHKC.reshape(*ids_NK.shape, self.cores)
    weights = jnp.where(valid_N[:, None, None], weights, 0)
    tokens = jnp.maximum(valid_N.sum(), 1)
    mean = weights.sum() / (tokens * weights.shape[1])
    self.sow('stats', 'memory_score', mean)
    return ids_NK, weights

  def _retrieve(self, x_ND):
    size = rank_dim(self.head_dim, self.ranks)
    check_k(self.k, self.keys)
    gain = self.gain
    if gain is None:
      gain = initial.gain(self.keys, size, self.k, self.ranks, self.cores)
    left, right = Halves(
      self.heads, self.keys, self.head_dim, self.ranks, gain, name='halves'
    )(x_ND)
    shape = (self.cores, self.heads, self.ranks, self.ranks)
    init = nn.with_logical_partitioning(
      nn.initializers.uniform(1.0), (None, 'heads', None, None)
    )
    cores = self.param('cores', init, shape, jnp.float32)
    direction = self._direction(jax.lax.stop_gradient(cores).sum(0))
    return tucker_top_k(left, right, cores, direction, self.k)

  def _direction(self, core_HRR):
    """The filter's u and v, which keep their sign from step to step."""
    shape = core_HRR.shape[:2]
    before = self.variable('balance', 'direction', jnp.ones, shape, jnp.float32)
    u_HR, v_HR = leading(core_HRR, before.value)
    if self.is_mutable_collection('balance') and not self.is_initializing():
      before.value = v_HR
    return u_HR, v_HR

  def matrix(self, name: str, inner: int, outer: int) -> jax.Array:
    """The parameter 'pre' (from the width) or 'out' (to it)."""
    axes = ('embed', 'mlp') if name == 'pre' else ('mlp', 'embed')
    init = matrix_init(axes)
    if self.std is not None:
      init = nn.with_logical_partitioning(
        nn.initializers.normal(self.std), axes
      )
    return self.param(name, init, (inner, outer), jnp.float32)

  def scores_flops(self, width: int) -> float:
    """Forward FLOPs per token of what finds and scores the slots."""
    k, ranks = self.k, self.ranks
    coarse = 4 * self.heads * self.keys * ranks
    grid = 2 * self.heads * self.cores * k * ranks * (ranks + k)
    halves = halves_flops(width, self.heads, self.keys, self.head_dim)
    return halves + coarse + grid
