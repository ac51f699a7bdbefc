"""The language model: embed, prefix, pattern x repeats, suffix, head.

This is the only place that scans over layers.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax import costs
from moejax.blocks import skip
from moejax.memory import taps
from moejax.nn import RmsNorm
from moejax.optim import MaximalUpdate
from moejax.pipeline import Circular
from moejax.types import Context, Outputs, Shared, State, Stream
from pallas_kernels.expert_ffn.api import PRE_ACTIVATIONS
from pallas_kernels.route.api import CHOICE

# What layers sow and what they keep, each with its layer axis. A collection
# that is missing here would be dropped by the scan without a word.
SCANNED = {
  'params': 0,
  'losses': 0,
  'stats': 0,
  'balance': 0,
  taps.TAPS: 0,
  taps.READS: 0,
}

# Rematerialisation: what the backward pass keeps of each period. The choice
# of experts is always kept: recomputing it could route a token elsewhere.
_named = jax.checkpoint_policies.save_only_these_names
REMAT = {
  'full': _named(CHOICE),
  'dots': jax.checkpoint_policies.save_from_both_policies(
    _named(CHOICE, PRE_ACTIVATIONS),
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  ),
}


class Period(nn.Module):
  """One repetition of the pattern: the unit that is scanned."""

  blocks: tuple[nn.Module, ...]

  @nn.compact
  def __call__(self, stream: Stream, ctx: Context, states: State, first):
    """`first` is the place of its first block among the model's layers."""
    states = states or (None,) * len(self.blocks)
    new = []
    for i, (block, state) in enumerate(zip(self.blocks, states, strict=True)):
      stream, state = block(stream, ctx.replace(layer=first + i), state)
      new.append(state)
    return stream, tuple(new)


