"""Routing: checks, gradients, choice of implementation."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType

from pallas_kernels.choose import Entry, choose
from pallas_kernels.route import (
  cpu,
  pallas_gpu,
  pallas_tpu,
  reference,
  weigh,
)
from pallas_kernels.route.options import Groups, Options, check
from pallas_kernels.route.plan import Plan, by_sort

# What a rematerialisation policy names to keep the choice of experts: ids,
# weights and counts, so that recomputation can never route a token elsewhere.
CHOICE = 'router_ids'


def top_k_route(
  logits_NE: jax.Array,
  k: int,
  *,
  affinity: str | None = None,
  bias_E: jax.Array | None = None,
  groups: Groups | None = None,
  weighing: str = 'softmax',
  normalise: bool = True,
  scale: float = 1.0,
  valid_N: jax.Array | None = None,
  implementation: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The k best experts of each token, their weights, and everyone's counts.

  The affinity of a token to an expert, plus the bias, is ranked; the weights
  are made from the logits of the chosen alone, without the bias. Only the
  weights carry a gradient, to the logits. For it the ids and the weights are
  kept; sigmoid weights keep the chosen logits, shares of the softmax over all
  experts keep all logits.

  Source: 2412.19437 eq. 12 to 16 (sigmoid, bias), sec. 2.1.2 (groups);
  1701.06538 sec. 2.1 and 2101.03961 eq. 2 (softmax).

  Args:
    logits_NE: f32 [N, E].
    k: experts per token.
    affinity: what is ranked: 'softmax' or 'sigmoid' of the logits, or None for
      the logits themselves. Ties go to the lower id. A NaN ranks above all, so
      that ids are distinct and in range whatever the logits hold.
    bias_E: f32 [E], added for ranking only; no gradient.
    groups: restricts a token to its best groups of experts.
    weighing: 'softmax', 'sigmoid', or 'raw' for the logits.
    normalise: whether the weights of a token sum to `scale`; without it they
      are shares of the softmax over all experts, or plain sigmoids. 'raw' has
      neither.
    scale: factor of the weights.
    valid_N: bool [N]; other tokens get id E, "no expert", and weight 0.
    implementation: `None` chooses for the platform that the program is lowered
      for; 'blocks' (CPU), 'mosaic' (TPU), 'triton' (CUDA) or 'reference'.

  Returns:
    ids_NK int32, best first; weights_NK f32; counts_E int32.

  Raises:
    ValueError: shapes, dtypes or options that do not fit, or an unknown name.
    NotImplementedError: the named implementation does not run here.
  """
  options = Options(
    logits_NE.shape[-1], k, affinity, groups, weighing, normalise, scale
  )
  check(options, logits_NE, bias_E, valid_N)
  args = (logits_NE, bias_E, valid_N)
  args = (None if a is None else jnp.asarray(a) for a in args)
  if logits_NE.shape[0] == 0:
    empty = jnp.zeros((0, k))
    return empty.astype(jnp.int32), empty, jnp.zeros(options.experts, jnp.int32)
  return _route(options, implementation, *args)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _route(options, implementation, logits_NE, bias_E, valid_N):
  return _forward(options, implementation, logits_NE, bias_E, valid_N)[0]


def _forward(options, implementation, logits_NE, bias_E, valid_N):
  table = {
    'blocks': Entry(
      functools.partial(cpu.select, options=options),
      platforms=('cpu',),
      refuses=_refuses_shards,
    ),
    'mosaic': Entry(
      functools.partial(pallas_tpu.select, options=options),
      platforms=('tpu',),
      refuses=_refuses_shards,
    ),
    'triton': Entry(
      functools.partial(pallas_gpu.select, options=options),
      platforms=('cuda',),
      refuses=_refuses_shards,
    ),
    'reference': Entry(functools.partial(reference.select, options=options)),
  }
  args = (logits_NE, bias_E, valid_N)
  chosen = choose('top_k_route', table, *args, implementation=implementation)
  # Named before anything is made of it: all of it is of one and the same run.
  ids_NK, chosen_NK, total_N, counts_E = checkpoint_name(chosen, CHOICE)
  weights_NK = weigh.weights(options, ids_NK, chosen_NK, total_N)
  kept = weigh.kept(options, chosen_NK, weights_NK, logits_NE)
  return (ids_NK, weights_NK, counts_E), (ids_NK, kept)


