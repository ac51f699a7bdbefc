"""The definition of selection and weighing."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def ranked(options, logits_NE, bias_E):
  """[N, E]: what selection ranks. A NaN ranks above all, as `nan` does."""
  rank_NE = logits_NE
  if options.affinity == 'softmax':
    rank_NE = jax.nn.softmax(logits_NE, axis=-1)
  elif options.affinity == 'sigmoid':
    rank_NE = jax.nn.sigmoid(logits_NE)
  if bias_E is not None:
    rank_NE = rank_NE + bias_E
  return _plain_nan(rank_NE)


def select(logits_NE, bias_E, valid_N, *, options):
  """-> ids_NK, chosen_NK (their logits), total_N (see below), counts_E."""
  experts = logits_NE.shape[-1]
  rank_NE = ranked(options, logits_NE, bias_E)
  if options.groups is not None:
    groups = options.groups
    rank_NGS = rank_NE.reshape(len(rank_NE), groups.num_groups, -1)
    best = min(groups.best_per_group, rank_NGS.shape[-1])
    score_NG = _plain_nan(jax.lax.top_k(rank_NGS, best)[0].sum(-1))
    kept = jax.lax.top_k(score_NG, groups.kept_groups)[1]
    open_NG = (kept[..., None] == jnp.arange(groups.num_groups)).any(1)
    rank_NGS = jnp.where(open_NG[..., None], rank_NGS, -jnp.inf)
    rank_NE = rank_NGS.reshape(rank_NE.shape)
  ids_NK = jax.lax.top_k(rank_NE, options.k)[1]
  chosen_NK = jnp.take_along_axis(logits_NE, ids_NK, axis=-1)
  if valid_N is not None:
    ids_NK = jnp.where(valid_N[:, None], ids_NK, experts)
    chosen_NK = jnp.where(valid_N[:, None], chosen_NK, 0)
  total_N = log_sum_exp(options, logits_NE)
  return ids_NK, chosen_NK, total_N, count(ids_NK, experts=experts)


def log_sum_exp(options, logits_NE):
  """[N], where weights are shares of the softmax over all; else None."""
  return jax.nn.logsumexp(logits_NE, axis=-1) if options.shares else None


def count(ids_NK, *, experts):
  """int32 [E]: pairs of each expert."""
  one_hot = ids_NK[..., None] == jnp.arange(experts)
  return one_hot.sum((0, 1), dtype=jnp.int32)


def spread(ids_NK, value_NK, *, experts):
  """[N, E]: each value at its expert, zero elsewhere."""
  one_hot = ids_NK[..., None] == jnp.arange(experts)
  return jnp.where(one_hot, value_NK[..., None], 0).sum(1)


def combine(y_RD, weights_NK, plan):
  """[N, D]: each token's weighted sum of its rows."""
  live_NK = plan.place_NK < plan.sizes_E.sum()
  y_NKD = _live(live_NK, y_RD[plan.place_NK])
  weights_NK = jnp.where(live_NK, weights_NK, 0)
  return jnp.einsum('nkd,nk->nd', y_NKD, weights_NK).astype(y_RD.dtype)


def combine_gradient(y_RD, weights_NK, plan, dy_ND):
  """-> dy_RD, dweights_NK."""
  live_NK = plan.place_NK < plan.sizes_E.sum()
  y_NKD = _live(live_NK, y_RD[plan.place_NK])
  dweights_NK = jnp.einsum('nkd,nd->nk', y_NKD, dy_ND.astype(y_NKD.dtype))
  live_R = jnp.arange(len(y_RD)) < plan.sizes_E.sum()
  dy_RD = _live(live_R, dy_ND[plan.token_R])
  dy_RD *= jnp.where(live_R, weights_NK.reshape(-1)[plan.pair_R], 0)[:, None]
  return dy_RD.astype(y_RD.dtype), jnp.where(live_NK, dweights_NK, 0)


def _live(live, rows):
  """In f32 or wider, zero where not live: a dead row may hold anything."""
  rows = jnp.where(live[..., None], rows, 0)
  return rows.astype(jnp.promote_types(rows.dtype, jnp.float32))


def _plain_nan(a):
  # Computed NaNs may carry a sign, by which top_k would rank them last.
  return jnp.where(jnp.isnan(a), jnp.nan, a)
