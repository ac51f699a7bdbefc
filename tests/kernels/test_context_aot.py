"""Devices that share sequences send each other summaries, and little else."""

import pytest

from tests.kernels import aot_context as sizes

pytestmark = pytest.mark.slow

DATA, CONTEXT = 2, 4
ROWS = sizes.BATCH // DATA
STATE = 4 * ROWS * sizes.HEADS * sizes.KEY


@pytest.fixture(scope='module')
def told(on_topology):
  return on_topology('kernels/aot_context.py', 'v5e:2x4')


@pytest.mark.parametrize(
  'op,columns',
  [('delta', sizes.KEY + sizes.VALUE), ('linear', sizes.VALUE + 1)],
)
def test_an_operation_gathers_its_summaries_and_sums_their_gradients(
  told, op, columns
):
  gathered = CONTEXT * STATE * columns
  assert told[f'{op} forward'] == {'all-gather': gathered}
  assert told[f'{op} gradient'] == {
    'all-gather': gathered,
    'reduce-scatter': gathered // CONTEXT,
  }


def test_a_mixer_adds_the_last_tokens_and_the_gradients_of_its_parameters(told):
  summary = CONTEXT * STATE * 2 * sizes.KEY
  halo = 4 * ROWS * 3 * 3 * sizes.HEADS * sizes.KEY
  assert told['mixer forward'] == {
    'all-gather': summary,
    'collective-permute': halo,
  }
  backward = dict(told['mixer gradient'])
  parameters = backward.pop('all-reduce')
  assert backward == {
    'all-gather': summary,
    'reduce-scatter': summary // CONTEXT,
    'collective-permute': 2 * halo,
  }
  assert parameters < 4 * 6 * sizes.WIDTH**2
