"""Checkpoints: orbax's atomic, asynchronous steps, with digests.

Orbax alone restores a file with a flipped bit without a word, casts a wrong
dtype silently, and calls a step its latest before it is on disk. So each step
also holds a listing: path, shape, dtype and CRC-32 of every leaf, and the
digest of the data iterator's state.

The digests are taken from the host's bytes while `save` blocks (a donated
buffer may be gone a moment later), by a few threads: about 0.1 s for 250 MB
of f32 on two busy CPU cores, and as much again on restore. On an accelerator
add one copy to the host.

With several processes a leaf that no process holds whole has no digest, only
process 0 verifies its iterator, and damage raises instead of falling back,
because the processes might not agree on the step.
"""

import concurrent.futures
import contextlib
import json
import logging
import os
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from grain import checkpoint as grain_checkpoint

from moejax.optim.parameters import slashed

LISTING = 'listing'
LOGGER = logging.getLogger(__name__)
THREADS = min(8, os.cpu_count() or 1)


class CorruptCheckpoint(ValueError):
  """A step on disk is not what was saved; says which step and leaf."""


class Checkpoints:
  """The steps of one folder; a context manager that closes on exit.

  Args:
    folder: where the steps go, one subfolder each; made when missing.
    every_steps: `save` acts on multiples of this. None: only when forced.
    keep: how many steps stay; at least 2 leave one to fall back to. None: all.
    say: called with one line at each event worth telling. None: logged.

  Raises: ValueError on a count that cannot be.
  """

  def __init__(self, folder, every_steps=None, keep=2, say=None):
    for name, count in (('every_steps', every_steps), ('keep', keep)):
      if count is not None and count < 1:
        raise ValueError(f'{name}={count} is no count; give 1 or more.')
    self.folder = epath.Path(folder).resolve()
    self.every_steps = every_steps
    self._say = say
    self._pending = None
    self._corrupt = set()
    self._manager = ocp.CheckpointManager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=True,
        cleanup_tmp_directories=True,
        enable_async_checkpointing=True,
      ),
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def latest_step(self):
    """The newest step that is completely on disk, or None."""
    steps = self.steps()
    return steps[-1] if steps else None

  def steps(self):
    """Every step that is completely on disk, ascending."""
    self._announce()
    writing = {self._pending}
    return sorted(set(self._manager.all_steps()) - writing)

  def save(self, step, state, data_iterator=None, force=False):
    """Starts to save if the step is due; True if it started.

    Call it every step. It returns before the step is on disk, and the values
    saved are those of this moment whatever happens to the buffers. Only
    `wait`, `close` or a later call say "saved step N", and raise if it
    failed. A step that is there already is not saved again.

    Raises: ValueError for a step before the newest one in the folder.
    """
    self._announce()
    due = self.every_steps is not None and step % self.every_steps == 0
    if not (due or force):
      return False
    self.wait()
    self._set_corrupt_aside()
    latest = self.latest_step()
    if latest is not None and step <= latest:
      if step == latest:
        return False
      raise ValueError(
        f'Step {step} comes before step {latest} in {self.folder}; save to '
        'another folder, or remove the later steps to go on from an earlier.'
      )
    position = _position(data_iterator)
    items = {
      'state': ocp.args.StandardSave(state),
      LISTING: ocp.args.JsonSave(_sealed(_listing(state), position)),
    }
    if data_iterator is not None:
      items['data'] = grain_checkpoint.CheckpointSave(data_iterator)
    self._pending = step
    self._manager.save(step, args=ocp.args.Composite(**items), force=True)
    return True

  def restore(self, abstract_state, data_iterator=None, step=None):
    """(state, step) from the newest sound step, or None if there is none.

    `abstract_state` is a tree of `jax.ShapeDtypeStruct`; a `sharding` on a
    leaf says where it goes, on this mesh or another. The data iterator, a
    fresh one, is set in place. Without `step`, a corrupt step is reported
    and the one before it is taken.

    Raises: ValueError where paths, shapes or dtypes differ from what was
    saved; CorruptCheckpoint if `step`, or every step, is corrupt.
    """
    self.wait()
    steps = self.steps()
    if step is not None:
      if step not in steps:
        raise ValueError(
          f'Step {step} is not in {self.folder}; it has {steps or "none"}.'
        )
      return self._read(step, abstract_state, data_iterator), step
    for newest in reversed(steps):
      try:
        return self._read(newest, abstract_state, data_iterator), newest
      except CorruptCheckpoint as error:
        if jax.process_count() > 1:
          raise
        self._corrupt.add(newest)
        self._tell(
          logging.WARNING, f'{error} Falling back to the step before it.'
        )
    if steps:
      raise CorruptCheckpoint(
        f'Every step in {self.folder} is corrupt: {steps}; start anew in '
        'another folder.'
      )
    return None

  def preempted(self, step):
    """True on every process alike once a SIGTERM asks the run to end.

    It needs `jax.distributed`; without it, always False.
    """
    return self._manager.reached_preemption(step)

  def wait(self):
    """Blocks until what was started is on disk; raises if it failed."""
    try:
      self._manager.wait_until_finished()
    except BaseException:
      self._pending = None
      raise
    self._announce()

  def close(self):
    """Waits and lets go of the folder."""
    try:
      self.wait()
    finally:
      self._manager.close()

  def _announce(self):
    """Says that the pending step is saved, once it is."""
    if self._pending is None or self._manager.is_saving_in_progress():
      return
    step, self._pending = self._pending, None
    self._manager.wait_until_finished()  # Raises what the thread met.
    self._tell(logging.INFO, f'saved step {step} in {self.folder}')

  def _tell(self, level, line):
    if self._say is None:
      LOGGER.log(level, line)
    else:
      self._say(line)

  def _set_corrupt_aside(self):
    """Renames steps found corrupt, so that their numbers are free again."""
    for step in sorted(self._corrupt):
      aside = self.folder / f'corrupt-{step}'
      while aside.exists():
        aside = self.folder / f'{aside.name}-again'
      (self.folder / str(step)).rename(aside)
    if self._corrupt:
      self._corrupt.clear()
      self._manager.reload()

  def _read(self, step, abstract_state, data_iterator):
    where = self.folder / str(step)
    with _damage(where, 'its listing is unreadable'):
      listing = self._item(step, LISTING, ocp.args.JsonRestore())
    _unseal(listing, where)
    _check_structure(listing['leaves'], abstract_state, where)
    if data_iterator is not None:
      _check_position(listing['data'], where)
    with _damage(where, 'its arrays are unreadable'):
      state = self._item(
        step, 'state', ocp.args.StandardRestore(abstract_state)
      )
    _check_digests(listing['leaves'], state, where)
    if data_iterator is not None:
      self._set_position(step, data_iterator)
    return state

  def _set_position(self, step, data_iterator):
    args = grain_checkpoint.CheckpointRestore(data_iterator)
    try:
      self._item(step, 'data', args)
    except Exception as error:  # Grain raises KeyError and others.
      raise ValueError(
        f'{self.folder / str(step)} holds the position of another data '
        f'pipeline ({_first_line(error)}); use the config it was saved with.'
      ) from error

  def _item(self, step, name, args):
    composite = ocp.args.Composite(**{name: args})
    return self._manager.restore(step, args=composite)[name]


