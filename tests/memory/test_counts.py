"""Parameters of the published memory, by the arithmetic of its paper."""

import functools
import importlib

from configs import common
from moejax import accounting
from moejax.build import build


@functools.cache
def rows_of(arg):
  recipe = importlib.import_module('configs.papers.memory.ring')
  model = build(recipe.get_config(arg).model, 'config.model')
  return accounting.parameter_rows(model)


def totals(rows):
  own = [row for row in rows if row.path.endswith('values/rows')]
  sparse = sum(row.count for row in own)
  return sparse, sum(r.count for r in rows), sum(r.active_count for r in rows)


def test_the_published_memory_has_995m_sparse_and_224m_active_parameters():
  sparse, total, active = totals(rows_of('published'))
  layers, d, keys, dim, k = 20, 768, 360, 192, 32
  assert sparse == layers * keys**2 * 2 * dim == 995_328_000
  queries, key_numbers = d * 2 * 2 * dim, 2 * keys * 2 * dim
  memory = queries + key_numbers + 2 * d * dim
  matrices = layers * (memory + 3 * d * 2496 + 4 * d**2) + 50304 * d
  active_rows = layers * k * 2 * dim
  norms_and_cores = layers * (2 * d + 2 * 64 + 2 * dim + 8) + d
  assert active == matrices + active_rows + norms_and_cores
  assert round(active / 1e6) == 224
  assert total == active + sparse - active_rows


def test_a_ring_has_the_same_tables_once_and_more_keys():
  alone, ring = (
    totals(rows_of('published')),
    totals(rows_of('published,ring=9')),
  )
  assert alone[0] == ring[0]
  # Three times the keys of a side; rows read are the same.
  assert ring[2] - alone[2] == 20 * 2 * 720 * 2 * 192


def test_the_house_memory_has_the_active_parameters_of_the_dense_model():
  counts = []
  for name in ('memory', 'dense'):
    config = importlib.import_module(f'configs.{name}').get_config()
    model = build(config.model, 'config.model')
    counts.append(accounting.describe(model, 256)['params_active'])
  assert abs(counts[0] / counts[1] - 1) < 0.01


def test_262144_experts_take_the_parameters_of_4096_neurons():
  recipe = importlib.import_module('configs.papers.memory.monet')
  for arg in ('published', 'published,horizontal'):
    model = build(recipe.get_config(arg).model, 'config.model')
    rows = {r.path: r for r in accounting.parameter_rows(model)}
    own = sum(
      r.count for p, r in rows.items() if '/ffn/' in p and 'router' not in p
    )
    d, width, halves = model.width, 4096, 512
    assert own == 4 * (2 * d * width + width + halves * d)


def test_bytes_read_while_decoding_are_the_arithmetic_of_the_card():
  """An 8-of-64 mixture of equal size beside the memory, per layer."""
  block = common.block(common.attention(12), common.moe(64, 8, 337))
  mixture = common.uniform(block, 20, vocab=50304, width=768)
  mixture = accounting.parameter_rows(build(mixture, 'model'))
  memory = rows_of('published')

  def million_numbers(rows, batch):
    read = accounting.decode_bytes(rows, batch)
    per_layer = {n: v / 2 / 20 - 4 * 768**2 for n, v in read.items()}
    return {n: v / 1e6 for n, v in per_layer.items()}

  for batch, experts, raw, unique in (
    (1, 6.2, 6.9, 6.9),
    (16, 43.9, 7.1, 7.1),
    (64, 49.8, 7.7, 7.7),
    (1024, 49.8, 19.5, 18.0),
  ):
    found = million_numbers(memory, batch)
    assert abs(found['raw'] - raw) < 0.06
    assert abs(found['unique'] - unique) < 0.06
    shared = million_numbers(mixture, batch)['unique']
    router = 64 * 768 / 1e6
    assert abs(shared - router - experts) < 0.01 * experts
