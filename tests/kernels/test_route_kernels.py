"""The kernels of routing, interpreted, against the definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.route import pallas_gpu, pallas_tpu, reference
from pallas_kernels.route.options import Groups, Options
from pallas_kernels.route.shapes import SMALL

FAMILIES = {'mosaic': pallas_tpu, 'triton': pallas_gpu}
OPTIONS = {
  'plain': dict(),
  'shares': dict(affinity='softmax', normalise=False),
  'groups': dict(affinity='sigmoid', groups=Groups(4, 2)),
  'one best': dict(groups=Groups(7, 3, 1)),
}


def _options(experts, k, **fields):
  known = dict(
    affinity=None, groups=None, weigh='softmax', normalise=True, scale=1.0
  )
  return Options(experts, k, **(known | fields))


def _inputs(n, experts, decimals=None):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(n, experts))
  if decimals is not None:
    logits = logits.round(decimals) + 0.0
  bias = rng.normal(size=experts)
  valid = np.arange(n) % 3 != 0
  return [jnp.asarray(a, jnp.float32) for a in (logits, bias)] + [valid]


def _assert_equals_reference(family, args, options):
  f = functools.partial(FAMILIES[family].select, interpret=True)
  got, want = (
    jax.jit(functools.partial(g, options=options))(*args)
    for g in (f, reference.select)
  )
  ids, chosen, total, counts = got
  np.testing.assert_array_equal(ids, want[0])
  np.testing.assert_array_equal(chosen, want[1])
  np.testing.assert_array_equal(counts, want[3])
  assert (total is None) == (want[2] is None)
  if total is not None:
    np.testing.assert_allclose(total, want[2], rtol=1e-6)


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('shape', SMALL)
def test_selection_with_ties_equals_the_reference(shape, family):
  n, experts, k = SMALL[shape]
  logits, _, _ = _inputs(n, experts, decimals=1)
  _assert_equals_reference(family, (logits, None, None), _options(experts, k))


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('name', OPTIONS)
def test_selection_with_bias_and_padding_equals_the_reference(name, family):
  # More tokens than a block holds, and an odd number of them.
  n, experts, k = 1301, 56, 8
  logits, bias, valid = _inputs(n, experts)
  poisoned = jnp.where(valid[:, None], logits, jnp.nan)
  args = poisoned, bias, valid
  if OPTIONS[name].get('normalise') is False:
    args = logits, bias, valid  # sums of NaN are not compared
  _assert_equals_reference(family, args, _options(experts, k, **OPTIONS[name]))


@pytest.mark.parametrize('family', FAMILIES)
def test_odd_numbers_are_selected_as_by_the_reference(family):
  odd = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 3e38, 1.0, 1.0]
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.choice(np.array(odd, np.float32), (90, 12)))
  _assert_equals_reference(family, (logits, None, None), _options(12, 5))


@pytest.mark.parametrize('family', FAMILIES)
def test_without_a_valid_token_the_kernel_chooses_nothing(family):
  logits = jnp.full((33, 8), jnp.nan)
  args = logits, None, np.zeros(33, bool)
  _assert_equals_reference(family, args, _options(8, 2))


@pytest.mark.parametrize(
  'n,experts,k', [(1, 56, 8), (130, 100, 3), (1500, 5, 1)]
)
def test_places_by_counting_equal_those_of_a_sort(n, experts, k):
  ids = np.random.default_rng(0).integers(-1, experts + 2, (n, k))
  f = functools.partial(pallas_tpu.by_count, experts=experts, interpret=True)
  plan = jax.jit(f)(jnp.asarray(ids, jnp.int32))
  known = np.where((ids < 0) | (ids >= experts), experts, ids).ravel()
  order = np.argsort(known, kind='stable')
  np.testing.assert_array_equal(plan.pair_R, order)
  np.testing.assert_array_equal(plan.place_NK.ravel()[order], np.arange(n * k))
  counts = np.bincount(known, minlength=experts + 1)
  np.testing.assert_array_equal(plan.sizes_E, counts[:-1])
