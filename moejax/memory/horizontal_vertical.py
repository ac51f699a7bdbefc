"""Experts that are pairs of halves, all computed: no rows are looked up.

E^2 experts come of E halves on each side. Gates are sparse, so that what is
learned is; the work is that of a dense feed-forward of width E * F.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from moejax.nn import activations, matrix_init
from moejax.types import Context


class _Pairs(nn.Module):
  """The router of both decompositions.

  Sows `losses/uniformity` (minus the mean logarithm of each half's mean gate)
  and `losses/ambiguity` (the mean of 1 - largest gate), raw.

  Attributes:
    halves: E of a side; there are E^2 experts.
    hidden: F, numbers of a half.
    k: halves that each head keeps on average.
    heads: H.
  """

  halves: int
  hidden: int
  k: int
  heads: int

  def _gates(self, x_ND, valid_N):
    """f32 [N, H, E] of each side.

    Differs: logits are normalised over the halves of each token and head, not
    over a batch with running statistics, so that no token sees another.
    """
    if not 1 <= self.k < self.halves:
      raise ValueError(
        f'k={self.k} is no part of halves={self.halves}; lower k below it.'
      )
    width = x_ND.shape[1]
    init = matrix_init(('embed', None, 'heads', 'router'))
    shape = (width, 2, self.heads, self.halves)
    kernel = self.param('router', init, shape, jnp.float32)
    logits = jnp.einsum('nd,dshe->snhe', x_ND.astype(jnp.float32), kernel)
    # A sort finds the k-th largest; the quantile of a normal one is near it.
    normal = jax.lax.stop_gradient(jax.nn.standardize(logits, -1))
    least = jnp.minimum(
      normal.max(-1, keepdims=True), ndtri(1 - self.k / self.halves)
    )
    gates = jax.nn.softmax(jnp.where(normal >= least, logits, -1e10), -1)
    self._sow(jax.nn.softmax(logits, -1), gates, valid_N)
    return gates[0], gates[1]

  def _sow(self, prob, gates, valid_N):
    tokens = jnp.maximum(valid_N.sum(), 1)
    mask = valid_N[:, None, None]
    mean = jnp.where(mask, prob, 0).sum(1) / tokens
    self.sow('losses', 'uniformity', -jnp.log(mean + 1e-9).mean())
    unsure = jnp.where(mask, 1 - gates.max(-1, keepdims=True), 0)
    total = unsure.sum() / (tokens * 2 * self.heads)
    self.sow('losses', 'ambiguity', total)

  def _matrix(self, name, *shape, axes):
    return self.param(name, matrix_init(axes), shape, jnp.float32)

  def _bias(self, name, *shape, axes):
    init = nn.with_logical_partitioning(nn.initializers.zeros, axes)
    return self.param(name, init, shape, jnp.float32)

  def _in(self, x_ND, name, size):
    """act(x U + b), [N, E, size], in the dtype of x."""
    width, e = x_ND.shape[1], self.halves
    up = self._matrix(name, width, e * size, axes=('embed', 'mlp'))
    bias = self._bias(f'{name}_bias', e * size, axes=('mlp',))
    a = activations.relu_squared(x_ND @ up.astype(x_ND.dtype) + bias)
    return a.astype(x_ND.dtype).reshape(len(x_ND), e, size)

  def _out(self, a_NEF, name, width):
    e, f = a_NEF.shape[1:]
    down = self._matrix(name, e * f, width, axes=('mlp', 'embed'))
    return a_NEF.reshape(len(a_NEF), -1) @ down.astype(a_NEF.dtype)

  def _biases(self, gates_NHE, name, width, dtype):
    bias = self._bias(name, self.halves, width, axes=('router', 'embed'))
    return (gates_NHE.sum(1) @ bias).astype(dtype)

  def flops(self, width: int) -> float:
    """Forward FLOPs per token."""
    router = 4 * width * self.heads * self.halves
    dense = 4 * width * self.halves * self.hidden
    mixes = 4 * self.heads * self.halves * self.hidden
    biases = 2 * self.halves * width
    return router + dense + mixes + biases


def _mix(a_NEF, gates_NHE, others_NHE):
  """sum over heads and i of a_i g_hi g'_hj: [N, j, F].

  First over i, so that nothing of all pairs is made.
  """
  gates, others = (g.astype(a_NEF.dtype) for g in (gates_NHE, others_NHE))
  sums_NHF = jnp.einsum('nif,nhi->nhf', a_NEF, gates)
  return jnp.einsum('nhf,nhj->njf', sums_NHF, others)


class Horizontal(_Pairs):
  """Expert ij is the first layer of i with the second of j.

  Source: 2412.04139 eq. 8 to 11 (horizontal decomposition) and 14, 15 (losses).
  Differs: see `_gates`; each layer has a router of its own.
  """

  @nn.compact
  def __call__(self, x_BTD: jax.Array, ctx: Context) -> jax.Array:
    width = x_BTD.shape[-1]
    x_ND = x_BTD.reshape(-1, width)
    first, second = self._gates(x_ND, ctx.valid_N)
    a = self._in(x_ND, 'up', self.hidden)
    y = self._out(_mix(a, first, second), 'down', width)
    y = y + self._biases(second, 'down_bias', width, y.dtype)
    return y.reshape(x_BTD.shape)


class Vertical(_Pairs):
  """Expert ij is half i beside half j: each makes half of the output.

  Source: 2412.04139 eq. 12, 13 (vertical decomposition) and 14, 15 (losses).
  Differs: see `_gates`; each layer has a router of its own.

  Raises:
    ValueError: if the width of the model or `hidden` is odd.
  """

  @nn.compact
  def __call__(self, x_BTD: jax.Array, ctx: Context) -> jax.Array:
    width, size = x_BTD.shape[-1], self.hidden // 2
    if width % 2 or self.hidden % 2:
      raise ValueError(
        f'width={width} and hidden={self.hidden} are cut into halves; make '
        'both even.'
      )
    x_ND = x_BTD.reshape(-1, width)
    gates = self._gates(x_ND, ctx.valid_N)
    inner = [self._in(x_ND, f'up_{i}', size) for i in range(2)]
    halves = []
    for i in range(2):
      own, other = gates[i], gates[1 - i]
      weight = own.sum(1)[..., None].astype(x_ND.dtype)
      y = self._out(inner[i] * weight, f'own_{i}', width // 2)
      mixed = _mix(inner[1 - i], other, own)
      y = y + self._out(mixed, f'other_{i}', width // 2)
      y = y + self._biases(own, f'bias_{i}', width // 2, y.dtype)
      halves.append(y)
    return jnp.concatenate(halves, -1).reshape(x_BTD.shape)
