"""The GPU kernels of lookups compile for an H100 without one."""

import pytest

from tests.gpu import gate

KERNELS = {'table_lookup', 'table_products', 'table_gradient'}

pytestmark = gate.MARKS


@pytest.fixture(scope='module')
def found():
  return gate.compiled('compile_lookup.py')


def test_every_case_has_the_three_kernels(found):
  assert len(found) == 6
  for case in found:
    names = {kernel['kernel'].split('__')[0] for kernel in case['kernels']}
    assert names == KERNELS, case


def test_next_to_nothing_spills_and_each_kernel_fits_shared_memory(found):
  for case in found:
    for kernel in case['kernels']:
      # ptxas keeps to 40 registers, and one number of one kernel goes without.
      assert kernel.get('frame', 0) <= 8, kernel
      assert 0 < kernel['registers'] <= 128, kernel
      assert (kernel['shared'] or 0) <= gate.SHARED_BYTES, kernel


def test_the_rows_of_all_tokens_are_never_made(found):
  """Beside the sorted pairs there are gradients of both tables, in f32."""
  for case in found:
    n, k, slots, d, parts = case['shape']
    pairs = n * k * (8 * 4 + 4 * 4 * parts)
    most = 2 * slots * d * 4 + pairs + n * d * 16 + 2**20
    assert case['temporary_bytes'] <= most, case
