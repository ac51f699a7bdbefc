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
  # Rows of 192 and, cut by columns, of 96 numbers lie in 256 and 128 lanes for
  # the kernels and not outside: both tables are copied, and when cut by columns
  # both gradients as well. Whole tiles are not, and the rows of all tokens,
  # 805 MB at 1B, are never there. MB on v5e, v5p, v6e: 268, 309, 271 (227M);
  # 140, 141, 139 (1B); 961, 974, 966 (by columns); 35, 49, 35 (by rows).
  for name, most in (
    ('227M', 320),
    ('1B', 150),
    ('value', 1000),
    ('slots', 60),
  ):
    assert found[name]['temporary_bytes'] < most * 1e6, name
  sent, formula = found['slots']['sent'], found['slots']['formula']
  if topology.startswith('v5p'):
    # There the compiler makes an all-reduce of it, and takes a part.
    formula['all-reduce'] = 2 * formula.pop('reduce-scatter')
  total = sum(formula.values())
  for kind in sent | formula:
    # How many rounds are needed is told beside it.
    want = pytest.approx(formula.get(kind, 0), rel=0.1, abs=1e-3 * total)
    assert sent.get(kind, 0) == want, kind
