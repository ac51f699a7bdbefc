"""A layer of experts compiles to ideal work and modelled memory on TPUs."""

import jax
import numpy as np
import pytest

from pallas_kernels.expert_ffn.shapes import PUBLISHED, draw_sizes
from pallas_kernels.grouped_matmul import visits
from pallas_kernels.grouped_matmul.row_parts import part_rows
from pallas_kernels.grouped_matmul.tile_shapes import Problem, choose_tiles

# v5e has 16 GB, so that not every published layer fits it.
CASES = [
  ('v5e:2x2', '1.4B n256'),
  ('v5e:2x2', '7B n1024'),
  ('v6e:2x2', '1.4B n256'),
  ('v6e:2x2', '7B n1024'),
  ('v5p:2x2x1', '1.4B n256'),
  ('v5p:2x2x1', '7B n1024'),
  ('v5p:2x2x1', '30B n256'),
]


@pytest.mark.slow
@pytest.mark.parametrize('topology, name', CASES)
def test_work_is_ideal_and_memory_as_modelled(topology, name, on_topology):
  found = on_topology('kernels/aot_layer.py', topology, name)
  assert len(found) == 2
  for case, cost in found.items():
    ideal, live = cost['ideal_flops'], cost['live_bytes']
    assert ideal <= cost['flops'] <= 1.05 * ideal, case
    assert live <= 1.1 * cost['model_bytes'], case
    # A matrix that is cast into fast memory takes none of the main memory.
    assert live >= cost['least_model_bytes'] / 1.1, case


@pytest.mark.parametrize(
  'exponent', [pytest.param(0.0, marks=pytest.mark.slow), 1.0]
)
@pytest.mark.parametrize('name', list(PUBLISHED))
def test_rows_multiplied_are_within_5_percent_of_rows(name, exponent):
  """The FLOPs that the compiler reports of a kernel are our own claim.

  What the kernel multiplies of a visit is tested in test_row_parts.py.
  """
  layer = PUBLISHED[name]
  sizes_E = draw_sizes(layer, 0, exponent)
  for tile, part, every in _tiles(layer):
    multiplied = _rows_multiplied(sizes_E, layer.rows, tile, part, every)
    boundaries = layer.experts - 1
    assert layer.rows <= multiplied <= layer.rows + boundaries * part
    assert multiplied <= 1.05 * layer.rows


def _tiles(layer):
  """Row tile and part of each kernel, and whether it visits empty groups."""
  found = set()
  for chip in ('v5e', 'v5p', 'v6e'):
    for form in ('nn', 'nt', 'tn'):
      for d, f in ((layer.d, layer.n), (layer.n, layer.d)):
        problem = Problem(form, layer.rows, layer.experts, d, f, 2)
        tile = choose_tiles(problem, chip).rows
        found.add((tile, part_rows(tile, 2), form == 'tn'))
  return found


def _rows_multiplied(sizes_E, rows, tile, part, every):
  """Counted visit by visit, from what the kernel is told of visits."""
  plan = visits.of_every_group if every else visits.with_rest
  plan = jax.device_get(plan(jax.numpy.array(sizes_E), rows, tile))
  group = plan.group_V[: plan.count]
  row = tile * (np.arange(plan.count) + plan.shift_G[group])
  begin, end = plan.starts[group], np.append(plan.starts, 0)[group + 1]
  # Rows of no group are the last of the groups, and not multiplied.
  end = np.where(group < len(sizes_E), end, begin)
  inside = np.minimum(end, row + tile) - np.maximum(begin, row)
  first = np.maximum(begin, row) // part
  parts = -(-np.minimum(end, row + tile) // part) - first
  return part * np.where(inside > 0, parts, 0).sum()
