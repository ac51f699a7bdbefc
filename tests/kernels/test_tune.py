"""Measured tiles: what is picked, what is stored, and who uses it."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import chips
from pallas_kernels.expert_ffn import cpu as layer_cpu
from pallas_kernels.expert_ffn import pallas_gpu as layer_gpu
from pallas_kernels.expert_ffn import tpu_kernels, tpu_tiles
from pallas_kernels.grouped_matmul import (
  cpu,
  gpu_tiles,
  pallas_gpu,
  tile_shapes,
  tiles,
)
from pallas_kernels.grouped_matmul.api import grouped_matmul
from pallas_kernels.grouped_matmul.tile_shapes import Problem, TileShape
from pallas_kernels.tune import __main__ as command
from pallas_kernels.tune import measure, operands, spaces, store, tuner

ENTRY = {
  'choice': {'step': 32, 'most': 128},
  'seconds': {'{"step": 32, "most": 128}': 0.5},
  'jax': '0.10.2',
  'date': '2026-11-24',
}
SHAPE = (256, 4, 8, 16)


@pytest.fixture
def file(tmp_path, monkeypatch):
  """A store that is not there yet."""
  path = tmp_path / 'folder' / 'tuned.json'
  monkeypatch.setenv(store.VARIABLE, str(path))
  return path


def _key(shape=SHAPE, dtype='float32', chip=None):
  return store.Key(chip or store.host(), *shape, dtype)


class Machine:
  """A clock, and kernels that take as long as their tile says."""

  def __init__(self):
    self.now = 0.0
    self.calls = []

  def clock(self):
    return self.now

  def call(self, name, cost):
    def run(case):
      self.calls.append(name)
      # Every third call is disturbed, by more than candidates differ.
      self.now += cost + (10.0 if len(self.calls) % 3 == 0 else 0.0)

    return run


def test_the_fastest_wins_though_calls_are_disturbed():
  machine = Machine()
  costs = {'slow': 3.0, 'fast': 1.0, 'middle': 2.0, 'slower': 4.0}
  calls = {name: machine.call(name, cost) for name, cost in costs.items()}
  times = measure.seconds(calls, 2, rounds=9, clock=machine.clock)
  assert measure.fastest(times) == 'fast'
  assert times == {name: 2 * cost for name, cost in costs.items()}


def test_candidates_take_turns():
  machine = Machine()
  calls = {name: machine.call(name, 1.0) for name in 'abc'}
  measure.seconds(calls, 1, rounds=3, clock=machine.clock)
  warm, rounds = machine.calls[:3], machine.calls[3:]
  assert warm == list('abc')
  assert rounds == list('abcbcacab')


def _fake_space(costs, machine):
  """A kernel whose tile `rows` takes costs[rows] seconds."""

  def call(form, a, b, case, choice):
    def wait(a):
      machine.now += costs[choice['rows']]
      return a

    return jax.pure_callback(wait, a, a)

  return spaces.Space(
    op='fake',
    forms={'nn': 1, 'nt': 1, 'tn': 1},
    chip=lambda: 'a chip',
    candidates=lambda problem: [{'rows': rows} for rows in costs],
    call=call,
  )


@pytest.mark.parametrize('form', ['nn', 'nt', 'tn'])
def test_the_fastest_is_stored_and_found_again(form, file):
  machine = Machine()
  space = _fake_space({16: 3.0, 32: 1.0, 64: 2.0}, machine)
  entry, times = tuner.tune(
    space, form, SHAPE, 'float32', rounds=3, clock=machine.clock
  )
  store.put(file, entry)
  assert store.tuned('fake', form, _key(chip='a chip')) == {'rows': 32}
  assert list(times.values()) == [6.0, 2.0, 4.0]
  (stored,) = json.loads(file.read_text())['entries'].values()
  assert stored['jax'] == jax.__version__
  assert stored['seconds'] == times


def test_what_differs_in_a_key_finds_nothing(file):
  key = _key()
  store.put(file, {key.text('op', 'nn'): ENTRY})
  assert store.tuned('op', 'nn', key) == ENTRY['choice']
  others = [_key((256, 4, 8, 17)), _key((256, 4, 9, 16)), _key((600, 4, 8, 16))]
  others += [_key(dtype='bfloat16'), _key(chip='v5e'), _key((256, 9, 8, 16))]
  assert [store.tuned('op', 'nn', k) for k in others] == [None] * len(others)
  assert store.tuned('op', 'nt', key) is None
  assert store.tuned('other', 'nn', key) is None


def test_a_bucket_is_the_nearest_power_of_two():
  assert [store.bucket(n) for n in (1, 2, 3, 5, 6, 90, 91)] == [
    *(1, 2, 4, 4, 8, 64, 128)
  ]


def test_new_choices_replace_old_ones_and_leave_others(file):
  store.put(file, {'a': ENTRY, 'b': ENTRY})
  new = {**ENTRY, 'choice': {'step': 64, 'most': 64}}
  store.put(file, {'b': new})
  assert store.entries(file) == {'a': ENTRY, 'b': new}
  assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_the_loop_on_cpu_uses_what_is_stored(file):
  rng = np.random.default_rng(0)
  rows, groups, d, f = SHAPE
  x = jnp.asarray(rng.normal(size=(rows, d)), jnp.float32)
  w = jnp.asarray(rng.normal(size=(groups, d, f)), jnp.float32)
  sizes_E = jnp.array([100, 0, 56, 100], jnp.int32)

  def loops():
    """Loops of the program: one for each row count."""
    run = jax.jit(lambda x: grouped_matmul(x, w, sizes_E))
    text = str(jax.make_jaxpr(lambda x: cpu.nn(x, w, sizes_E))(x))
    return text.count('while['), run(x)

  before, want = loops()
  assert before == len(tiles.row_counts(rows, groups)) == 2
  store.put(file, {_key().text(cpu.OP, 'nn'): ENTRY})
  after, got = loops()
  assert after == 4
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_the_kernel_on_tpu_uses_what_is_stored(file):
  p = Problem('nn', 4096, 8, 512, 1024, 2)
  by_model = tile_shapes.choose_tiles(p, 'v5e')
  other = next(
    t for t in tile_shapes.candidates(p, chips.CHIPS['v5e']) if t != by_model
  )
  choice = {'rows': other.rows, 'd': other.d, 'f': other.f}
  key = store.Key('v5e', 4096, 8, 512, 1024, 'bfloat16')
  store.put(file, {key.text(tile_shapes.OP, 'nn'): {**ENTRY, 'choice': choice}})
  assert tile_shapes.choose_tiles(p, 'v5e') == other
  with chips.target('v5e'):
    assert tile_shapes.settle(p, None, None) == TileShape(**choice)
  assert tile_shapes.choose_tiles(p, 'v6e') == tile_shapes.modelled(p, 'v6e')


def _layer(dtype, form='forward'):
  """Operands and a plan of a layer of SHAPE."""
  p = Problem(form, *SHAPE, jnp.dtype(dtype).itemsize)
  return operands.layer(p, dtype, 0), operands.plan(p, 0, 0.0)


@pytest.mark.parametrize('form', ['forward', 'backward'])
def test_the_layer_on_cpu_uses_what_is_stored(form, file):
  (space, *_) = spaces.SPACES['expert_ffn']
  args, plan = _layer('float32', form)

  def loops(**steps):
    x, matrices, weights, kept, dy = args
    rest = (kept, dy) if form == 'backward' else ()
    keep = {} if rest else {'keep': True}
    run = functools.partial(
      getattr(layer_cpu, form), activation=jax.nn.silu, **keep, **steps
    )
    jaxpr = jax.make_jaxpr(run)(x, matrices, weights, plan, *rest)
    return str(jaxpr).count('while[')

  assert loops() == 2
  store.put(file, {_key().text(space.op, form): ENTRY})
  assert loops() == 4
  assert loops(steps=tiles.RowSteps(64, 64)) == 1


def test_the_kernels_on_gpu_use_what_is_stored(file):
  choice = {**dict.fromkeys(('block_m', 'block_n', 'block_k'), 16)}
  entry, other = {**ENTRY, 'choice': choice}, gpu_tiles.Tiles(32, 32, 32)
  (x, matrices, *_), plan = _layer('bfloat16')
  by_rule = layer_gpu.layer_tiles(x, matrices, plan)
  key = _key(dtype='bfloat16', chip='h100')
  store.put(file, {key.text(layer_gpu.OP, 'dh'): entry})
  found = layer_gpu.layer_tiles(x, matrices, plan, {'up': other})
  assert found == by_rule | {'up': other, 'dh': gpu_tiles.Tiles(16, 16, 16)}
  store.put(file, {key.text(pallas_gpu.OP, 'tn'): entry})
  product = pallas_gpu.product_of('tn', SHAPE, jnp.bfloat16)
  for form, want in (('tn', gpu_tiles.Tiles(16, 16, 16)), ('nn', None)):
    got = gpu_tiles.settle(pallas_gpu.OP, form, SHAPE, None, product)
    assert got == (want or gpu_tiles.choose_tiles(product))


def test_the_fused_kernels_on_tpu_use_what_is_stored(file):
  rows = jax.ShapeDtypeStruct((4096, 512), jnp.bfloat16)
  down = jax.ShapeDtypeStruct((8, 1024, 512), jnp.bfloat16)
  sizes = jax.ShapeDtypeStruct((8,), jnp.int32)
  pre = jax.ShapeDtypeStruct((4096, 1024), jnp.bfloat16)
  work = tpu_kernels.down_backward_work(rows, down, [pre, pre], sizes)
  by_model, other, *_ = work.candidates(chips.CHIPS['v5e'])
  assert work.choose('v5e') == by_model
  choice = dataclasses.asdict(other)
  key = store.Key('v5e', 4096, 8, 512, 1024, 'bfloat16')
  store.put(file, {key.text(tpu_tiles.OP, 'dh'): {**ENTRY, 'choice': choice}})
  assert work.choose('v5e') == other


@pytest.mark.parametrize(
  'op, at', [(o, a) for o in spaces.SPACES for a in (1, 2)]
)
def test_calls_for_machines_that_are_not_here_give_what_cpu_gives(op, at, file):
  here, space = spaces.SPACES[op][0], spaces.SPACES[op][at]
  assert space.chip() is None

  def results(space, form, p, args):
    call = functools.partial(space.call, form)
    choice = space.candidates(p)[0]
    return jax.eval_shape(lambda *args: call(*args, choice), *args)

  for form, products in space.forms.items():
    p = Problem(form, *SHAPE, 2)
    case = jax.tree.map(jnp.asarray, space.case(p, 0, 1.0))
    args = *space.operands(p, 'bfloat16', 0), case
    form_here = {3: 'forward', 6: 'backward'}.get(products, form)
    assert results(space, form, p, args) == results(here, form_here, p, args)


def test_tiles_that_do_not_fit_the_chip_are_refused(file):
  p = Problem('nn', 4096, 8, 512, 1024, 2)
  key = store.Key('v4', 4096, 8, 512, 1024, 'bfloat16')
  choice = {'rows': 4096, 'd': 512, 'f': 1024}
  store.put(file, {key.text(tile_shapes.OP, 'nn'): {**ENTRY, 'choice': choice}})
  with pytest.raises(ValueError, match='v4 has'):
    tile_shapes.choose_tiles(p, 'v4')


@pytest.mark.parametrize(
  'text, message',
  [
    ('{"format": "pallas_k', 'no JSON'),
    ('', 'no JSON'),
    ('[1, 2]', 'its format is not'),
    ('{"format": "something else", "entries": {}}', 'its format is not'),
    ('{"format": "pallas_kernels.tune 1"}', 'no entries'),
    (
      '{"format": "pallas_kernels.tune 1", "entries": {"a": 3}}',
      "'a' has no choice",
    ),
  ],
)
def test_damage_is_refused_with_path_and_fix(text, message, file):
  file.parent.mkdir()
  file.write_text(text)
  for use in (
    lambda: store.tuned('op', 'nn', _key()),
    lambda: store.put(file, {'a': ENTRY}),
    lambda: cpu.nn(jnp.ones((4, 2)), jnp.ones((1, 2, 3)), jnp.array([4])),
  ):
    with pytest.raises(ValueError, match=message) as refused:
      use()
    assert str(file) in str(refused.value)
    assert 'Delete it' in str(refused.value)
  assert file.read_text() == text


@pytest.mark.parametrize(
  'choice, message',
  [
    ({'step': 0, 'most': 64}, 'step=0 is not a positive integer'),
    ({'step': True, 'most': 64}, 'step=True is not'),
    ({'step': '64', 'most': 64}, "step='64' is not"),
  ],
)
def test_choices_that_are_no_sizes_are_refused(choice, message, file):
  with pytest.raises(ValueError, match=message):
    store.put(file, {'a': {**ENTRY, 'choice': choice}})
  assert not file.exists()


@pytest.mark.parametrize('choice', [{'rows': 64}, {'step': 128, 'most': 64}])
def test_tiles_of_another_kernel_are_refused(choice, file):
  key = _key((4, 1, 2, 3))
  store.put(file, {key.text(cpu.OP, 'nn'): {**ENTRY, 'choice': choice}})
  with pytest.raises(ValueError, match=f'{file}.*is no RowSteps'):
    cpu.nn(jnp.ones((4, 2)), jnp.ones((1, 2, 3)), jnp.array([4]))


def _run_command(*arguments):
  flags = command.flags.FLAGS
  flags.unparse_flags()
  for name in ('op', 'shape', 'layer', 'dtype', 'form', 'rounds', 'file'):
    flags[name].unparse()
  command.run(flags(['tune', *arguments]))


@pytest.mark.parametrize(
  'op, form', [('grouped_matmul', 'nn'), ('expert_ffn', 'forward')]
)
def test_the_command_measures_and_stores(op, form, file, monkeypatch, capsys):
  two = [{'step': 64, 'most': 64}, {'step': 128, 'most': 128}]
  space = spaces.SPACES[op][0]
  fewer = dataclasses.replace(space, candidates=lambda problem: two)
  monkeypatch.setitem(spaces.SPACES, op, (fewer,))
  _run_command(
    f'--op={op}', '--shape=256,4,8,16', f'--form={form}', '--rounds=1'
  )
  assert store.tuned(space.op, form, _key()) in two
  told = capsys.readouterr().out
  assert told.count(' GFLOP/s') == 2 and str(file) in told


@pytest.mark.parametrize(
  'arguments, message',
  [
    ((), 'nothing to tune'),
    (('--shape=3,4,5',), 'four positive integers'),
    (('--shape=3,4,5,x',), 'four positive integers'),
    (('--shape=3,4,5,0',), 'four positive integers'),
    (('--shape=1,1,1,1', '--form=up'), '--form=up is none of grouped_matmul'),
    (('--op=sort', '--shape=1,1,1,1'), "op='sort' has no tiles to tune"),
    (('--shape=1,1,1,1', 'more'), "what is 'more'"),
  ],
)
def test_the_command_refuses(arguments, message, file):
  with pytest.raises(ValueError, match=message):
    _run_command(*arguments)
  assert not file.exists()