def _backward(options, _implementation, saved, cotangents):
  ids_NK, kept = saved
  dweights_NK = jnp.where(ids_NK < options.experts, cotangents[1], 0)
  dchosen_NK, dlogits_NE = weigh.gradient(options, kept, dweights_NK)
  spread_NE = _spread(ids_NK, dchosen_NK, options.experts)
  if dlogits_NE is not None:
    spread_NE += dlogits_NE
  return spread_NE, None, None


_route.defvjp(_forward, _backward)


def count(ids_NK: jax.Array, experts: int) -> jax.Array:
  """int32 [E]: pairs of each expert; ids outside [0, experts) count nowhere."""
  table = {
    'scatter': Entry(
      functools.partial(cpu.count, experts=experts), platforms=('cpu',)
    ),
    'dense': Entry(functools.partial(reference.count, experts=experts)),
  }
  return choose('count', table, ids_NK)


def _spread(ids_NK, value_NK, experts):
  table = {
    'scatter': Entry(
      functools.partial(cpu.spread, experts=experts), platforms=('cpu',)
    ),
    'dense': Entry(functools.partial(reference.spread, experts=experts)),
  }
  return choose('spread', table, ids_NK, value_NK)


def permutation(
  ids_NK: jax.Array, experts: int, *, implementation: str | None = None
) -> Plan:
  """Where each pair of token and expert goes, in the order of experts.

  Args:
    ids_NK: int32 [N, K]; an id outside [0, experts) is "no expert" and comes
      last. An expert may be named twice by a token.
    experts: E.
    implementation: `None` chooses for the platform that the program is lowered
      for; 'count' (CPU), 'mosaic' (TPU) or 'sort'.

  Returns:
    The plan: `pair_R`, `place_NK`, `sizes_E`.

  Raises:
    ValueError: ids are no integers in two dimensions, or an unknown name.
    NotImplementedError: the named implementation does not run here.
  """
  if ids_NK.ndim != 2 or not jnp.issubdtype(ids_NK.dtype, jnp.integer):
    raise ValueError(
      f'permutation takes integer ids [N, K], not {ids_NK.dtype} '
      f'{ids_NK.shape}.'
    )
  if 0 in ids_NK.shape:
    empty = jnp.zeros(ids_NK.shape, jnp.int32)
    return Plan(empty.reshape(-1), empty, jnp.zeros(experts, jnp.int32))
  table = {
    'count': Entry(
      functools.partial(cpu.by_count, experts=experts),
      platforms=('cpu',),
      refuses=_refuses_many,
    ),
    'mosaic': Entry(
      functools.partial(pallas_tpu.by_count, experts=experts),
      platforms=('tpu',),
      refuses=_refuses_shards,
    ),
    'sort': Entry(functools.partial(by_sort, experts=experts)),
  }
  return choose('permutation', table, ids_NK, implementation=implementation)


def _refuses_many(ids_NK) -> str | None:
  if ids_NK.size >= 2**24:
    return f'it counts {2**24 - 1} pairs at most, not {ids_NK.size}'
  return None


def _refuses_shards(*_) -> str | None:
  """For what the compiler cannot partition along the tokens."""
  mesh = jax.sharding.get_abstract_mesh()
  left = [
    name
    for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
    if kind != AxisType.Manual and mesh.shape[name] > 1
  ]
  if left:
    return f'it is not partitioned over the mesh axes {", ".join(left)}'
  return None
