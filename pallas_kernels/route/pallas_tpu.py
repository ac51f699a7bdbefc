"""Routing on TPU: selection and ranks, a block of tokens at a time.

Tokens lie along the lanes and experts along the sublanes. A maximum over the
experts is then element-wise but for its last three steps, nothing is padded to
128 experts, and the product before it can write its result in this order.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.route.parts import (
  CLOSED,
  LEAST,
  largest,
  score,
  shaped,
  to_key,
)
from pallas_kernels.route.plan import Plan, known_ids, sorted_pairs

LANES = 128
SUBLANES = 8
TOKENS = 512  # of a block, or fewer where experts are many
PAIRS = 512
# Logits, their keys and a few masks at once, of the 16 MB that a core has.
BLOCK_BYTES = 2**19


def select(logits_NE, bias_E, valid_N, *, options, interpret=False):
  """As the reference, in one pass over the logits."""
  n, experts = logits_NE.shape
  rows = -(-experts // SUBLANES) * SUBLANES
  logits_EN = jnp.pad(logits_NE, ((0, 0), (0, rows - experts))).T
  tokens = min(_tokens(rows), -(-n // LANES) * LANES)
  spec = functools.partial(pl.BlockSpec, memory_space=pltpu.VMEM)
  args, specs = [logits_EN], [spec((rows, tokens), lambda i: (0, i))]
  if bias_E is not None:
    args.append(jnp.pad(bias_E, (0, rows - experts))[:, None])
    specs.append(spec((rows, 1), lambda i: (0, 0)))
  if valid_N is not None:
    args.append(valid_N.astype(jnp.int32)[None])
    specs.append(spec((1, tokens), lambda i: (0, i)))

  k = options.k
  outs = pl.pallas_call(
    functools.partial(
      _select,
      n=n,
      options=options,
      biased=bias_E is not None,
      padded=valid_N is not None,
    ),
    grid=(-(-n // tokens),),
    in_specs=specs,
    out_specs=[
      spec((k, tokens), lambda i: (0, i)),
      spec((k, tokens), lambda i: (0, i)),
      spec((1, tokens), lambda i: (0, i)),
      spec((rows, 1), lambda i: (0, 0)),
    ],
    out_shape=[
      shaped((k, n), jnp.int32, args),
      shaped((k, n), jnp.float32, args),
      shaped((1, n), jnp.float32, args),
      shaped((rows, 1), jnp.int32, args),
    ],
    # In order: all blocks add to the same counts.
    compiler_params=pltpu.CompilerParams(dimension_semantics=('arbitrary',)),
    interpret=interpret,
  )(*args)
  ids_KN, chosen_KN, total_1N, counts = outs
  total_N = total_1N[0] if options.shares else None
  return ids_KN.T, chosen_KN.T, total_N, counts[:experts, 0]


def _tokens(experts):
  most = BLOCK_BYTES // (4 * experts) // LANES * LANES
  return max(LANES, min(TOKENS, most))


def _select(*refs, n, options, biased, padded):
  refs = list(refs)
  logits_EN = refs.pop(0)[...]
  bias_E1 = refs.pop(0)[...] if biased else None
  valid_1N = refs.pop(0)[...] != 0 if padded else None
  ids_ref, chosen_ref, total_ref, counts_ref = refs
  expert_EN = jax.lax.broadcasted_iota(jnp.int32, logits_EN.shape, 0)
  real_EN = expert_EN < options.experts

  # 1. What is ranked. Experts that only pad come last, below minus infinity.
  rank_EN = logits_EN
  if options.affinity == 'sigmoid':
    rank_EN = jax.nn.sigmoid(logits_EN)
  if options.affinity == 'softmax' or options.shares:
    top_1N, part_EN, sum_1N = _softmax_parts(logits_EN, real_EN)
    total_ref[...] = top_1N + jnp.log(sum_1N)
    if options.affinity == 'softmax':
      rank_EN = part_EN / sum_1N
  else:
    total_ref[...] = jnp.zeros_like(total_ref)
  if biased:
    rank_EN = rank_EN + bias_E1
  key_EN = to_key(jnp.where(jnp.isnan(rank_EN), jnp.nan, rank_EN))
  key_EN = jnp.where(real_EN, key_EN, LEAST)

  # 2. Groups, then the experts themselves.
  if options.groups is not None:
    key_EN = _group_limited(key_EN, expert_EN, options)
  found, key_EN = largest(key_EN, options.k, axis=0)

  # 3. The logits of the chosen, each a sum with one term.
  for slot, (id_1N, _) in enumerate(found):
    own_EN = expert_EN == id_1N
    chosen_1N = jnp.where(own_EN, logits_EN, 0).sum(0, keepdims=True)
    if padded:
      id_1N = jnp.where(valid_1N, id_1N, options.experts)
      chosen_1N = jnp.where(valid_1N, chosen_1N, 0)
    ids_ref[pl.ds(slot, 1), :] = id_1N
    chosen_ref[pl.ds(slot, 1), :] = chosen_1N

  # 4. Counts of what was taken, but for tokens past the last.
  token_EN = jax.lax.broadcasted_iota(jnp.int32, logits_EN.shape, 1)
  token_EN += pl.program_id(0) * logits_EN.shape[1]
  taken_EN = real_EN & (key_EN == LEAST) & (token_EN < n)
  if padded:
    taken_EN &= valid_1N
  counts_E1 = taken_EN.astype(jnp.int32).sum(1, keepdims=True)

  @pl.when(pl.program_id(0) == 0)
  def _():
    counts_ref[...] = jnp.zeros_like(counts_ref)

  counts_ref[...] += counts_E1


def _softmax_parts(logits_EN, real_EN):
  top_1N = jnp.where(real_EN, logits_EN, -jnp.inf).max(0, keepdims=True)
  part_EN = jnp.where(real_EN, jnp.exp(logits_EN - top_1N), 0)
  return top_1N, part_EN, part_EN.sum(0, keepdims=True)


def _group_limited(key_EN, expert_EN, options):
  groups = options.groups
  size = options.experts // groups.num_groups
  best = min(groups.best_per_group, size)
  row = jax.lax.broadcasted_iota(
    jnp.int32, (groups.num_groups, key_EN.shape[1]), 0
  )
  own = [
    (expert_EN >= g * size) & (expert_EN < (g + 1) * size)
    for g in range(groups.num_groups)
  ]
  score_GN = jnp.full(row.shape, LEAST, jnp.int32)
  for g, own_EN in enumerate(own):
    found, _ = largest(jnp.where(own_EN, key_EN, LEAST), best, axis=0)
    score_GN = jnp.where(row == g, score(found), score_GN)
  kept, _ = largest(score_GN, groups.kept_groups, axis=0)
  open_EN = sum(
    ((expert_EN >= g_1N * size) & (expert_EN < (g_1N + 1) * size)).astype(
      jnp.int32
    )
    for g_1N, _ in kept
  )
  limited_EN = jnp.where(open_EN > 0, key_EN, CLOSED)
  return jnp.where(expert_EN < options.experts, limited_EN, LEAST)


def by_count(ids_NK, *, experts, interpret=False) -> Plan:
  """Places by counting; only the inverse takes a sort.

  Without the kernel places are the inverse of a permutation, a scatter of
  single numbers, which is what TPUs do worst.
  """
  pair_R, sizes_E = sorted_pairs(ids_NK, experts)
  ends_E = jnp.cumsum(sizes_E, dtype=jnp.int32)
  start = jnp.concatenate([ends_E - sizes_E, ends_E[-1:]])
  place_R = places(known_ids(ids_NK, experts), start, interpret=interpret)
  return Plan(pair_R, place_R.reshape(ids_NK.shape), sizes_E)


def places(id_R, start_E, *, interpret=False):
  """int32 [R]: the start of each pair's expert, plus its pairs before it."""
  experts = start_E.size
  rows = -(-experts // SUBLANES) * SUBLANES
  pairs = min(PAIRS, -(-id_R.size // LANES) * LANES)
  spec = functools.partial(pl.BlockSpec, memory_space=pltpu.VMEM)
  return pl.pallas_call(
    _places,
    grid=(-(-id_R.size // pairs),),
    in_specs=[
      spec((1, pairs), lambda i: (0, i)),
      spec((rows, 1), lambda i: (0, 0)),
    ],
    out_specs=spec((1, pairs), lambda i: (0, i)),
    out_shape=shaped((1, id_R.size), jnp.int32, id_R, start_E),
    scratch_shapes=[pltpu.VMEM((rows, 1), jnp.int32)],
    # In order: each block goes on from the counts of those before it.
    compiler_params=pltpu.CompilerParams(dimension_semantics=('arbitrary',)),
    interpret=interpret,
  )(id_R[None], jnp.pad(start_E, (0, rows - experts))[:, None])[0]


def _places(id_ref, start_ref, place_ref, next_ref):
  @pl.when(pl.program_id(0) == 0)
  def _():
    next_ref[...] = start_ref[...]

  shape = (next_ref.shape[0], id_ref.shape[1])
  own_ER = jax.lax.broadcasted_iota(jnp.int32, shape, 0) == id_ref[...]
  pairs = (shape[1], shape[1])
  earlier_RR = jax.lax.broadcasted_iota(
    jnp.int32, pairs, 0
  ) < jax.lax.broadcasted_iota(jnp.int32, pairs, 1)
  # Exact: ones and zeros, and sums of at most PAIRS of them in f32.
  before_ER = jnp.dot(
    own_ER.astype(jnp.bfloat16),
    earlier_RR.astype(jnp.bfloat16),
    preferred_element_type=jnp.float32,
  ).astype(jnp.int32)
  place_ER = jnp.where(own_ER, next_ref[...] + before_ER, 0)
  place_ref[...] = place_ER.sum(0, keepdims=True)
  own_ER = own_ER.astype(jnp.int32)
  next_ref[...] += own_ER.sum(1, keepdims=True)
