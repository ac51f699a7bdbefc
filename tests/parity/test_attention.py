"""Our softmax mixers and transformers' attention, with one set of weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import routers
from moejax.mixers import Attention, AttentionExperts, Latent, gates
from moejax.types import Context

pytestmark = pytest.mark.slow
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

B, T, D, H, SIZE, THETA = 2, 9, 16, 4, 8, 100.0
ROPE = dict(rope_type='default', rope_theta=THETA)


def _drawn(module):
  torch.manual_seed(0)
  with torch.no_grad():
    for parameter in module.parameters():
      # Larger than the usual start, so that nothing is nearly linear.
      parameter.copy_(torch.randn_like(parameter) * 0.5)
  return {
    name: p.detach().numpy().copy() for name, p in module.named_parameters()
  }


def _inputs():
  x = np.random.default_rng(1).normal(size=(B, T, D)).astype(np.float32)
  positions = np.broadcast_to(np.arange(T), (B, T))
  ctx = Context(np.zeros_like(positions), positions, np.ones_like(positions))
  return x, ctx


def _theirs(module, rotary, x, cache=None, start=0):
  """Their output for x, whose first token stands at `start`."""
  x = torch.from_numpy(x)
  length = x.shape[1]
  place = start + torch.arange(length)
  behind = place[:, None] - torch.arange(start + length)
  mask = torch.where(behind >= 0, 0.0, float('-inf'))[None, None]
  embeddings = rotary(x, place[None].expand(x.shape[0], -1))
  fields = {} if cache is None else dict(past_key_values=cache)
  with torch.no_grad():
    return module(
      x, attention_mask=mask, position_embeddings=embeddings, **fields
    )[0].numpy()


def _heads(w, count):
  """Their [H * size, D] as our [D, H, size]."""
  return w.reshape(count, -1, w.shape[-1]).transpose(2, 0, 1)


def _out(w, count):
  return w.T.reshape(count, -1, w.shape[0])


def _assert_close(got, want):
  error = np.asarray(got, np.float64) - want
  assert np.linalg.norm(error) < 1e-5 * np.linalg.norm(want)


@pytest.mark.parametrize('query_latent', [None, 12])
def test_latent_attention_agrees_whole_and_decoding(query_latent):
  from transformers.models.deepseek_v3 import modeling_deepseek_v3 as theirs

  latent, nope, rope, value = 10, 6, 4, 5
  config = transformers.DeepseekV3Config(
    hidden_size=D,
    num_attention_heads=H,
    num_key_value_heads=H,
    q_lora_rank=query_latent,
    kv_lora_rank=latent,
    qk_nope_head_dim=nope,
    qk_rope_head_dim=rope,
    v_head_dim=value,
    rope_parameters=ROPE,
    attn_implementation='eager',
  )
  module = theirs.DeepseekV3Attention(config, 0)
  w = _drawn(module)
  rotary = theirs.DeepseekV3RotaryEmbedding(config)
  # Theirs turns neighbours (2i, 2i + 1), ours halves (i, i + D/2).
  halves = np.r_[0:rope:2, 1:rope:2]
  query = w['q_proj.weight' if query_latent is None else 'q_b_proj.weight']
  query = _heads(query, H)
  query[..., nope:] = query[..., nope:][..., halves]
  down = w['kv_a_proj_with_mqa.weight'].T
  down[:, latent:] = down[:, latent:][:, halves]
  both = _heads(w['kv_b_proj.weight'], H)
  params = {
    'query': {'kernel': query},
    'down': {'kernel': down},
    'latent_norm': {'scale': w['kv_a_layernorm.weight']},
    'key': both[..., :nope],
    'value': both[..., nope:],
    'out': {'kernel': _out(w['o_proj.weight'], H)},
  }
  if query_latent is not None:
    params['query_down'] = {'kernel': w['q_a_proj.weight'].T}
    params['query_norm'] = {'scale': w['q_a_layernorm.weight']}
  ours = Latent(
    heads=H,
    latent_dim=latent,
    nope_dim=nope,
    rope_dim=rope,
    value_dim=value,
    query_latent_dim=query_latent,
    rope_theta=THETA,
  )
  x, ctx = _inputs()
  apply = jax.jit(ours.apply)
  got, _ = apply({'params': params}, x, ctx)
  _assert_close(got, _theirs(module, rotary, x))

  cache = transformers.DynamicCache(config=config)
  state = ours.init_state(B, T, D, 'float32')
  for start, stop in ((0, 5), *((t, t + 1) for t in range(5, T))):
    own = jax.tree.map(lambda a, s=slice(start, stop): a[:, s], (x, ctx))
    got, state = apply({'params': params}, *own, state)
    _assert_close(got, _theirs(module, rotary, own[0], cache, start))


def test_gated_attention_agrees():
  from transformers.models.qwen3_next import modeling_qwen3_next as theirs

  kv_heads, frac = 2, 0.25
  config = transformers.Qwen3NextConfig(
    hidden_size=D,
    num_attention_heads=H,
    num_key_value_heads=kv_heads,
    head_dim=SIZE,
    rope_parameters=dict(ROPE, partial_rotary_factor=frac),
    attn_implementation='eager',
  )
  module = theirs.Qwen3NextAttention(config, 0)
  w = _drawn(module)
  query, gate = np.split(_heads(w['q_proj.weight'], H), 2, axis=-1)
  params = {
    'query': {'kernel': query},
    'key': {'kernel': _heads(w['k_proj.weight'], kv_heads)},
    'value': {'kernel': _heads(w['v_proj.weight'], kv_heads)},
    'query_norm': {'scale': 1 + w['q_norm.weight']},
    'key_norm': {'scale': 1 + w['k_norm.weight']},
    'gate': {'logits': {'kernel': gate}},
    'out': {'kernel': _out(w['o_proj.weight'], H)},
  }
  ours = Attention(
    heads=H,
    kv_heads=kv_heads,
    head_dim=SIZE,
    rope_theta=THETA,
    rope_frac=frac,
    gate=gates.Gate(),
  )
  x, ctx = _inputs()
  got, _ = jax.jit(ours.apply)({'params': params}, x, ctx)
  rotary = theirs.Qwen3NextRotaryEmbedding(config)
  _assert_close(got, _theirs(module, rotary, x))


def test_attention_experts_agree():
  from transformers.models.jetmoe import modeling_jetmoe as theirs

  kv_heads, experts, k = 3, 5, 2
  config = transformers.JetMoeConfig(
    hidden_size=D,
    num_key_value_heads=kv_heads,
    kv_channels=SIZE,
    num_local_experts=experts,
    num_experts_per_tok=k,
    rope_parameters=ROPE,
    attn_implementation='eager',
  )
  module = theirs.JetMoeAttention(config, 0)
  w = _drawn(module)
  with torch.no_grad():
    module.experts.bias.zero_()  # ours has none
  key, value = np.split(_heads(w['kv_proj.weight'], 2 * kv_heads), 2, axis=1)
  params = {
    'router': {'score': {'kernel': w['experts.router.layer.weight'].T}},
    'key': {'kernel': key},
    'value': {'kernel': value},
    'experts': {
      'query': w['experts.input_linear.weight'].swapaxes(1, 2),
      'out': w['experts.output_linear.weight'].swapaxes(1, 2),
    },
  }
  router = routers.Router(
    score=routers.scores.Linear(num_experts=experts),
    k=k,
    select=routers.select.top_k,
    weigh=routers.weigh.softmax,
  )
  ours = AttentionExperts(
    router=router,
    num_experts=experts,
    kv_heads=kv_heads,
    head_dim=SIZE,
    rope_theta=THETA,
  )
  x, ctx = _inputs()
  params = jax.tree.map(jnp.asarray, params)
  got, _ = jax.jit(ours.apply)({'params': params}, x, ctx)
  rotary = theirs.JetMoeRotaryEmbedding(config)
  _assert_close(got, _theirs(module, rotary, x))