@contextlib.contextmanager
def _damage(where, complaint):
  """Turns what damaged files raise into CorruptCheckpoint."""
  try:
    yield
  except (MemoryError, jax.errors.JaxRuntimeError):
    raise  # The machine's limits are no damage.
  except Exception as error:  # Orbax raises bare ones.
    raise CorruptCheckpoint(
      f'Checkpoint {where} is corrupt: {complaint} ({_first_line(error)}).'
    ) from error


def digest(leaf):
  """CRC-32 of an array's bytes in row-major order, as 8 hex digits.

  None for an array of which this process holds only a part. The sharding
  makes no difference.
  """
  leaf = _raw(leaf)
  if isinstance(leaf, jax.Array) and not (
    leaf.is_fully_addressable or leaf.is_fully_replicated
  ):
    return None
  host = np.ascontiguousarray(np.asarray(leaf))
  return f'{zlib.crc32(host.reshape(-1).view(np.uint8)):08x}'


def _raw(leaf):
  """A typed random key as its integers, anything else as it is."""
  dtype = getattr(leaf, 'dtype', None)
  if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
    return jax.random.key_data(leaf)
  return leaf


def _flat(tree):
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {slashed(path): leaf for path, leaf in leaves}


def _digests(tree):
  flat = _flat(tree)
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    return dict(zip(flat, pool.map(digest, flat.values()), strict=True))


