"""Attention compiles for an H100 to calls of cuDNN, without a GPU."""

from tests.gpu import gate

pytestmark = gate.MARKS


def test_it_calls_the_library_for_what_that_takes():
  found = gate.compiled('compile_attention.py', timeout_s=600)[-1]
  assert found.pop('f32')['calls'] == 0
  assert len(found) == 5 and {'mesh of 1', 'mesh of 4'} <= set(found)
  for name, case in found.items():
    # Forward; and again for the gradient, with its own.
    assert case['calls'] >= 2, name
