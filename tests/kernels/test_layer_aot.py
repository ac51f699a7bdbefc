"""A layer of experts compiles to ideal work and modelled memory on TPUs."""

import pytest

# v5e has 16 GB, so that not every published layer fits it.
ON_V5E = ('1.4B n256',)
SLOW = [
  ('v5e:2x2', '7B n1024'),
  ('v6e:2x2', '1.4B n256'),
  ('v6e:2x2', '7B n1024'),
  ('v5p:2x2x1', '1.4B n256'),
  ('v5p:2x2x1', '7B n1024'),
  ('v5p:2x2x1', '30B n256'),
]


@pytest.mark.parametrize(
  'topology, name',
  [('v5e:2x2', name) for name in ON_V5E]
  + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW],
)
def test_work_is_ideal_and_memory_as_modelled(topology, name, on_topology):
  found = on_topology('kernels/aot_layer.py', topology, name)
  assert len(found) == 2
  for case, cost in found.items():
    ideal, model = cost['ideal_flops'], cost['model_bytes']
    assert ideal <= cost['flops'] <= 1.05 * ideal, case
    assert model / 1.1 <= cost['live_bytes'] <= 1.1 * model, case
