"""Checkpoints: round trips, other meshes, and damage that must be noticed."""

import contextlib
import functools
import json
import pathlib
import resource

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from moejax import checkpoint, optim


def _mesh(data, expert):
  return jax.make_mesh(
    (data, expert), ('data', 'expert'), axis_types=(AxisType.Auto,) * 2
  )


def _place(tree, mesh):
  def put(leaf):
    spec = P('expert', 'data') if leaf.ndim == 3 else P()
    return jax.device_put(leaf, NamedSharding(mesh, spec))

  return jax.tree.map(put, tree)


@functools.cache
def _state(seed=0, mesh=(4, 2)):
  keys = jax.random.split(jax.random.key(seed), 3)
  params = {
    'gate': jax.random.normal(keys[0], (4, 8, 16)),
    'embed': jax.random.normal(keys[1], (32, 16)).astype(jnp.bfloat16),
  }
  tx = optim.Chain().transformation(params, total_steps=5)
  state = {
    'step': jnp.int32(seed),
    'params': params,
    'opt': tx.init(params),
    'rng': keys[2],
  }
  return _place(state, _mesh(*mesh))


def _abstract(state):
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=leaf.sharding
    ),
    state,
  )


def _data():
  source = grain.MapDataset.range(100).shuffle(seed=3).repeat()
  return iter(source.to_iter_dataset().batch(4))


def _bytes(tree):
  return [
    np.asarray(checkpoint._raw(leaf)).tobytes()
    for leaf in jax.tree.leaves(tree)
  ]


def _three_steps(folder, **fields):
  """Saves steps 1, 2 and 3 and returns the lines it said."""
  lines = []
  data = _data()
  with checkpoint.Checkpoints(folder, 1, say=lines.append, **fields) as steps:
    for step in (1, 2, 3):
      next(data)
      steps.save(step, _state(step), data)
  return lines