def _listing(state):
  flat = _flat(state)
  return {
    path: {'shape': list(np.shape(leaf)), 'dtype': _dtype(leaf), 'crc32': crc}
    for (path, leaf), crc in zip(
      flat.items(), _digests(state).values(), strict=True
    )
  }


def _dtype(leaf):
  return str(leaf.dtype if hasattr(leaf, 'dtype') else np.asarray(leaf).dtype)


def _position(data_iterator):
  """Digest of the iterator's state, or None without an iterator."""
  if data_iterator is None:
    return None
  state = data_iterator.get_state()
  return _json_crc(json.loads(state) if isinstance(state, bytes) else state)


def _check_position(saved, where):
  """Raises: ValueError without a position, CorruptCheckpoint if it changed."""
  process, count = jax.process_index(), jax.process_count()
  path = where / 'data' / f'process_{process}-of-{count}.json'
  if saved is None:
    raise ValueError(
      f'{where} was saved without a data iterator; restore without one.'
    )
  others = [p.name for p in path.parent.glob('process_*')]
  if others and path.name not in others:
    raise ValueError(
      f'{where} has data positions {others} but this run needs {path.name}; '
      'resume with as many processes as saved it.'
    )
  with _damage(where, "the data iterator's state is unreadable"):
    found = _json_crc(json.loads(path.read_text()))
  if process == 0 and found != saved:
    raise CorruptCheckpoint(
      f"Checkpoint {where} is corrupt: the data iterator's state is not the "
      'one saved.'
    )


def _sealed(leaves, position):
  body = {'leaves': leaves, 'data': position}
  return body | {'crc32': _json_crc(body)}


def _unseal(listing, where):
  """Raises: CorruptCheckpoint unless the listing is what was written."""
  body = {key: value for key, value in listing.items() if key != 'crc32'}
  if listing.get('crc32') != _json_crc(body):
    raise CorruptCheckpoint(
      f'Checkpoint {where} is corrupt: its listing does not match its digest.'
    )


def _json_crc(tree):
  return f'{zlib.crc32(json.dumps(tree, sort_keys=True).encode()):08x}'


def _check_structure(saved, abstract_state, where):
  """Raises: ValueError naming the leaves that differ, never a cast."""
  wanted = {}
  for path, leaf in _flat(abstract_state).items():
    wanted[path] = {'shape': list(leaf.shape), 'dtype': str(leaf.dtype)}
    if getattr(leaf, 'sharding', None) is not None:
      leaf.sharding.shard_shape(leaf.shape)  # Raises where it cannot divide.
  lines = []
  for path in sorted(saved.keys() | wanted.keys()):
    there, here = _text(saved.get(path)), _text(wanted.get(path))
    if there != here:
      lines.append(f'{path}: saved {there}, wanted {here}')
  if lines:
    more = f'; and {len(lines) - 5} more' if len(lines) > 5 else ''
    raise ValueError(
      f'Checkpoint {where} holds another state in {len(lines)} of its leaves '
      f'({"; ".join(lines[:5])}{more}); use the config it was trained with.'
    )


def _text(leaf):
  if leaf is None:
    return 'nothing'
  return f'{leaf["dtype"]}[{",".join(map(str, leaf["shape"]))}]'


def _check_digests(saved, state, where):
  bad = [
    path
    for path, crc in _digests(state).items()
    if None not in (crc, saved[path]['crc32']) and crc != saved[path]['crc32']
  ]
  if bad:
    raise CorruptCheckpoint(
      f'Checkpoint {where} is corrupt: the bytes of {bad[0]} are not those '
      f'saved ({len(bad)} of {len(saved)} leaves differ).'
    )


def _first_line(error):
  text = str(error).strip() or type(error).__name__
  return text.splitlines()[0][:200]
