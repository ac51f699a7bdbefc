"""Our model and transformers' Qwen3-MoE, with one set of weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from moejax.build import build
from moejax.losses import cross_entropy
from moejax.types import Context

pytestmark = pytest.mark.slow
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

B, T, V, D, F, E, K, HEADS, KV_HEADS, SIZE, LAYERS = (
  2, 12, 40, 16, 8, 6, 3, 4, 2, 8, 2,
)  # fmt: skip


@pytest.fixture(scope='module')
def theirs():
  config = transformers.Qwen3MoeConfig(
    vocab_size=V,
    hidden_size=D,
    intermediate_size=F,
    moe_intermediate_size=F,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_key_value_heads=KV_HEADS,
    head_dim=SIZE,
    num_experts=E,
    num_experts_per_tok=K,
    norm_topk_prob=True,
    max_position_embeddings=T,
    rope_parameters=dict(rope_type='default', rope_theta=10_000.0),
    tie_word_embeddings=False,
    use_cache=False,
  )
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(
    config, attn_implementation='eager', experts_implementation='eager'
  )
  with torch.no_grad():
    for parameter in model.parameters():
      # Larger than the usual start, so that nothing is nearly linear.
      parameter.copy_(torch.randn_like(parameter) * 0.5)
  return model


@pytest.fixture(scope='module')
def ours():
  feed_forward = common.moe(E, K, F, balance=None)
  attention = common.attention(HEADS, KV_HEADS, head_dim=SIZE)
  return build(
    common.node(
      'model.Model',
      vocab=V,
      width=D,
      tied=False,
      blocks={'sparse': common.block(attention, feed_forward)},
      pattern=('sparse',),
      repeats=LAYERS,
    )
  )


def _params(tensors):
  """Our parameters out of their tensors, by name."""
  tensors = {name: t.detach().numpy() for name, t in tensors}

  def layers(name):
    return np.stack(
      [tensors[f'model.layers.{i}.{name}'] for i in range(LAYERS)]
    )

  def heads(name, count):  # [L, H * size, D] -> [L, D, H, size]
    w = layers(f'self_attn.{name}.weight')
    return w.reshape(LAYERS, count, SIZE, D).transpose(0, 3, 1, 2)

  out = layers('self_attn.o_proj.weight').swapaxes(1, 2)
  gate_up = layers('mlp.experts.gate_up_proj').swapaxes(2, 3)
  block = {
    'mixer_norm': {'scale': layers('input_layernorm.weight')},
    'ffn_norm': {'scale': layers('post_attention_layernorm.weight')},
    'mixer': {
      'query': {'kernel': heads('q_proj', HEADS)},
      'key': {'kernel': heads('k_proj', KV_HEADS)},
      'value': {'kernel': heads('v_proj', KV_HEADS)},
      'query_norm': {'scale': layers('self_attn.q_norm.weight')},
      'key_norm': {'scale': layers('self_attn.k_norm.weight')},
      'out': {'kernel': out.reshape(LAYERS, HEADS, SIZE, D)},
    },
    'ffn': {
      'router': {'score': {'kernel': layers('mlp.gate.weight').swapaxes(1, 2)}},
      'experts': {
        'gate': gate_up[..., :F],
        'up': gate_up[..., F:],
        'down': layers('mlp.experts.down_proj').swapaxes(2, 3),
      },
    },
  }
  return {
    # Ours scales embeddings by the root of the width.
    'embedding': tensors['model.embed_tokens.weight'] / D**0.5,
    'head': tensors['lm_head.weight'].T,
    'final_norm': {'scale': tensors['model.norm.weight']},
    'layers': {'blocks_0': block},
  }


def _loss(model, params, tokens):
  inputs, targets = tokens[:, :-1], tokens[:, 1:]
  positions = jnp.broadcast_to(jnp.arange(T - 1), inputs.shape)
  segments = jnp.ones_like(inputs)
  ctx = Context(inputs, positions, segments)
  outputs, _ = model.apply({'params': params}, ctx)
  batch = {'targets': targets, 'segments': segments}
  return cross_entropy(outputs, batch), outputs.hidden_BTD @ outputs.head_DV


def test_logits_loss_and_gradients_agree(ours, theirs):
  tokens = np.random.default_rng(0).integers(0, V, (B, T), dtype=np.int32)
  params = _params(theirs.named_parameters())
  (loss, logits), grads = jax.jit(
    jax.value_and_grad(
      lambda p: _loss(ours, p, jnp.asarray(tokens)), has_aux=True
    )
  )(params)

  ids = torch.from_numpy(tokens).long()
  result = theirs(input_ids=ids, labels=ids)
  result.loss.backward()
  np.testing.assert_allclose(loss, result.loss.item(), rtol=1e-5)
  want = result.logits.detach().numpy()[:, :-1]
  np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-4)

  named = [(name, p.grad) for name, p in theirs.named_parameters()]
  want = _params(named)
  # The map divides by what the chain rule multiplies with.
  want['embedding'] = want['embedding'] * D
  assert jax.tree.structure(grads) == jax.tree.structure(want)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max()
    ),
    grads,
    want,
  )
