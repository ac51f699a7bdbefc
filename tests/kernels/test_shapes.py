"""Published layer shapes and the routing drawn for them."""

import numpy as np
import pytest

from pallas_kernels.expert_ffn.shapes import (
  FINE_GRAINED,
  HOST,
  PUBLISHED,
  draw_ids,
  draw_sizes,
)


def test_finer_experts_have_equal_flops_and_parameters():
  layers = FINE_GRAINED.values()
  assert [layer.experts for layer in layers] == list(FINE_GRAINED)
  assert len({layer.flops() for layer in layers}) == 1
  assert len({layer.experts * layer.d * layer.n for layer in layers}) == 1


def test_published_layers_of_a_size_have_equal_flops():
  for size in ('1.4B', '7B', '30B', '120B'):
    own = [s for name, s in PUBLISHED.items() if name.startswith(size + ' ')]
    assert len(own) == 3
    assert len({layer.flops(backward=True) for layer in own}) == 1


@pytest.mark.parametrize('exponent', [0.0, 1.0])
def test_a_token_draws_different_experts(exponent):
  layer = HOST['fine']
  ids_NK = np.sort(draw_ids(layer, 0, exponent), axis=1)
  assert ids_NK.shape == (layer.tokens, layer.k)
  assert (np.diff(ids_NK, axis=1) > 0).all()
  assert ids_NK.min() >= 0 and ids_NK.max() < layer.experts


def test_draws_are_balanced_or_skewed_and_follow_the_seed():
  layer = HOST['fine']
  even, mean = np.array(layer.sizes), layer.rows / layer.experts
  balanced, zipf = draw_sizes(layer, 0), draw_sizes(layer, 0, 1.0)
  assert even.sum() == balanced.sum() == zipf.sum() == layer.rows
  assert np.ptp(even) <= 1
  assert balanced.max() < 1.2 * mean
  assert zipf.max() > 4 * mean
  np.testing.assert_array_equal(zipf, draw_sizes(layer, 0, 1.0))
  assert (zipf != draw_sizes(layer, 1, 1.0)).any()
