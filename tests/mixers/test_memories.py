"""A mixture of memories equals a loop over tokens and memories in float64."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import balance, mixers, routers
from moejax.types import Context

# Oracles and the module itself, in pieces: no claim on machine code.
pytestmark = pytest.mark.usefixtures('quick_compilation')

B, T, D, H, K, V, M, CHOSEN, W = 2, 12, 10, 2, 4, 3, 4, 2, 3


def module(shared=True):
  router = routers.Router(
    score=routers.scores.Linear(num_experts=M),
    k=CHOSEN,
    select=routers.select.top_k,
    weigh=routers.weigh.softmax,
  )
  return mixers.MixtureOfMemories(
    router=router,
    heads=H,
    head_dim=K,
    value_dim=V,
    shared=shared,
    conv_size=W,
    balance={'load': balance.load},
  )


def context():
  """Three documents and padding in row 0, left padding in row 1."""
  positions = [[0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 0, 0], [0, 0, *range(10)]]
  segments = [[1] * 5 + [2] * 2 + [3] * 3 + [0] * 2, [0] * 2 + [1] * 10]
  positions, segments = np.array(positions), np.array(segments)
  return Context(segments, positions, segments)


@functools.cache
def drawn():
  """Parameters and x, in f32."""
  shapes = jax.eval_shape(
    module().init, jax.random.key(0), x_zeros(), context()
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda a: (0.5 * rng.normal(size=a.shape)).astype(np.float32),
    nn.unbox(shapes)['params'],
  )
  params['norm']['scale'] += 1
  params['router']['score']['kernel'] *= 4  # no token near a tie
  return params, rng.normal(size=(B, T, D)).astype(np.float32)


def x_zeros():
  return jnp.zeros((B, T, D))


def loop(p, x, ctx):
  """y, token by token and memory by memory, in the dtype of x."""
  row = functools.partial(_row, p)
  return jax.vmap(row)(x, ctx.positions_BT, ctx.segments_BT > 0)


def _row(p, x, positions, valid):
  matrices = {n: p[n] for n in ('key', 'value', 'write', 'decay')}
  filters = {n: p[f'{n}_conv']['kernel'] for n in ('query', 'key', 'value')}
  sizes = {'query': K, 'key': K, 'value': V}

  def use(x, m, seen, S):
    """One token through memory m: the new inputs seen, S, and what is read."""
    into = {n: (x @ w[m]).reshape(H, -1) for n, w in matrices.items()}
    into['query'] = jnp.einsum('d,dhk->hk', x, p['query']['kernel'])
    seen = {n: jnp.concatenate([seen[n], into[n][None]])[-W:] for n in filters}
    q, k, v = (
      jax.nn.silu((filters[n] * seen[n]).sum(0))
      for n in ('query', 'key', 'value')
    )
    q, k = (a / jnp.sqrt((a**2).sum(-1, keepdims=True) + 1e-6) for a in (q, k))
    step = jnp.log1p(jnp.exp(into['decay'][:, 0] + p['dt_bias']))
    S = jnp.exp(-jnp.exp(p['A_log']) * step)[:, None, None] * S
    error = v - jnp.einsum('hk,hkv->hv', k, S)
    beta = 1 / (1 + jnp.exp(-into['write']))
    S = S + jnp.einsum('hk,hv->hkv', k, beta * error)
    return seen, S, jnp.einsum('hk,hkv->hv', q, S) / np.sqrt(K)

  def token(carry, now):
    x, position, valid = now
    carry = jax.tree.map(lambda a: jnp.where(position == 0, 0, a), carry)
    scores = jnp.exp(x @ p['router']['score']['kernel'])
    least = jnp.sort(scores)[-CHOSEN]
    weights = jnp.where(scores >= least, scores, 0)
    weights = jnp.append(weights / weights.sum(), 1.0) * valid
    y, after = 0, []
    for m, (seen, S) in enumerate(carry):
      new_seen, new_S, read = use(x, m, seen, S)
      new = jax.tree.map(
        lambda a, b, m=m: jnp.where(weights[m] > 0, a, b),
        (new_seen, new_S),
        (seen, S),
      )
      after.append(new)
      y = y + weights[m] * read
    y = y / jnp.sqrt((y**2).mean(-1, keepdims=True) + 1e-6)
    gate = jnp.einsum('d,dhv->hv', x, p['gate']['kernel'])
    y = y * p['norm']['scale'] * jax.nn.silu(gate)
    return after, jnp.einsum('hv,hvd->d', y, p['out']['kernel'])

  empty = {n: jnp.zeros((W, H, size), x.dtype) for n, size in sizes.items()}
  start = [(empty, jnp.zeros((H, K, V), x.dtype)) for _ in range(M + 1)]
  return jax.lax.scan(token, start, (x, positions, valid))[1]


def with_gradients(f):
  """`(params, x) -> y, gradients`, of the tokens that are not padding."""

  @jax.jit
  def run(params, x):
    def total(params, x):
      y = jnp.where(context().segments_BT[..., None] > 0, f(params, x), 0)
      return (y * jnp.sin(jnp.arange(y.size)).reshape(y.shape)).sum(), y

    return jax.grad(total, (0, 1), has_aux=True)(params, x)

  return run


@functools.cache
def whole():
  def f(params, x):
    return module().apply({'params': params}, x, context())[0]

  return with_gradients(f)


@functools.cache
def oracle():
  return with_gradients(lambda params, x: loop(params, x, context()))


@pytest.mark.parametrize('crowded', [False, True])
def test_outputs_and_gradients_equal_the_loop(crowded):
  params, x = drawn()
  if crowded:  # every token chooses memories 0 and 2
    x = np.concatenate([np.ones((B, T, 1), np.float32), x[..., 1:]], -1)
    kernel = np.copy(params['router']['score']['kernel'])
    kernel[0] += [60, 0, 61, 0]
    params = params | {'router': {'score': {'kernel': kernel}}}
  got = whole()(params, x)
  with jax.enable_x64(True):
    wide = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, x))
    want = oracle()(*wide)
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(got),
    jax.tree.leaves(want),
    strict=True,
  ):
    a, b = np.asarray(a), np.asarray(b)
    error = np.sqrt(((a - b) ** 2).mean() / ((b**2).mean() + 1e-24))
    assert error < 1e-5, (jax.tree_util.keystr(path), error)


def test_pieces_that_hand_on_the_memories_equal_the_whole():
  params, x = drawn()
  want = np.asarray(whole()(params, x)[1])

  @jax.jit
  def piece(params, x, ctx, state):
    return module().apply({'params': params}, x, ctx, state)

  # Documents start within pieces and with them, and some memories see nothing.
  state, got, start = module().init_state(B, T, D, 'float32'), [], 0
  for stop in (4, 8, 9, 10, 11, 12):
    ctx = jax.tree.map(lambda a: a[:, start:stop], context())  # noqa: B023
    y, state = piece(params, x[:, start:stop], ctx, state)
    got.append(y)
    start = stop
  real = context().segments_BT > 0
  got = np.concatenate(got, 1)
  np.testing.assert_allclose(got[real], want[real], rtol=2e-5, atol=2e-6)


def test_what_a_model_asks_of_it():
  mixer, (params, x) = module(), drawn()
  written = jax.eval_shape(
    lambda: mixer.apply(
      {'params': params}, x, context(), mutable=['losses', 'stats']
    )
  )[1]
  assert set(written['losses']) == {'load'}
  assert set(written['stats']) == {'mixer_counts', 'mixer_entropy'}
  assert mixer.active_fracs()['key'] == (CHOSEN + 1) / (M + 1)
  # Matrices of all memories, of those of a token, and of no memory.
  size = {n: np.size(p) for n, p in params.items() if not isinstance(p, dict)}
  each = sum(n for name, n in size.items() if name in mixer.active_fracs())
  once = sum(params[n]['kernel'].size for n in ('query', 'gate', 'out'))
  once += params['router']['score']['kernel'].size
  products = 2 * (once + each * (CHOSEN + 1) / (M + 1))
  rest = mixer.flops(D, T) - products
  taps = 2 * W * H * (2 * K + V) * (CHOSEN + 1)
  # 36 choices of a row: chunks of 32.
  each = mixers.rules.gated_delta.chunked.flops(K, V, 32, False)
  rule = H * each * (CHOSEN + 1)
  assert rest == pytest.approx(taps + rule)


def test_heads_that_do_not_divide_the_width_are_refused():
  with pytest.raises(ValueError, match='heads=2 does not divide width=9'):
    module().clone(head_dim=None).init_state(1, 1, 9, 'float32')
