"""What a plan has to know of a config, whatever the mesh."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from moejax import accounting, fields, optim, sharding, state
from moejax.build import build
from moejax.parts import Parts

MOE = 'moe.Moe'


class Leaf(NamedTuple):
  """One array of the state.

  Attributes:
    path: of the parameter, or '' for moments.
    axes: its logical axes.
    over: for each of these, the mesh axes that cut it.
    size: its numbers, all devices together.
    itemsize: bytes of one.
  """

  path: str
  axes: tuple[str | None, ...]
  over: tuple[tuple[str, ...], ...]
  size: int
  itemsize: int

  def cut(self) -> set[str]:
    """All mesh axes that cut it."""
    return {axis for axes in self.over for axis in axes}

  def bytes(self, sizes: Mapping[str, int]) -> float:
    """Of one device."""
    return self.size * self.itemsize / product(sizes, self.cut())


class Mixture(NamedTuple):
  """Layers of experts that are alike.

  Attributes:
    layers: their number.
    k: experts per token.
    num_experts: E.
    hidden: width of an expert.
    dispatch: its node.
  """

  layers: int
  k: int
  num_experts: int
  hidden: int
  dispatch: ConfigDict


class Facts(NamedTuple):
  """What a plan has to know.

  Attributes:
    config: the whole config.
    params: the parameters.
    moments: the rest of the state.
    mixtures: the layers of experts.
    flops: forward, per token, by path of parameters.
    kept: bytes per token that the backward pass finds of the forward pass.
    period: likewise of one period without recomputation, while it is at work.
    cache: bytes per token that keys and values of all layers take.
    rules: logical axis to mesh axes.
  """

  config: ConfigDict
  params: tuple[Leaf, ...]
  moments: tuple[Leaf, ...]
  mixtures: tuple[Mixture, ...]
  flops: dict[str, float]
  kept: float
  period: float
  cache: float
  rules: sharding.Rules

  @property
  def tokens(self) -> int:
    """Of a step, over all devices and micro-batches."""
    return self.config.train.batch_size * self.config.train.seq_len

  @property
  def itemsize(self) -> int:
    """Bytes of an activation."""
    return jnp.dtype(self.config.model.get('dtype', 'float32')).itemsize

  def axes_of(self, name: str, moe: bool = False) -> tuple[str, ...]:
    """Mesh axes of a logical axis, by the rules of experts if `moe`."""
    rules = sharding.folded(self.rules) if moe else self.rules
    to = dict(rules).get(name) or ()
    return (to,) if isinstance(to, str) else tuple(to)

  def under(self, path: str) -> list[Leaf]:
    """The parameters under a path."""
    return [p for p in self.params if f'{p.path}/'.startswith(f'{path}/')]

  def token_axes(self) -> set[str]:
    """Mesh axes over which tokens are cut outside of layers of experts."""
    return {*self.axes_of('batch'), *self.axes_of('time')}


def product(sizes: Mapping[str, int], axes) -> int:
  """Devices along mesh axes."""
  return math.prod(sizes.get(axis, 1) for axis in axes)


def gather(config: ConfigDict, names: tuple[str, ...]) -> Facts:
  """The facts of a config, for meshes of the axes `names`; traced only."""
  parts = Parts(config)
  model, train = parts.model, config.train
  shapes, axes = parts.variables
  opt_state = jax.eval_shape(parts.tx.init, shapes['params'])
  opt_axes = optim.state_names(opt_state, shapes['params'], axes['params'])
  leaf = functools.partial(_leaf, rules=parts.rules, names=names)
  rows = accounting.parameter_rows(model, parts.variables)
  others = (
    jax.tree.leaves((opt_state, shapes['balance'])),
    jax.tree.leaves((opt_axes, axes['balance']), is_leaf=sharding.is_axes),
  )
  whole = _without(config.model, pipeline=None)
  kept = _kept(whole, train.seq_len)
  period = _period(whole)
  same = period == whole
  return Facts(
    config=config,
    params=tuple(leaf(r.path, r.logical_axes, r) for r in rows),
    moments=tuple(leaf('', a, s) for s, a in zip(*others, strict=True)),
    mixtures=tuple(_mixtures(config.model)),
    flops=model.flops_by_path(train.seq_len),
    kept=kept,
    period=kept if same else _kept(period, train.seq_len),
    cache=_cache(model, train.seq_len),
    rules=parts.rules,
  )


def _leaf(path, axes, array, rules, names):
  over = sharding.spec(axes, sharding.rules_of(axes, rules), names)
  size = math.prod(array.shape)
  return Leaf(path, axes, tuple(over), size, jnp.dtype(array.dtype).itemsize)


def _mixtures(model: ConfigDict):
  layers = [*model.get('prefix', ()), *model.get('suffix', ())]
  layers += list(model.pattern) * model.get('repeats', 1)
  for name in dict.fromkeys(layers):
    for _, node in fields.nodes(model.blocks[name], name):
      if node['kind'] != MOE:
        continue
      router = node['router']
      while 'inner' in router:  # a wrapper
        router = router['inner']
      yield Mixture(
        layers.count(name),
        router.get('k', 1),
        node['experts'].get('num_experts', 1),
        node['experts'].get('hidden', 0),
        node['dispatch'],
      )


def _period(model: ConfigDict) -> ConfigDict:
  """A model of one period alone, without recomputation."""
  return _without(model, remat=None, repeats=1, prefix=(), suffix=())


def _without(model: ConfigDict, **values) -> ConfigDict:
  """A copy with other values of those fields that it has."""
  model = model.copy_and_resolve_references()
  with model.unlocked():
    for name, value in values.items():
      if name in model:
        model[name] = value
  return model


def _kept(model: ConfigDict, length: int) -> float:
  """Bytes that a token adds to what a gradient keeps, as JAX traces it."""
  built = build(model, 'config.model')
  one, two = (_residuals(built, batch, length) for batch in (1, 2))
  # What does not grow with the batch are parameters, counted elsewhere.
  return (two - one) / length


def _residuals(model, batch, length):
  shapes, _ = state.abstract_variables(model)
  ctx = jax.eval_shape(lambda: state.blank_context(batch, length))

  def keep(params, balance, ctx):
    def forward(params):
      (outputs, _), written = model.apply(
        {'params': params, 'balance': balance},
        ctx,
        mutable=['losses', 'stats', 'balance'],
      )
      return outputs.hidden_BTD, written.get('losses', {})

    return jax.vjp(forward, params)

  _, pull = jax.eval_shape(
    keep, shapes['params'], shapes['balance'], ctx.replace(train=True)
  )
  return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(pull))


def _cache(model, length):
  """Bytes of a state for decoding that grow with the length, per token."""

  def size(length):
    made = jax.eval_shape(lambda: model.init_state(1, length))
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(made))

  return (size(2 * length) - size(length)) / length
