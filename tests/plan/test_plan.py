"""A plan: what is searched, what is left out, and the order of the rest."""

import itertools
import math

import pytest

from configs import common
from moejax import main
from moejax.aot import topology
from moejax.plan import cost, facts, meshes, table

V5E = topology.find('v5e:2x2')
D, F, V, B, T = 16, 16, 32, 8, 8  # of the small dense model


@pytest.fixture(scope='module')
def dense(small):
  config = small.config(losses={})
  config.model = small.model({'dense': small.dense(hidden=F)})
  return facts.gather(config, meshes.AXES)


@pytest.fixture(scope='module')
def sparse(small):
  return facts.gather(small.config(), meshes.AXES)


def choice(exchange=meshes.ALIKE, **sizes):
  """On a mesh of the axes that are searched, and of `sizes`."""
  return meshes.Choice(dict.fromkeys(meshes.AXES, 1) | sizes, exchange)


def matrix_sizes():
  """Numbers of the dense model's parameters, by hand: (by width, vectors)."""
  heads = D * D + 2 * D * (D // 2) + D * D  # query, key and value, out
  glu = 3 * D * F
  return V * D + heads + glu, 3 * D + 2 * (D // 2)


def test_links_are_those_of_hand_arithmetic(dense):
  matrices, vectors = matrix_sizes()
  # Of four devices; numbers are f32, and the head's gradient is summed besides.
  summed = 2 * 3 / 4 * 4 * (matrices + vectors + V * D)
  whole = cost.predict(dense, choice(data=4), V5E)
  assert whole.sent == {
    'gather': 0,
    'reduce': pytest.approx(summed),
    'exchange': 0,
  }
  cut = cost.predict(dense, choice(fsdp=4), V5E)
  # All but scales of heads are cut along the width, and gathered twice.
  gathered = 2 * 3 / 4 * 4 * (matrices + 3 * D)
  rows = 2 * 3 / 4 * 4 * (B * T / 4 * D)
  assert cut.sent['gather'] == pytest.approx(gathered)
  assert cut.sent['reduce'] == pytest.approx(summed)
  assert cut.sent['exchange'] == pytest.approx(rows)
  total = summed + gathered + rows
  assert cut.seconds['links'] == pytest.approx(total / 200e9)


def test_the_longest_of_three_ranks(dense):
  """With these rates by hand: links alone differ, then compute alone."""
  forward = 2 * (matrix_sizes()[0] - V * D) + 4 * D * (T + 1) / 2 + 2 * D * V
  found = cost.predict(dense, choice(data=4), V5E)
  assert found.flops == pytest.approx(3 * forward * B * T / 4)
  assert found.seconds['compute'] == pytest.approx(found.flops / 197e12)
  slow = found._replace(seconds={'compute': 1, 'memory': 3, 'links': 2})
  fast = found._replace(seconds={'compute': 2, 'memory': 2, 'links': 2})
  near = found._replace(seconds={'compute': 1, 'memory': 2, 'links': 2})
  order = sorted((slow, fast, near), key=cost.Cost.order)
  assert order == [near, fast, slow]
  assert slow.bound == 'memory' and slow.step_seconds == 3


def test_an_exchange_sends_the_choices_that_leave(sparse):
  """k of 2, width 16, 16 tokens each on 4 devices, in one round."""
  found = cost.predict(sparse, choice('AllToAll', expert=4), V5E)
  size = math.ceil(1.5 * 16 * 2 / 4)  # rows for each pair of devices
  there, back = 16 * 4 + 8, 16 * 4
  assert found.sent['exchange'] == 3 * size * (there + 3 * back + 4)
  ring = cost.predict(sparse, choice('Ring', expert=4), V5E)
  assert ring.sent['exchange'] == 0
  assert ring.sent['gather'] > 0


@pytest.mark.parametrize('sizes', [{'data': 4}, {'expert': 2, 'fsdp': 4}])
def test_state_is_cut_as_the_mesh_cuts_it(sizes, sparse):
  import jax

  from moejax.parts import Parts

  config = meshes.spread(sparse.config, choice(**sizes))
  count = math.prod(sizes.values())
  parts = Parts(config, jax.devices()[:count])
  held = cost.predict(sparse, choice(**sizes), V5E).memory
  for name, tree in (
    ('parameters', parts.abstract_state.params),
    ('moments', (parts.abstract_state.opt_state, parts.abstract_state.balance)),
  ):
    assert held[name] == sum(
      math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize
      for a in jax.tree.leaves(tree)
    )


def test_every_mesh_is_a_choice_or_is_left_out_with_a_reason(sparse):
  machine = topology.find('v5e:2x4')
  found, left = meshes.search(sparse, machine)
  sizes = {tuple(c.sizes[axis] for axis in meshes.AXES) for c in found}
  every = {
    s for s in itertools.product((1, 2, 4, 8), repeat=5) if math.prod(s) == 8
  }
  assert sizes < every
  assert len(every) == len(sizes) + sum(one.count for one in left.values())
  # Two heads, one of them for keys: no tensor axis divides that.
  assert all(c.sizes['tensor'] == 1 for c in found)
  assert any("axis 'heads'" in one.example for one in left.values())
  # Four experts do not divide over eight devices.
  assert all(c.sizes['expert'] < 8 for c in found)
  for c in found:
    apart = c.sizes['expert'] > 1
    assert (c.exchange in meshes.EXCHANGES) == apart


def test_a_choice_becomes_a_config_of_its_mesh_and_exchange(sparse):
  config = meshes.spread(sparse.config, choice('Ring', expert=4))
  assert config.mesh.expert == 4
  assert config.model.blocks.sparse.ffn.dispatch.kind == 'dispatch.Ring'
  assert sparse.config.mesh.expert == 1  # the other one is not touched


def cells(out):
  """The texts of all rows of tables."""
  lines = [line for line in out.splitlines() if line[:1] == '|']
  return [[c.strip() for c in line[1:-1].split('|')] for line in lines]


def run(words, capsys):
  with pytest.raises(SystemExit) as stopped:
    main.main(['moejax', '--config=configs/tiny.py:smoke', *words])
  out, err = capsys.readouterr()
  return stopped.value.code, out, err.splitlines()


def test_an_unknown_topology_lists_the_known_ones(capsys):
  code, _, lines = run(['--mode=plan', '--topology=v5e:3x3'], capsys)
  assert code == 2
  assert len(lines) == 1 and 'v6e: 1x1 2x2' in lines[0]


def test_compiling_the_best_is_for_plans(capsys):
  code, _, lines = run(['--plan_compile=2'], capsys)
  assert code == 2 and '--mode=plan' in lines[0]


@pytest.mark.slow
def test_the_command_prints_the_table_and_marks_the_config(capsys):
  words = ['--mode=plan', '--topology=v5e:2x2', '--config.mesh.data=4']
  code, out, lines = run(words, capsys)
  assert code == 0 and not lines
  rows = cells(out)
  (own,) = (row for row in rows if table.OWN in row[1])
  assert own[1:3] == ['data=4 (config)', 'none']
  assert 'left out' in [row[0] for row in rows] and 'Assumed:' in out


@pytest.mark.slow
def test_the_best_mesh_is_compiled_and_stands_beside_its_prediction(capsys):
  words = ['--mode=plan', '--topology=v5e:2x2', '--plan_compile=1']
  code, out, lines = run(words, capsys)
  assert code == 0 and not lines
  rows = cells(out)
  (head,) = (i for i, row in enumerate(rows) if 'predicted' in row)
  found = {row[2]: float(row[4]) for row in rows[head + 2 :]}
  assert found['memory GiB'] > 0 and found['TFLOPs'] > 0


def test_stages_share_layers_and_send_rows_on(sparse, small):
  config = small.config()
  config.model.repeats = 4
  common.pipeline(config, stages=2, microbatches=4)
  found = facts.gather(config, meshes.axes(config))
  alone = facts.gather(
    small.config(model=config.model.copy_and_resolve_references()),
    meshes.AXES,
  )
  del alone.config.model.pipeline
  choices, _ = meshes.search(found, V5E)
  assert choices and all(c.sizes['pipe'] == 2 for c in choices)
  picked = meshes.Choice(
    dict.fromkeys(meshes.axes(config), 1) | {'pipe': 2, 'data': 2},
    meshes.ALIKE,
  )
  piped = cost.predict(found, picked, V5E)
  # Rows of a device go on 4 + 2 - 1 times in parts of 4, and back.
  rows = 8 * 8 / 2 * 16 * 4
  assert piped.sent['exchange'] == pytest.approx(2 * 5 * rows / 4)
  whole = cost.predict(alone, choice(data=4), V5E)
  # Layers are work for 5 places of which 4 are of use; the head is not.
  head = 3 * 2 * D * V * B * T / 4
  assert piped.flops - head == pytest.approx(5 / 4 * (whole.flops - head))
  half = [p for p in found.params if 'layers' in p.axes]
  saved = sum(p.size * p.itemsize for p in half) / 2
  assert whole.memory['parameters'] - piped.memory['parameters'] == saved


@pytest.mark.slow
@pytest.mark.parametrize(
  'words,said',
  [
    (['--config.train.batch_size=3', '--config.train.seq_len=7'], 'no mesh'),
    (
      ['--config.model.width=65536', '--config.model.vocab=200000'],
      'nothing fits v5e:2x2: the least is',
    ),
  ],
)
def test_one_line_and_exit_code_3_where_nothing_fits(words, said, capsys):
  more = ['--mode=plan', '--topology=v5e:2x2', '--config.model.vocab=257']
  if 'vocab' in words[-1]:
    more.pop()
  code, out, lines = run([*more, *words], capsys)
  assert code == 3
  assert len(lines) == 1 and said in lines[0]
  assert '| left out | why' in out


# Of what a compiler says: memory and gathers, sums and exchanges by this much.
MEMORY, SENT = 0.2, 0.4


@pytest.mark.slow
@pytest.mark.parametrize(
  'sizes,exchange',
  [
    ({'data': 4}, meshes.ALIKE),
    ({'fsdp': 4}, meshes.ALIKE),
    ({'expert': 4}, 'AllToAll'),
    ({'expert': 4}, 'Ring'),
    ({'fsdp': 2, 'expert': 2}, 'AllToAll'),
    ({'fsdp': 2, 'expert': 2}, 'Ring'),
    ({'context': 4}, meshes.ALIKE),
    ({'context': 2, 'expert': 2}, 'AllToAll'),
    ({'pipe': 2, 'data': 2}, meshes.ALIKE),
  ],
  ids=str,
)
def test_predictions_are_near_the_compiled_program(sizes, exchange):
  from moejax import aot

  config = common.base()
  ffn = common.moe(8, 2, 256, shared=256)
  ffn.dispatch = common.node('dispatch.AllToAll')
  block = common.block(common.attention(8, 4), ffn)
  config.model = common.uniform(
    block, 4, vocab=1024, width=256, dtype='bfloat16', remat='full'
  )
  config.losses = {'load': 0.01, 'z': 0.001}
  config.train.batch_size, config.train.seq_len = 8, 512
  if 'pipe' in sizes:
    common.pipeline(config, stages=2, microbatches=2)
  found = facts.gather(config, meshes.axes(config))
  picked = choice(exchange, **sizes)
  guess = cost.predict(found, picked, V5E, as_text=True)
  report = aot.check(meshes.spread(config, picked), V5E.name)
  for what, mine, true in table.compared(guess, report):
    if what == 'memory GiB':
      assert mine == pytest.approx(true, rel=MEMORY), what
    elif what == 'exchange GiB' and exchange == 'Ring':
      # Rows of the embedding alone, whose table the compiler may gather.
      assert mine < 0.1 * report.collective_bytes['all-gather'] / 2**30
    elif what.startswith(('gather', 'reduce', 'exchange')):
      # What is a hundredth of the parameters is noise: counts, norms.
      least = 0.01 * guess.memory['parameters'] / 2**30
      assert mine == pytest.approx(true, rel=SENT, abs=least), what
