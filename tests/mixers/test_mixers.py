"""Linear attention and the state space mixer against loops in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import optim
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

B, T, D, H, W = 2, 11, 12, 2, 4
SEGMENTS = np.array([[1] * 4 + [2] * 7, [0] * 2 + [1] * 8 + [0]])
POSITIONS = np.array([[*range(4), *range(7)], [0, 0, *range(8), 0]])
PLAIN = dict(conv_size=None, activation=activations.identity, qk_norm=False)

KINDS = {
  'kda': LinearAttention(
    H,
    rules.kda,
    decays.Softplus(rank=3),
    writes.Sigmoid(),
    gates.Gate(rank=3),
    norm_epsilon=1e-5,
  ),
  'safe kda': LinearAttention(
    H, rules.kda, decays.Bounded(), writes.Sigmoid(maximum=2.0), value_heads=4
  ),
  'gated delta': LinearAttention(
    H,
    rules.gated_delta,
    decays.Softplus(),
    writes.Sigmoid(),
    gates.Gate(activation=activations.silu),
    value_heads=4,
    value_dim=5,
  ),
  'delta': LinearAttention(H, rules.delta, None, writes.Sigmoid()),
  'gla': LinearAttention(
    H,
    rules.gla,
    decays.LogSigmoid(rank=3),
    gate=gates.Gate(activation=activations.silu),
    head_dim=4,
    value_dim=6,
    **PLAIN,
  ),
  'retention': LinearAttention(
    H, rules.retention, decays.Retention(), rope_theta=100.0, **PLAIN
  ),
  'lightning': LinearAttention(
    H,
    rules.lightning,
    decays.Lightning(depth=0.5),
    gate=gates.Gate(),
    conv_size=None,
    qk_norm=False,
    scale=1.0,
    norm_per_head=False,
  ),
  'state space': StateSpace(4, groups=2, state_size=5),
}


def context(segments, positions):
  segments, positions = (
    jnp.asarray(a, jnp.int32) for a in (segments, positions)
  )
  return Context(jnp.zeros_like(segments), positions, segments)


def inputs(length=T, seed=0):
  return jax.random.normal(jax.random.key(seed), (B, length, D))


def parameters(module):
  """Any: initial values would hide that a scale of 1 is unused."""
  ctx = context(np.ones((B, 1)), np.zeros((B, 1)))
  made = jax.eval_shape(module.init, jax.random.key(0), inputs(1), ctx)
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda a: np.float32(0.5 * rng.normal(size=a.shape)),
    nn.unbox(made)['params'],
  )


def silu(x):
  return x / (1 + np.exp(-x))


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def softplus(x):
  return np.log1p(np.exp(x))


def dense(p, x):
  """x through the kernel, in the low-rank form if it has one."""
  if 'down' in p:
    x = x @ p['down']['kernel']
  kernel = p['logits']['kernel'] if 'logits' in p else p['kernel']
  return np.tensordot(x, kernel, 1)


def filtered(p, name, x):
  """The projection of a document through its filter and SiLU."""
  projected = dense(p[name], x)
  own = p.get(f'{name}_conv')
  if own is None:
    return projected
  y = np.zeros(projected.shape) + own.get('bias', 0.0)
  for t in range(len(x)):
    for back in range(min(t + 1, W)):
      y[t] += own['kernel'][W - 1 - back] * projected[t - back]
  return silu(y)


def rms(x, epsilon):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)


def turned(x, theta):
  """Rotary positions by complex numbers."""
  half = x.shape[-1] // 2
  place = np.arange(len(x))[:, None, None]
  factor = np.exp(1j * place * theta ** (-np.arange(half) / half))
  z = (x[..., :half] + 1j * x[..., half:]) * factor
  return np.concatenate([z.real, z.imag], -1)


def recurrence(q, k, v, log_decay, beta, corrects):
  """One document [t, G, ...], by matrices."""
  groups, keys = v.shape[1], k.shape[-1]
  q, k = (np.repeat(a, groups // a.shape[1], 1) for a in (q, k))
  y = np.zeros(v.shape)
  for g in range(groups):
    S = np.zeros((keys, v.shape[-1]))
    for t in range(len(v)):
      decay = np.exp(np.broadcast_to(log_decay[t, g], keys))
      S = decay[:, None] * S
      new = v[t, g] - (k[t, g] @ S if corrects else 0.0)
      S = S + beta[t, g] * np.outer(k[t, g], new)
      y[t, g] = q[t, g] @ S
  return y


def linear(module, p, x):
  """One document through a LinearAttention."""
  q, k, v = (filtered(p, name, x) for name in ('query', 'key', 'value'))
  if module.conv_size is None and module.activation is activations.silu:
    q, k, v = silu(q), silu(k), silu(v)
  if module.qk_norm:
    q, k = (a / np.sqrt((a**2).sum(-1, keepdims=True) + 1e-6) for a in (q, k))
  q = q * (q.shape[-1] ** -0.5 if module.scale is None else module.scale)
  if module.rope_theta is not None:
    q, k = turned(q, module.rope_theta), turned(k, module.rope_theta)
  groups = v.shape[1]
  d, own = module.decay, p.get('decay', {})
  h = np.arange(groups)
  if d is None:
    gamma = np.zeros(v.shape[:2])
  elif isinstance(d, decays.Retention):
    gamma = np.tile(np.log(1 - 2.0 ** (-5 - h)), (len(x), 1))
  elif isinstance(d, decays.Lightning):
    slope = 2.0 ** (-8 * (h + 1) / groups) * (1 - d.depth + 1e-5)
    gamma = np.tile(-slope, (len(x), 1))
  elif isinstance(d, decays.LogSigmoid):
    gamma = np.log(sigmoid(dense(own, x) + own['bias'])) / 16
  else:
    f = dense(own, x) + own['dt_bias']
    rate = np.exp(own['A_log']).reshape(-1, *(1,) * (f.ndim - 2))
    bounded = isinstance(d, decays.Bounded)
    gamma = -5 * sigmoid(rate * f) if bounded else -rate * softplus(f)
  beta = np.ones(v.shape[:2])
  if module.write is not None:
    beta = module.write.maximum * sigmoid(dense(p['write'], x))
  y = recurrence(q, k, v, gamma, beta, module.write is not None)
  if module.norm_per_head:
    y = rms(y, module.norm_epsilon) * p['norm']['scale']
  else:
    flat = rms(y.reshape(len(x), -1), module.norm_epsilon)
    y = (flat * p['norm']['scale']).reshape(y.shape)
  if module.gate is not None:
    act = silu if module.gate.activation is activations.silu else sigmoid
    y = y * act(dense(p['gate'], x))
  return np.tensordot(y, p['out']['kernel'], 2)


def state_space(module, p, x):
  """One document through a StateSpace."""
  v, b, c = (filtered(p, name, x) for name in 'xBC')
  dt = softplus(dense(p['dt'], x) + p['dt_bias'])
  y = recurrence(c, b, v, -np.exp(p['A_log']) * dt, dt, False)
  y = (y + p['D'][:, None] * v) * silu(dense(p['z'], x))
  parts = rms(y.reshape(len(x), module.groups, -1), module.norm_epsilon)
  y = parts.reshape(y.shape) * p['scale']
  return np.tensordot(y, p['out']['kernel'], 2)


def naive(module, p, x):
  """Document by document; padding is left zero."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), p)
  x = np.asarray(x, np.float64)
  document = linear if isinstance(module, LinearAttention) else state_space
  y = np.zeros(x.shape)
  for b in range(B):
    for segment in set(SEGMENTS[b]) - {0}:
      own = np.flatnonzero(SEGMENTS[b] == segment)
      y[b, own] = document(module, p, x[b, own])
  return y


