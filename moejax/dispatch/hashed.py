"""Like tokens travel as one: what is sent are the means of buckets."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.dispatch import group as groups
from moejax.dispatch import traffic
from moejax.dispatch.exchange import padded
from moejax.types import Chosen


class Hashed(nn.Module):
  """Experts see one mean for each bucket of like tokens; in training alone.

  On each device the tokens of an expert are put into buckets by cross-polytope
  hashes: a hash is the largest, by magnitude, of a token's products with
  `directions` random ones, and its sign; a bucket is `hashes` of them. Only the
  mean c of a bucket goes to the expert E, and each token x of it gets

    E(c) + (x - c)

  times its router weight.  Source: 2411.08446 sec. 3.2 and algorithm 1.
  Differs: the number of means is fixed, `rate` of the choices: where there are
  more buckets, an expert's neighbours in the order of hashes become one. Random
  directions are projections, few and not orthogonal.

  Gradients are those of this formula, the buckets taken as given: that of E(c)
  goes to all of a bucket's tokens in equal parts, that of (x - c) to the token
  less the mean over its bucket. A mean travels back as it came.

  A token's output depends on others of its bucket, later ones too: evaluation
  and decoding use `exact` instead.

  Sows `stats/bucket_frac`, the means sent over the choices, beside what `exact`
  sows.

  Attributes:
    exact: the dispatch that carries the means.
    rate: of the choices are the means that each device has room for; at least
      one for each expert that is chosen. At 1 only equal hashes share a mean.
    hashes: that tokens of a bucket have in common.
    directions: of a hash, which has twice as many values.
    seed: of the directions.
  """

  exact: nn.Module
  rate: float
  hashes: int = 6
  directions: int = 16
  seed: int = 0

  accepts = (Chosen,)

  def setup(self):
    nn.share_scope(self, self.exact)

  def __call__(self, assignment: Chosen, x_ND: jax.Array, experts):
    num_experts, (n, k) = assignment.num_experts, assignment.ids_NK.shape
    by_device, parts = _by_device(num_experts)
    missing = -n % parts
    rows = mean_rows(self.rate, (n + missing) // parts * k, num_experts)
    x_ND = padded(x_ND, missing, 0)
    ids_NK = padded(assignment.ids_NK, missing, num_experts)
    weights_NK = padded(assignment.weights_NK, missing, 0)
    shape = (x_ND.shape[1], self.hashes, self.directions)

    def gather(x_ND, ids_NK):
      x_ND = jnp.where((ids_NK < num_experts).any(-1, keepdims=True), x_ND, 0)
      directions = jax.random.normal(jax.random.key(self.seed), shape)
      codes_NH = hashes(jax.lax.stop_gradient(x_ND), directions)
      found = buckets(ids_NK, codes_NH, num_experts, rows)
      return means(x_ND, found), found

    mean_CD, found = by_device(gather, x_ND, ids_NK)
    ones_C1 = (found.ids_C < num_experts).astype(jnp.float32)[:, None]
    logits_CE = jnp.zeros((len(mean_CD), num_experts), jnp.float32)
    sent = Chosen(found.ids_C[:, None], ones_C1, logits_CE)
    frac = ones_C1.sum() / jnp.maximum((ids_NK < num_experts).sum(), 1)
    self.sow('stats', 'bucket_frac', frac)
    y_CD = self.exact(sent, mean_CD, experts)
    y_ND = by_device(compensated, x_ND, mean_CD, y_CD, weights_NK, found)
    return y_ND[:n]

  def collective_bytes(self, layer: traffic.Layer, **more) -> dict[str, float]:
    """Bytes that a device sends, by kind of collective."""
    choices = layer.tokens * layer.k
    rows = mean_rows(self.rate, choices, layer.num_experts)
    means = dataclasses.replace(layer, tokens=rows, k=1)
    return self.exact.collective_bytes(means, **more)


class Buckets(NamedTuple):
  """Which choices share a mean.

  Attributes:
    mean_NK: int32, the mean of each choice, C for none.
    ids_C: int32, the expert of each mean, E where there is none.
  """

  mean_NK: jax.Array
  ids_C: jax.Array


def mean_rows(rate: float, choices: int, num_experts: int) -> int:
  """C, the means that a device has room for.

  Raises:
    ValueError: the rate is not in (0, 1].
  """
  if not 0 < rate <= 1:
    raise ValueError(
      f'rate={rate} must be in (0, 1]: it is the share of the choices that are '
      'sent.'
    )
  return max(math.ceil(rate * choices), min(num_experts, choices))


def hashes(x_ND: jax.Array, directions: jax.Array) -> jax.Array:
  """int32 [N, H]: each the direction nearest to a token's line, and its side.

  Args:
    x_ND: tokens.
    directions: f32 [D, H, d].
  """
  along = jnp.einsum('nd,dhc->nhc', x_ND.astype(jnp.float32), directions)
  nearest = jnp.abs(along).argmax(-1)
  side = jnp.take_along_axis(along, nearest[..., None], -1)[..., 0] < 0
  return (2 * nearest + side).astype(jnp.int32)


def buckets(
  ids_NK: jax.Array, codes_NH: jax.Array, num_experts: int, rows: int
) -> Buckets:
  """Choices of one expert and equal codes share a mean.

  An expert with n of M choices may have 1 + (n - 1) (C - A) / (M - A) means,
  rounded, where A experts are chosen; all may have as many as they have choices
  if C is M. With more buckets than that, runs of them in the order of their
  codes share a mean.

  Args:
    ids_NK: the expert of each choice; E for none.
    codes_NH: of each token.
    num_experts: E.
    rows: C.
  """
  n, k = ids_NK.shape
  id_R = ids_NK.reshape(-1)
  row_R = jnp.arange(n * k, dtype=jnp.int32)
  codes = [jnp.repeat(code_N, k) for code_N in codes_NH.T]
  *keys, order_R = jax.lax.sort((id_R, *codes, row_R), num_keys=1 + len(codes))
  id_R = keys[0]
  new_R = jnp.stack([jnp.diff(a, prepend=-1) != 0 for a in keys]).any(0)
  experts_E = jnp.arange(num_experts + 1)
  start_E = jnp.searchsorted(id_R, experts_E).astype(jnp.int32)
  # The number of each bucket among those of its expert, and how many they are.
  upto_R = jnp.cumsum(new_R.astype(jnp.int32))
  before_E = jnp.where(start_E > 0, upto_R[start_E - 1], 0)
  num_E = jnp.diff(before_E)
  own_R = upto_R - 1 - before_E[id_R]
  first_E, room_E = _rooms(jnp.diff(start_E), rows)
  # Buckets past the room: as many runs as there is room for, of like length.
  e_R = jnp.minimum(id_R, num_experts - 1)
  room_R, num_R = room_E[e_R], num_E[e_R]
  run_R = jnp.floor(own_R * (room_R / jnp.maximum(num_R, 1))).astype(jnp.int32)
  run_R = jnp.minimum(run_R, room_R - 1)
  place_R = first_E[e_R] + jnp.where(num_R <= room_R, own_R, run_R)
  place_R = jnp.where(id_R < num_experts, place_R, rows)
  ids_C = jnp.full(rows, num_experts, jnp.int32)
  ids_C = ids_C.at[place_R].set(id_R, mode='drop')
  mean_R = jnp.zeros_like(row_R).at[order_R].set(place_R, unique_indices=True)
  return Buckets(mean_R.reshape(n, k), ids_C)


def _rooms(sizes_E, rows):
  """int32 [E] each: every expert's first mean, and how many it may have."""
  chosen_E = (sizes_E > 0).astype(jnp.int32)
  more_E = sizes_E - chosen_E
  free = rows - chosen_E.sum()
  upto_E = jnp.cumsum(more_E)
  part = jnp.minimum(free / jnp.maximum(upto_E[-1], 1), 1.0)
  upto_E = jnp.where(
    part < 1,
    jnp.minimum(jnp.floor(upto_E * part).astype(jnp.int32), free),
    upto_E,
  )
  end_E = upto_E + jnp.cumsum(chosen_E)
  room_E = jnp.diff(end_E, prepend=0)
  return end_E - room_E, room_E