def _payload(folder, step):
  """The largest file of arrays of one step."""
  files = [p for p in pathlib.Path(folder, str(step)).rglob('*') if p.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


def test_round_trip_is_bitwise_with_iterator_and_key(tmp_path):
  state, data = _state(1), _data()
  for _ in range(3):
    next(data)
  with checkpoint.Checkpoints(tmp_path, every_steps=2) as steps:
    assert steps.save(2, state, data)
    following = [next(data) for _ in range(3)]  # While it is being written.
  fresh = _data()
  with checkpoint.Checkpoints(tmp_path, every_steps=2) as steps:
    got, step = steps.restore(_abstract(state), fresh)
  assert step == 2
  assert _bytes(got) == _bytes(state)
  assert jax.tree.structure(got) == jax.tree.structure(state)
  assert got['rng'].dtype == state['rng'].dtype
  for want in following:
    np.testing.assert_array_equal(next(fresh), want)


def test_values_are_those_at_save_even_if_buffers_are_donated(tmp_path):
  state = {'w': jnp.arange(1 << 22, dtype=jnp.float32)}
  want = _bytes(state)
  bump = jax.jit(lambda tree: {'w': tree['w'] + 1}, donate_argnums=0)
  with checkpoint.Checkpoints(tmp_path) as steps:
    steps.save(1, state, force=True)
    for _ in range(5):
      state = bump(state)
    got, _ = steps.restore(_abstract(state))
  assert _bytes(got) == want


@pytest.mark.parametrize('shape', [(2, 4), (8, 1), (1, 1)])
def test_another_mesh_restores_the_same_bits(tmp_path, shape):
  state = _state(1)
  with checkpoint.Checkpoints(tmp_path) as steps:
    steps.save(1, state, force=True)
    other = _place(state, _mesh(*shape)) if shape != (1, 1) else None
    if other is None:
      other = jax.tree.map(
        lambda leaf: jax.device_put(leaf, jax.devices()[0]), state
      )
    got, _ = steps.restore(_abstract(other))
  assert _bytes(got) == _bytes(state)
  shardings = lambda tree: [x.sharding for x in jax.tree.leaves(tree)]  # noqa: E731
  assert shardings(got) == shardings(other)


def test_nothing_saved_is_none(tmp_path):
  with checkpoint.Checkpoints(tmp_path / 'new') as steps:
    assert steps.restore(_abstract(_state())) is None
    assert steps.latest_step() is None


def test_only_due_or_forced_steps_are_saved_and_old_ones_go(tmp_path):
  state = _state(1)
  with checkpoint.Checkpoints(tmp_path, every_steps=2, keep=2) as steps:
    started = [steps.save(step, state) for step in range(1, 8)]
    assert steps.save(7, state, force=True)
    assert not steps.save(7, state, force=True)
    steps.wait()
    assert steps.steps() == [6, 7]
  assert started == [False, True, False, True, False, True, False]
  kept = [p.name for p in tmp_path.iterdir() if p.is_dir()]
  assert sorted(kept) == ['6', '7']


def test_saved_is_said_only_once_it_is_on_disk(tmp_path):
  lines = []

  def say(line):
    lines.append(line)
    assert (tmp_path / line.split()[2] / '_CHECKPOINT_METADATA').exists()

  with checkpoint.Checkpoints(tmp_path, say=say) as steps:
    steps.save(1, _state(1), force=True)
    assert not lines or steps.latest_step() == 1
    steps.save(2, _state(2), force=True)
  assert [line.split(' in ')[0] for line in lines] == [
    'saved step 1',
    'saved step 2',
  ]


def test_training_does_not_wait_for_a_step_being_written(tmp_path):
  with checkpoint.Checkpoints(tmp_path, every_steps=5) as steps:
    steps.save(5, _state(1))
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(steps._manager, 'is_saving_in_progress', lambda: True)
      patch.setattr(steps._manager, 'wait_until_finished', pytest.fail)
      assert not steps.save(6, _state(1))
      assert steps.latest_step() is None


def test_a_failed_save_raises_and_is_never_called_saved(tmp_path):
  lines = []
  state = {'w': jax.random.normal(jax.random.key(0), (256, 256))}
  with checkpoint.Checkpoints(tmp_path, say=lines.append) as steps:
    steps.save(1, state, force=True)
    steps.wait()
    with _file_size_limit(1 << 16), pytest.raises(ValueError, match='large'):
      steps.save(2, state, force=True)
      steps.wait()
    assert steps.latest_step() == 1
    _, step = steps.restore(_abstract(state))
    assert step == 1
    steps.save(3, state, force=True)
  assert [line.split(' in ')[0] for line in lines] == [
    'saved step 1',
    'saved step 3',
  ]


@contextlib.contextmanager
def _file_size_limit(size_bytes):
  """Writing beyond the limit fails, as on a full disk."""
  old = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, old[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize('damage', ['flip', 'truncate', 'delete', 'listing'])
def test_damage_to_the_newest_falls_back_with_a_line(tmp_path, damage):
  _three_steps(tmp_path, keep=3)
  target = _payload(tmp_path, 3)
  if damage == 'flip':
    _flip(target, target.stat().st_size // 2)
  elif damage == 'truncate':
    target.write_bytes(target.read_bytes()[: target.stat().st_size // 2])
  elif damage == 'delete':
    target.unlink()
  else:
    target = next((tmp_path / '3' / 'listing').glob('*metadata*'))
    target.write_text(target.read_text().replace('float32', 'float64', 1))
  lines, data = [], _data()
  with checkpoint.Checkpoints(tmp_path, 1, say=lines.append) as steps:
    got, step = steps.restore(_abstract(_state(1)), data)
    assert step == 2
    assert _bytes(got) == _bytes(_state(2))
    assert len(lines) == 1 and f'{tmp_path}/3 is corrupt' in lines[0]
    with pytest.raises(checkpoint.CorruptCheckpoint, match='/3 is corrupt'):
      steps.restore(_abstract(_state(1)), _data(), step=3)
    # The number is free again, and the evidence is kept.
    assert steps.save(3, _state(3), data)
    steps.wait()
    assert steps.latest_step() == 3
    assert (tmp_path / 'corrupt-3').exists()
    again, step = steps.restore(_abstract(_state(1)), _data())
  assert step == 3 and _bytes(again) == _bytes(_state(3))


def _flip(path, offset, bit=3):
  raw = bytearray(path.read_bytes())
  raw[offset] ^= 1 << bit
  path.write_bytes(raw)


def test_no_flipped_bit_of_a_payload_is_restored(tmp_path):
  state = {'w': jax.random.normal(jax.random.key(0), (64, 64))}
  with checkpoint.Checkpoints(tmp_path) as steps:
    steps.save(1, state, force=True)
    steps.wait()
    target = _payload(tmp_path, 1)
    size = target.stat().st_size
    for offset in np.linspace(0, size - 1, 24).astype(int):
      _flip(target, offset)
      try:
        got, _ = steps.restore(_abstract(state), step=1)
      except checkpoint.CorruptCheckpoint:
        pass
      else:  # A bit of the container that no array depends on.
        assert _bytes(got) == _bytes(state)
      _flip(target, offset)
    middle = range(size // 4, 3 * size // 4, size // 16)
    for offset in middle:
      _flip(target, offset)
      with pytest.raises(checkpoint.CorruptCheckpoint, match='corrupt: '):
        steps.restore(_abstract(state), step=1)
      _flip(target, offset)


def test_a_changed_data_position_is_corruption(tmp_path):
  _three_steps(tmp_path, keep=3)
  (target,) = (tmp_path / '3' / 'data').glob('process_*.json')
  text = target.read_text()
  assert '"next_index": 12' in text
  target.write_text(text.replace('"next_index": 12', '"next_index": 16'))
  lines, data = [], _data()
  with checkpoint.Checkpoints(tmp_path, say=lines.append) as steps:
    _, step = steps.restore(_abstract(_state(1)), data)
  assert step == 2 and 'data iterator' in lines[0]
  want = _data()
  for _ in range(2):
    next(want)
  np.testing.assert_array_equal(next(data), next(want))


def test_another_data_pipeline_is_a_mistake_not_damage(tmp_path):
  _three_steps(tmp_path)
  source = grain.MapDataset.range(100).to_iter_dataset()
  mixed = iter(grain.IterDataset.mix([source, source], [0.5, 0.5]))
  lines = []
  with checkpoint.Checkpoints(tmp_path, say=lines.append) as steps:
    with pytest.raises(ValueError, match='another data pipeline') as error:
      steps.restore(_abstract(_state(1)), mixed)
    assert not isinstance(error.value, checkpoint.CorruptCheckpoint)
  assert lines == []


def test_a_position_that_was_not_saved_is_asked_for_by_name(tmp_path):
  with checkpoint.Checkpoints(tmp_path) as steps:
    steps.save(1, _state(1), force=True)
    with pytest.raises(ValueError, match='without a data iterator'):
      steps.restore(_abstract(_state(1)), _data())


def test_without_a_listener_damage_is_logged_as_a_warning(tmp_path, caplog):
  _three_steps(tmp_path)
  _payload(tmp_path, 3).unlink()
  with checkpoint.Checkpoints(tmp_path) as steps:
    assert steps.restore(_abstract(_state(1)), _data())[1] == 2
  found = [r for r in caplog.records if r.name == 'moejax.checkpoint']
  assert [(r.levelname, '/3 is corrupt' in r.message) for r in found] == [
    ('WARNING', True)
  ]


def test_all_corrupt_is_an_error_not_a_fresh_start(tmp_path):
  _three_steps(tmp_path, keep=2)
  for step in (2, 3):
    _payload(tmp_path, step).unlink()
  with (
    checkpoint.Checkpoints(tmp_path) as steps,
    pytest.raises(checkpoint.CorruptCheckpoint, match=r'\[2, 3\]'),
  ):
    steps.restore(_abstract(_state(1)), _data())


@pytest.mark.parametrize(
  'change, message',
  [
    ('missing', r'params/gate: saved float32\[4,8,16\], wanted nothing'),
    ('extra', r'params/up: saved nothing, wanted float32\[2\]'),
    ('shape', r'embed: saved bfloat16\[32,16\], wanted bfloat16\[31,16\]'),
    ('dtype', r'gate: saved float32\[4,8,16\], wanted bfloat16\[4,8,16\]'),
    ('key', r'rng: saved key<fry>\[\], wanted uint32\[2\]'),
  ],
)
def test_another_structure_is_refused_by_path(tmp_path, change, message):
  _three_steps(tmp_path)
  wanted = _abstract(_state(1))
  params = wanted['params'] = dict(wanted['params'])
  if change == 'missing':
    del params['gate']
  elif change == 'extra':
    params['up'] = jax.ShapeDtypeStruct((2,), jnp.float32)
  elif change == 'shape':
    params['embed'] = params['embed'].update(shape=(31, 16))
  elif change == 'dtype':
    params['gate'] = params['gate'].update(dtype=jnp.bfloat16)
  else:
    wanted['rng'] = jax.ShapeDtypeStruct((2,), jnp.uint32)
  lines = []
  with checkpoint.Checkpoints(tmp_path, say=lines.append) as steps:
    with pytest.raises(ValueError, match=message) as error:
      steps.restore(wanted, _data())
    assert not isinstance(error.value, checkpoint.CorruptCheckpoint)
  assert lines == []  # A user's mistake must not fall back.


def test_half_written_steps_do_not_count(tmp_path):
  _three_steps(tmp_path)
  half = tmp_path / '9.orbax-checkpoint-tmp' / 'state'
  half.mkdir(parents=True)
  (half / 'd').write_bytes(b'half')
  with checkpoint.Checkpoints(tmp_path) as steps:
    assert steps.latest_step() == 3
    _, step = steps.restore(_abstract(_state(1)), _data())
  assert step == 3


def test_going_back_refuses_to_write_among_later_steps(tmp_path):
  _three_steps(tmp_path)
  with checkpoint.Checkpoints(tmp_path, every_steps=1) as steps:
    steps.restore(_abstract(_state(1)), _data(), step=2)
    with pytest.raises(ValueError, match='Step 1 comes before step 3'):
      steps.save(1, _state(1), _data())
    with pytest.raises(ValueError, match='Step 7 is not in'):
      steps.restore(_abstract(_state(1)), _data(), step=7)


def test_digest_ignores_sharding_and_sees_every_bit():
  array = jax.random.normal(jax.random.key(0), (4, 8, 16))
  want = checkpoint.digest(np.asarray(array))
  assert checkpoint.digest(_place(array, _mesh(4, 2))) == want
  assert checkpoint.digest(_place(array, _mesh(2, 4))) == want
  raw = np.asarray(array).view(np.uint32).copy()
  for bit in range(32):
    raw[1, 2, 3] ^= np.uint32(1 << bit)
    assert checkpoint.digest(raw) != want
    raw[1, 2, 3] ^= np.uint32(1 << bit)
  assert checkpoint.digest(raw) == want


@pytest.mark.parametrize('field', ['every_steps', 'keep'])
def test_counts_below_one_are_refused(tmp_path, field):
  with pytest.raises(ValueError, match=f'{field}=0'):
    checkpoint.Checkpoints(tmp_path, **{field: 0})


def test_listing_is_readable_json(tmp_path):
  _three_steps(tmp_path)
  (path,) = (tmp_path / '3' / 'listing').glob('*metadata*')
  leaf = json.loads(path.read_text())['leaves']['params/gate']
  assert leaf['shape'] == [4, 8, 16] and leaf['dtype'] == 'float32'
  assert leaf['crc32'] == checkpoint.digest(_state(3)['params']['gate'])
