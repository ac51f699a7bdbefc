"""The grouped matrix product: checks, gradient, choice of implementation."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.choose import Entry, choose
from pallas_kernels.grouped_matmul import (
  cpu,
  library,
  library_gpu,
  megablox,
  pallas_gpu,
  pallas_tpu,
  reference,
)
from pallas_kernels.grouped_matmul.sizes import known_or_fit, misfit_rows
from pallas_kernels.grouped_matmul.spread import spread

__all__ = ['grouped_matmul', 'misfit_rows', 'product']


def _table(form: str) -> dict[str, Entry]:
  """Implementations of one form, best first.

  On TPU the kernels here come first: on v4, v5e, v5p and v6e they compile to
  the ideal FLOPs and less than 1 MiB of temporary memory. `ragged_dot` compiles
  TN dense, E times the FLOPs, and copies the matrices for NT, even with the
  libtpu that belongs with its jax. megablox compiles as well; it pads rows to
  its tiles, and within a layer takes more memory. Over a mesh in force each
  device runs them on its rows (spread.py); only a program over many devices
  that is traced without one gets `ragged_dot`.
  """
  return {
    'tiles': Entry(getattr(cpu, form), platforms=('cpu',)),
    'mosaic_tpu': Entry(
      getattr(pallas_tpu, form),
      platforms=('tpu',),
      refuses=functools.partial(pallas_tpu.refuses, form),
      partitions=False,
    ),
    'megablox': Entry(
      getattr(megablox, form),
      platforms=('tpu',),
      refuses=megablox.refuses,
      partitions=False,
    ),
    'triton': Entry(
      getattr(pallas_gpu, form),
      platforms=('cuda',),
      refuses=pallas_gpu.refuses,
      partitions=False,
    ),
    'ragged_dot': Entry(getattr(library, form), refuses=library.refuses_dtype),
    # After an entry that takes everything: these are only had by name.
    'mosaic_gpu': Entry(
      functools.partial(library_gpu.mosaic, form),
      platforms=('cuda',),
      refuses=functools.partial(library_gpu.mosaic_refuses, form),
    ),
    'tokamax': Entry(
      functools.partial(library_gpu.tokamax, form),
      platforms=('cuda',),
      refuses=functools.partial(library_gpu.tokamax_refuses, form),
    ),
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
  they hold. Products are accumulated in f32; on TPU f32 operands are rounded as
  `jax_default_matmul_precision` says, as in any product there.

  Matrices, and rows as well, may be quantised arrays of qwix (int8 or fp8, a
  scale for each row, matrix or column); see `quantised`.

  Args:
    x_RD: [R, D] rows, f32 or bf16.
    w_EDF: [E, D, F], one matrix for each group, of the same dtype.
    sizes_E: int32 [E], rows of each group; not negative, at most R in sum.
      Under jit, where values cannot be refused, negative sizes count as 0 and
      rows that are not there are taken from the last groups; `misfit_rows`
      counts them.
    implementation: `None` chooses for the platform that the program is lowered
      for; 'tiles' (CPU), 'mosaic_tpu', 'megablox' (TPU), 'triton' (NVIDIA),
      'ragged_dot' or 'reference', and on NVIDIA GPUs 'mosaic_gpu' (jax's, for
      Hopper) and 'tokamax'.

  Returns:
    [R, F], in the dtype of `x_RD`.

  Raises:
    ValueError: shapes or dtypes do not fit together, sizes of known values do
      not fit the rows, or an unknown name.
    NotImplementedError: the named implementation does not run here.
  """
  if hasattr(x_RD, 'qvalue') or hasattr(w_EDF, 'qvalue'):
    # Here, as it uses this module for its gradients.
    from pallas_kernels.grouped_matmul import quantised

    _check_name(implementation)
    return quantised.grouped_matmul(x_RD, w_EDF, sizes_E, implementation)
  _check(x_RD, w_EDF, sizes_E)
  sizes_E = known_or_fit('grouped_matmul', sizes_E, x_RD.shape[0])
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
    chosen = functools.partial(choose, op, table, implementation=implementation)
    return spread(form, chosen, a, b, sizes_E)

  return call(a, b, sizes_E)


def _check_name(implementation):
  if implementation not in (None, 'reference', *NN):
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
