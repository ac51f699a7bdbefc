"""Linear attention with several states, of which a token uses a few."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import flax.linen as nn
import flax.struct as struct
import jax
import jax.numpy as jnp

from moejax import stats
from moejax.mixers.choices import Sequences, in_order
from moejax.mixers.convolution import ShortConvolution
from moejax.mixers.decays import log_uniform, step_bias
from moejax.mixers.linear import silence, unit
from moejax.mixers.rules import gated_delta
from moejax.mixers.rules.rule import Inputs, run
from moejax.mixers.rules.rule import flops as rule_flops
from moejax.nn import Projection, RmsNorm, activations, matrix_init
from moejax.rows import Ragged
from moejax.types import Chosen, Context
from pallas_kernels.route.rows import combine, gather_rows


@struct.dataclass
class Memories:
  """What a mixture of memories remembers; the last memory is the shared one.

  Attributes:
    state_BMHKV: f32, a matrix for each memory and head.
    recent: the last inputs of each convolution that each memory saw, by name,
      [B, M, W - 1, H, K].
    seen_BM: int32, tokens of the current document that each has seen.
  """

  state_BMHKV: jax.Array
  recent: Mapping[str, jax.Array]
  seen_BM: jax.Array


class MixtureOfMemories(nn.Module):
  """Gated delta memories: a router's choice for each token, and a shared one.

  A memory sees the tokens that chose it as a sequence of its own: its short
  convolution and its state go from one of them to the next, within a document.
  A token's output is the weighted sum of what it reads from its memories plus
  what it reads from the shared one, normalised per head and gated. Keys,
  values, write strengths and decays have matrices for each memory, multiplied
  only with the tokens that chose it.

  Source: 2502.13685 sec. 3; parameters as in its public code with gated delta
  (query, convolutions, rates and biases of decay are shared by memories).
  Differs: convolutions end where a memory's document ends, in training as in
  decoding; the public code lets them run on from one memory and row into the
  next while training. No memory has a capacity.

  Sows what `stats.sow_routing` says, with prefix `mixer_`.

  Attributes:
    router: `(x_ND, ctx) -> Chosen`; its experts are the memories.
    heads: H.
    head_dim: K, of queries and keys; None for width / H.
    value_dim: V, of values; None for K.
    shared: whether there is a memory that every token uses.
    conv_size: W, tokens that a convolution sees.
    norm_epsilon: of the output's norm.
    balance: balance terms by name, `(assignment, ctx) -> scalar`.
  """

  router: nn.Module
  heads: int
  head_dim: int | None = None
  value_dim: int | None = None
  shared: bool = True
  conv_size: int = 4
  norm_epsilon: float = 1e-6
  balance: Mapping[str, Callable] | None = None

  causal = True

  @nn.compact
  def __call__(
    self, x_BTD: jax.Array, ctx: Context, state: Memories | None = None
  ) -> tuple[jax.Array, Memories | None]:
    key, value = self._sizes(x_BTD.shape[-1])
    x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
    chosen = self.router(x_ND, ctx)
    stats.sow_routing(self, chosen, ctx, self.balance, prefix='mixer_')
    ids_NK, weights_NK, memories = self._with_shared(chosen, ctx.valid_N)
    starts_BT = (ctx.positions_BT == 0) & (ctx.segments_BT > 0)
    choices = in_order(ids_NK, starts_BT, memories)
    axes = ('embed', 'heads', 'kv')
    q_BTHK = Projection((self.heads, key), axes, name='query')(x_BTD)
    q_RX = gather_rows(q_BTHK.reshape(len(x_ND), -1), choices.plan)
    written_RX = gather_rows(self._written(x_ND, choices), choices.from_product)
    y_RX, state = self._remember(q_RX, written_RX, choices, state)
    y_NX = combine(y_RX, weights_NK, choices.plan)
    y_BTHV = y_NX.reshape(*x_BTD.shape[:2], self.heads, value)
    gate = Projection((self.heads, value), axes, name='gate')(x_BTD)
    y_BTHV = RmsNorm('kv', self.norm_epsilon, name='norm')(y_BTHV)
    y_BTHV = y_BTHV * activations.silu(gate)
    axes = ('heads', 'kv', 'embed')
    return Projection((x_BTD.shape[-1],), axes, name='out')(y_BTHV), state

  def _with_shared(self, chosen: Chosen, valid_N):
    """Ids and weights with those of the shared memory, and M with it."""
    memories = chosen.num_experts + self.shared
    ids_NK = jnp.where(
      chosen.ids_NK < chosen.num_experts, chosen.ids_NK, memories
    )
    if not self.shared:
      return ids_NK, chosen.weights_NK, memories
    ids_N = jnp.where(valid_N, memories - 1, memories)
    weight_N1 = valid_N[:, None].astype(jnp.float32)
    return (
      jnp.concatenate([ids_NK, ids_N[:, None]], axis=1).astype(jnp.int32),
      jnp.concatenate([chosen.weights_NK, weight_N1], axis=1),
      memories,
    )

  def _written(self, x_ND, choices):
    """[R, X]: keys, values, writes and decays, each by its memory's matrix."""

    def matrices(name, size):
      init = matrix_init(('memory', 'embed', 'heads'), (1,), (0,))
      shape = (choices.memories, x_ND.shape[1], self.heads * size)
      return self.param(name, init, shape, jnp.float32)

    key, value = self._sizes(x_ND.shape[1])
    sizes = {'key': key, 'value': value, 'write': 1, 'decay': 1}
    # One product: each of four would read all rows.
    w_MDX = jnp.concatenate([matrices(*item) for item in sizes.items()], -1)
    x_RD = gather_rows(x_ND, choices.product)
    return Ragged(x_RD, choices.product.sizes_E).dot(w_MDX).rows_RD

  def _remember(self, q_RX, written_RX, choices, state):
    """What each choice reads from its memory, [R, H V], and the new state."""
    if state is None:
      sequences, batch = choices.in_one(), choices.last_document_B.size
      q, written = (
        x.reshape(batch, -1, x.shape[-1]) for x in (q_RX, written_RX)
      )
      inputs, _ = self._inputs(q, written, sequences, {})
      y_ASHV, _ = run(gated_delta, inputs, None, sequences.starts_AS)
      return y_ASHV.reshape(len(q_RX), -1), None
    apart = choices.apart(state.seen_BM)
    q, written = q_RX[apart.source_AS], written_RX[apart.source_AS]
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), state)
    inputs, recent = self._inputs(q, written, apart.sequences, flat.recent)
    starts_AS = apart.sequences.starts_AS
    y_ASHV, states_AHKV = run(gated_delta, inputs, flat.state_BMHKV, starts_AS)
    states_BMHKV = states_AHKV.reshape(state.state_BMHKV.shape)
    kept = apart.kept_BM[..., None, None, None]
    state = Memories(
      state_BMHKV=jnp.where(kept, states_BMHKV, 0),
      recent={n: a.reshape(state.recent[n].shape) for n, a in recent.items()},
      seen_BM=apart.seen_BM,
    )
    y_PX = y_ASHV.reshape(-1, y_ASHV.shape[2] * y_ASHV.shape[3])
    return y_PX[apart.target_R], state

  def _inputs(self, q_ASX, written_ASX, sequences: Sequences, recent):
    """What the rule reads, and the new last inputs of the convolutions."""
    head = (*q_ASX.shape[:2], self.heads, -1)
    key = q_ASX.shape[-1]
    value = written_ASX.shape[-1] - key - 2 * self.heads
    ends = [key, key + value, key + value + self.heads]
    k_ASX, v_ASX, write, step = jnp.split(written_ASX, ends, axis=-1)
    ctx = Context(
      tokens_BT=sequences.positions_AS,
      positions_BT=sequences.positions_AS,
      segments_BT=sequences.used_AS.astype(jnp.int32),
    )
    done, kept = {}, {}
    for name, x in dict(query=q_ASX, key=k_ASX, value=v_ASX).items():
      convolve = ShortConvolution(self.conv_size, name=f'{name}_conv')
      done[name], kept[name] = convolve(x.reshape(head), ctx, recent.get(name))
    inputs = Inputs(
      q_HK=unit(done['query'], done['query'].shape[-1] ** -0.5),
      k_HK=unit(done['key'], 1.0),
      v_GV=done['value'],
      log_decay=self._log_decay(step.astype(jnp.float32)),
      beta_G=jax.nn.sigmoid(write.astype(jnp.float32)),
    )
    return silence(inputs, sequences.used_AS), kept

  def _log_decay(self, step_ASH):
    """-exp(A_log) softplus(step + dt_bias)."""

    def per_head(name, init):
      init = nn.with_logical_partitioning(init, ('heads',))
      return self.param(name, init, (self.heads,), jnp.float32)

    rate_H = jnp.exp(per_head('A_log', log_uniform(0.01, 16.0)))
    bias_H = per_head('dt_bias', step_bias)
    return -rate_H * jax.nn.softplus(step_ASH + bias_H)

  def _sizes(self, width: int) -> tuple[int, int]:
    """K and V.

    Raises:
      ValueError: heads that do not divide the width.
    """
    if self.head_dim is None and width % self.heads:
      raise ValueError(
        f'heads={self.heads} does not divide width={width}; choose a divisor '
        'or set head_dim.'
      )
    key = self.head_dim or width // self.heads
    return key, self.value_dim or key

  def init_state(self, batch, length, width, dtype) -> Memories:
    """Empty memories; their size does not depend on `length`."""
    del length
    key, value = self._sizes(width)
    memories = self.router.score.num_experts + self.shared
    shape = (batch, memories, self.conv_size - 1, self.heads)
    sizes = {'query': key, 'key': key, 'value': value}
    return Memories(
      state_BMHKV=jnp.zeros(
        (batch, memories, self.heads, key, value), jnp.float32
      ),
      recent={n: jnp.zeros((*shape, s), dtype) for n, s in sizes.items()},
      seen_BM=jnp.zeros((batch, memories), jnp.int32),
    )

  def active_fracs(self) -> dict[str, float]:
    """Share of the parameters under a path that one token uses."""
    memories = self.router.score.num_experts + self.shared
    frac = (self.router.k + self.shared) / memories
    return dict.fromkeys(('key', 'value', 'write', 'decay'), frac)

  def flops(self, width: int, length: int) -> float:
    """Forward FLOPs per token in sequences of `length`."""
    key, value = self._sizes(width)
    once = 2 * width * self.heads * (key + 2 * value)
    each = 2 * width * self.heads * (key + value + 2)
    each += 2 * self.conv_size * self.heads * (2 * key + value)
    used = self.router.k + self.shared
    # All that a row chose is one sequence to the rule.
    each += self.heads * rule_flops(gated_delta, key, value, used * length)
    return self.router.flops(width) + once + used * each
