"""Pipeline parallelism: stages of layers that work on micro-batches in turn.

The schedule is a scan over arrays with a leading axis of stages, which the mesh
axis of 'layers' cuts. A stage computes inside a `jax.shard_map` over that axis
alone: what its layers do over the other axes of the mesh they do as ever.

Letters of axes, beside those of `moejax.types`: S stages, M micro-batches, R
turns, V periods of a stage and turn, I iterations. In here B is the rows of one
micro-batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct as struct
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from moejax import sharding, stats
from moejax.types import Context, Stream

# `(variables, stream, ctx, first) -> (stream, written)`.
Period = Callable[..., tuple[Stream, Mapping[str, Any]]]
_FREE = PartitionSpec.UNCONSTRAINED
# The name under which the backward pass keeps the input of a period.
_INPUT = 'period_input'
# What lies between a parameter and a product.
_READS = {
  'broadcast_in_dim',
  'convert_element_type',
  'dynamic_slice',
  'reshape',
  'slice',
  'squeeze',
  'transpose',
}


@dataclasses.dataclass(frozen=True)
class Circular:
  """Every stage holds groups of layers that are not neighbours.

  Of the R * S * V periods of a model, stage s holds, for each turn r, the V
  periods from (r * S + s) * V on. Micro-batches go round R times, S of them
  together: in iteration i stage s is at place u = i - s, which is turn
  u // S mod R of micro-batch u // (S * R) * S + u mod S. So what leaves the
  last stage is what the first one takes next. There are M * R + S - 1
  iterations, and the share of idle ones, the bubble, is

    (stages - 1) / (microbatches * repeats + stages - 1).

  In each iteration a device sends its rows of a micro-batch on, and in the
  backward pass their gradient back: see `permute_bytes`. It holds inputs and
  outputs of the layers for all its rows. With more than one turn, the
  parameters of layers, which lie in the order of the layers, are sent to their
  stages in each step, and their gradients back. What 'embed' cuts of them is
  gathered for each micro-batch and turn anew, and gradients are summed over the
  devices that share a stage as often.

  Row b of a batch is in micro-batch b mod M, as in `train.accumulate`. Terms
  and statistics that are means over tokens (`balance.z`, entropies) or over
  rows (`balance.per_sequence`) are those of the whole batch. Other terms are
  computed for each micro-batch and averaged, by tokens: `balance.load` sees
  the rows of a micro-batch, `balance.GlobalBatch` those of the micro-batches
  so far, both as with `train.accumulate`. Counts of experts are sums, so that
  `bias_update` does what it does without a pipeline. Capacities are of a
  micro-batch.

  Source: 2104.04473 sec. 2.2 (interleaved stages); 2105.04663 sec. 3.3 (an axis
  of stages, shifted by collective permutes).
  Differs: all forward passes come before the backward ones, so that memory
  grows with M; bubbles compute what is thrown away.

  Attributes:
    stages: S, the devices of the mesh axis of 'layers'. On a mesh without one,
      devices work on all stages, one after another.
    microbatches: M, a multiple of S.
    repeats: R.
  """

  stages: int
  microbatches: int
  repeats: int = 1

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if value < 1:
        raise ValueError(f'{name}={value} must be at least 1.')
    if self.microbatches % self.stages:
      raise ValueError(
        f'microbatches={self.microbatches} is not a multiple of stages='
        f'{self.stages}, as many as go round together; use '
        f'{-(-self.microbatches // self.stages) * self.stages}.'
      )

  @property
  def iterations(self) -> int:
    """M * R + S - 1."""
    return self.microbatches * self.repeats + self.stages - 1

  @property
  def bubble_frac(self) -> float:
    """Share of a stage's iterations of which nothing is kept."""
    return (self.stages - 1) / self.iterations

  def permute_bytes(self, stream_bytes: float, backward: bool = True) -> float:
    """Bytes of rows that a device sends to its neighbours in one step.

    Parameters, with more than one turn, are not counted.

    Args:
      stream_bytes: of the stream of all rows of the device.
      backward: whether the gradient's bytes are counted too.
    """
    passes = 2 if backward else 1
    return passes * self.iterations * stream_bytes / self.microbatches

  def check(self, periods: int) -> None:
    """Raises: ValueError unless stages and repeats divide the periods."""
    groups = self.stages * self.repeats
    if periods % groups:
      raise ValueError(
        f'the {periods} repeats of the pattern are not divisible by '
        f'{groups} (stages={self.stages} x repeats={self.repeats} of the '
        f'pipeline); use a multiple of {groups}, or move layers into the '
        'prefix or the suffix.'
      )

  def check_rows(self, rows: int) -> None:
    """Raises: ValueError unless the micro-batches divide the rows."""
    if rows % self.microbatches:
      raise ValueError(
        f'a batch of {rows} rows is not divisible by the microbatches='
        f'{self.microbatches} of the pipeline; use a multiple of them.'
      )

  def check_devices(self, devices: int) -> None:
    """Raises: ValueError unless there are as many as stages, or one."""
    if devices not in (1, self.stages):
      raise ValueError(
        f'stages={self.stages} of the pipeline, but the mesh cuts the layers '
        f'into {devices} parts; set config.mesh.pipe={self.stages}, or 1 to '
        'try the schedule without devices for it.'
      )

  def __call__(
    self,
    period: Period,
    variables: Mapping[str, Any],
    stream: Stream,
    ctx: Context,
    firsts: jax.Array,
    keeps: Callable | None = None,
  ) -> tuple[Stream, dict[str, Any]]:
    """The periods one after another.

    Args:
      period: one of them. `written` has `losses`, `stats` and `balance`, or
        fewer.
      variables: those of all periods, along the first axis of each array.
      stream: of the whole batch.
      ctx: likewise.
      firsts: int32, the place of each period's first layer.
      keeps: the policy of `jax.checkpoint` that says what the backward pass
        keeps of a period beside its input; None keeps all.

    Returns:
      The stream, and what was written, with periods along the first axis.

    Raises:
      ValueError: see `check`, `check_rows` and `check_devices`.
    """
    self.check(len(firsts))
    self.check_rows(len(ctx.tokens_BT))
    axes = sharding.axes_of('layers')
    self.check_devices(sharding.size_of(axes))
    if keeps is not None:
      period = jax.checkpoint(period, policy=keeps, prevent_cse=False)
    stage = jax.checkpoint(
      functools.partial(self._stage, period, ctx),
      policy=_kept_of_stages(keeps),
      prevent_cse=False,
    )
    parts, share_M = self._parts(ctx)
    inputs = jax.tree.map(self._split, stream)
    with sharding.less(axes):
      held = _Held(
        inputs=self._copies(inputs, axes, rows=True),
        parts=self._copies(parts, axes, rows=True),
        shared=self._copies(ctx.shared, axes),
        variables=self._to_stages(variables, axes),
        firsts=self._to_stages(firsts, axes),
      )
      outputs, balance, sown = self._scan(stage, held, axes)
    stream = jax.tree.map(self._join, outputs)
    written = {
      name: stats.merge_parts(self._from_iterations(tree), share_M)
      for name, tree in sown.items()
    }
    return stream, written | {'balance': self._from_stages(balance)}

  def _scan(self, stage, held, axes):
    """The outputs of each stage, its balance state, and all it sowed."""
    at_S = jnp.arange(self.stages, dtype=jnp.int32)

    def iteration(carry, i):
      turn, sown = _by_stage(stage, (at_S, i - at_S, held, carry), axes)
      return turn.replace(stream=_shift(turn.stream, axes)), sown

    # Bubbles compute on some rows of the batch: those are as finite as any.
    first = _Carry(
      stream=jax.tree.map(lambda a: a[:, 0], held.inputs),
      outputs=jax.tree.map(jnp.zeros_like, held.inputs),
      balance=held.variables.get('balance', {}),
    )
    each = jnp.arange(self.iterations, dtype=jnp.int32)
    last, sown = lax.scan(iteration, first, each)
    return last.outputs, last.balance, sown

  def _stage(self, period, ctx, s, u, held, carry):
    """One stage in one iteration, at place `u` of its own."""
    useful = (u >= 0) & (u < self.microbatches * self.repeats)
    # In a bubble: the first micro-batch, or the last one, once more.
    u = jnp.clip(u, 0, self.microbatches * self.repeats - 1)
    r = u // self.stages % self.repeats
    m = u // (self.stages * self.repeats) * self.stages + u % self.stages
    enters = (s == 0) & (r == 0)
    stream = jax.tree.map(
      lambda new, old: jnp.where(enters, new, old),
      _at(m, held.inputs),
      carry.stream,
    )
    ctx = ctx.replace(shared=held.shared, **_at(m, held.parts))
    fixed = {k: v for k, v in held.variables.items() if k != 'balance'}

    def one(stream, xs):
      variables, balance, first = xs
      variables = variables | {'balance': balance}
      stream = checkpoint_name(stream, _INPUT)
      stream, written = period(variables, stream, ctx, first)
      written = dict(written)
      return stream, (written.pop('balance', balance), written)

    mine, balance, firsts = _at(r, (fixed, carry.balance, held.firsts))
    stream, (new, sown) = lax.scan(one, stream, (mine, balance, firsts))
    # What a bubble leaves here is overwritten, but for the last stage, which
    # ends with the last micro-batch.
    outputs = jax.tree.map(
      lambda all, own: all.at[m].set(own), carry.outputs, stream
    )
    balance = jax.tree.map(
      lambda all, new, old: all.at[r].set(jnp.where(useful, new, old)),
      carry.balance,
      new,
      balance,
    )
    return _Carry(stream=stream, outputs=outputs, balance=balance), sown

  def _parts(self, ctx):
    """Fields of the context of each micro-batch; its share of the tokens."""
    tokens, positions, segments = map(
      self._split, (ctx.tokens_BT, ctx.positions_BT, ctx.segments_BT)
    )
    valid = segments > 0
    share_M = _share(valid.sum((1, 2)))
    rows_M = _share(valid.any(-1).sum(-1))
    parts = {
      'tokens_BT': tokens,
      'positions_BT': positions,
      'segments_BT': segments,
      'row_scale': rows_M / jnp.where(share_M > 0, share_M, 1),
    }
    return parts, share_M

  def _split(self, a):
    """[M * B, ...] to [M, B, ...]; rows stay on their devices."""
    a = a.reshape(-1, self.microbatches, *a.shape[1:]).swapaxes(0, 1)
    return sharding.cut_rows(a, (None,))

  def _join(self, a):
    """What the last of the stages has, [S, M, B, ...], to [M * B, ...]."""
    s = lax.broadcasted_iota(jnp.int32, (self.stages,) + (1,) * (a.ndim - 1), 0)
    # A sum of which all parts but one are 0: it leaves each device its rows.
    a = jnp.where(s == self.stages - 1, a, 0).sum(0, dtype=a.dtype)
    a = sharding.cut_rows(a, (None,))
    return sharding.cut_rows(a.swapaxes(0, 1).reshape(-1, *a.shape[2:]))

  def _copies(self, tree, axes, rows=False):
    """A copy for each stage: so gradients are added up once, at the end."""

    def copy(a):
      a = jnp.broadcast_to(a, (self.stages, *a.shape))
      if rows and a.ndim > 3:
        return sharding.cut_rows(a, (axes, None))
      return _cut(a, axes)

    return jax.tree.map(copy, tree)

  def _to_stages(self, tree, axes):
    """[R * S * V, ...] to [S, R, V, ...]."""

    def order(a):
      a = a.reshape(self.repeats, self.stages, -1, *a.shape[1:])
      return _cut(a.swapaxes(0, 1), axes)

    return jax.tree.map(order, tree)

  def _from_stages(self, tree):
    """[S, R, V, ...] to [R * S * V, ...]."""
    return jax.tree.map(
      lambda a: a.swapaxes(0, 1).reshape(-1, *a.shape[3:]), tree
    )

  def _from_iterations(self, tree):
    """[I, S, V, ...] to [M, R * S * V, ...], without the bubbles."""
    m, r, s = jnp.ogrid[: self.microbatches, : self.repeats, : self.stages]
    group, inside = m // self.stages, m % self.stages
    i = s + (group * self.repeats + r) * self.stages + inside

    def order(a):
      a = a[i, s]  # [M, R, S, V, ...]
      return a.reshape(len(a), -1, *a.shape[4:])

    return jax.tree.map(order, tree)


