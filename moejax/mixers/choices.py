"""Tokens that choose memories, as sequences of what each memory sees."""

from __future__ import annotations

import flax.struct as struct
import jax
import jax.numpy as jnp

from pallas_kernels.route.api import permutation
from pallas_kernels.route.plan import Plan


@struct.dataclass
class Sequences:
  """Places [A, S] with what a mixer needs to know of them.

  Attributes:
    positions_AS: int32, place within the document among the tokens that the
      memory sees.
    starts_AS: bool, the first such place.
    used_AS: bool; other places are padding.
  """

  positions_AS: jax.Array
  starts_AS: jax.Array
  used_AS: jax.Array


@struct.dataclass
class Choices:
  """R = B * T * K choices in the order of row, memory and time.

  A row has T * K places; choices of no memory come last in it. Nothing is
  dropped, and lengths do not depend on what is chosen.

  Attributes:
    plan: from tokens to places.
    product: from tokens to the order of memory, row and time.
    from_product: from that order to places.
    memory_R: int32; `memories` is none.
    document_R: int32, documents that started in the call before or with it.
    last_document_B: int32, the same of the last token.
    memories: M (static).
  """

  plan: Plan
  product: Plan
  from_product: Plan
  memory_R: jax.Array
  document_R: jax.Array
  last_document_B: jax.Array
  memories: int = struct.field(pytree_node=False)

  def in_one(self) -> Sequences:
    """[B, T * K]: all that a row chose, one memory after the other."""
    batch = self.last_document_B.size
    memory = self.memory_R.reshape(batch, -1)
    document = self.document_R.reshape(batch, -1)
    differs = (memory[:, 1:] != memory[:, :-1]) | (
      document[:, 1:] != document[:, :-1]
    )
    starts = jnp.pad(differs, ((0, 0), (1, 0)), constant_values=True)
    place = jnp.arange(starts.shape[1], dtype=jnp.int32)
    first = jax.lax.cummax(jnp.where(starts, place, 0), axis=1)
    return Sequences(place - first, starts, memory < self.memories)

  def apart(self, seen_BM: jax.Array) -> Apart:
    """[B * M, T]: the tokens of each memory, and padding after them.

    Args:
      seen_BM: int32, tokens of its document that a memory saw before.
    """
    batch, memories = seen_BM.shape
    length = self.memory_R.size // batch // self.plan.place_NK.shape[1]
    sizes = self.plan.sizes_E
    first = (jnp.cumsum(sizes) - sizes).reshape(batch, -1)
    count = sizes.reshape(batch, -1)[:, :memories, None]
    place = jnp.arange(length, dtype=jnp.int32)
    used = place < count
    source = jnp.where(used, first[:, :memories, None] + place, 0)
    document = jnp.where(used, self.document_R[source], 0)
    before = jnp.pad(document, ((0, 0), (0, 0), (1, 0)))[..., :-1]
    starts = used & (document != before)
    begun = jax.lax.cummax(jnp.where(starts, place, -1), axis=2)
    positions = jnp.where(begun < 0, seen_BM[..., None] + place, place - begun)

    end = jnp.maximum(count - 1, 0)
    last = jnp.take_along_axis(positions, end, axis=2)[..., 0]
    seen = jnp.where(count[..., 0] > 0, last + 1, seen_BM)
    kept = document.max(-1) == self.last_document_B[:, None]

    memory = jnp.minimum(self.memory_R, memories - 1)
    row = jnp.arange(self.memory_R.size) // (self.memory_R.size // batch)
    offset = jnp.arange(self.memory_R.size) - first[row, memory]
    target = (row * memories + memory) * length + offset
    flat = batch * memories, length
    return Apart(
      sequences=Sequences(
        positions.reshape(flat), starts.reshape(flat), used.reshape(flat)
      ),
      source_AS=source.reshape(flat),
      target_R=jnp.where(self.memory_R < memories, target, 0),
      kept_BM=kept,
      seen_BM=jnp.where(kept, seen, 0),
    )


@struct.dataclass
class Apart:
  """Each memory's tokens in a sequence of their own.

  Attributes:
    sequences: of A = B * M sequences.
    source_AS: int32, the place in `Choices` of each.
    target_R: int32, the inverse, in A * S.
    kept_BM: bool, no document has started since the memory's last token.
    seen_BM: int32, tokens of its document that the memory has now seen.
  """

  sequences: Sequences
  source_AS: jax.Array
  target_R: jax.Array
  kept_BM: jax.Array
  seen_BM: jax.Array


def in_order(ids_NK: jax.Array, starts_BT: jax.Array, memories: int) -> Choices:
  """Sorts choices of memories.

  Args:
    ids_NK: int32, all different for a token; `memories` is none.
    starts_BT: bool, a document starts.
    memories: M.
  """
  batch, length = starts_BT.shape
  kinds = memories + 1
  row_N1 = jnp.arange(batch * length, dtype=jnp.int32)[:, None] // length
  plan = permutation(row_N1 * kinds + ids_NK, batch * kinds)
  product = permutation(ids_NK, memories)
  document_BT = jnp.cumsum(starts_BT, axis=1, dtype=jnp.int32)
  return Choices(
    plan=plan,
    product=product,
    from_product=Plan(
      pair_R=product.place_NK.reshape(-1)[plan.pair_R],
      place_NK=plan.place_NK.reshape(-1)[product.pair_R][:, None],
      sizes_E=jnp.array([ids_NK.size], jnp.int32),
    ),
    memory_R=ids_NK.reshape(-1)[plan.pair_R],
    document_R=document_BT.reshape(-1)[plan.token_R],
    last_document_B=document_BT[:, -1],
    memories=memories,
  )
