"""The chunked recurrences compile for TPUs that are not here."""

import pytest

# Both operations, decays of both kinds, both dtypes, whole and part registers.
FEW = (
  'delta,channel,128,64,bfloat16',
  'linear,head,64,128,float32',
  'scan',
)
TOPOLOGIES = ('v4:2x2x1', 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2')
KERNELS = {
  ('delta', 'forward'): 2,
  ('delta', 'both'): 4,
  ('linear', 'forward'): 1,
  ('linear', 'both'): 3,
}


@pytest.mark.parametrize(
  'topology, cases',
  [
    ('v5e:2x2', FEW),
    *(pytest.param(t, (), marks=pytest.mark.slow) for t in TOPOLOGIES),
  ],
)
def test_work_and_memory_are_as_counted(topology, cases, on_topology):
  script = 'kernels/aot_chunked.py'
  found = on_topology(script, topology, *cases, timeout_s=1800)
  # Two layers of which each recomputes: a dozen arrays of one layer, 2 MB each.
  assert found.pop('scan')['temporary_bytes'] < 32 * 2**20
  assert len(found) == 2 * (len(cases or range(13)) - 1)
  for case, cost in found.items():
    operation, decay, width, chunk, dtype, direction = case.split(',')
    assert cost['kernels'] == KERNELS[operation, direction], case
    counted = cost['counted_flops']
    assert counted <= cost['flops'] <= 1.02 * counted, case
    most = _bytes(operation, decay, int(width), int(chunk), dtype, direction)
    assert cost['temporary_bytes'] <= 1.02 * most * cost['tokens'], case


def _bytes(operation, decay, width, chunk, dtype, direction):
  """A token and head; see the docstrings of `pallas_tpu`."""
  lanes, both = -(-width // 128) * 128, direction == 'both'
  most = 8 * chunk if operation == 'delta' else 0
  most += both * 4 * lanes**2 / chunk
  if width != lanes:
    # Widths that fill no registers are padded in memory, by head and again by
    # column: q, k, v and y, going back dy, dq, dk and dv, and a decay by
    # channel with its gradient.
    size = {'float32': 4, 'bfloat16': 2}[dtype]
    most += 2 * lanes * (8 if both else 4) * size
    most += 2 * (decay == 'channel') * lanes * (2 if both else 1) * 4
  # Numbers of a token and head: beta, a decay, and their gradients.
  return most + 64
