"""Quantised grouped products stay sparse on TPUs that are not here."""

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('topology', ['v5e:2x2', 'v6e:2x2', 'v5p:2x2x1'])
def test_flops_are_within_5_percent_of_ideal(topology, on_topology):
  ratios = on_topology('kernels/aot_quantised.py', topology)
  assert len(ratios) == 3
  assert all(0.99 < ratio < 1.05 for ratio in ratios.values()), ratios
