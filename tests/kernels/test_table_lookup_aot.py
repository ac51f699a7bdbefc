"""Lookups in tables compile for TPUs that are not here."""

import pytest

from pallas_kernels.table_lookup.shapes import PUBLISHED


@pytest.mark.slow
@pytest.mark.parametrize('topology', ['v5e:2x4', 'v5p:2x2x2', 'v6e:2x4'])
def test_lookups_and_products_are_kernels(on_topology, topology):
  """Cut eight ways, too: by columns, of which 96 take 128 lanes, or by rows."""
  found = on_topology('kernels/aot_table_lookup.py', topology)
  assert set(found) == {*PUBLISHED, 'value', 'slots'}
  for name, case in found.items():
    # Products and sums, each forward and for the other's gradient.
    assert case['kernels'] == 4, name
    n, k, _, d, _ = PUBLISHED.get(name, PUBLISHED['1B'])
    # The rows of all tokens would take more, and are never there.
    assert case['temporary_bytes'] < n * k * d * 4, name
  _, _, slots, d, _ = PUBLISHED['1B']
  shards = {'value': slots * 128 * 4, 'slots': slots * d * 4 / 8}
  # Gradients before they have their layout, and for columns the tables too:
  # 560, 699 and 693 MB on v5e, v5p and v6e. Cut by rows, they are not.
  for name, most in (('value', 5.0), ('slots', 0.5)):
    assert found[name]['temporary_bytes'] < most * shards[name], name
  sent, formula = found['slots']['sent'], found['slots']['formula']
  if topology.startswith('v5p'):
    # There the compiler makes an all-reduce of it, and takes a part.
    formula['all-reduce'] = 2 * formula.pop('reduce-scatter')
  total = sum(formula.values())
  for kind in sent | formula:
    # How many rounds are needed is told beside it.
    want = pytest.approx(formula.get(kind, 0), rel=0.1, abs=1e-3 * total)
    assert sent.get(kind, 0) == want, kind