@struct.dataclass
class _Held:
  """What a stage reads: [S, M, ...] of rows, [S, R, V, ...] of layers."""

  inputs: Any
  parts: Any
  shared: Any
  variables: Any
  firsts: Any


@struct.dataclass
class _Carry:
  """What stages change: [S, B, ...], [S, M, B, ...], [S, R, V, ...]."""

  stream: Any
  outputs: Any
  balance: Any


def _by_stage(f, args, axes):
  """`f` of each stage, by the device that holds it."""

  def own(args):
    out = f(*jax.tree.map(lambda a: a[0], args))
    return jax.tree.map(lambda a: a[None], out)

  if not axes:
    return lax.map(lambda args: f(*args), args)
  return _manual(own, args, axes)


def _shift(tree, axes):
  """What a stage has, to the next one; from the last one to the first."""
  if not axes:
    return jax.tree.map(lambda a: jnp.roll(a, 1, axis=0), tree)
  size = sharding.size_of(axes)
  ring = [(i, (i + 1) % size) for i in range(size)]
  return _manual(lambda tree: lax.ppermute(tree, axes, ring), tree, axes)


def _manual(f, args, axes):
  """`f` of the part of a device, where the mesh cuts the first axes."""
  # Axes of one device too: without an axis that is left to the compiler, a
  # kernel needs no further `shard_map`.
  mesh = jax.sharding.get_abstract_mesh()
  alone = [a for a in sharding.auto_axes() if mesh.shape[a] == 1]
  axes = (*axes, *sorted(alone))
  return jax.shard_map(
    f,
    in_specs=PartitionSpec(axes),
    out_specs=PartitionSpec(axes),
    axis_names=set(axes),
    check_vma=False,
  )(args)


def _kept_of_stages(keeps):
  """What the backward pass keeps of an iteration, for `jax.checkpoint`.

  Everything but what is read off the parameters: that would be a copy of them
  for each iteration.
  """
  if keeps is None:
    return lambda primitive, *_, **__: primitive.name not in _READS
  policies = jax.checkpoint_policies
  named = policies.save_only_these_names(_INPUT)
  return policies.save_from_both_policies(named, keeps)


def _at(i, tree):
  return jax.tree.map(
    lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), tree
  )


def _cut(a, axes):
  """Says that the mesh cuts stages, the first axis of `a`."""
  if not axes:
    return a
  spec = PartitionSpec(axes, *[_FREE] * (a.ndim - 1))
  return lax.with_sharding_constraint(a, spec)


def _share(count_M):
  return count_M / jnp.maximum(count_M.sum(), 1)
