"""Memories whose slots are scored by a small core tensor."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.memory import initial, tables
from moejax.memory.halves import Halves, halves_flops, rank_dim
from moejax.memory.retrieval import check_k, leading, tucker_top_k
from moejax.nn import contract, matrix_init
from moejax.types import Context


class Tucker(nn.Module):
  """W_v (sum over slots of (W_p x . p) * score * v); scores are not normalised.

  A slot scores left C right, over R ranks with a query each; C cores weigh
  interleaved parts of the values. Sows `stats/memory_score`, the mean score.

  Source: 2508.18756 eq. 15 and sec. 2; 2411.12364 sec. 3.2 (filter, cores).
  Differs: the filter's direction is found anew at each call, in f32, from cores
  that only an optimiser step moves; parts are interleaved (see `table_lookup`);
  slots are not permuted, which only a table used twice by a layer needs.

  Attributes:
    keys: S of a side; a layer sees S^2 slots.
    k: slots per head and token.
    head_dim: numbers of a query of one side, over all ranks.
    values: a `tables.Table` or `tables.Window`.
    pre_values: likewise, of the vectors that the projected input meets.
    heads: H.
    ranks: R.
    cores: C.
    gain: initial scale of the norms; None makes the mean of the chosen scores 1
      (see `initial.gain`), the released code has (head_dim / ranks)^-0.4.
    std: of both projections; None is 1 / sqrt(fan-in).
  """

  keys: int
  k: int
  head_dim: int
  values: nn.Module
  pre_values: nn.Module
  heads: int = 1
  ranks: int = 2
  cores: int = 2
  gain: float | None = None
  std: float | None = None

  @nn.compact
  def __call__(self, x_BTD: jax.Array, ctx: Context) -> jax.Array:
    width = x_BTD.shape[-1]
    x_ND = x_BTD.reshape(-1, width)
    ids_NHK, scores_NHKC = self._retrieve(x_ND)
    ids_NK = ids_NHK.reshape(len(x_ND), -1)
    weights = scores_NHKC.reshape(*ids_NK.shape, self.cores)
    weights = jnp.where(ctx.valid_N[:, None, None], weights, 0)
    self._report(weights, ctx)

    def read(table):
      return tables.rows_of(table, width, ctx, ids_NK, self.keys**2)

    pre_SD, pre_ids_NK = read(self.pre_values)
    x = contract(x_ND, self._matrix('pre', width, pre_SD.shape[1]))
    hidden_NK = tables.products(pre_SD, pre_ids_NK, x)
    y = tables.lookup(*read(self.values), weights * hidden_NK[..., None])
    out = self._matrix('out', y.shape[1], width)
    return contract(y.astype(x_BTD.dtype), out).reshape(x_BTD.shape)

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

  def _matrix(self, name, inner, outer):
    axes = ('embed', 'mlp') if name == 'pre' else ('mlp', 'embed')
    init = matrix_init(axes)
    if self.std is not None:
      init = nn.with_logical_partitioning(
        nn.initializers.normal(self.std), axes
      )
    return self.param(name, init, (inner, outer), jnp.float32)

  def _report(self, weights_NKC, ctx):
    tokens = jnp.maximum(ctx.valid_N.sum(), 1)
    mean = weights_NKC.sum() / (tokens * weights_NKC.shape[1])
    self.sow('stats', 'memory_score', mean)

  def active_fracs(self) -> dict[str, float]:
    """Share of the parameters under a path that one token uses."""
    both = dict(values=self.values, pre_values=self.pre_values)
    return tables.active_fracs(self.heads * self.k, **both)

  def rows_read(self) -> dict[str, int]:
    """Rows of shared tables that one token reads, by the table's name."""
    return tables.rows_read(self.heads * self.k, self.values, self.pre_values)

  def flops(self, width: int) -> float:
    """Forward FLOPs per token."""
    pre, out = (t.dim or width for t in (self.pre_values, self.values))
    k, ranks = self.k, self.ranks
    coarse = 4 * self.heads * self.keys * ranks
    grid = 2 * self.heads * self.cores * k * ranks * (ranks + k)
    rows = 2 * self.heads * k * (pre + out)
    halves = halves_flops(width, self.heads, self.keys, self.head_dim)
    return halves + coarse + grid + rows + 2 * width * (pre + out)
