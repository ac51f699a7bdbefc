"""Routers by one kernel: equal to their parts, and never routed twice."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import routers
from moejax.model import REMAT
from moejax.routers import affinities, fused, select, weigh
from moejax.types import Chosen, Context

EXPERTS, K, N = 8, 2, 24
SELECTIONS = [
  select.top_k,
  functools.partial(select.group_limited, num_groups=4, kept_groups=2),
]
WEIGHINGS = [
  weigh.softmax,
  functools.partial(weigh.softmax, normalise=False, scale=2.0),
  functools.partial(weigh.sigmoid, scale=2.5),
  weigh.raw,
]


class Given(nn.Module):
  """Logits that are there already."""

  @nn.compact
  def __call__(self, x_ND):
    return x_ND


def _context(padding=3):
  segments = jnp.ones((1, N), jnp.int32).at[0, :padding].set(0)
  return Context(segments, segments, segments)


def _logits(seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=(N, EXPERTS)).round(1), jnp.float32)


def _router(selection, weighing, affinity, bias=True):
  return routers.Router(
    score=Given(),
    k=K,
    select=selection,
    weigh=weighing,
    affinity=affinity,
    selection_bias=bias,
  )


def _stranger(function):
  """The same function under a name that no kernel knows."""
  return None if function is None else lambda *args: function(*args)


@jax.jit
def _gradient_weights():
  return jax.random.normal(jax.random.key(0), (N, K))


def _outputs(router, logits, bias):
  variables = {'balance': {'bias': bias, 'counts': jnp.zeros(EXPERTS)}}

  def weights(logits):
    out = router.apply(variables, logits, _context())
    return out.weights_NK, out

  _, pull, out = jax.vjp(weights, logits, has_aux=True)
  return out, pull(_gradient_weights())[0]


@pytest.mark.parametrize('affinity', [None, *fused.AFFINITIES])
@pytest.mark.parametrize('selection', SELECTIONS, ids=['top_k', 'groups'])
def test_a_known_router_equals_its_parts_one_after_the_other(
  selection, affinity
):
  bias = jnp.asarray(np.random.default_rng(1).normal(size=EXPERTS), jnp.float32)
  members = [(selection, w, affinity) for w in WEIGHINGS]
  strange = [tuple(map(_stranger, m)) for m in members]
  assert all(_known(m) for m in members) and not any(map(_known, strange))

  @jax.jit
  def both(logits, bias):
    return [
      [_outputs(_router(*m), logits, bias) for m in kind]
      for kind in (members, strange)
    ]

  for (a, da), (b, db) in zip(*both(_logits(), bias), strict=True):
    np.testing.assert_array_equal(a.ids_NK, b.ids_NK)
    np.testing.assert_array_equal(a.counts_E(), b.counts_E())
    np.testing.assert_allclose(a.weights_NK, b.weights_NK, rtol=1e-6)
    np.testing.assert_allclose(da, db, rtol=1e-5, atol=1e-6)


def _known(members):
  selection, weighing, affinity = members
  return fused.arguments(affinity, selection, weighing) is not None


def test_one_strange_member_is_enough_to_call_the_parts():
  members = (select.top_k, weigh.softmax, affinities.sigmoid)
  for i in range(3):
    changed = list(members)
    changed[i] = _stranger(members[i])
    assert not _known(changed)
  assert not _known((select.top_k, functools.partial(weigh.raw, 1), None))


def test_a_scale_of_zero_and_of_an_array_are_left_to_the_parts():
  for scale in (0.0, jnp.ones(())):
    weighing = functools.partial(weigh.softmax, scale=scale)
    assert not _known((select.top_k, weighing, None))


@pytest.mark.parametrize('policy', REMAT)
@pytest.mark.parametrize('strange', [False, True])
def test_logits_that_differ_on_recomputation_cannot_re_route(policy, strange):
  """The gradient goes to the experts that the forward pass chose."""
  seeds = itertools.count()

  def noise():
    return np.asarray(_logits(next(seeds)))

  shape = jax.ShapeDtypeStruct((N, EXPERTS), jnp.float32)
  router = _router(select.top_k, weigh.raw, None, bias=False)
  if strange:
    router = router.clone(select=_stranger(select.top_k))

  def layer(logits):
    # No callback may do this; hardware may, by another order of a sum.
    noisy = logits + jax.pure_callback(noise, shape)
    out = router.apply({}, jnp.sin(noisy), _context(0))
    return jnp.sin(out.weights_NK).sum(), out.ids_NK

  layer = jax.checkpoint(layer, policy=REMAT[policy])
  _, pull, ids = jax.vjp(layer, jnp.zeros((N, EXPERTS)), has_aux=True)
  changed = np.asarray(pull(jnp.ones(()))[0]) != 0
  assert next(seeds) > 1  # the logits were recomputed
  np.testing.assert_array_equal(np.flatnonzero(changed), _cells(ids))


def _cells(ids):
  return np.sort((np.asarray(ids) + EXPERTS * np.arange(N)[:, None]).ravel())


def test_counts_of_a_choice_leave_out_no_expert():
  ids = jnp.array([[0, EXPERTS], [3, 0]])
  chosen = Chosen(ids, jnp.ones((2, 2)), jnp.zeros((2, EXPERTS)))
  assert chosen.counts_E().tolist() == [2, 0, 0, 1, 0, 0, 0, 0]


def test_a_linear_score_keeps_its_input_in_its_own_dtype():
  x = jnp.ones((N, 16), jnp.bfloat16)
  score = routers.scores.Linear(num_experts=EXPERTS)
  variables = score.init(jax.random.key(0), x)
  logits, pull = jax.vjp(score.apply, variables, x)
  kept = sorted((a.dtype.name, a.size) for a in jax.tree.leaves(pull))
  assert kept == [('bfloat16', N * 16), ('float32', 16 * EXPERTS)]

  dlogits = _logits()
  dvariables, dx = pull(dlogits)
  kernel, dkernel = (jax.tree.leaves(v)[0] for v in (variables, dvariables))
  wide = [np.asarray(a, np.float64) for a in (x, kernel, dlogits)]
  assert logits.dtype == jnp.float32 and dx.dtype == jnp.bfloat16
  np.testing.assert_allclose(dkernel, wide[0].T @ wide[2], rtol=1e-5)
  np.testing.assert_allclose(
    np.asarray(dx, np.float64), wide[2] @ wide[1].T, rtol=2e-2, atol=1e-2
  )