def means(x_ND: jax.Array, found: Buckets) -> jax.Array:
  """[C, D]: the mean of the tokens of each bucket, a token once per choice."""
  rows = len(found.ids_C)
  n, k = found.mean_NK.shape
  wide = jnp.promote_types(x_ND.dtype, jnp.float32)
  mean_R = found.mean_NK.reshape(-1)
  x_RD = jnp.repeat(x_ND, k, axis=0).astype(wide)
  total_CD = jnp.zeros((rows, x_ND.shape[1]), wide)
  total_CD = total_CD.at[mean_R].add(x_RD, mode='drop')
  size_C = jnp.zeros(rows, wide).at[mean_R].add(1, mode='drop')
  return (total_CD / jnp.maximum(size_C, 1)[:, None]).astype(x_ND.dtype)


def compensated(
  x_ND: jax.Array,
  mean_CD: jax.Array,
  y_CD: jax.Array,
  weights_NK: jax.Array,
  found: Buckets,
) -> jax.Array:
  """[N, D]: sum over a token's choices of w (E(c) + x - c)."""
  wide = jnp.promote_types(x_ND.dtype, jnp.float32)
  used_NK = found.mean_NK < len(found.ids_C)
  weights_NK = jnp.where(used_NK, weights_NK, 0).astype(wide)
  x_ND = jnp.where(used_NK.any(-1, keepdims=True), x_ND, 0)
  change_CD = y_CD.astype(wide) - mean_CD.astype(wide)
  y_ND = weights_NK.sum(-1, keepdims=True) * x_ND.astype(wide)
  # One after the other: all K at once would be K times as large.
  for k in range(weights_NK.shape[1]):
    row_ND = change_CD.at[found.mean_NK[:, k]].get(mode='fill', fill_value=0)
    y_ND += weights_NK[:, k : k + 1] * row_ND
  return y_ND.astype(x_ND.dtype)


def _by_device(num_experts):
  """A call of each device for its own tokens; and how many devices they are."""
  group = groups.of_mesh(num_experts)
  if group is None:
    return lambda f, *args: f(*args), 1

  def call(f, *args):
    return jax.shard_map(
      f,
      in_specs=(group.tokens_spec,) * len(args),
      out_specs=group.tokens_spec,
      axis_names=set(jax.sharding.get_abstract_mesh().axis_names),
      check_vma=False,
    )(*args)

  return call, group.parts
