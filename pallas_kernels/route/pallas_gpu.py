"""Routing on GPU, as Triton kernels: selection, and sums of a token's rows.

All of them are bound by the memory's speed: each number is read once. No two
programs write to one place, so that results do not depend on their order.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.route.parts import (
  CLOSED,
  LEAST,
  largest,
  score,
  shaped,
  to_key,
)

# Numbers of a block that a program of 4 warps holds in registers.
BLOCK = 2048
COLUMNS = 1024
# Told to whoever counts products in the text of a program.
NO_PRODUCTS = {'flops': '0'}


def select(logits_NE, bias_E, valid_N, *, options, interpret=False):
  """As the reference, in one pass over the logits."""
  n, experts = logits_NE.shape
  lanes = pl.next_power_of_2(experts)
  tokens = min(max(1, BLOCK // lanes), pl.next_power_of_2(n))
  blocks = -(-n // tokens)
  args = [a for a in (logits_NE, bias_E, valid_N) if a is not None]
  kernel = functools.partial(
    _select,
    options=options,
    biased=bias_E is not None,
    padded=valid_N is not None,
    block=(tokens, lanes),
  )
  ids_NK, chosen_NK, total_N, counts = pl.pallas_call(
    kernel,
    grid=(blocks,),
    out_shape=[
      shaped((n, options.k), jnp.int32, args),
      shaped((n, options.k), jnp.float32, args),
      shaped((n,), jnp.float32, args),
      shaped((blocks, experts), jnp.int32, args),
    ],
    compiler_params=plgpu.CompilerParams(num_warps=4),
    interpret=interpret,
    name='top_k_route',
    metadata=NO_PRODUCTS,
  )(*args)
  total_N = total_N if options.shares else None
  return ids_NK, chosen_NK, total_N, counts.sum(0, dtype=jnp.int32)


def _select(*refs, options, biased, padded, block):
  refs = list(refs)
  ids_ref, chosen_ref, total_ref, counts_ref = refs[-4:]
  tokens, lanes = block
  token_T = pl.program_id(0) * tokens + jnp.arange(tokens, dtype=jnp.int32)
  expert_E = jnp.arange(lanes, dtype=jnp.int32)
  real_T, real_E = token_T < ids_ref.shape[0], expert_E < options.experts
  real_1E = jnp.broadcast_to(real_E[None], block)
  logits_TE = plgpu.load(
    refs.pop(0).at[token_T[:, None], expert_E[None]],
    mask=real_T[:, None] & real_1E,
    other=0.0,
  )
  expert_TE = lax.broadcasted_iota(jnp.int32, block, 1)

  # 1. What is ranked. Experts that only pad come last, below minus infinity.
  rank_TE = logits_TE
  if options.affinity == 'sigmoid':
    rank_TE = jax.nn.sigmoid(logits_TE)
  if options.affinity == 'softmax' or options.shares:
    top_T1 = jnp.where(real_1E, logits_TE, -jnp.inf).max(1, keepdims=True)
    part_TE = jnp.where(real_1E, jnp.exp(logits_TE - top_T1), 0)
    sum_T1 = part_TE.sum(1, keepdims=True)
    if options.affinity == 'softmax':
      rank_TE = part_TE / sum_T1
    if options.shares:
      total_T1 = top_T1 + jnp.log(sum_T1)
      plgpu.store(total_ref.at[token_T], total_T1.sum(1), mask=real_T)
  if biased:
    bias_E = plgpu.load(refs.pop(0).at[expert_E], mask=real_E, other=0.0)
    rank_TE = rank_TE + bias_E[None]
  key_TE = to_key(jnp.where(rank_TE != rank_TE, jnp.nan, rank_TE))
  key_TE = jnp.where(real_1E, key_TE, LEAST)

  # 2. Groups, then the experts themselves.
  if options.groups is not None:
    key_TE = _group_limited(key_TE, expert_TE, options)
  found, key_TE = largest(key_TE, options.k, axis=1)

  # 3. The logits of the chosen, each a sum with one term.
  valid_T = real_T
  if padded:
    valid_T &= plgpu.load(refs.pop(0).at[token_T], mask=real_T, other=False)
  for slot, (id_T1, _) in enumerate(found):
    chosen_T = jnp.where(expert_TE == id_T1, logits_TE, 0).sum(1)
    id_T = jnp.where(valid_T, id_T1.sum(1), options.experts)
    at = token_T, jnp.full(tokens, slot, jnp.int32)
    plgpu.store(ids_ref.at[at], id_T, mask=real_T)
    chosen_T = jnp.where(valid_T, chosen_T, 0)
    plgpu.store(chosen_ref.at[at], chosen_T, mask=real_T)

  # 4. Counts of what this block took.
  taken_TE = real_1E & (key_TE == LEAST) & valid_T[:, None]
  counts_E = taken_TE.astype(jnp.int32).sum(0)
  row_E = jnp.full(lanes, pl.program_id(0), jnp.int32)
  plgpu.store(counts_ref.at[row_E, expert_E], counts_E, mask=real_E)


def _group_limited(key_TE, expert_TE, options):
  groups = options.groups
  size = options.experts // groups.num_groups
  best = min(groups.best_per_group, size)
  group_TE = expert_TE // size
  # Every expert carries the score of its group.
  score_TE = jnp.full(key_TE.shape, LEAST, jnp.int32)
  for g in range(groups.num_groups):
    own_TE = group_TE == g
    found, _ = largest(jnp.where(own_TE, key_TE, LEAST), best, axis=1)
    score_TE = jnp.where(own_TE, score(found), score_TE)
  open_TE = jnp.zeros(key_TE.shape, jnp.bool_)
  for _ in range(groups.kept_groups):
    best_T1 = score_TE.max(1, keepdims=True)
    tied_TE = (score_TE == best_T1) & (expert_TE < options.experts)
    first = jnp.where(tied_TE, group_TE, groups.num_groups)
    own_TE = group_TE == first.min(1, keepdims=True)
    open_TE |= own_TE
    score_TE = jnp.where(own_TE, LEAST, score_TE)
  limited_TE = jnp.where(open_TE, key_TE, CLOSED)
  return jnp.where(expert_TE < options.experts, limited_TE, LEAST)


def combine(y_RD, weights_NK, plan, *, interpret=False):
  """[N, D]: each token's weighted sum of its rows."""
  (n, k), d = plan.place_NK.shape, y_RD.shape[1]
  columns = min(COLUMNS, pl.next_power_of_2(d))

  def kernel(y_ref, weights_ref, place_ref, rows_ref, out_ref):
    token, rows = pl.program_id(0), rows_ref[0]
    column_D = pl.program_id(1) * columns + jnp.arange(columns, dtype=jnp.int32)
    inside_D = column_D < d
    total_D = jnp.zeros(columns, jnp.float32)
    for slot in range(k):
      place = place_ref[token, slot]
      y_D = plgpu.load(
        y_ref.at[place, column_D],
        mask=inside_D & (place < rows),
        other=jnp.zeros((), y_ref.dtype),
      )
      total_D += weights_ref[token, slot] * y_D.astype(jnp.float32)
    total_D = total_D.astype(out_ref.dtype)
    plgpu.store(out_ref.at[token, column_D], total_D, mask=inside_D)

  args = y_RD, weights_NK, plan.place_NK, plan.sizes_E.sum()[None]
  return pl.pallas_call(
    kernel,
    grid=(n, -(-d // columns)),
    out_shape=shaped((n, d), y_RD.dtype, args),
    compiler_params=plgpu.CompilerParams(num_warps=4),
    interpret=interpret,
    name='combine',
    metadata=NO_PRODUCTS,
  )(*args)


def combine_gradient(y_RD, weights_NK, plan, dy_ND, *, interpret=False):
  """-> dy_RD, dweights_NK, reading each row of `y_RD` once."""
  (n, k), d = plan.place_NK.shape, y_RD.shape[1]
  columns = min(COLUMNS, pl.next_power_of_2(d))

  def kernel(y_ref, weights_ref, place_ref, rows_ref, dy_ref, *outs):
    token, rows = pl.program_id(0), rows_ref[0]
    dyr_ref, dweights_ref = outs
    for slot in range(k):
      place, weight = place_ref[token, slot], weights_ref[token, slot]

      def add(i, total, place=place, weight=weight):
        column_D = i * columns + jnp.arange(columns, dtype=jnp.int32)
        inside_D = column_D < d
        live_D = inside_D & (place < rows)
        zero = jnp.zeros((), y_ref.dtype)
        y_D = plgpu.load(y_ref.at[place, column_D], mask=live_D, other=zero)
        dy_D = plgpu.load(dy_ref.at[token, column_D], mask=live_D, other=zero)
        dy_D = dy_D.astype(jnp.float32)
        out_D = (weight * dy_D).astype(dyr_ref.dtype)
        plgpu.store(dyr_ref.at[place, column_D], out_D, mask=inside_D)
        return total + (dy_D * y_D.astype(jnp.float32)).sum()

      steps = -(-d // columns)
      dweights_ref[token, slot] = lax.fori_loop(0, steps, add, jnp.float32(0))

  args = y_RD, weights_NK, plan.place_NK, plan.sizes_E.sum()[None], dy_ND
  return pl.pallas_call(
    kernel,
    grid=(n,),
    out_shape=[
      shaped(y_RD.shape, y_RD.dtype, args),
      shaped((n, k), jnp.float32, args),
    ],
    compiler_params=plgpu.CompilerParams(num_warps=4),
    interpret=interpret,
    name='combine_gradient',
    metadata=NO_PRODUCTS,
  )(*args)
