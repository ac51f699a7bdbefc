"""The grouped product of quantised arrays (qwix's `QArray`), int8 or fp8.

Products of quantised values are accumulated in int32 (int8 by int8) or f32,
and the scales are applied to what was accumulated. The backward pass is in the
dtype of the rows.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.choose import Entry, choose
from pallas_kernels.grouped_matmul import reference, tiles
from pallas_kernels.grouped_matmul.api import product
from pallas_kernels.grouped_matmul.library import live
from pallas_kernels.grouped_matmul.sizes import known_or_fit

VALUES = (jnp.int8, jnp.float8_e4m3fn, jnp.float8_e5m2)
NAMES = tuple(jnp.dtype(dtype).name for dtype in VALUES)


def is_quantised(a: Any) -> bool:
  """Whether `a` is a `QArray`; asked without importing qwix."""
  return hasattr(a, 'qvalue') and hasattr(a, 'scale')


def grouped_matmul(x_RD, w_EDF, sizes_E, implementation: str | None = None):
  """Each row times the matrix of its group; see `api.grouped_matmul`.

  A quantised array is a constant and gets no gradient. That of the rows goes
  through the dequantised matrices.
  """
  check(x_RD, w_EDF, sizes_E)
  sizes_E = known_or_fit('grouped_matmul', sizes_E, x_RD.shape[0])
  # Constants first: loops with a number of turns known at run time only have
  # no gradient of their own.
  w_EDF = jax.lax.stop_gradient(w_EDF)
  if is_quantised(x_RD):
    x_RD = jax.lax.stop_gradient(x_RD)
  dtype = x_RD.dtype
  if implementation == 'reference':
    y_RF = reference.grouped_matmul(_wide(x_RD), _wide(w_EDF), sizes_E)
    return y_RF.astype(dtype)
  if 0 in x_RD.shape or 0 in w_EDF.shape:
    return jnp.zeros((x_RD.shape[0], w_EDF.shape[2]), dtype)
  q = w_EDF.qvalue, _scale(w_EDF, (0, 2))
  if is_quantised(x_RD):
    rows = x_RD.qvalue, _scale(x_RD, (0,))
    return _product(implementation, rows, q, sizes_E).astype(dtype)
  return _weight_only(implementation, x_RD, q, sizes_E)


def quantised_training(
  x_RD: jax.Array,
  w_EDF: jax.Array,
  sizes_E: jax.Array,
  *,
  rows: str | None = 'int8',
  matrices: str = 'int8',
  implementation: str | None = None,
) -> jax.Array:
  """Quantises rows and matrices, multiplies, and trains straight through.

  Each row, and each column of each matrix, has its own scale, from its largest
  value. The gradients are those of the product of the dequantised arrays,
  handed to the arrays that were quantised; between forward and backward only
  quantised values and scales are kept.

  Differs: the quantised training of qwix 0.1.8 gives all groups one scale per
  column; here each group has its own.

  Args:
    x_RD: [R, D] rows, f32 or bf16; those past the last group give zeros.
    w_EDF: [E, D, F], one matrix for each group.
    sizes_E: int32 [E], rows of each group.
    rows: dtype of the quantised rows, None to leave them as they are.
    matrices: dtype of the quantised matrices.
    implementation: see `api.grouped_matmul`; not 'reference'.

  Returns:
    [R, F], in the dtype of `x_RD`.

  Raises:
    ImportError: without qwix.
    ValueError: for a dtype that is none of `NAMES`, or shapes that misfit.
  """
  for name, dtype in dict(rows=rows, matrices=matrices).items():
    if dtype not in NAMES and not (name == 'rows' and dtype is None):
      raise ValueError(
        f'grouped_matmul: {name}={dtype!r} is no dtype to quantise to; use '
        f'{", ".join(NAMES)}{" or None" if name == "rows" else ""}.'
      )
  if implementation not in (None, *NN):
    raise ValueError(
      f'grouped_matmul: implementation={implementation!r} does not train '
      f'quantised; use None, {", ".join(NN)}.'
    )
  _check_shapes(x_RD, w_EDF, sizes_E)
  sizes_E = known_or_fit('grouped_matmul', sizes_E, x_RD.shape[0])
  if 0 in x_RD.shape or 0 in w_EDF.shape:
    return jnp.zeros((x_RD.shape[0], w_EDF.shape[2]), x_RD.dtype)
  return _training(rows, matrices, implementation, x_RD, w_EDF, sizes_E)


def quantise(a: jax.Array, dtype: str, axes: tuple[int, ...]):
  """`QArray` of `a` with a scale for each index of `axes`.

  For rows axes are (0,), for matrices (0, 2).

  Raises:
    ImportError: without qwix.
  """
  try:
    import qwix
  except ModuleNotFoundError as error:
    raise ImportError(
      'quantising needs qwix, which is not installed; install the extra '
      "'quant'."
    ) from error
  return qwix.quantize(a, jnp.dtype(dtype), channelwise_axes=axes)


# Weight-only: rows as they are, constant quantised matrices.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weight_only(implementation, x_RD, q, sizes_E):
  rows = x_RD, jnp.ones((1, 1), jnp.float32)
  y_RF = _product(implementation, rows, q, sizes_E)
  return y_RF.astype(x_RD.dtype)


def _weight_only_forward(implementation, x_RD, q, sizes_E):
  return _weight_only(implementation, x_RD, q, sizes_E), (q, sizes_E)


def _weight_only_backward(implementation, saved, dy_RF):
  q, sizes_E = saved
  dx_RD = _through(dy_RF, q, sizes_E, implementation)
  return dx_RD, None, None


_weight_only.defvjp(_weight_only_forward, _weight_only_backward)


# Training: both are quantised on the way.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _training(rows, matrices, implementation, x_RD, w_EDF, sizes_E):
  return _training_forward(
    rows, matrices, implementation, x_RD, w_EDF, sizes_E
  )[0]


def _training_forward(rows, matrices, implementation, x_RD, w_EDF, sizes_E):
  # A dead row may hold anything, and its scale would be as bad.
  x_RD = live(x_RD, sizes_E)
  x = quantise(x_RD, rows, (0,)) if rows else x_RD
  w = quantise(w_EDF, matrices, (0, 2))
  y_RF = grouped_matmul(x, w, sizes_E, implementation)
  return y_RF.astype(x_RD.dtype), (x, w, sizes_E)


def _training_backward(rows, matrices, implementation, saved, dy_RF):
  x, w, sizes_E = saved
  q = w.qvalue, _scale(w, (0, 2))
  dx_RD = _through(dy_RF, q, sizes_E, implementation)
  x_RD = _wide(x).astype(dy_RF.dtype)
  dw_EDF = product('tn', x_RD, dy_RF, sizes_E, implementation)
  return dx_RD, dw_EDF.astype(w.dtype), None


_training.defvjp(_training_forward, _training_backward)


def _through(dy_RF, q, sizes_E, implementation):
  """[R, D]: dy times the dequantised matrices, transposed."""
  values_EDF, scale_EF = q
  group_R = reference.group_of_row(sizes_E, dy_RF.shape[0])
  group_R = jnp.minimum(group_R, values_EDF.shape[0] - 1)
  # Columns are what is summed over, so that scales go in before, not after.
  scaled_RF = (dy_RF * scale_EF[group_R]).astype(dy_RF.dtype)
  values_EDF = values_EDF.astype(dy_RF.dtype)
  return product('nt', scaled_RF, values_EDF, sizes_E, implementation)


# The product: f32 [R, F], from (values, scales) of rows and of matrices.


def _product(implementation, rows, q, sizes_E):
  # Under vmap a loop: not every implementation has a batched form.
  @jax.custom_batching.sequential_vmap
  def call(rows, q, sizes_E):
    return choose(
      'grouped_matmul (quantised nn)',
      NN,
      rows,
      q,
      sizes_E,
      implementation=implementation,
    )

  return call(rows, q, sizes_E)


def _tiled(rows, q, sizes_E):
  (x_RD, scale_R1), (w_EDF, scale_EF) = rows, q
  scale_R1 = jnp.broadcast_to(scale_R1, (x_RD.shape[0], 1))

  def body(tile, y_RF):
    x, w = tile.read_all(x_RD), tiles.matrix(w_EDF, tile)
    x, w = _operands(x, w, jnp.float32)
    wide = _accumulator(x)
    total = lax.dot(x, w, preferred_element_type=wide).astype(jnp.float32)
    scale = tile.read_all(scale_R1) * tiles.matrix(scale_EF, tile)
    return tile.write(y_RF, total * scale)

  shape = x_RD.shape[0], w_EDF.shape[2]
  cut = tiles.cut(sizes_E, x_RD.shape[0])
  y_RF = jnp.zeros(shape, jnp.float32)
  return tiles.for_each(cut, x_RD.shape[0], body, y_RF)


def _library(rows, q, sizes_E):
  (x_RD, scale_R1), (w_EDF, scale_EF) = rows, q
  # bf16 holds every int8 and fp8 value; few platforms multiply fp8.
  x, w = _operands(x_RD, w_EDF, jnp.bfloat16)
  total = lax.ragged_dot(x, w, sizes_E, preferred_element_type=_accumulator(x))
  group_R = reference.group_of_row(sizes_E, x.shape[0])
  group_R = jnp.minimum(group_R, w.shape[0] - 1)
  y_RF = total.astype(jnp.float32) * (scale_R1 * scale_EF[group_R])
  return live(y_RF, sizes_E)


NN = {
  'tiles': Entry(_tiled, platforms=('cpu',)),
  'ragged_dot': Entry(_library),
}


def _operands(x, w, floating):
  """In one dtype that holds both exactly: int8, that of x, or `floating`."""
  if x.dtype == w.dtype == jnp.int8:
    return x, w
  dtype = x.dtype if x.dtype.itemsize > 1 else floating
  return x.astype(dtype), w.astype(dtype)


def _accumulator(x):
  return jnp.int32 if x.dtype == jnp.int8 else jnp.float32


def _wide(a):
  """f32 values of an array, quantised or not."""
  if not is_quantised(a):
    return a.astype(jnp.float32)
  return a.qvalue.astype(jnp.float32) * a.scale.astype(jnp.float32)


def _scale(a, axes):
  """f32 scales, [R, 1] or [E, F]."""
  shape = [n if i in axes else 1 for i, n in enumerate(a.shape)]
  scale = jnp.broadcast_to(a.scale.astype(jnp.float32), shape)
  return scale[:, 0] if a.ndim == 3 else scale


def check(x_RD, w_EDF, sizes_E) -> None:
  """Raises ValueError for arrays that do not fit together."""
  if not is_quantised(w_EDF):
    raise ValueError(
      'grouped_matmul: rows are quantised and matrices are not; quantise the '
      'matrices too, or dequantise the rows.'
    )
  _check_shapes(x_RD, w_EDF, sizes_E)
  for a, what in ((x_RD, 'rows'), (w_EDF, 'matrices')):
    if not is_quantised(a):
      continue
    if a.qvalue.dtype not in VALUES or a.zero_point is not None:
      raise ValueError(
        f'grouped_matmul: {what} are quantised to {a.qvalue.dtype}'
        f'{"" if a.zero_point is None else " with a zero point"}; use '
        f'{", ".join(NAMES)} without one.'
      )
    fits = all(
      s == 1 or (s == n and i != 1)
      for i, (s, n) in enumerate(zip(a.scale.shape, a.shape, strict=True))
    )
    if not fits:
      raise ValueError(
        f'grouped_matmul: {what} {a.shape} have scales {a.scale.shape}; the '
        'scales may not differ along D, which is summed over, nor in blocks: '
        f'quantise with channelwise_axes={(0,) if a.ndim == 2 else (0, 2)}.'
      )


def _check_shapes(x_RD, w_EDF, sizes_E):
  shapes = x_RD.shape, w_EDF.shape, sizes_E.shape
  if (
    tuple(map(len, shapes)) != (2, 3, 1)
    or x_RD.shape[1] != w_EDF.shape[1]
    or sizes_E.shape[0] != w_EDF.shape[0]
  ):
    raise ValueError(
      f'grouped_matmul takes rows [R, D], matrices [E, D, F] and sizes [E], '
      f'not {", ".join(map(str, shapes))}.'
    )
  if x_RD.dtype not in (jnp.float32, jnp.bfloat16):
    raise ValueError(
      f'grouped_matmul: rows are {x_RD.dtype}; beside quantised matrices they '
      'must be float32, bfloat16 or a quantised array of these.'
    )
  if not jnp.issubdtype(sizes_E.dtype, jnp.integer):
    raise ValueError(
      f'grouped_matmul: sizes are {sizes_E.dtype}; they must be integers.'
    )
