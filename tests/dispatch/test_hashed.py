"""Buckets of like tokens: what a loop makes of them, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from moejax import dispatch, experts
from moejax.aot.collectives import bytes_by_kind
from moejax.build import build
from moejax.dispatch import hashed, traffic
from tests.dispatch.test_exchange import (
  LOADS,
  UPSTREAM,
  D,
  F,
  K,
  N,
  compiled,
  load,
  mesh,
  params,
  rms,
)

pytestmark = pytest.mark.usefixtures('quick_compilation')
E = 8


def bucketed(ids, codes, rows):
  make = jax.jit(hashed.buckets, static_argnums=(2, 3))
  return jax.tree.map(np.asarray, make(ids, codes, E, rows))


def groups_of(found):
  """{mean: [(n, k)]} of the choices."""
  groups = {}
  for n, k in np.ndindex(found.mean_NK.shape):
    groups.setdefault(int(found.mean_NK[n, k]), []).append((n, k))
  return groups


@pytest.mark.parametrize('rate', [0.1, 0.3, 0.7, 1.0])
@pytest.mark.parametrize('name', LOADS)
def test_buckets_are_of_one_expert_and_as_fine_as_there_is_room(name, rate):
  ids = np.asarray(load(name, E)[0].ids_NK)
  codes = np.random.default_rng(3).integers(0, 3, (N, 2)).astype(np.int32)
  rows = hashed.mean_rows(rate, ids.size, E)
  found = bucketed(ids, codes, rows)
  groups = groups_of(found)
  lost = {(n, k) for n, k in np.ndindex(ids.shape) if ids[n, k] == E}
  assert set(groups.pop(rows, ())) == lost
  for c, members in groups.items():
    assert {ids[n, k] for n, k in members} == {int(found.ids_C[c])}
  unused = set(range(rows)) - set(groups)
  assert all(found.ids_C[c] == E for c in unused)
  chosen, total = len(set(ids[ids < E])), (ids < E).sum()
  for e in set(ids[ids < E]):
    own = [c for c in groups if found.ids_C[c] == e]
    choices = [members for c in own for members in groups[c]]
    distinct = len({tuple(codes[n]) for n, _ in choices})
    n = len(choices)
    fair = 1 + (n - 1) * min(1, (rows - chosen) / max(total - chosen, 1))
    assert len(own) <= min(distinct, np.ceil(fair))
    assert len(own) >= min(distinct, np.floor(fair) - 1)
    # Equal codes are never parted, and runs of codes are kept together.
    runs = sorted(sorted({tuple(codes[n]) for n, _ in groups[c]}) for c in own)
    flat = [code for run in runs for code in run]
    assert flat == sorted(set(flat))


def test_near_tokens_share_a_hash_and_opposite_ones_do_not():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(64, 32)).astype(np.float32)
  directions = rng.normal(size=(32, 4, 16)).astype(np.float32)

  def same(y):
    codes = [hashed.hashes(jnp.asarray(a), directions) for a in (x, y)]
    return (codes[0] == codes[1]).mean()

  noise = rng.normal(size=x.shape).astype(np.float32)
  assert same(3 * x) == 1
  assert same(x + 0.01 * noise) > 0.9
  assert 0.25 < same(x + 0.3 * noise) < 0.9
  assert same(noise) < 0.1
  assert same(-x) == 0


def oracle(assignment, x, found, upstream):
  """Output and gradients in float64, from the formula: all choices at once."""
  ids = np.asarray(assignment.ids_NK)
  x = np.nan_to_num(x.astype(np.float64))
  groups = groups_of(found)
  groups.pop(len(found.ids_C), None)
  member_CNK = np.zeros((len(groups), *ids.shape))
  for row, members in zip(member_CNK, groups.values(), strict=True):
    for n, k in members:
      row[n, k] = 1
  average_CN = member_CNK.sum(2) / member_CNK.sum((1, 2))[:, None]
  expert_C = [ids[members[0]] for members in groups.values()]
  with jax.enable_x64(True):

    def forward(x, weights, p):
      p = {name: w[np.array(expert_C)] for name, w in p.items()}
      c = average_CN @ x
      gate = jnp.einsum('cd,cdf->cf', c, p['gate'])
      hidden = gate / (1 + jnp.exp(-gate))
      hidden *= jnp.einsum('cd,cdf->cf', c, p['up'])
      out = jnp.einsum('cf,cfd->cd', hidden, p['down'])
      weights = jnp.einsum('nk,cnk->nc', weights, member_CNK)
      return weights @ (out - c) + weights.sum(1)[:, None] * x

    @jax.jit
    def both_ways(*args):
      y, pull = jax.vjp(forward, *args)
      return y, pull(upstream.astype(np.float64))

    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params(E))
    weights = np.asarray(assignment.weights_NK, np.float64)
    return jax.tree.map(np.asarray, both_ways(x, weights, wide))


@pytest.mark.parametrize(
  'rate', [0.2, pytest.param(0.6, marks=pytest.mark.slow)]
)
def test_outputs_and_gradients_are_those_of_a_loop_over_buckets(rate):
  assignment, x = load('no_expert', E)
  chosen = (np.asarray(assignment.ids_NK) < E).sum()
  dispatcher = dispatch.Hashed(dispatch.Sort(), rate=rate, hashes=2)
  directions = jax.random.normal(jax.random.key(0), (D, 2, 16))
  rows = hashed.mean_rows(rate, N * K, E)
  codes = hashed.hashes(jnp.nan_to_num(x), directions)
  found = bucketed(assignment.ids_NK, codes, rows)
  y, gradients = oracle(assignment, x, found, UPSTREAM)
  module = experts.Glu(hidden=F, num_experts=E)

  @jax.jit
  def run(x, weights, p):
    def forward(x, weights, p):
      return dispatcher.apply(
        {},
        assignment.replace(weights_NK=weights),
        x,
        lambda rows: module.apply({'params': p}, rows),
        mutable=['stats'],
      )

    y, pull, sown = jax.vjp(forward, x, weights, p, has_aux=True)
    return y, pull(UPSTREAM), sown['stats']

  got, pulled, stats = run(x, assignment.weights_NK, params(E))
  assert rms(got, y) < 1e-6
  leaves = zip(*map(jax.tree.leaves, (pulled, gradients)), strict=True)
  for a, b in leaves:
    assert rms(a, b) < 1e-5
  used = len(groups_of(found)) - 1
  np.testing.assert_allclose(stats['bucket_frac'][0], used / chosen, rtol=1e-6)


@pytest.mark.slow
def test_with_a_mean_for_every_choice_it_is_exact_on_eight_devices():
  # Four devices of experts, two of data: buckets are of a device's own tokens.
  inner = dispatch.AllToAll()
  _, call = compiled(dispatch.Hashed(inner, rate=1.0), mesh(2, 4), E)
  _, exact = compiled(inner, mesh(2, 4), E)
  for name in LOADS:
    got, want = call(*load(name, E)), exact(*load(name, E))
    for a, b in zip(*map(jax.tree.leaves, (got[:2], want[:2])), strict=True):
      assert rms(a, b) < 1e-6, name


@pytest.mark.slow
def test_on_devices_buckets_are_each_devices_own():
  assignment, x = load('balanced', E)
  dispatcher = dispatch.Hashed(dispatch.AllToAll(), rate=0.3, hashes=1)
  _, call = compiled(dispatcher, mesh(2, 4), E)
  y, gradients, stats = call(assignment, x)
  directions = jax.random.normal(jax.random.key(0), (D, 1, 16))
  rows, size = hashed.mean_rows(0.3, N // 8 * K, E), N // 8
  for d in range(8):
    own = slice(d * size, (d + 1) * size)
    part = jax.tree.map(lambda a, own=own: a[own], assignment)
    codes = hashed.hashes(jnp.asarray(x[own]), directions)
    found = bucketed(part.ids_NK, codes, rows)
    want, pulled = oracle(part, x[own], found, UPSTREAM[own])
    assert rms(y[own], want) < 1e-6
    assert rms(gradients[0][own], pulled[0]) < 1e-5
    assert rms(gradients[1][own], pulled[1]) < 1e-5
  assert 0 < stats['bucket_frac'][0] < 1
  assert stats['dropped_frac'] == (0.0,)


@pytest.mark.slow
@pytest.mark.parametrize('rate', [1.0, 0.25])
def test_bytes_are_the_rate_of_those_of_the_exchange_inside(rate):
  inner = dispatch.AllToAll(room=8.0)
  tokens = 8 * 64
  dispatcher = dispatch.Hashed(inner, rate=rate)
  layer = traffic.Layer(
    tokens=64, k=K, width=D, num_experts=E, ranks=8, itemsize=4
  )
  want = dispatcher.collective_bytes(layer, num_rounds=1)
  full = inner.collective_bytes(layer, num_rounds=1)
  assert want['all-to-all'] == rate * full['all-to-all']
  built, _ = compiled(dispatcher, mesh(1, 8), E, tokens)
  got = bytes_by_kind(built.as_text())
  assert got['all-to-all'] == pytest.approx(want['all-to-all'], rel=0.1, abs=64)


def test_evaluation_is_exact_and_training_is_not(small):
  ffn = common.moe(4, k=2, hidden=8)
  exact = build(ffn)
  ffn.dispatch = common.node(
    'dispatch.Hashed', exact=common.node('dispatch.Sort'), rate=0.2, hashes=1
  )
  module = build(ffn)
  x = jax.random.normal(jax.random.key(0), (2, 8, 16))
  rows = small.rows(0)
  contexts = [small.context(rows, train) for train in (False, True)]
  variables = jax.jit(exact.init)(jax.random.key(1), x, contexts[0])
  got = [jax.jit(module.apply)(variables, x, ctx) for ctx in contexts]
  want = jax.jit(exact.apply)(variables, x, contexts[0])
  np.testing.assert_array_equal(got[0], want)
  assert rms(got[1], want) > 0.01
  both = jax.eval_shape(module.init, jax.random.key(1), x, contexts[1])
  assert jax.tree.structure(both['params']) == jax.tree.structure(
    variables['params']
  )


@pytest.mark.parametrize('rate', [0.0, 1.5])
def test_a_rate_that_cannot_be_is_refused(rate):
  assignment, x = load('balanced', E)
  with pytest.raises(ValueError, match=rf'rate={rate} must be in \(0, 1\]'):
    dispatch.Hashed(dispatch.Sort(), rate=rate).apply({}, assignment, x, None)
