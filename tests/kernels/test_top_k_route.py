"""Selection and weighing in one, with counts and a gradient by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.route.api import CHOICE, top_k_route
from pallas_kernels.route.options import Groups
from pallas_kernels.route.shapes import SMALL

IMPLEMENTATIONS = ['blocks', 'reference']
WEIGHINGS = {
  'softmax': dict(),
  'shares': dict(normalise=False, affinity='softmax'),
  'sigmoid': dict(weighing='sigmoid', affinity='sigmoid', scale=2.5),
  'plain sigmoid': dict(weighing='sigmoid', normalise=False, scale=0.5),
  'raw': dict(weighing='raw'),
}


def _logits(n, experts, seed=0, decimals=None):
  x = np.random.default_rng(seed).normal(size=(n, experts))
  x = x if decimals is None else x.round(decimals)
  return x.astype(np.float32) + 0.0  # there is no tie between -0 and 0


@functools.partial(jax.jit, static_argnums=(1, 2), static_argnames='fields')
def _run(logits, k, implementation, bias=None, valid=None, *, fields=()):
  return top_k_route(
    logits,
    k,
    bias_E=bias,
    valid_N=valid,
    implementation=implementation,
    **dict(fields),
  )


def _route(logits, k, implementation=None, bias=None, valid=None, **fields):
  fields = tuple(sorted(fields.items()))
  return _run(logits, k, implementation, bias, valid, fields=fields)


def _softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


AFFINITY = {None: lambda x: x, 'softmax': _softmax, 'sigmoid': _sigmoid}


def _best(row, k):
  return sorted(range(len(row)), key=lambda e: (-row[e], e))[:k]


def _chosen(logits, k, bias=None, affinity=None, groups=None, **_):
  """The ids, by a sort of each token's experts."""
  rank = AFFINITY[affinity](logits.astype(np.float64))
  rank = rank if bias is None else rank + bias
  if groups is None:
    return np.array([_best(row, k) for row in rank])
  size = rank.shape[1] // groups.num_groups
  ids = []
  for row in rank:
    parts = row.reshape(-1, size)
    score = np.sort(parts)[:, -groups.best_per_group :].sum(-1)
    kept = _best(score, groups.kept_groups)
    allowed = sorted(g * size + i for g in kept for i in range(size))
    ids.append(sorted(allowed, key=lambda e: (-row[e], e))[:k])
  return np.array(ids)


def _weights(logits, ids, weighing='softmax', normalise=True, scale=1.0, **_):
  """The weights in float64, for autodiff by finite differences too."""
  chosen = np.take_along_axis(logits, ids, -1)
  if weighing == 'raw':
    return chosen
  whole = _softmax(logits) if weighing == 'softmax' else _sigmoid(logits)
  w = np.take_along_axis(whole, ids, -1)
  return scale * (w / w.sum(-1, keepdims=True) if normalise else w)


def _pull(logits, ids, dweights, **fields):
  """The gradient by central differences, one logit of all tokens at a time."""
  logits, h = logits.astype(np.float64), 1e-6
  grad = np.zeros_like(logits)
  for e in range(logits.shape[1]):
    up, down = logits.copy(), logits.copy()
    up[:, e] += h
    down[:, e] -= h
    change = _weights(up, ids, **fields) - _weights(down, ids, **fields)
    grad[:, e] = (change * dweights).sum(-1) / (2 * h)
  return grad


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('shape', SMALL)
def test_ids_and_counts_equal_a_sort_and_ties_go_to_the_lower_id(
  shape, implementation
):
  n, experts, k = SMALL[shape]
  logits = _logits(n, experts, decimals=1)
  ids, weights, counts = _route(logits, k, implementation)
  want = _chosen(logits, k)
  np.testing.assert_array_equal(ids, want)
  np.testing.assert_array_equal(
    counts, np.bincount(want.ravel(), None, experts)
  )
  np.testing.assert_allclose(weights, _weights(logits, want), rtol=1e-5)
  assert (ids.dtype, weights.dtype, counts.dtype) == (
    jnp.int32,
    jnp.float32,
    jnp.int32,
  )


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('name', WEIGHINGS)
def test_weights_and_gradient_equal_the_formula_in_float64(
  name, implementation
):
  fields = WEIGHINGS[name]
  n, experts, k = SMALL['odd']
  logits = _logits(n, experts)
  bias = np.random.default_rng(1).normal(size=experts).astype(np.float32)
  valid = np.arange(n) % 5 != 0
  dead = ~valid[:, None]
  dweights = np.random.default_rng(2).normal(size=(n, k)).astype(np.float32)

  @jax.jit
  def run(logits, bias, valid, dweights):
    def weights(logits):
      ids, weights, counts = _route(
        logits, k, implementation, bias, valid, **fields
      )
      return weights, (ids, counts)

    weights, pull, (ids, counts) = jax.vjp(weights, logits, has_aux=True)
    return ids, weights, counts, *pull(dweights)

  # What padding holds must not matter.
  poisoned = np.where(dead, np.nan, logits)
  ids, weights, counts, dlogits = run(poisoned, bias, valid, dweights)
  want = _chosen(logits, k, bias, **fields)
  np.testing.assert_array_equal(ids, np.where(dead, experts, want))
  np.testing.assert_array_equal(
    counts, np.bincount(want[valid].ravel(), None, experts)
  )
  want_weights = np.where(dead, 0, _weights(logits, want, **fields))
  np.testing.assert_allclose(weights, want_weights, rtol=1e-5, atol=1e-6)
  want_grad = np.where(dead, 0, _pull(logits, want, dweights, **fields))
  np.testing.assert_allclose(dlogits, want_grad, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize(
  'groups', [Groups(4, 2), Groups(8, 3, 1), Groups(2, 1, 3), Groups(56, 8)]
)
def test_groups_equal_a_loop_over_groups(groups, implementation):
  n, experts, k = SMALL['odd']
  # Sums of whole numbers are exact, and ties are many.
  logits = 2 * _logits(n, experts, decimals=0)
  ids = _route(logits, k, implementation, groups=groups)[0]
  np.testing.assert_array_equal(ids, _chosen(logits, k, groups=groups))


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_selection_equals_lax_top_k_on_odd_numbers(implementation):
  odd = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 3e38, 1.0, 1.0]
  rng = np.random.default_rng(0)
  logits = rng.choice(np.array(odd, np.float32), (200, 12))
  ids = _route(logits, 5, implementation, weighing='raw')[0]
  np.testing.assert_array_equal(ids, jax.lax.top_k(logits, 5)[1])


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_a_nan_ranks_first_whatever_its_sign(implementation):
  logits = np.zeros((3, 4), np.float32)
  logits[0, 2] = np.nan
  logits[1, 2] = -np.array(np.nan, np.float32)
  logits[2] = -np.inf
  ids = _route(logits, 2, implementation, weighing='raw')[0]
  assert ids.tolist() == [[2, 0], [2, 0], [0, 1]]


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_without_a_valid_token_nothing_is_chosen(implementation):
  valid = np.zeros(24, bool)
  logits = np.full((24, 8), np.nan, np.float32)
  ids, weights, counts = _route(logits, 2, implementation, valid=valid)
  assert (np.asarray(ids) == 8).all()
  assert not np.asarray(weights).any() and not np.asarray(counts).any()


