"""Linear attention: a state of fixed size in place of a cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import flax.linen as nn
import flax.struct as struct
import jax
import jax.numpy as jnp

from moejax.mixers.convolution import ShortConvolution
from moejax.mixers.rules.rule import CHANNEL, Inputs, run
from moejax.mixers.rules.rule import flops as rule_flops
from moejax.nn import Projection, RmsNorm, activations, rms_norm, rotate
from moejax.types import Context


@struct.dataclass
class Memory:
  """What a linear mixer remembers.

  Attributes:
    state_BGKV: f32, a matrix for each value head.
    recent: the last inputs of each convolution by name, [B, W - 1, H, K].
  """

  state_BGKV: jax.Array
  recent: Mapping[str, jax.Array]


class LinearAttention(nn.Module):
  """Queries read a matrix per head that keys and values update by a rule.

  y = gate(norm(rule(q, k, v, decay(x), write(x))), x), projected. Queries,
  keys and values are projections through a short convolution; queries and
  keys are scaled to length 1, queries then by `scale`. Nothing crosses
  documents, and padding leaves the state alone.

  Source: 2510.26692 fig. 3 with `rules.kda`; 2412.06464 fig. 1 with
  `rules.gated_delta`; 2312.06635, 2307.08621, 2501.08313 with others.

  Attributes:
    heads: H, of queries and keys.
    rule: one of `mixers.rules`.
    decay: `(x_BTD, shape) -> log decay`, from `mixers.decays`; None for a
      rule without one.
    write: `(x_BTD, shape) -> beta`, from `mixers.writes`; None likewise.
    gate: of the normalised output, one of `mixers.gates`; None for none.
    value_heads: G, a multiple of H; None for H.
    head_dim: K, of queries and keys; None for width / H.
    value_dim: V, of values; None for K.
    conv_size: tokens that a convolution sees; None for none.
    activation: of queries, keys and values.
    qk_norm: whether queries and keys have length 1.
    scale: of queries; None for K^-1/2.
    rope_theta: base of rotary wavelengths; None for no rotation.
    norm_per_head: whether each head is normalised alone, or all together.
    norm_epsilon: of that norm.
  """

  heads: int
  rule: Callable
  decay: nn.Module | None = None
  write: nn.Module | None = None
  gate: nn.Module | None = None
  value_heads: int | None = None
  head_dim: int | None = None
  value_dim: int | None = None
  conv_size: int | None = 4
  activation: Callable = activations.silu
  qk_norm: bool = True
  scale: float | None = None
  rope_theta: float | None = None
  norm_per_head: bool = True
  norm_epsilon: float = 1e-6

  causal = True

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, ctx: Context, state: Memory | None = None
  ) -> tuple[jax.Array, Memory | None]:
    recent = {} if state is None else dict(state.recent)
    inputs = self._inputs(x_BTD, ctx, recent)
    valid_BT = ctx.segments_BT > 0
    y_BTGV, matrix = run(
      self.rule,
      silence(inputs, valid_BT),
      None if state is None else state.state_BGKV,
      (ctx.positions_BT == 0) & valid_BT,
    )
    y_BTGV = self._norm(y_BTGV)
    if self.gate is not None:
      y_BTGV = self.gate(y_BTGV, x_BTD, ctx)
    axes = ('heads', 'kv', 'embed')
    y_BTD = Projection((x_BTD.shape[-1],), axes, name='out')(y_BTGV)
    return y_BTD, None if state is None else Memory(matrix, recent)

  def _inputs(self, x_BTD, ctx, recent):
    """What the rule reads; `recent` is brought up to date in place."""
    heads, groups, key, value = self._sizes(x_BTD.shape[-1])

    def project(name, heads, size):
      axes = ('embed', 'heads', 'kv')
      x = Projection((heads, size), axes, name=name)(x_BTD)
      if self.conv_size is None:
        return self.activation(x)
      conv = ShortConvolution(
        self.conv_size, activation=self.activation, name=f'{name}_conv'
      )
      x, kept = conv(x, ctx, recent.get(name))
      if kept is not None:
        recent[name] = kept
      return x

    q, k = project('query', heads, key), project('key', heads, key)
    v = project('value', groups, value)
    scale = key**-0.5 if self.scale is None else self.scale
    q, k = (unit(q, scale), unit(k, 1.0)) if self.qk_norm else (q * scale, k)
    if self.rope_theta is not None:
      q = rotate(q, ctx.positions_BT, self.rope_theta)
      k = rotate(k, ctx.positions_BT, self.rope_theta)
    log_decay = beta = None
    if self.decay is not None:
      log_decay = self.decay(x_BTD, self._decay_shape(groups, key))
    if self.write is not None:
      beta = self.write(x_BTD, (groups,))
    return Inputs(q, k, v, log_decay, beta)

  def _norm(self, y_BTGV):
    if self.norm_per_head:
      return RmsNorm('kv', self.norm_epsilon, name='norm')(y_BTGV)
    flat = y_BTGV.reshape(*y_BTGV.shape[:2], -1)
    flat = RmsNorm('heads', self.norm_epsilon, name='norm')(flat)
    return flat.reshape(y_BTGV.shape)

  def _decay_shape(self, groups, key):
    return (groups, key) if self.rule.decay == CHANNEL else (groups,)

  def _sizes(self, width):
    """H, G, K, V.

    Raises:
      ValueError: for sizes that do not fit, or parts that the rule does not
        read or lacks.
    """
    groups = self.value_heads or self.heads
    if groups % self.heads:
      raise ValueError(
        f'value_heads={groups} is no multiple of heads={self.heads}; make it '
        'one.'
      )
    if self.head_dim is None and width % self.heads:
      raise ValueError(
        f'heads={self.heads} does not divide width={width}; choose a divisor '
        'or set head_dim.'
      )
    self._check('decay', self.rule.decay)
    self._check('write', self.rule.beta)
    key = self.head_dim or width // self.heads
    return self.heads, groups, key, self.value_dim or key

  def _check(self, part, reads):
    if bool(reads) != (getattr(self, part) is not None):
      given = type(getattr(self, part)).__name__
      says, fix = ('has no', 'None')
      if reads:
        says, fix = ('reads a', f'one of mixers.{part}s')
      raise ValueError(
        f'{part} is {given}, but rule {self.rule.__name__} {says} {part}; set '
        f'it to {fix}.'
      )

  def init_state(self, batch, length, width, dtype) -> Memory:
    """An empty memory; its size does not depend on `length`."""
    del length
    heads, groups, key, value = self._sizes(width)
    recent = {}
    if self.conv_size is not None:
      sizes = dict(query=(heads, key), key=(heads, key), value=(groups, value))
      recent = {
        name: jnp.zeros((batch, self.conv_size - 1, *size), dtype)
        for name, size in sizes.items()
      }
    return Memory(jnp.zeros((batch, groups, key, value), jnp.float32), recent)

  def flops(self, width: int, length: int) -> float:
    """Forward FLOPs per token in sequences of `length`."""
    heads, groups, key, value = self._sizes(width)
    channels = 2 * heads * key + groups * value
    matrices = 2 * width * (channels + groups * value)
    if self.decay is not None:
      shape = self._decay_shape(groups, key)
      matrices += self.decay.flops(width, shape)
    if self.write is not None:
      matrices += self.write.flops(width, (groups,))
    if self.gate is not None:
      matrices += self.gate.flops(width, groups, value)
    convolutions = 2 * (self.conv_size or 0) * channels
    core = groups * rule_flops(self.rule, key, value, length)
    return matrices + convolutions + core


def unit(x_BTHK, scale):
  """x of length `scale`: x scale / sqrt(|x|^2 + 1e-6), in f32."""
  size = x_BTHK.shape[-1]
  # The mean square is the squared length over the size.
  scale_K = jnp.full((size,), scale * size**-0.5, jnp.float32)
  return rms_norm(x_BTHK, scale_K, 1e-6 / size)


def silence(inputs, valid_BT):
  """Padding has no key and no decay: it neither adds nor forgets."""
  k = jnp.where(valid_BT[..., None, None], inputs.k_HK, 0)
  decay = inputs.log_decay
  if decay is not None:
    some = valid_BT.reshape(*valid_BT.shape, *(1,) * (decay.ndim - 2))
    decay = jnp.where(some, decay, 0)
  return inputs.replace(k_HK=k, log_decay=decay)
