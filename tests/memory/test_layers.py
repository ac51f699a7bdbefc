"""Memory layers against loops over tokens and slots, in float64."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import memory, sharding
from moejax.memory.expanded import multiplier, permuted
from moejax.memory.tables import Table, Window
from moejax.types import Context, Shared

pytestmark = pytest.mark.usefixtures('quick_compilation')
T, D, KEYS, K = 16, 16, 7, 3
SLOTS = KEYS**2
CTX = Context(*(jnp.ones((1, T), jnp.int32),) * 3)


def inputs():
  return jax.random.normal(jax.random.key(1), (1, T, D))


def made(module, ctx=CTX):
  variables = nn.unbox(jax.jit(module.init)(jax.random.key(0), inputs(), ctx))
  variables = {k: variables.get(k, {}) for k in ('params', 'balance')}
  rng = np.random.default_rng(0)
  variables['params'] = jax.tree.map(
    lambda p: p + 0.1 * rng.normal(size=p.shape).astype(np.float32),
    variables['params'],
  )
  wide = jax.tree.map(lambda a: np.asarray(a, np.float64), variables['params'])
  return variables, wide


def norm(x, scale):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def halves_of(p, x):
  """[2][H, S, R] of one token."""
  q = np.einsum('d,dahre->ahre', x, p['query']['kernel'])
  q = norm(q, p['query_scale'])
  keys = norm(p['keys'], p['key_scale'])
  return np.einsum('ahre,ahsre->ahsr', q, keys)


def softmax(x):
  e = np.exp(x - x.max())
  return e / e.sum()


def silu(x):
  return x / (1 + np.exp(-x))


def gelu(x):
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def retrieved(p, x):
  """(weight, slot) of all heads, out of all slots."""
  for left, right in zip(*halves_of(p['halves'], x)[..., 0], strict=True):
    grid = (left[:, None] + right).reshape(-1)
    best = np.argsort(-grid)[:K]
    yield from zip(softmax(grid[best]), best, strict=True)


def product_key(p, x):
  return sum(w * p['values']['rows'][s] for w, s in retrieved(p, x))


def gated(p, x):
  y = product_key(p, x) * silu(x @ p['gate']['kernel'])
  return y @ p['out']['kernel']


def single_neuron(p, x):
  u, v = p['pre_values']['rows'], p['values']['rows']
  return sum(w * gelu(x @ u[s]) * v[s] for w, s in retrieved(p, x))


def scored(p, x):
  """(slot, scores of the cores), of all heads."""
  for h in range(p['cores'].shape[1]):
    left, right = halves_of(p['halves'], x)[:, h]
    cores = p['cores'][:, h]
    u, _, v = np.linalg.svd(cores.sum(0))
    u, v = (a * np.sign(v[0].sum()) for a in (u[:, 0], v[0]))
    rows, columns = np.argsort(-(left @ u))[:K], np.argsort(-(right @ v))[:K]
    pairs = [(i, j) for i in rows for j in columns]
    scores = np.array(
      [[left[i] @ c @ right[j] for c in cores] for i, j in pairs]
    )
    for best in np.argsort(-scores.sum(1))[:K]:
      i, j = pairs[best]
      yield i * len(left) + j, scores[best]


def tucker(p, x):
  total = np.zeros(p['values']['rows'].shape[1])
  for slot, scores in scored(p, x):
    hidden = (x @ p['pre']) @ p['pre_values']['rows'][slot]
    weights = np.tile(scores, len(total) // len(scores))
    total += hidden * weights * p['values']['rows'][slot]
  return total @ p['out']


def expanded(p, x):
  """With the whole table of four times the rows, which the layer never has."""
  rows, dim = p['values']['rows'].shape
  parts = p['out'].reshape(EXPANSION, dim, -1)
  slots = EXPANSION * rows
  # A core weighs its part of a value before the value's matrix.
  table = [np.einsum('sd,dw->sdw', p['values']['rows'], part) for part in parts]
  table = np.concatenate(table)
  order = [int(permuted(slot, slots)) for slot in range(slots)]
  assert sorted(order) == list(range(slots))
  return sum(
    np.tile(scores, dim // len(scores)) @ table[order[slot]]
    for slot, scores in scored(p, x)
  )


FIELDS = dict(keys=KEYS, k=K, heads=2, values=Table(SLOTS))
BOTH = dict(FIELDS, pre_values=Table(SLOTS))
CORES = dict(
  BOTH,
  head_dim=8,
  values=Table(SLOTS, dim=12, std=0.3),
  pre_values=Table(SLOTS, dim=6, std=0.3),
)
EXPANSION = 4
VALUES = Table(8**2 // EXPANSION, dim=10, std=0.3)
EXPANDED = dict(keys=8, k=K, heads=2, head_dim=8, blocks=EXPANSION)
LAYERS = {
  'expanded': (memory.Expanded(values=VALUES, **EXPANDED), expanded),
  'product_key': (memory.ProductKey(head_dim=6, **FIELDS), product_key),
  'gated': (memory.GatedProductKey(head_dim=6, **FIELDS), gated),
  'single_neuron': (memory.SingleNeuron(head_dim=6, **BOTH), single_neuron),
  'tucker': (memory.Tucker(**CORES), tucker),
}


@pytest.mark.parametrize('module,formula', LAYERS.values(), ids=LAYERS)
def test_a_memory_equals_a_loop_in_float64(module, formula):
  variables, wide = made(module)
  y = jax.jit(module.apply)(variables, inputs(), CTX)[0]
  want = [formula(wide, x) for x in np.asarray(inputs()[0], np.float64)]
  error = np.sqrt(np.mean((y - np.array(want)) ** 2))
  assert error <= 1e-5 * np.sqrt(np.mean(np.square(want)))


E, F = 6, 4


def gates_of(p, x, k):
  from scipy.stats import norm as normal

  logits = np.einsum('d,dshe->she', x, p['router'])
  z = logits - logits.mean(-1, keepdims=True)
  z /= np.sqrt((z**2).mean(-1, keepdims=True) + 1e-5)
  least = np.minimum(z.max(-1, keepdims=True), normal.ppf(1 - k / E))
  return np.apply_along_axis(softmax, -1, np.where(z >= least, logits, -np.inf))


def horizontal(p, x):
  """A sum over all pairs of experts, with their gates."""
  first, second = gates_of(p, x, 2)
  up = p['up'].reshape(D, E, F)
  down, bias = p['down'].reshape(E, F, D), p['up_bias'].reshape(E, F)
  y = sum(g[j] * p['down_bias'][j] for g in second for j in range(E))
  for g1, g2 in zip(first, second, strict=True):
    for i in range(E):
      hidden = np.maximum(x @ up[:, i] + bias[i], 0) ** 2
      for j in range(E):
        y = y + g1[i] * g2[j] * hidden @ down[j]
  return y


def vertical(p, x):
  gates, size, y = gates_of(p, x, 2), F // 2, []
  hidden = []
  for i in range(2):
    up = p[f'up_{i}'].reshape(D, E, size)
    bias = p[f'up_{i}_bias'].reshape(E, size)
    hidden.append(np.maximum(np.einsum('d,def->ef', x, up) + bias, 0) ** 2)
  for i in range(2):
    own, other = (p[f'{n}_{i}'].reshape(E, size, -1) for n in ('own', 'other'))
    half = sum(g[a] * p[f'bias_{i}'][a] for g in gates[i] for a in range(E))
    for h in range(gates.shape[1]):
      for a in range(E):
        half = half + gates[i, h, a] * hidden[i][a] @ own[a]
        for b in range(E):
          pair = gates[i, h, a] * gates[1 - i, h, b]
          half = half + pair * hidden[1 - i][b] @ other[a]
    y.append(half)
  return np.concatenate(y)


@pytest.mark.parametrize(
  'cls,formula', [(memory.Horizontal, horizontal), (memory.Vertical, vertical)]
)
def test_all_pairs_of_halves_equal_a_sum_over_experts(cls, formula):
  module = cls(halves=E, hidden=F, k=2, heads=3)
  variables, wide = made(module)
  apply = jax.jit(functools.partial(module.apply, mutable=['losses']))
  y, sown = apply(variables, inputs(), CTX)
  tokens = np.asarray(inputs()[0], np.float64)
  want = [formula(wide, x) for x in tokens]
  np.testing.assert_allclose(y[0], want, rtol=1e-4, atol=1e-4)
  logits = np.einsum('nd,dshe->nshe', tokens, wide['router'])
  prob = np.apply_along_axis(softmax, -1, logits).mean(0)
  gates = np.array([gates_of(wide, x, 2) for x in tokens])
  found = sown['losses']
  np.testing.assert_allclose(
    found['uniformity'][0], -np.log(prob).mean(), rtol=1e-5
  )
  np.testing.assert_allclose(
    found['ambiguity'][0], (1 - gates.max(-1)).mean(), rtol=1e-5
  )


def test_windows_of_a_ring_begin_one_stride_later_in_each_layer():
  """A layer equals one whose own tables are its window of the ring."""
  ring, stride = 2 * SLOTS, 30
  windows = dict(
    values=Window('values', dim=12, stride=stride),
    pre_values=Window('pre_values', dim=6, stride=stride),
  )
  module = memory.Tucker(**CORES | windows)
  own = memory.Tucker(**CORES)
  variables, _ = made(own)
  rng = np.random.default_rng(3)
  whole = {
    name: jnp.asarray(rng.normal(size=(ring, dim)), jnp.float32)
    for name, dim in (('values', 12), ('pre_values', 6))
  }
  shared = {
    name: Shared({'params': {'rows': rows}}, Table(ring, dim=rows.shape[1]))
    for name, rows in whole.items()
  }
  apply = jax.jit(module.apply)
  alone = jax.jit(own.apply)
  params = variables['params']
  rest = {k: v for k, v in params.items() if k not in whole}
  for layer in (0, 1, 3):
    ctx = CTX.replace(shared=shared, layer=jnp.int32(layer))
    got = apply(variables | {'params': rest}, inputs(), ctx)
    place = (layer * stride + np.arange(SLOTS)) % ring
    tables = {name: {'rows': rows[place]} for name, rows in whole.items()}
    want = alone(variables | {'params': rest | tables}, inputs(), CTX)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  assert module.rows_read() == {'values': 2 * K, 'pre_values': 2 * K}
  assert module.active_fracs() == {}


@pytest.mark.parametrize('cut', ['value', 'slots'])
def test_cut_tables_equal_whole_ones_with_all_gradients(cut):
  fields = dict(
    CORES,
    values=Table(56, dim=16, std=0.3),
    pre_values=Table(56, dim=8, std=0.3),
  )
  module = memory.Tucker(**fields)
  variables, _ = made(module)

  def run(variables, x):
    def f(params, x):
      return module.apply(variables | {'params': params}, x, CTX)

    y, pull = jax.vjp(f, variables['params'], x)
    return y, *pull(jnp.cos(x))

  want = jax.jit(run)(variables, inputs())
  mesh = sharding.make_mesh({'data': 2, 'expert': 4})
  rules = (('batch', ('data', 'expert')), (cut, 'expert'))
  with sharding.use(mesh, rules):
    got = jax.jit(run)(variables, inputs())
  for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize(
  'change,message',
  [
    (dict(head_dim=7), 'head_dim=7 of a query is not divisible by ranks=2'),
    (dict(k=8), 'k=8 slots per head .* keys=7'),
    (dict(values=Table(48, dim=12)), 'keys make 49 slots, but .* has 48'),
    (dict(values=Window('ring', dim=12)), "of='ring' is no shared module"),
  ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
  module = memory.Tucker(**CORES | change)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(module.init, jax.random.key(0), inputs(), CTX)


def test_blocks_that_do_not_divide_the_slots_are_refused():
  module = memory.Expanded(values=VALUES, **EXPANDED | dict(keys=7))
  with pytest.raises(ValueError, match='blocks=4 do not divide the 49 slots'):
    jax.eval_shape(module.init, jax.random.key(0), inputs(), CTX)


@pytest.mark.parametrize('slots', [1, 2, 64, 49, 1616**2])
def test_slots_are_permuted_without_overflow(slots):
  factor = multiplier(slots)
  assert math.gcd(factor, slots) == 1 and factor * (slots - 1) < 2**31
  ends = np.array([0, slots // 2, slots - 1], np.int64)
  got = jax.jit(permuted, static_argnums=1)(ends.astype(np.int32), slots)
  np.testing.assert_array_equal(got, ends * factor % slots)


def test_tables_that_the_mesh_does_not_divide_are_refused():
  module = memory.Tucker(**CORES)
  mesh = sharding.make_mesh({'data': 2, 'expert': 4})
  with (
    sharding.use(mesh, (('slots', 'expert'),)),
    pytest.raises(ValueError, match="cuts 'slots' of size 49 into 4 parts"),
  ):
    jax.eval_shape(module.init, jax.random.key(0), inputs(), CTX)