@pytest.mark.parametrize('weighing', ['softmax', 'sigmoid'])
def test_extreme_logits_have_finite_weights_and_gradients(weighing):
  logits = np.array([[1e4, 0, -1e4], [-1e4] * 3, [1e4] * 3], np.float32)
  for normalise in (True, False):
    fields = dict(weighing=weighing, normalise=normalise)
    f = functools.partial(_route, k=2, **fields)
    weights, pull = jax.vjp(lambda x, f=f: f(x)[1], logits)
    assert np.isfinite(weights).all()
    assert np.isfinite(pull(jnp.array([[1.0, 2.0]] * 3))[0]).all()


def _kept_bytes(**fields):
  logits = _logits(64, 16)
  _, pull = jax.vjp(lambda x: top_k_route(x, 2, **fields)[1], logits)
  return sum(a.nbytes for a in jax.tree.leaves(pull))


def test_backward_keeps_ids_and_at_most_the_chosen():
  ids = weights = 4 * 64 * 2
  assert _kept_bytes(weighing='raw') == ids
  assert _kept_bytes() == ids + weights
  assert _kept_bytes(weighing='sigmoid') == ids + weights
  assert _kept_bytes(normalise=False) == ids + weights + 4 * 64 * 16


@pytest.mark.parametrize('policy', ['named', 'nothing'])
def test_under_checkpoint_a_policy_that_names_the_choice_selects_once(policy):
  policies = jax.checkpoint_policies
  policy = {
    'named': policies.save_only_these_names(CHOICE),
    'nothing': policies.nothing_saveable,
  }[policy]

  @functools.partial(jax.checkpoint, policy=policy)
  def layer(logits):
    _, weights, counts = top_k_route(
      jnp.sin(logits), 2, implementation='reference'
    )
    return (jnp.sin(weights) * counts[0]).sum()

  text = str(jax.make_jaxpr(jax.grad(layer))(_logits(24, 8)))
  selections = text.count(' top_k[')
  assert selections == (1 if policy is not policies.nothing_saveable else 2)


def test_vmap_equals_a_loop():
  logits = np.stack([_logits(24, 8, seed) for seed in range(3)])
  got = jax.vmap(lambda x: _route(x, 2))(logits)
  for i, x in enumerate(logits):
    for a, b in zip(got, _route(x, 2), strict=True):
      np.testing.assert_array_equal(a[i], b)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(logits_NE=jnp.zeros((4, 6), jnp.bfloat16)), 'f32 logits'),
    (dict(k=7), 'k=7 must be at least 1 and at most the 6 experts'),
    (dict(bias_E=jnp.zeros(5)), r'bias has shape \(5,\).*must have \(6,\)'),
    (dict(valid_N=jnp.ones(6, bool)), r'must have \(4,\)'),
    (dict(affinity='tanh'), "affinity='tanh' is unknown"),
    (dict(weighing='tanh'), "weighing='tanh' is unknown"),
    (dict(scale=0.0), 'scale=0 makes every weight zero'),
    (dict(groups=Groups(4, 1)), 'num_groups=4 does not divide the 6'),
    (dict(groups=Groups(6, 1)), 'keep at least 2 groups'),
    (dict(groups=Groups(2, 3)), 'at most all'),
    (dict(groups=Groups(2, 1, 0)), 'best_per_group=0 must'),
    (dict(implementation='quick'), "implementation='quick' is unknown"),
  ],
)
def test_misfits_are_refused(change, message):
  args = dict(logits_NE=jnp.zeros((4, 6)), k=2) | change
  with pytest.raises(ValueError, match=message):
    top_k_route(args.pop('logits_NE'), args.pop('k'), **args)
