"""The experts' feed-forward: checks, gradient, choice of implementation."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.choose import Entry, choose
from pallas_kernels.expert_ffn import (
  cpu,
  pallas_gpu,
  pallas_tpu,
  reference,
  rows,
)
from pallas_kernels.route.api import permutation

# What a rematerialisation policy can name to keep the products' results.
PRE_ACTIVATIONS = 'expert_pre_activations'
NAMES = ('tiles', 'triton', 'mosaic_tpu', 'rows', 'reference')


def expert_ffn(
  x_ND: jax.Array,
  w_gate_EDF: jax.Array,
  w_up_EDF: jax.Array | None,
  w_down_EFD: jax.Array,
  ids_NK: jax.Array,
  weights_NK: jax.Array,
  *,
  activation: Callable[[jax.Array], jax.Array],
  implementation: str | None = None,
) -> jax.Array:
  """The weighted sum of what each token's chosen experts make of it.

  y_n = sum_k weights_nk (activation(x_n gate_e) * x_n up_e) down_e, e = ids_nk

  The backward pass keeps the inputs and the pre-activations x gate and x up,
  nothing else of that size; a call without a gradient keeps nothing. The
  weights get their gradient, so that any router can be trained. Under
  `jax.checkpoint` a policy that saves the name `PRE_ACTIVATIONS` spares the
  forward pass a second run.

  Pass f32 parameters as they are, whatever the dtype of `x_ND`: a copy in
  that dtype, made by the caller, would be kept for the backward pass.

  Args:
    x_ND: [N, D] tokens, f32 or bf16.
    w_gate_EDF: [E, D, F], in the dtype of `x_ND` or in a wider one, from which
      it is cast where it is used. Its gradient has its own dtype.
    w_up_EDF: [E, D, F], or `None` for activation(x gate) alone.
    w_down_EFD: [E, F, D].
    ids_NK: int32 [N, K]; E (any id outside [0, E)) is "no expert", which costs
      no work, adds nothing, and gives its weight a zero gradient. An expert
      may be named twice.
    weights_NK: f32 [N, K].
    activation: an element-wise jnp function, the same object at every call.
    implementation: `None` chooses for the platform that the program is lowered
      for; 'tiles' (CPU), 'triton' (NVIDIA), 'mosaic_tpu' (TPU), 'rows' or
      'reference'.

  Returns:
    [N, D], in the dtype of `x_ND`.

  Raises:
    ValueError: shapes or dtypes do not fit together, or an unknown name.
    NotImplementedError: the named implementation does not run here.
  """
  matrices = (w_gate_EDF, w_up_EDF, w_down_EFD)
  _check(x_ND, matrices, ids_NK, weights_NK)
  if implementation == 'reference':
    cast = _cast(matrices, x_ND.dtype)
    return reference.expert_ffn(
      x_ND, *cast, ids_NK, weights_NK, activation=activation
    )
  if implementation is not None and implementation not in NAMES:
    raise ValueError(
      f'expert_ffn: implementation={implementation!r} is unknown; use None or '
      f'one of {", ".join(NAMES)}.'
    )
  if 0 in x_ND.shape or 0 in w_gate_EDF.shape or 0 in ids_NK.shape:
    return jnp.zeros_like(x_ND)
  p = permutation(ids_NK, w_gate_EDF.shape[0])
  return _expert_ffn(activation, implementation, x_ND, matrices, weights_NK, p)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _expert_ffn(activation, implementation, x_ND, matrices, weights_NK, p):
  args = (x_ND, matrices, weights_NK, p)
  return _run('forward', activation, implementation, args, keep=False)[0]


def _forward(activation, implementation, x_ND, matrices, weights_NK, p):
  args = (x_ND, matrices, weights_NK, p)
  y_ND, kept = _run('forward', activation, implementation, args, keep=True)
  kept = checkpoint_name(kept, PRE_ACTIVATIONS)
  return y_ND, (x_ND, matrices, *_flat(weights_NK, p), kept)


def _backward(activation, implementation, saved, dy_ND):
  x_ND, matrices, *rest = saved
  shape = x_ND.shape[0], rest[0].size // x_ND.shape[0]
  rest[:2] = _flat(*rest[:2], shape)
  # Without it the compiler finds the casts of the matrices and the gathers of
  # the rows in the forward pass too, makes them once, and keeps them.
  x_ND, matrices, dy_ND = jax.lax.optimization_barrier((x_ND, matrices, dy_ND))
  args = (x_ND, matrices, *rest, dy_ND)
  return *_run('backward', activation, implementation, args), None


_expert_ffn.defvjp(_forward, _backward)


def _flat(weights, p, shape=-1):
  """What has an entry for each pair, in `shape`.

  Kept in one dimension, as TPUs give an array whose last axis is K the memory
  of one whose last axis is 128.
  """
  return weights.reshape(shape), p.replace(place_NK=p.place_NK.reshape(shape))


def _run(direction, activation, implementation, args, **static):
  """One direction, by the implementation that is chosen at lowering."""
  static['activation'] = activation
  table = {
    'tiles': Entry(_direction(cpu, direction, static), platforms=('cpu',)),
    'triton': Entry(
      _direction(pallas_gpu, direction, static),
      platforms=('cuda',),
      refuses=functools.partial(pallas_gpu.refuses, activation=activation),
      partitions=False,
    ),
    'rows': Entry(_direction(rows, direction, static)),
    # After an entry that takes everything: only had by name. The heap of a
    # compiled layer, forward and backward, is 26 % smaller with it at
    # '1.4B n256' on v5e, but forward at '30B n256' on v5p 67 % larger.
    'mosaic_tpu': Entry(
      _direction(pallas_tpu, direction, static, cast=False),
      platforms=('tpu',),
      refuses=functools.partial(pallas_tpu.refuses, activation=activation),
      partitions=False,
    ),
  }
  op = f'expert_ffn ({direction})'

  # Under vmap a loop: not every implementation has a batched form.
  @jax.custom_batching.sequential_vmap
  def call(*args):
    return choose(op, table, *args, implementation=implementation)

  return call(*args)


def _cast(matrices, dtype):
  return jax.tree.map(lambda w: w.astype(dtype), matrices)


def _direction(module, direction, static, cast=True):
  """One direction of `module`; matrices' gradients have their dtypes.

  Args:
    module: with `forward` and `backward`.
    direction: which.
    static: its static arguments.
    cast: whether it wants matrices in the dtype of the tokens.
  """

  def call(x_ND, matrices, *args):
    given = _cast(matrices, x_ND.dtype) if cast else matrices
    out = getattr(module, direction)(x_ND, given, *args, **static)
    if direction == 'forward':
      return out
    dx_ND, dmatrices, dweights_NK = out
    dmatrices = jax.tree.map(
      lambda d, w: d.astype(w.dtype), dmatrices, matrices
    )
    return dx_ND, dmatrices, dweights_NK

  return call


def _check(x_ND, matrices, ids_NK, weights_NK):
  gate, up, down = matrices
  E_F_D = (gate.shape[0], *gate.shape[:0:-1])
  fits = (
    x_ND.ndim == 2
    and gate.ndim == 3
    and x_ND.shape[1] == gate.shape[1]
    and (up is None or up.shape == gate.shape)
    and down.shape == E_F_D
  )
  if not fits:
    raise ValueError(
      f'expert_ffn takes x [N, D], gate and up [E, D, F] and down [E, F, D], '
      f'not {x_ND.shape}, {gate.shape}, '
      f'{None if up is None else up.shape} and {down.shape}.'
    )
  if (
    ids_NK.ndim != 2
    or not ids_NK.shape == weights_NK.shape
    or (ids_NK.shape[0] != x_ND.shape[0])
  ):
    raise ValueError(
      f'expert_ffn takes ids and weights [N, K] with N={x_ND.shape[0]}, not '
      f'{ids_NK.shape} and {weights_NK.shape}.'
    )
  dtypes = {w.dtype for w in matrices if w is not None}
  if len(dtypes) > 1:
    raise ValueError(
      f'expert_ffn: the matrices have dtypes '
      f'{", ".join(sorted(map(str, dtypes)))}; cast them to one.'
    )
  if jnp.promote_types(gate.dtype, x_ND.dtype) != gate.dtype:
    raise ValueError(
      f'expert_ffn: the matrices are {gate.dtype} and x is {x_ND.dtype}, '
      'which they cannot be cast to without loss of range or digits of x; '
      f'cast x to {gate.dtype}, or the matrices to {x_ND.dtype}.'
    )
  if not jnp.issubdtype(ids_NK.dtype, jnp.integer):
    raise ValueError(f'expert_ffn: ids are {ids_NK.dtype}; use integers.')
  if not jnp.issubdtype(weights_NK.dtype, jnp.floating):
    raise ValueError(
      f'expert_ffn: weights are {weights_NK.dtype}; use float32.'
    )