def relative(got, want):
  return np.sqrt(((got - want) ** 2).mean() / (want**2).mean())


@pytest.mark.parametrize('name', KINDS)
def test_documents_in_chunks_and_token_by_token_equal_a_loop(name):
  module = KINDS[name]
  params, x = parameters(module), inputs()
  want = naive(module, params, x)
  real = SEGMENTS > 0

  @jax.jit
  def call(x, ctx, state):
    return module.apply({'params': params}, x, ctx, state)

  y, none = call(x, context(SEGMENTS, POSITIONS), None)
  assert none is None and np.isfinite(y).all()
  assert relative(np.asarray(y)[real], want[real]) < 1e-5
  state = module.init_state(B, T, D, 'float32')
  for t in range(T):
    now = slice(t, t + 1)
    ctx = context(SEGMENTS[:, now], POSITIONS[:, now])
    y, state = call(x[:, now], ctx, state)
    seen = real[:, t]
    assert relative(np.asarray(y)[seen, 0], want[seen, t]) < 1e-5


@pytest.mark.parametrize('name', ['kda', 'state space'])
def test_pieces_with_padding_behind_equal_the_whole(name):
  module, x = KINDS[name], inputs(12)
  params = parameters(module)

  @jax.jit
  def call(x, ctx, state):
    return module.apply({'params': params}, x, ctx, state)

  place = np.arange(12)[None].repeat(B, 0)
  want, _ = call(x, context(np.ones((B, 12)), place), None)
  state = module.init_state(B, 12, D, 'float32')
  got, size = [], 5
  for start in (0, 4, 8):  # 4 tokens and a place of padding
    piece = jnp.pad(x[:, start : start + 4], ((0, 0), (0, 1), (0, 0)))
    positions = start + place[:, :size]
    ctx = context(np.arange(size) < np.full((B, 1), 4), positions)
    y, state = call(piece, ctx, state)
    got.append(y[:, :4])
  assert relative(np.concatenate(got, 1), np.asarray(want)) < 1e-5


