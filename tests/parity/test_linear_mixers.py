"""Our linear mixers and transformers' layers, with one set of weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.mixers import (
  LinearAttention,
  StateSpace,
  decays,
  gates,
  rules,
  writes,
)
from moejax.nn import activations
from moejax.types import Context

pytestmark = pytest.mark.slow
torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

B, T, D, H, G, K, V, W = 2, 20, 16, 2, 4, 8, 8, 4
PREFILL = 9


def heads(weight, count):
  """[count * size, D] of theirs -> [D, count, size]."""
  return weight.reshape(count, -1, weight.shape[-1]).transpose(2, 0, 1)


def out(weight, count):
  """[D, count * size] -> [count, size, D]."""
  return weight.T.reshape(count, -1, weight.shape[0])


def filters(weight, *counts_and_sizes):
  """[C, 1, W] over several parts -> each [W, count, size]."""
  ends = np.cumsum([count * size for count, size in counts_and_sizes])
  parts = np.split(weight[:, 0].T, ends[:-1], axis=1)
  return [
    part.reshape(W, *shape)
    for part, shape in zip(parts, counts_and_sizes, strict=True)
  ]


def kernels(**arrays):
  return {name: {'kernel': array} for name, array in arrays.items()}


def kda():
  from transformers.models.kimi_linear import modeling_kimi_linear as theirs

  config = transformers.KimiLinearConfig(
    hidden_size=D,
    linear_num_heads=H,
    linear_head_dim=K,
    linear_conv_kernel_dim=W,
    num_hidden_layers=1,
    layer_types=['linear_attention'],
  )
  layer = theirs.KimiLinearDeltaAttention(config, 0)

  def params(w):
    q, k, v = filters(w['conv1d.weight'], *[(H, K)] * 3)
    gate = 'forget_gate.'
    return kernels(
      query=heads(w['q_proj.weight'], H),
      key=heads(w['k_proj.weight'], H),
      value=heads(w['v_proj.weight'], H),
      query_conv=q,
      key_conv=k,
      value_conv=v,
      out=out(w['o_proj.weight'], H),
    ) | {
      'decay': kernels(
        down=w[gate + 'f_a_proj.weight'].T,
        logits=heads(w[gate + 'f_b_proj.weight'], H),
      )
      | {
        'A_log': w[gate + 'A_log'].reshape(H),
        'dt_bias': w[gate + 'dt_bias'].reshape(H, K),
      },
      'write': kernels(logits=w['b_proj.weight'].T),
      'gate': kernels(
        down=w['g_a_proj.weight'].T, logits=heads(w['g_b_proj.weight'], H)
      ),
      'norm': {'scale': w['o_norm.weight']},
    }

  ours = LinearAttention(
    H,
    rules.kda,
    decays.Softplus(rank=K),
    writes.Sigmoid(),
    gates.Gate(rank=K),
    head_dim=K,
    norm_epsilon=config.rms_norm_eps,
  )
  return config, layer, ours, params


def gated_delta():
  from transformers.models.qwen3_next import modeling_qwen3_next as theirs

  config = transformers.Qwen3NextConfig(
    hidden_size=D,
    linear_num_key_heads=H,
    linear_num_value_heads=G,
    linear_key_head_dim=K,
    linear_value_head_dim=V,
    linear_conv_kernel_dim=W,
    num_hidden_layers=1,
    layer_types=['linear_attention'],
  )
  layer = theirs.Qwen3NextGatedDeltaNet(config, 0)

  def params(w):
    q, k, v = filters(w['conv1d.weight'], (H, K), (H, K), (G, V))
    # Each key head has its q, k, and the v, z of its value heads in a row.
    rows = w['in_proj_qkvz.weight'].reshape(H, -1, D)
    cut = np.cumsum([K, K, V * G // H])
    parts = [p.reshape(-1, D) for p in np.split(rows, cut, axis=1)]
    b, a = np.split(w['in_proj_ba.weight'].reshape(H, -1, D), 2, axis=1)
    return kernels(
      query=heads(parts[0], H),
      key=heads(parts[1], H),
      value=heads(parts[2], G),
      query_conv=q,
      key_conv=k,
      value_conv=v,
      out=out(w['out_proj.weight'], G),
    ) | {
      'decay': kernels(logits=a.reshape(G, D).T)
      | {'A_log': w['A_log'], 'dt_bias': w['dt_bias']},
      'write': kernels(logits=b.reshape(G, D).T),
      'gate': kernels(logits=heads(parts[3], G)),
      'norm': {'scale': w['norm.weight']},
    }

  ours = LinearAttention(
    H,
    rules.gated_delta,
    decays.Softplus(),
    writes.Sigmoid(),
    gates.Gate(activation=activations.silu),
    value_heads=G,
    head_dim=K,
    value_dim=V,
    norm_epsilon=config.rms_norm_eps,
  )
  return config, layer, ours, params


def state_space():
  from transformers.models.mamba2 import modeling_mamba2 as theirs

  groups, size, state = 2, 2 * D // G, 5
  config = transformers.Mamba2Config(
    hidden_size=D,
    num_heads=G,
    head_dim=size,
    expand=2,
    state_size=state,
    n_groups=groups,
    conv_kernel=W,
    chunk_size=8,
    num_hidden_layers=1,
  )
  layer = theirs.Mamba2Mixer(config, 0)

  def params(w):
    parts = (G, size), (groups, state), (groups, state)
    rows = np.split(
      w['in_proj.weight'],
      np.cumsum([G * size, *(count * each for count, each in parts)]),
    )
    names = ('x', 'B', 'C')
    convs = filters(w['conv1d.weight'], *parts)
    biases = np.split(
      w['conv1d.bias'], np.cumsum([c * s for c, s in parts])[:-1]
    )
    made = kernels(
      z=heads(rows[0], G),
      x=heads(rows[1], G),
      B=heads(rows[2], groups),
      C=heads(rows[3], groups),
      dt=rows[4].T,
      out=out(w['out_proj.weight'], G),
    )
    for name, kernel, bias, shape in zip(
      names, convs, biases, parts, strict=True
    ):
      made[f'{name}_conv'] = {'kernel': kernel, 'bias': bias.reshape(shape)}
    return made | {
      'A_log': w['A_log'],
      'dt_bias': w['dt_bias'],
      'D': w['D'],
      'scale': w['norm.weight'].reshape(G, size),
    }

  ours = StateSpace(
    G,
    state_size=state,
    groups=groups,
    norm_epsilon=config.layer_norm_epsilon,
  )
  return config, layer, ours, params


def lightning():
  from transformers.models.minimax import modeling_minimax as theirs

  layers, index = 3, 1
  config = transformers.MiniMaxConfig(
    hidden_size=D,
    num_attention_heads=G,
    head_dim=K,
    num_hidden_layers=layers,
    layer_types=['linear_attention'] * layers,
    block_size=8,
  )
  layer = theirs.MiniMaxLightningAttention(config, index)

  def params(w):
    rows = w['qkv_proj.weight'].reshape(G, 3, K, D)
    q, k, v = (rows[:, i].reshape(-1, D) for i in range(3))
    return kernels(
      query=heads(q, G),
      key=heads(k, G),
      value=heads(v, G),
      out=out(w['out_proj.weight'], G),
    ) | {
      'gate': kernels(logits=heads(w['output_gate.weight'], G)),
      'norm': {'scale': w['norm.weight']},
    }

  ours = LinearAttention(
    G,
    rules.lightning,
    decays.Lightning(depth=index / (layers - 1 + 1e-5)),
    gate=gates.Gate(),
    head_dim=K,
    conv_size=None,
    qk_norm=False,
    scale=1.0,
    norm_per_head=False,
  )
  return config, layer, ours, params


def call(layer, x, cache):
  """Their layer on x, with their cache if there is one."""
  with torch.no_grad():
    if 'MiniMax' in type(layer).__name__:
      return layer(x, None, None, past_key_values=cache)[0].numpy()
    return layer(x, cache_params=cache).numpy()


def new_cache(config, layer):
  if 'MiniMax' in type(layer).__name__:
    from transformers.models.minimax.modeling_minimax import MiniMaxCache

    return MiniMaxCache()
  return transformers.DynamicCache(config=config)


def agree(got, want):
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  error = np.sqrt(((got - want) ** 2).mean() / (want**2).mean())
  assert error < 1e-5, error


@pytest.mark.parametrize('case', [kda, gated_delta, state_space, lightning])
def test_outputs_agree_whole_and_in_decoding(case):
  torch.manual_seed(0)
  config, layer, ours, params = case()
  layer.eval()
  with torch.no_grad():
    for parameter in layer.parameters():
      # Larger than the usual start, so that nothing is nearly linear.
      parameter.copy_(torch.randn_like(parameter) * 0.5)
  state_dict = {n: p.detach().numpy() for n, p in layer.named_parameters()}
  made = {'params': params(state_dict)}
  x = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float32)
  want = call(layer, torch.from_numpy(x), None)

  @jax.jit
  def run(x, start, state):
    positions = jnp.broadcast_to(start + jnp.arange(x.shape[1]), x.shape[:2])
    ones = jnp.ones(x.shape[:2], jnp.int32)
    return ours.apply(made, x, Context(ones, positions, ones), state)

  agree(run(x, 0, None)[0], want)
  cache = new_cache(config, layer)
  state = ours.init_state(B, T, D, 'float32')
  for start, stop in ((0, PREFILL), *((t, t + 1) for t in range(PREFILL, T))):
    piece = x[:, start:stop]
    y, state = run(piece, start, state)
    agree(y, call(layer, torch.from_numpy(piece), cache))
    agree(y, want[:, start:stop])
