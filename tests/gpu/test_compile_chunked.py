"""The chunked GPU kernels compile for an H100 as they should, without one."""

import pytest

from tests.gpu import gate

FORWARD = {'chunk_scores', 'chunk_states', 'chunk_outputs'}
BACKWARD = {
  *('chunk_d_new', 'chunk_d_states', 'chunk_d_scores', 'chunk_d_inputs'),
}

pytestmark = gate.MARKS


@pytest.fixture(scope='module')
def found():
  return gate.compiled('compile_chunked.py')


def _kernels(found, *families):
  for case in found:
    for kernel in case['kernels']:
      if case['family'] in families:
        yield f'{case["case"]}: {kernel}', kernel


def test_every_case_has_the_kernels_that_it_should(found):
  assert len(found) == 12
  for case in found:
    want = FORWARD | BACKWARD
    if case['decay'] == 'channel':
      want = want | {'chunk_decayed'}
    names = {kernel['kernel'].split('__')[0] for kernel in case['kernels']}
    assert names == want, case


def test_no_kernel_of_the_published_shape_spills_registers(found):
  for what, kernel in _kernels(found, 'bf16'):
    spilled = ('frame', 'local_stores', 'local_loads')
    assert not any(kernel.get(name, 0) for name in spilled), what
    assert 0 < kernel['registers'] <= gate.MOST_REGISTERS, what


def test_at_other_sizes_few_kernels_spill_and_little(found):
  """In f32, at 256 channels, and where channels are masked."""
  spilling = set()
  for what, kernel in _kernels(found, 'odd'):
    if kernel.get('frame', 0):
      spilling.add(kernel['kernel'].split('__')[0])
      assert kernel['frame'] <= 640, what
  # The kernels of scores and of inputs do in f32 only.
  states = {'chunk_states', 'chunk_d_states'}
  assert spilling <= states | {'chunk_scores', 'chunk_d_inputs'}


def test_every_kernel_fits_shared_memory(found):
  for what, kernel in _kernels(found, 'bf16', 'odd'):
    assert kernel['shared'] is not None, what
    assert kernel['shared'] <= gate.SHARED_BYTES, what


def test_every_product_uses_the_tensor_cores_of_hopper(found):
  for what, kernel in _kernels(found, 'bf16', 'odd'):
    assert kernel['wgmma'] > 0, what