def test_a_later_token_changes_no_bit_of_an_earlier_output():
  module = KINDS['safe kda']
  params, length, changed = parameters(module), 40, 21
  ctx = context(np.ones((B, length)), np.arange(length)[None].repeat(B, 0))
  # Large inputs: decays at both ends of their range.
  x = 50 * inputs(length)

  @jax.jit
  def call(x):
    return module.apply({'params': params}, x, ctx)[0]

  before, after = call(x), call(x.at[:, changed].multiply(-3))
  np.testing.assert_array_equal(before[:, :changed], after[:, :changed])
  assert (before[:, changed] != after[:, changed]).any()


def test_in_bfloat16_the_state_is_f32():
  module, x = KINDS['kda'], inputs().astype(jnp.bfloat16)
  params, ctx = parameters(module), context(SEGMENTS, POSITIONS)
  state = module.init_state(B, T, D, 'bfloat16')
  call = jax.jit(lambda x, s: module.apply({'params': params}, x, ctx, s))
  y, after = call(x, state)
  assert y.dtype == jnp.bfloat16
  same = jax.tree.map(lambda a, b: a.dtype == b.dtype, state, after)
  assert jax.tree.all(same) and after.state_BGKV.dtype == jnp.float32
  real = SEGMENTS > 0
  # Matrices are used in the dtype of the activations.
  rounded = jax.tree_util.tree_map_with_path(
    lambda path, a: a.astype(x.dtype) if path[-1].key == 'kernel' else a,
    params,
  )
  want = naive(module, rounded, x)[real]
  assert relative(np.asarray(y, np.float64)[real], want) < 0.02


def linear_weights(module):
  """Entries of matrices and filters: what a token is multiplied with."""
  leaves = jax.tree_util.tree_leaves_with_path(parameters(module))
  return sum(a.size for path, a in leaves if path[-1].key == 'kernel')


@pytest.mark.parametrize('length, chunk', [(1000, 32), (16, 16)])
def test_flops_are_those_of_weights_and_chunks(length, chunk):
  per_head = {
    # (heads, key size, value size)
    'kda': (2, 6, 6),
    'gated delta': (4, 6, 5),
    'gla': (2, 4, 6),
    'state space': (4, 5, 6),
  }
  for name, (count, k, v) in per_head.items():
    # Pairs within a chunk: those of later with earlier halves, or all.
    pairs = (chunk - 1) / 2 if name in ('kda', 'gla') else chunk
    core = 4 * k * v + 2 * pairs * k + 2 * chunk * v
    if name in ('kda', 'gated delta'):
      halves = [2**i for i in range(chunk.bit_length() - 1)]
      core += 2 * k * v + 2 * pairs * k + 2 * chunk * v
      core += sum(2 * b**2 for b in halves)
    weights = 2 * linear_weights(KINDS[name])
    got = KINDS[name].flops(D, length)
    np.testing.assert_allclose(got, weights + count * core, rtol=1e-12)


def test_rates_and_biases_do_not_decay_and_filters_are_no_matrices():
  for name in ('kda', 'state space'):
    module, ctx = KINDS[name], context(np.ones((B, 1)), np.zeros((B, 1)))
    made = jax.eval_shape(module.init, jax.random.key(0), inputs(1), ctx)
    names = nn.get_partition_spec(made)['params']
    names = jax.tree.map(tuple, names)
    shapes = nn.unbox(made)['params']
    names = jax.tree.map(
      lambda shape, axes: axes + (None,) * (len(shape.shape) - len(axes)),
      shapes,
      names,
    )
    found = optim.parameters.collect(shapes, names)
    for path, parameter in found.items():
      assert parameter.is_vector != path.endswith('kernel'), path
      wanted = 'adamw' if parameter.is_vector or 'conv' in path else 'muon'
      assert optim.Muon().label(parameter) == wanted, path


@pytest.mark.parametrize(
  'module, message',
  [
    (LinearAttention(5, rules.delta, None, writes.Sigmoid()), 'heads=5 does'),
    (
      LinearAttention(2, rules.delta, None, writes.Sigmoid(), value_heads=3),
      'value_heads=3 is no multiple of heads=2',
    ),
    (
      LinearAttention(2, rules.kda, None, writes.Sigmoid()),
      'rule kda reads a decay; set it to one of mixers.decays',
    ),
    (
      LinearAttention(2, rules.retention, decays.Retention(), writes.Sigmoid()),
      'write is Sigmoid, but rule retention has no write; set it to None',
    ),
    (StateSpace(5), 'heads=5 does not divide expand=2.0'),
    (StateSpace(4, groups=3), 'groups=3 does not divide heads=4'),
  ],
)
def test_sizes_and_parts_that_do_not_fit_are_refused(module, message):
  with pytest.raises(ValueError, match=message):
    module.init_state(1, 1, D, 'float32')
