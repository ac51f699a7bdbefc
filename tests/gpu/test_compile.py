"""The GPU kernels compile for an H100 as they should, without one."""

import collections

import pytest

from tests.gpu import gate

FORWARD = {'expert_up', 'expert_down', 'expert_combine'}
BACKWARD = {
  *('expert_dh', 'expert_dw_down', 'expert_dw_first', 'expert_dx'),
  'expert_combine',
}

pytestmark = gate.MARKS


@pytest.fixture(scope='module')
def everything():
  return gate.compiled('compile_kernels.py')


@pytest.fixture(scope='module')
def found(everything):
  """What must pass the gate."""
  others = ('spilling', 'library')
  return [case for case in everything if case['family'] not in others]


def _kernels(found):
  for case in found:
    for kernel in case['kernels']:
      yield f'{case["case"]}: {kernel}', case, kernel


def test_every_case_has_the_kernels_that_it_should(found):
  for case in found:
    names = {kernel['kernel'] for kernel in case['kernels']}
    if case['family'] == 'grouped':
      assert names == {f'grouped_{case["case"].split()[-2]}'}, case
    elif case['family'] in ('gradient', 'sharded'):
      # The loss does not need y: no part of the forward pass beyond `up`
      # has to run.
      assert names >= BACKWARD | {'expert_up'}, case
    else:
      want = FORWARD if 'forward' in case['case'] else BACKWARD
      assert names == want, case
  counts = collections.Counter(case['family'] for case in found)
  assert counts == {
    'layer': 36,
    'grouped': 36,
    'gradient': 2,
    'sharded': 1,
  }


def test_no_kernel_spills_registers(found):
  for what, _, kernel in _kernels(found):
    spilled = ('frame', 'local_stores', 'local_loads')
    assert not any(kernel.get(name, 0) for name in spilled), what
    assert 0 < kernel['registers'] <= gate.MOST_REGISTERS, what


def test_a_kernel_that_spills_is_seen_to(everything):
  (case,) = (c for c in everything if c['family'] == 'spilling')
  kernels = {kernel['kernel']: kernel for kernel in case['kernels']}
  up = kernels['expert_up']
  assert up['frame'] and up['local_stores'] and up['local_loads']


def test_the_library_for_hopper_does_not_spill_at_its_most_groups(everything):
  cases = [c for c in everything if c['family'] == 'library']
  assert cases
  for what, _, kernel in _kernels(cases):
    assert kernel['wgmma'] > 0 and not kernel.get('frame'), what


def test_every_kernel_fits_shared_memory(found):
  for what, _, kernel in _kernels(found):
    assert kernel['shared'] is not None, what
    assert kernel['shared'] <= gate.SHARED_BYTES, what


def test_products_of_bf16_use_the_tensor_cores_of_hopper(found):
  for what, case, kernel in _kernels(found):
    if case['dtype'] != 'bfloat16' or kernel['kernel'] == 'expert_combine':
      continue
    if 'few tokens' in case['case'] and 'dw' not in kernel['kernel']:
      # wgmma has 64 rows or more; groups have 4.
      assert kernel['mma'] > 0, what
    else:
      assert kernel['wgmma'] > 0, what


def test_products_of_f32_use_no_tensor_cores(found):
  for what, case, kernel in _kernels(found):
    if case['dtype'] == 'float32':
      assert 'wgmma' not in kernel and 'mma' not in kernel, what


def test_the_layer_keeps_nothing_dense_in_memory(found):
  for case in found:
    if case['family'] == 'grouped':
      continue
    t, d, n, e, k = case['shape']
    itemsize = 2 if case['dtype'] == 'bfloat16' else 4
    # Rows of width D between a product and the sum after it, and of width F:
    # hidden values, weighted hidden values, gradients of gate and up.
    rows = t * k * (d + 3 * n) * itemsize
    if case['family'] in ('gradient', 'sharded'):
      rows += t * k * 2 * n * itemsize
    tables = 64 * (t * k + e) + 2**16
    assert case['temporary_bytes'] <= 1.01 * rows + tables, case
