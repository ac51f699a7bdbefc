"""Chips, and the tiles of the TPU kernels on them."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import chips
from pallas_kernels.expert_ffn.shapes import FINE_GRAINED, PUBLISHED, draw_sizes
from pallas_kernels.grouped_matmul import pallas_tpu, visits
from pallas_kernels.grouped_matmul.tile_shapes import (
  Problem,
  TileShape,
  candidates,
  choose_tiles,
  needed_bytes,
  room_bytes,
  settle,
  traffic_bytes,
)

TPUS = [name for name, chip in chips.CHIPS.items() if chip.platform == 'tpu']
LAYERS = {**PUBLISHED, **{f'{e} experts': s for e, s in FINE_GRAINED.items()}}
FORMS = ('nn', 'nt', 'tn')


def _problem(layer, form='nn', itemsize=2):
  return Problem(form, layer.rows, layer.experts, layer.d, layer.n, itemsize)


@pytest.mark.parametrize('chip', [None, *TPUS])
def test_chosen_tiles_fit_every_chip_they_are_for(chip):
  rooms = [chips.CHIPS[c] for c in ([chip] if chip else TPUS)]
  for layer, form, size in itertools.product(LAYERS.values(), FORMS, (2, 4)):
    problem = _problem(layer, form, size)
    tiles = choose_tiles(problem, chip)
    assert settle(problem, tiles, chip) == tiles
    for room in rooms:
      assert needed_bytes(problem, tiles) <= room_bytes(room)


@pytest.mark.parametrize('exponent', [0.0, 1.0])
@pytest.mark.parametrize('form', FORMS)
def test_computed_rows_are_less_than_twice_the_rows_however_fine(
  form, exponent
):
  for layer in (*FINE_GRAINED.values(), PUBLISHED['30B n256']):
    tile = choose_tiles(_problem(layer, form)).rows
    sizes = draw_sizes(layer, 0, exponent)
    ends = np.cumsum(sizes)
    starts = ends - sizes
    met = np.where(sizes > 0, -(-ends // tile) - starts // tile, 0).sum()
    assert met <= visits.most(layer.rows, tile, layer.experts)
    assert met * tile < 2 * layer.rows


def test_a_hundred_rows_a_group_do_not_pay_for_large_tiles():
  problem = Problem('nn', 25600, 256, 4096, 448, 2)
  assert choose_tiles(problem).rows <= 100
  # What rows are contracted over fills the matrix unit, and no more.
  assert choose_tiles(dataclasses.replace(problem, form='tn')).rows <= 128


def test_with_room_for_a_whole_matrix_everything_is_moved_once():
  for name, form in itertools.product(('30B n256', '7B n1024'), ('nn', 'nt')):
    layer = LAYERS[name]
    problem = _problem(layer, form)
    once = layer.rows * (layer.d + layer.n) + layer.experts * layer.d * layer.n
    assert traffic_bytes(problem, choose_tiles(problem, 'v5e')) == 2 * once


def test_traffic_counts_every_block_that_a_step_reads():
  # Two column tiles: rows twice, each matrix once, the result once.
  problem = Problem('nn', 256, 4, 128, 256, 2)
  whole = traffic_bytes(problem, TileShape(64, 128, 128))
  assert whole == 2 * (2 * 256 * 128 + 4 * 128 * 256 + 256 * 256)
  assert problem.flops == 2 * 256 * 128 * 256


def test_all_candidates_fit_and_are_legal():
  problem = _problem(PUBLISHED['7B n256'])
  found = candidates(problem, chips.CHIPS['v4'])
  assert len(found) == len(set(found)) > 10
  for tiles in found:
    assert settle(problem, tiles, 'v4') == tiles


def test_a_tile_too_large_is_refused_with_one_that_fits():
  problem = _problem(PUBLISHED['30B n256'])
  tiles = TileShape(1024, 4096, 256)
  needed = needed_bytes(problem, tiles)
  with pytest.raises(ValueError, match=f'needs {needed} bytes') as error:
    settle(problem, tiles, 'v4')
  text = str(error.value)
  assert f'v4 has {room_bytes(chips.CHIPS["v4"])}' in text
  start = text.index('; TileShape') + 2
  smaller = eval(text[start : text.index(' fits')])
  assert settle(problem, smaller, 'v4') == smaller
  assert settle(problem, tiles, 'v5e') == tiles


@pytest.mark.parametrize(
  'tiles, message',
  [
    (TileShape(24, 768, 256), 'a tile of 24 along rows .* take 32'),
    (TileShape(16, 100, 256), 'a tile of 100 along d .* nor all 768; take 128'),
    (TileShape(16, 768, 0), 'a tile of 0 along f'),
  ],
)
def test_a_tile_of_parts_of_registers_is_refused(tiles, message):
  problem = _problem(PUBLISHED['1.4B n256'])
  with pytest.raises(ValueError, match=message):
    settle(problem, tiles, None)


def test_the_target_is_what_kernels_traced_inside_are_for():
  args = (
    jax.ShapeDtypeStruct((32768, 4096), jnp.bfloat16),
    jax.ShapeDtypeStruct((8, 4096, 2048), jnp.bfloat16),
    jax.ShapeDtypeStruct((8,), jnp.int32),
  )

  def traced():
    return str(jax.make_jaxpr(lambda *a: pallas_tpu.nn(*a))(*args))

  plain = traced()
  with chips.target('v5e'):
    assert traced() != plain
    assert chips.current('tpu').name == 'v5e'
    assert chips.current('cuda').name == 'h100'
    with chips.target(None):
      assert traced() == plain
  assert traced() == plain


def test_an_unknown_chip_lists_the_known():
  with pytest.raises(ValueError, match="chip 'v9' is unknown; use one of v4,"):
    chips.current('tpu', 'v9')


def test_kinds_of_devices_name_chips():
  assert chips.of_kind('TPU v5 lite').name == 'v5e'
  assert chips.of_kind('cpu') is None
