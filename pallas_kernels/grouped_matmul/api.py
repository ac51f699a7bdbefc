"""The grouped matrix product: checks, gradient, choice of implementation."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.choose import Entry, choose
from pallas_kernels.grouped_matmul import (
  cpu,
  library,
  megablox,
  pallas_tpu,
  reference,
)
from pallas_kernels.grouped_matmul.sizes import (
  check_sizes,
  fit_sizes,
  misfit_rows,
)

__all__ = ['grouped_matmul', 'misfit_rows', 'product']


def _table(form: str) -> dict[str, Entry]:
  """Implementations of one form, best first.

  On TPU the kernels here come first: on v4, v5e, v5p and v6e they compile to
  the ideal FLOPs and next to no temporary memory, while `ragged_dot` compiles
  TN dense, E times too much, and copies the matrices for NT, even with the
  libtpu that belongs with its jax (tests/kernels/test_grouped_matmul_aot.py).
  megablox compiles as well and has to pad what its tiles do not divide.
  """
  return {
    'tiles': Entry(getattr(cpu, form), platforms=('cpu',)),
    'mosaic_tpu': Entry(
      getattr(pallas_tpu, form),
      platforms=('tpu',),
      refuses=functools.partial(pallas_tpu.refuses, form),
    ),
    'megablox': Entry(
      getattr(megablox, form), platforms=('tpu',), refuses=megablox.refuses
    ),
    'ragged_dot': Entry(getattr(library, form), refuses=library.refuses_dtype),
  }


NN, NT, TN = (_table(form) for form in ('nn', 'nt', 'tn'))


def grouped_matmul(
  x_RD: jax.Array,
  w_EDF: jax.Array,
  sizes_E: jax.Array,
  *,
  implementation: str | None = None,
) -> jax.Array:
  """Each row times the matrix of its group.

  Rows are sorted by group: the first `sizes_E[0]` belong to group 0, and so
  on. Rows past the last group give zeros and get a zero gradient, whatever
  they hold. Products are accumulated in f32.

  Args:
    x_RD: [R, D] rows, f32 or bf16.
    w_EDF: [E, D, F], one matrix for each group, of the same dtype.
    sizes_E: int32 [E], rows of each group; not negative, at most R in sum.
      Under jit, where values cannot be refused, negative sizes count as 0 and
      rows that are not there are taken from the last groups; `misfit_rows`
      counts them.
    implementation: `None` chooses for the platform that the program is lowered
      for; 'tiles' (CPU), 'mosaic_tpu', 'megablox' (TPU), 'ragged_dot' or
      'reference'.

  Returns:
    [R, F], in the dtype of `x_RD`.

  Raises:
    ValueError: shapes or dtypes do not fit together, sizes of known values do
      not fit the rows, or an unknown name.
    NotImplementedError: the named implementation does not run here.
  """
  _check(x_RD, w_EDF, sizes_E)
  check_sizes('grouped_matmul', sizes_E, x_RD.shape[0])
  sizes_E = fit_sizes(sizes_E, x_RD.shape[0])
  if implementation == 'reference':
    return reference.grouped_matmul(x_RD, w_EDF, sizes_E)
  _check_name(implementation)
  if 0 in x_RD.shape or 0 in w_EDF.shape:
    return jnp.zeros((x_RD.shape[0], w_EDF.shape[2]), x_RD.dtype)
  return _grouped_matmul(implementation, x_RD, w_EDF, sizes_E)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _grouped_matmul(implementation, x_RD, w_EDF, sizes_E):
  return product('nn', x_RD, w_EDF, sizes_E, implementation)


def _forward(implementation, x_RD, w_EDF, sizes_E):
  y_RF = product('nn', x_RD, w_EDF, sizes_E, implementation)
  return y_RF, (x_RD, w_EDF, sizes_E)


def _backward(implementation, saved, dy_RF):
  x_RD, w_EDF, sizes_E = saved
  dx_RD = product('nt', dy_RF, w_EDF, sizes_E, implementation)
  dw_EDF = product('tn', x_RD, dy_RF, sizes_E, implementation)
  return dx_RD, dw_EDF, None


_grouped_matmul.defvjp(_forward, _backward)


def product(form: str, a, b, sizes_E, implementation: str | None = None):
  """One form, without a gradient: 'nn' x w, 'nt' y w^T, 'tn' x^T y.

  Sizes must fit the rows; those of `fit_sizes` do.
  """
  table = {'nn': NN, 'nt': NT, 'tn': TN}[form]
  op = f'grouped_matmul ({form})'

  # Under vmap a loop: not every implementation has a batched form.
  @jax.custom_batching.sequential_vmap
  def call(a, b, sizes_E):
    return choose(op, table, a, b, sizes_E, implementation=implementation)

  return call(a, b, sizes_E)


def _check_name(implementation):
  if implementation is not None and implementation not in NN:
    raise ValueError(
      f'grouped_matmul: implementation={implementation!r} is unknown; use '
      f'None, {", ".join(NN)} or reference.'
    )


def _check(x_RD, w_EDF, sizes_E):
  if x_RD.ndim != 2 or w_EDF.ndim != 3 or sizes_E.ndim != 1:
    raise ValueError(
      f'grouped_matmul takes rows [R, D], matrices [E, D, F] and sizes [E], '
      f'not {x_RD.shape}, {w_EDF.shape} and {sizes_E.shape}.'
    )
  if x_RD.shape[1] != w_EDF.shape[1] or sizes_E.shape[0] != w_EDF.shape[0]:
    raise ValueError(
      f'grouped_matmul: rows {x_RD.shape} and matrices {w_EDF.shape} must '
      f'share D, and sizes {sizes_E.shape} and matrices must share E.'
    )
  if x_RD.dtype != w_EDF.dtype:
    raise ValueError(
      f'grouped_matmul: rows are {x_RD.dtype} and matrices {w_EDF.dtype}; '
      f'cast one to the dtype of the other.'
    )
  if not jnp.issubdtype(sizes_E.dtype, jnp.integer):
    raise ValueError(
      f'grouped_matmul: sizes are {sizes_E.dtype}; they must be integers.'
    )