class Model(nn.Module):
  """A causal language model out of named blocks.

  Attributes:
    vocab: V, number of token ids.
    width: D of the residual stream.
    blocks: the blocks by name.
    pattern: names of the blocks that are repeated, in order.
    repeats: times that the pattern is repeated; each has its own parameters.
    prefix: names of blocks before the pattern.
    suffix: names of blocks after it.
    shared: modules that layers share, by name, each with one set of
      parameters: a layer calls `ctx.shared[name](...)`. Arguments to
      initialise one with are those that its `example(width)` returns.
    tied: whether the head is the transposed embedding.
    remat: None, 'full' (keep the choice of experts only) or 'dots' (also the
      results of matrix products).
    dtype: of the activations, 'float32' or 'bfloat16'; parameters are f32.
    parametrization: what changes with the width, such as
      `optim.MaximalUpdate`; None changes nothing.
    pipeline: how stages share the repeats of the pattern in training and
      evaluation; None for no stages. The variables are the same, and decoding
      goes without.
  """

  vocab: int
  width: int
  blocks: Mapping[str, nn.Module]
  pattern: tuple[str, ...]
  repeats: int = 1
  prefix: tuple[str, ...] = ()
  suffix: tuple[str, ...] = ()
  shared: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
  tied: bool = True
  remat: str | None = None
  dtype: str = 'float32'
  parametrization: MaximalUpdate | None = None
  pipeline: Circular | None = None

  def setup(self):
    self.embedding = self.param(
      'embedding',
      nn.with_logical_partitioning(
        nn.initializers.normal(self.width**-0.5), ('vocab', 'embed')
      ),
      (self.vocab, self.width),
      jnp.float32,
    )
    if not self.tied:
      self.head = self.param(
        'head',
        nn.with_logical_partitioning(
          nn.initializers.normal(self.width**-0.5), ('embed', 'vocab')
        ),
        (self.width, self.vocab),
        jnp.float32,
      )
    if self.prefix:
      self.before = self._period(Period, self.prefix)
    self.layers = self._scanned()
    if self.suffix:
      self.after = self._period(Period, self.suffix)
    self.final_norm = RmsNorm()

  def _period(self, cls, names, **fields):
    for name in names:
      if name not in self.blocks:
        raise ValueError(
          f'{name!r} is no block; known: {", ".join(sorted(self.blocks))}.'
        )
    # Copies: a module used twice would share its parameters.
    copies = (
      self.blocks[n].clone(parent=None, _deep_clone=True) for n in names
    )
    return cls(tuple(copies), **fields)

  def _scanned(self):
    period = Period
    if self.remat is not None:
      if self.remat not in REMAT:
        raise ValueError(
          f'remat={self.remat!r} is unknown; use None, {", ".join(REMAT)}.'
        )
      period = nn.remat(period, policy=REMAT[self.remat], prevent_cse=False)
    scanned = nn.scan(
      period,
      variable_axes=SCANNED,
      split_rngs={'params': True},
      in_axes=(nn.broadcast, 0, 0),
      length=self.repeats,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )
    return self._period(scanned, self.pattern)

  def __call__(
    self, ctx: Context, state: State = None
  ) -> tuple[Outputs, State]:
    """Runs the model on `ctx.tokens_BT`.

    Args:
      ctx: tokens, positions and segments, int32 [B, T].
      state: None to train; what `init_state` or an earlier call gave to
        prefill or decode.

    Returns:
      The outputs, and the new state (None if `state` was).
    """
    dtype = jnp.dtype(self.dtype)
    before, middle, after = state or (None, None, None)
    x_BTD = self.embedding.astype(dtype)[ctx.tokens_BT] * self.width**0.5
    x_BTD = nn.with_logical_constraint(x_BTD, ('batch', 'time', None))
    held_BTD = jnp.zeros_like(x_BTD) if self._holds() else None
    stream = Stream(x_BTD, held_BTD)
    ctx = ctx.replace(shared=self._shared_modules())
    starts = jnp.arange(self.repeats, dtype=jnp.int32) * len(self.pattern)
    starts += len(self.prefix)
    if self.prefix:
      stream, before = self.before(stream, ctx, before, jnp.int32(0))
    if self.pipeline is None or state is not None or self.is_initializing():
      stream, middle = self.layers(stream, ctx, middle, starts)
    else:
      stream = self._pipelined(stream, ctx, starts)
    if self.suffix:
      last = starts[-1] + len(self.pattern)
      stream, after = self.after(stream, ctx, after, last)
    head_DV = self.embedding.T if self.tied else self.head
    hidden_BTD = self.final_norm(stream.x_BTD)
    if self.parametrization is not None:
      hidden_BTD *= self.parametrization.logits_scale(self.width)
    outputs = Outputs(hidden_BTD, head_DV.astype(dtype))
    return outputs, None if state is None else (before, middle, after)

  def _holds(self) -> bool:
    names = (*self.prefix, *self.pattern * self.repeats, *self.suffix)
    return skip.holds([self.blocks[name] for name in names])

  def _pipelined(self, stream, ctx, starts):
    layers = self.layers
    alone = self._period(Period, self.pattern, parent=None)
    mutable = [name for name in SCANNED if layers.is_mutable_collection(name)]

    def period(variables, stream, ctx, first):
      (stream, _), written = alone.apply(
        variables, stream, ctx, None, first, mutable=mutable
      )
      return stream, written

    stream, written = self.pipeline(
      period,
      nn.unbox(layers.variables),
      stream,
      ctx,
      starts,
      keeps=self.remat and REMAT[self.remat],
    )
    for collection in set(written).intersection(mutable):
      for name, value in written[collection].items():
        layers.put_variable(collection, name, value)
    return stream

  def _shared_modules(self) -> dict[str, Shared]:
    found = {}
    for name, module in self.shared.items():
      if self.is_initializing():
        module(*module.example(self.width))
      # As values, which the scan broadcasts: it would give a bound module
      # parameters for each repeat.
      unbound = module.clone(parent=None, _deep_clone=True)
      found[name] = Shared(nn.unbox(module.variables), unbound)
    return found

  def init_state(self, batch: int, length: int) -> State:
    """An empty decode state for `batch` sequences of up to `length`."""

    def states(names):
      return tuple(
        self.blocks[n].init_state(batch, length, self.width, self.dtype)
        for n in names
      )

    repeated = jax.tree.map(
      lambda leaf: jnp.broadcast_to(leaf, (self.repeats, *leaf.shape)),
      states(self.pattern),
    )
    return states(self.prefix), repeated, states(self.suffix)

  def layer_paths(self) -> list[tuple[str, nn.Module, int]]:
    """Every block with the path of its parameters and its repeats."""
    groups = (
      ('before', self.prefix, 1),
      ('layers', self.pattern, self.repeats),
      ('after', self.suffix, 1),
    )
    return [
      (f'{group}/blocks_{i}', self.blocks[name], repeats)
      for group, names, repeats in groups
      for i, name in enumerate(names)
    ]

  def active_fracs(self) -> dict[str, float]:
    """Share of the parameters under a path that one token uses."""
    own = {
      f'{path}/{inner}': frac
      for path, block, _ in self.layer_paths()
      for inner, frac in block.active_fracs().items()
    }
    rows = collections.Counter()
    for _, block, repeats in self.layer_paths():
      for name, count in costs.told(block, 'rows_read').items():
        rows[name] += repeats * count
    return own | {
      f'shared_{name}': min(1.0, count / self.shared[name].slots)
      for name, count in rows.items()
    }

  def flops(self, length: int) -> float:
    """Forward FLOPs per token in sequences of `length`, head included."""
    return sum(self.flops_by_path(length).values())

  def flops_by_path(self, length: int) -> dict[str, float]:
    """The same for each part; `head` may have no parameters of its own."""
    parts = {}
    for path, block, repeats in self.layer_paths():
      found = costs.flops_under(path, block, self.width, length)
      parts |= {name: repeats * flops for name, flops in found.items()}
    return parts | {'head': 2 * self.width * self.vocab}
