"""Group sizes that fit the rows, whatever was asked for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def fit_sizes(sizes_E: jax.Array, rows: int) -> jax.Array:
  """int32 [E]: sizes with negative ones as 0, and at most `rows` in sum.

  What is too much is taken from the last groups. Sizes that fit stay as they
  are. The cost is that of a cumulative sum over E.
  """
  if sizes_E.dtype.itemsize < 4:
    sizes_E = sizes_E.astype(jnp.int32)
  sizes_E = jnp.clip(sizes_E, 0, rows).astype(jnp.int32)
  if sizes_E.size * rows < 2**31:
    ends_E = jnp.minimum(jnp.cumsum(sizes_E), rows)
  else:  # a plain sum could pass the end of int32
    ends_E = lax.associative_scan(
      lambda a, b: a + jnp.minimum(b, rows - a), sizes_E
    )
  return jnp.diff(ends_E, prepend=0)


def known_or_fit(op: str, sizes_E: jax.Array, rows: int) -> jax.Array:
  """Sizes that fit: what misfits is refused if it is known, else cut.

  Raises:
    ValueError: see `check_sizes`.
  """
  check_sizes(op, sizes_E, rows)
  return fit_sizes(sizes_E, rows)


def misfit_rows(sizes_E: jax.Array, rows: int) -> jax.Array:
  """int32: rows that `sizes_E` asks for and cannot have; 0 when all is well.

  The sum over groups of |size asked for - size given|, for a training loop to
  log: under jit bad sizes cannot be refused. Saturates at 2^31 - 1.
  """
  fit_E = fit_sizes(sizes_E, rows)
  wide_E = sizes_E.astype(jnp.float32) - fit_E.astype(jnp.float32)
  # Only a sum far past all real row counts is taken from the rounded floats.
  huge = jnp.abs(wide_E).sum() >= 2**30
  exact = jnp.abs(jnp.where(huge, 0, sizes_E.astype(jnp.int32) - fit_E)).sum()
  return jnp.where(huge, jnp.int32(2**31 - 1), exact.astype(jnp.int32))


def check_sizes(op: str, sizes_E: jax.Array, rows: int) -> None:
  """Refuses sizes that do not fit, where their values are known.

  Raises:
    ValueError: a size is negative, or their sum exceeds `rows`.
  """
  if isinstance(sizes_E, jax.core.Tracer) or not _is_here(sizes_E):
    return
  sizes = np.asarray(sizes_E, np.int64)
  if (sizes < 0).any():
    e = int(np.argmax(sizes < 0))
    raise ValueError(
      f'{op}: sizes[{e}]={sizes[e]} is negative; a group has 0 or more rows.'
    )
  if sizes.sum() > rows:
    raise ValueError(
      f'{op}: sizes sum to {sizes.sum()} but there are {rows} rows; rows and '
      f'sizes must come from the same routing (fit_sizes cuts the last groups).'
    )


def _is_here(a) -> bool:
  return not isinstance(a, jax.Array) or a.is_fully_addressable
