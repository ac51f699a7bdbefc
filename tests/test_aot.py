"""The training step compiles for TPUs that are not here."""

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('topology', ['v5e:2x2', 'v6e:2x2', 'v5p:2x2x1'])
@pytest.mark.parametrize('dispatch', ['Sort', 'Einsum'])
def test_the_step_compiles_over_data_and_expert_axes(
  topology, dispatch, on_topology
):
  found = on_topology('aot_step.py', topology, dispatch)
  assert found['platform'] == 'tpu'
  assert found['flops'] > 0
  # A v5e chip has 16 GB; this tiny step takes a thousandth of it.
  assert found['temporary_bytes'] < 64 * 2**20
