"""The routing kernels compile for TPUs that are not here."""

import pytest

TOPOLOGIES = ['v4:2x2x1', 'v5p:2x2x1', 'v6e:2x2']


@pytest.mark.parametrize(
  'topology',
  [
    'v5e:2x2',
    *(pytest.param(t, marks=pytest.mark.slow) for t in TOPOLOGIES),
  ],
)
def test_selection_and_places_are_kernels(on_topology, topology):
  found = on_topology('aot_route.py', topology)
  assert set(found) == {'groups', 'odd', 'one token'}
  for name, case in found.items():
    assert case['kernels'] == 2, name
    # Nothing as large as a mask of tokens, experts and choices is made.
    assert case['temporary_bytes'] < 64 * 2**20, name
