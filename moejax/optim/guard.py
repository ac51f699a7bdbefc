"""Skip a step whose gradient or loss is not finite."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class SkipState(NamedTuple):
  """`skipped` in all and `consecutive` up to now, both int32 []."""

  skipped: jax.Array
  consecutive: jax.Array
  inner: Any


def skip_nonfinite(inner):
  """Wraps a transformation so that a bad step changes nothing but a count.

  A step is bad when the global gradient norm, or `loss` if it is passed to
  `update`, is not finite. Then the inner state is kept bit for bit and every
  update is -0.0, the number that leaves each bit of a parameter as it was
  when added to it. Nothing is multiplied by 0, since 0 * nan is nan.

  It belongs outside of clipping, which would spread one nan over every leaf.
  The state counts, the caller decides how many in a row are too many:
  `state.consecutive >= limit`.
  """
  inner = optax.with_extra_args_support(inner)

  def init(params):
    zero = jnp.zeros([], jnp.int32)
    return SkipState(zero, zero, inner.init(params))

  def update(updates, state, params=None, *, loss=0.0, **extra):
    # Spelled like the norm of optax's clipping, so that XLA computes it once.
    good = jnp.isfinite(optax.tree.norm(updates)) & jnp.isfinite(loss)
    stepped, moved = inner.update(updates, state.inner, params, **extra)
    # Selects fuse into the update; a cond would copy every moment on CPU.
    stepped = jax.tree.map(
      lambda step: jnp.where(good, step, jnp.full_like(step, -0.0)), stepped
    )
    kept = jax.tree.map(
      lambda new, old: jnp.where(good, new, old), moved, state.inner
    )
    bad = (~good).astype(jnp.int32)
    consecutive = (state.consecutive + 1) * bad
    return stepped, SkipState(state.skipped + bad, consecutive, kept)

  return optax.GradientTransformationExtraArgs(init, update)
