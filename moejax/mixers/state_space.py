"""The state space mixer of Mamba-2."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from moejax.mixers import rules
from moejax.mixers.convolution import ShortConvolution
from moejax.mixers.decays import log_uniform, step_bias
from moejax.mixers.linear import Memory, silence
from moejax.mixers.rules.rule import Inputs, run
from moejax.mixers.rules.rule import flops as rule_flops
from moejax.nn import Projection, activations, rms_norm
from moejax.types import Context


class StateSpace(nn.Module):
  """norm((C S + D x) * silu(z)), projected, with S by `rules.ssd`.

  x, B and C are projections through a short convolution; dt is
  softplus(x W + dt_bias) and A is -exp(A_log), a number per head. The width of
  all heads together is `expand` times that of the input. Nothing crosses
  documents, and padding leaves the state alone.

  Source: 2405.21060 sec. 7, with the parallel projections of fig. 6.
  Differs: one matrix and one filter for each of z, x, B, C and dt, where the
  public code concatenates them.

  Attributes:
    heads: G, of x.
    expand: width of all heads together, P each, over that of the input.
    state_size: N, of B and C.
    groups: B and C are shared by heads / groups heads each; the norm is over
      as many parts.
    conv_size: tokens that a convolution sees.
    rates: between which exp(A_log) starts, uniformly.
    norm_epsilon: of the norm.
  """

  heads: int
  expand: float = 2.0
  state_size: int = 128
  groups: int = 1
  conv_size: int = 4
  rates: tuple[float, float] = (1.0, 16.0)
  norm_epsilon: float = 1e-5

  causal = True

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, ctx: Context, state: Memory | None = None
  ) -> tuple[jax.Array, Memory | None]:
    size = self._head_dim(x_BTD.shape[-1])
    recent = {} if state is None else dict(state.recent)
    valid_BT = ctx.segments_BT > 0
    inputs = self._inputs(x_BTD, ctx, recent)
    y_BTGP, matrix = run(
      rules.ssd,
      silence(inputs, valid_BT),
      None if state is None else state.state_BGKV,
      (ctx.positions_BT == 0) & valid_BT,
    )
    skip_G = self._per_head('D', nn.initializers.ones)
    y_BTGP = y_BTGP + skip_G[:, None] * inputs.v_GV
    z = self._project(x_BTD, 'z', self.heads, size)
    y_BTGP = self._gated_norm(y_BTGP, z)
    axes = ('heads', 'kv', 'embed')
    y_BTD = Projection((x_BTD.shape[-1],), axes, name='out')(y_BTGP)
    return y_BTD, None if state is None else Memory(matrix, recent)

  def _inputs(self, x_BTD, ctx, recent):
    """What the rule reads; `recent` is brought up to date in place."""
    size = self._head_dim(x_BTD.shape[-1])

    def convolve(name, count, size):
      conv = ShortConvolution(self.conv_size, bias=True, name=f'{name}_conv')
      projected = self._project(x_BTD, name, count, size)
      y, kept = conv(projected, ctx, recent.get(name))
      if kept is not None:
        recent[name] = kept
      return y

    x = convolve('x', self.heads, size)
    b = convolve('B', self.groups, self.state_size)
    c = convolve('C', self.groups, self.state_size)
    dt = Projection((self.heads,), ('embed', 'heads'), name='dt')(x_BTD)
    bias = self._per_head('dt_bias', step_bias)
    dt = jax.nn.softplus(dt.astype(jnp.float32) + bias)
    rate = jnp.exp(self._per_head('A_log', log_uniform(*self.rates)))
    return Inputs(c, b, x, -rate * dt, dt)

  def _project(self, x_BTD, name, count, size):
    axes = ('embed', 'heads', 'kv')
    return Projection((count, size), axes, name=name)(x_BTD)

  def _per_head(self, name, init):
    init = nn.with_logical_partitioning(init, ('heads',))
    return self.param(name, init, (self.heads,), jnp.float32)

  def _gated_norm(self, y_BTGP, z_BTGP):
    """norm(y silu(z)), each of the groups on its own."""
    shape = y_BTGP.shape
    gated = y_BTGP * activations.silu(z_BTGP.astype(jnp.float32))
    parts = gated.reshape(*shape[:2], self.groups, -1)
    ones = jnp.ones((parts.shape[-1],), jnp.float32)
    normal = rms_norm(parts, ones, self.norm_epsilon).reshape(shape)
    init = nn.with_logical_partitioning(nn.initializers.ones, ('heads', 'kv'))
    scale = self.param('scale', init, shape[2:], jnp.float32)
    return (normal * scale).astype(z_BTGP.dtype)

  def _head_dim(self, width):
    """P.

    Raises:
      ValueError: for sizes that do not fit.
    """
    if self.heads % self.groups:
      raise ValueError(
        f'groups={self.groups} does not divide heads={self.heads}; choose a '
        'divisor.'
      )
    size, rest = divmod(self.expand * width, self.heads)
    if rest:
      raise ValueError(
        f'heads={self.heads} does not divide expand={self.expand} * '
        f'width={width}; choose a divisor.'
      )
    return int(size)

  def init_state(self, batch, length, width, dtype) -> Memory:
    """An empty memory; its size does not depend on `length`."""
    del length
    size = self._head_dim(width)
    shared = (self.groups, self.state_size)
    sizes = {'x': (self.heads, size), 'B': shared, 'C': shared}
    recent = {
      name: jnp.zeros((batch, self.conv_size - 1, *shape), dtype)
      for name, shape in sizes.items()
    }
    shape = (batch, self.heads, self.state_size, size)
    return Memory(jnp.zeros(shape, jnp.float32), recent)

  def flops(self, width: int, length: int) -> float:
    """Forward FLOPs per token in sequences of `length`."""
    size = self._head_dim(width)
    inner = self.heads * size
    convolved = inner + 2 * self.groups * self.state_size
    # In: z, x, B, C and dt; and out again.
    matrices = 2 * width * (inner + convolved + self.heads) + 2 * inner * width
    core = rule_flops(rules.ssd, self.state_size, size, length)
    return matrices + 2 * self.conv_size * convolved + self.heads * core
