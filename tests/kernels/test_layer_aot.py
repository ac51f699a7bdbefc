"""A layer of experts compiles to ideal work and modelled memory on TPUs."""

import numpy as np
import pytest

from pallas_kernels.expert_ffn.shapes import PUBLISHED, draw_sizes
from pallas_kernels.grouped_matmul.tile_shapes import Problem, choose_tiles

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
    ideal, live = cost['ideal_flops'], cost['live_bytes']
    assert ideal <= cost['flops'] <= 1.05 * ideal, case
    assert live <= 1.1 * cost['model_bytes'], case
    # A matrix that is cast into fast memory takes none of the main memory.
    assert live >= cost['least_model_bytes'] / 1.1, case


@pytest.mark.parametrize('exponent', [0.0, 1.0])
@pytest.mark.parametrize('name', list(PUBLISHED))
def test_rows_multiplied_exceed_rows_by_less_than_a_tile_per_expert(
  name, exponent
):
  """The FLOPs that the compiler reports of a kernel are our own claim."""
  layer = PUBLISHED[name]
  ends_E = np.cumsum(draw_sizes(layer, 0, exponent))
  for chip in ('v5e', 'v5p', 'v6e'):
    for form in ('nn', 'nt', 'tn'):
      for d, f in ((layer.d, layer.n), (layer.n, layer.d)):
        problem = Problem(form, layer.rows, layer.experts, d, f, 2)
        tile = choose_tiles(problem, chip).rows
        visited, begin = 0, 0
        for end in ends_E:
          # Every tile that holds a row of the group, whole.
          visited += len(range(begin // tile, -(-int(end) // tile)))
          begin = int(end)
        assert layer.rows <= visited * tile
        assert visited * tile < layer.rows + layer.experts * tile
