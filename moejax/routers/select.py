"""Selection: which experts a token goes to, `(affinity_NE, k) -> ids_NK`.

An id equal to E means "no expert". Ids are int32 and carry no gradient.
"""

import jax
import jax.numpy as jnp


def top_k(affinity_NE: jax.Array, k: int) -> jax.Array:
  """The k largest, largest first; ties go to the lower id."""
  return jax.lax.top_k(affinity_NE, k)[1]


def group_limited(
  affinity_NE: jax.Array,
  k: int,
  *,
  num_groups: int,
  kept_groups: int,
  best_per_group: int = 2,
) -> jax.Array:
  """The k largest within the best groups of experts.

  A group is a run of E / num_groups neighbours; its score is the sum of its
  `best_per_group` largest affinities.  Source: 2412.19437 sec. 2.1.2 (node-
  limited routing).

  Args:
    affinity_NE: f32.
    k: experts per token.
    num_groups: groups that the experts are cut into.
    kept_groups: groups that a token may use.
    best_per_group: affinities that make a group's score.

  Raises:
    ValueError: when the groups do not divide the experts or cannot hold k.
  """
  num_experts = affinity_NE.shape[-1]
  if num_experts % num_groups:
    raise ValueError(
      f'num_groups={num_groups} does not divide the {num_experts} experts; '
      'choose a divisor.'
    )
  size = num_experts // num_groups
  if not k <= kept_groups * size or not kept_groups <= num_groups:
    raise ValueError(
      f'kept_groups={kept_groups} of {num_groups} groups of {size} experts '
      f'cannot give k={k} experts; keep at least {-(-k // size)} groups and '
      'at most all.'
    )
  grouped = affinity_NE.reshape(-1, num_groups, size)
  best = jax.lax.top_k(grouped, min(best_per_group, size))[0].sum(-1)
  kept_NG = jax.lax.top_k(best, kept_groups)[1]
  open_NG = (kept_NG[..., None] == jnp.arange(num_groups)).any(1)
  limited = jnp.where(open_NG[..., None], grouped, -jnp.inf)
  return top_k(limited.reshape(affinity_NE.shape), k)
