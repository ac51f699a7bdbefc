"""Arrays as the TPU kernels of chunked recurrences see them, and the call.

Tokens of one head are a block of columns of [B, T, heads * width], with widths
in whole registers of 128 lanes, so that nothing is transposed and index maps
repeat keys for the value heads that share them. One number a token and head is
[B, G, N, 1, C], a state [B, G, V, K].
"""

from __future__ import annotations

import dataclasses
import types

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import chips
from pallas_kernels.route.parts import shaped

LANES = 128
# States of the value heads that share a key, of one core's fast memory.
SHARED_BYTES = 2 * chips.MIB
# Blocks [C, K] or [C, V] of f32 that a kernel body may hold at a time.
WORKING_BLOCKS = 32
GIVEN_BYTES = 16 * chips.MIB  # what the compiler gives a kernel unasked


@dataclasses.dataclass(frozen=True)
class Problem:
  """Sizes of one call; `keys` and `values` are what there is without padding.

  Attributes:
    decay: 'none', 'head' or 'channel'.
  """

  batch: int
  tokens: int
  heads: int
  value_heads: int
  keys: int
  values: int
  chunk: int
  decay: str
  dtype: jnp.dtype

  @classmethod
  def of(cls, q_BTHK, v_BTGV, log_decay, chunk) -> Problem:
    kind = 'none'
    if log_decay is not None:
      kind = 'head' if log_decay.ndim == 3 else 'channel'
    b, t, h, k = q_BTHK.shape
    g, v = v_BTGV.shape[2:]
    return cls(b, t, h, g, k, v, chunk, kind, q_BTHK.dtype)

  @property
  def full(self) -> bool:
    return self.dtype == jnp.float32

  @property
  def chunks(self) -> int:
    return -(-self.tokens // self.chunk)

  @property
  def lanes(self) -> tuple[int, int]:
    """Widths of keys and of values in whole registers."""
    return _up(self.keys, LANES), _up(self.values, LANES)

  @property
  def group(self) -> int:
    """Value heads of a key head."""
    return self.value_heads // self.heads

  @property
  def shared(self) -> int:
    """Value heads whose gradients for one key head are summed in a kernel."""
    k, v = self.lanes
    most = max(1, SHARED_BYTES // (4 * k * v))
    return max(
      n for n in range(1, self.group + 1) if self.group % n == 0 and n <= most
    )

  @property
  def steps(self) -> int:
    """Chunks of all sequences and value heads."""
    return self.batch * self.value_heads * self.chunks

  def of_tokens(self, x_BTHD):
    """[B, T, H, D] -> [B, N C, H W], padded with zeros."""
    b, t, h, d = x_BTHD.shape
    pad = self.chunks * self.chunk - t, _up(d, LANES) - d
    x = jnp.pad(x_BTHD, ((0, 0), (0, pad[0]), (0, 0), (0, pad[1])))
    return x.reshape(b, t + pad[0], -1)

  def to_tokens(self, x, heads, width):
    """Undoes `of_tokens`."""
    x = x.reshape(*x.shape[:2], heads, -1)
    return x[:, : self.tokens, :, :width]

  def of_numbers(self, x_BTG):
    """[B, T, G] -> [B, G, N, 1, C], padded with zeros."""
    x = jnp.pad(
      x_BTG, ((0, 0), (0, self.chunks * self.chunk - self.tokens), (0, 0))
    )
    x = x.reshape(self.batch, self.chunks, self.chunk, self.value_heads)
    return x.transpose(0, 3, 1, 2)[:, :, :, None]

  def to_numbers(self, x):
    """Undoes `of_numbers`."""
    x = x[:, :, :, 0].transpose(0, 2, 3, 1)
    return x.reshape(self.batch, -1, self.value_heads)[:, : self.tokens]

  def of_state(self, state_BGKV):
    """[B, G, K, V] -> [B, G, V, K], padded with zeros."""
    k, v = self.lanes
    pad = ((0, 0), (0, 0), (0, v - self.values), (0, k - self.keys))
    return jnp.pad(jnp.swapaxes(state_BGKV, 2, 3), pad)

  def to_state(self, x):
    """Undoes `of_state`."""
    return jnp.swapaxes(x[:, :, : self.values, : self.keys], 2, 3)

  def of_decay(self, log_decay):
    """The log decay as kernels read it: of tokens, numbers, or nothing."""
    if log_decay is None:
      return None
    if log_decay.ndim == 3:
      return self.of_numbers(log_decay)
    return self.of_tokens(log_decay)

  def to_decay(self, x):
    """Undoes `of_decay`."""
    if x is None:
      return None
    if self.decay == 'head':
      return self.to_numbers(x)
    return self.to_tokens(x, self.value_heads, self.keys)

  @property
  def decay_form(self) -> str:
    return 'number' if self.decay == 'head' else 'decay'

  def block(self, form: str) -> tuple[int, int]:
    """The last two axes of a block."""
    k, v = self.lanes
    return {
      'key': (self.chunk, k),
      'decay': (self.chunk, k),
      'value': (self.chunk, v),
      'number': (1, self.chunk),
      'pair': (self.chunk, 2 * self.chunk),
      'state': (v, k),
      'end': (v, k),
    }[form]

  def shape(self, form: str, heads: int) -> tuple[int, ...]:
    """Of a whole array."""
    rows, columns = self.block(form)
    if form in ('key', 'decay', 'value'):
      return self.batch, self.chunks * self.chunk, heads * columns
    if form == 'end':
      return self.batch, heads, rows, columns
    return self.batch, heads, self.chunks, rows, columns

  def spec(self, form: str, place) -> pl.BlockSpec:
    """`place` maps the indices of the grid to sequence, head, and chunk."""
    block = self.block(form)
    if form in ('key', 'decay', 'value'):

      def index(*ids):
        b, g, n = place(*ids)
        return b, n, g

      return pl.BlockSpec((None, *block), index)
    if form == 'end':
      return pl.BlockSpec(
        (None, None, *block), lambda *ids: (*place(*ids)[:2], 0, 0)
      )
    return pl.BlockSpec(
      (None, None, None, *block), lambda *ids: (*place(*ids), 0, 0)
    )


def forward_call(body, problem, inputs, outputs, *, parallel=False, **settings):
  """Runs `body` on each chunk of each value head, in order.

  Args:
    body: takes references by name, as attributes; `state`, [V, K], is kept
      from chunk to chunk.
    inputs: name to form and array; `None` arrays are left out.
    outputs: name to form and dtype.
    parallel: chunks need no order, and there is no `state`.
    settings: of `_call`.
  """
  p = problem
  same = lambda b, g, n: (b, g, n)  # noqa: E731
  shared = lambda b, g, n: (b, _over(g, p.group), n)  # noqa: E731
  k, v = p.lanes
  return _call(
    body,
    p,
    inputs,
    outputs,
    grid=(p.batch, p.value_heads, p.chunks),
    semantics=('parallel', 'parallel', 'parallel' if parallel else 'arbitrary'),
    places=(same, shared, same),
    key_heads=p.value_heads,
    scratch={} if parallel else {'state': (v, k)},
    **settings,
  )


def backward_call(body, problem, inputs, outputs, **settings):
  """Runs `body` on each chunk from the last to the first.

  Value heads that share a key head follow each other, so that one block of
  `dq` and `dk` serves all of them; `state` is [shared, V, K], and `dq` and `dk`
  of the scratch, [C, K], sum over them.
  """
  p, shared = problem, problem.shared

  def own(b, lead, n, r):
    return b, lead * shared + r, p.chunks - 1 - n

  def key(b, lead, n, r):
    return b, _over(lead, p.group // shared), p.chunks - 1 - n

  def summed(b, lead, n, r):
    return b, lead, p.chunks - 1 - n

  k, v = p.lanes
  return _call(
    body,
    p,
    inputs,
    outputs,
    grid=(p.batch, p.value_heads // shared, p.chunks, shared),
    semantics=('parallel', 'parallel', 'arbitrary', 'arbitrary'),
    places=(own, key, summed),
    key_heads=p.value_heads // shared,
    scratch={
      'state': (shared, v, k),
      'dq_sum': (p.chunk, k),
      'dk_sum': (p.chunk, k),
    },
    **settings,
  )


def _over(index, count):
  # `//` would ask the host for its chip, to find the sign.
  return index if count == 1 else lax.div(index, jnp.int32(count))


def _call(
  body,
  p,
  inputs,
  outputs,
  *,
  grid,
  semantics,
  places,
  key_heads,
  scratch,
  name,
  flops,
  transcendentals,
  interpret,
):
  own, key, summed = places
  inputs = {n: x for n, x in inputs.items() if x[1] is not None}
  names = [*inputs, *outputs, *scratch]
  arrays = [array for _, array in inputs.values()]
  out_shape = [
    shaped(
      p.shape(form, key_heads if form == 'key' else p.value_heads),
      dtype,
      arrays,
    )
    for form, dtype in outputs.values()
  ]
  chip = chips.current('tpu')
  needed = needed_bytes(p, inputs, outputs, scratch)
  return dict(
    zip(
      outputs,
      pl.pallas_call(
        lambda *refs: body(
          types.SimpleNamespace(**dict(zip(names, refs, strict=True)))
        ),
        grid=grid,
        in_specs=[
          p.spec(form, key if form == 'key' else own)
          for form, _ in inputs.values()
        ],
        out_specs=[
          p.spec(form, summed if form == 'key' else own)
          for form, _ in outputs.values()
        ],
        out_shape=out_shape,
        scratch_shapes=[
          pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()
        ],
        compiler_params=pltpu.CompilerParams(
          dimension_semantics=semantics,
          vmem_limit_bytes=None
          if needed <= GIVEN_BYTES
          else min(needed, chip.fast_bytes),
        ),
        cost_estimate=pl.CostEstimate(
          flops=flops,
          transcendentals=transcendentals,
          bytes_accessed=sum(
            x.size * x.dtype.itemsize for x in (*arrays, *out_shape)
          ),
        ),
        interpret=interpret,
        name=name,
      )(*arrays),
      strict=True,
    )
  )
