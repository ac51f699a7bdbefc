"""The grouped products compile for TPUs that are not here."""

import pytest

NAMES = ('v4:2x2x1', 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2')


def _check(found):
  for case, cost in found.items():
    assert cost['flops'] <= 1.02 * cost['ideal_flops'], case
    # Tables of visits and little else. Rows of a width that fills no registers
    # may be turned round; the matrices of that case are 1 GiB.
    # Over a mesh the matrices are gathered, 8 MiB.
    most = 32 if case.endswith(('fine', 'mesh')) else 1
    assert cost['temporary_bytes'] < most * 2**20, case


@pytest.mark.parametrize(
  'topology',
  [
    pytest.param(
      name, marks=() if name.startswith(('v5e', 'v6e')) else pytest.mark.slow
    )
    for name in NAMES
  ],
)
def test_each_form_compiles_to_its_ideal_work_and_no_copies(
  topology, on_topology
):
  found = on_topology('kernels/aot_grouped_matmul.py', topology)
  assert len(found) == 13
  _check(found)


@pytest.mark.slow
@pytest.mark.parametrize('topology', NAMES)
def test_large_shapes_compile_by_tiles_of_any_chip(topology, on_topology):
  found = on_topology('kernels/aot_grouped_matmul.py', topology, 'wide')
  assert len(found) == 9
  _check(found)
