"""The file of measured choices.

One JSON file, by default `tuned.json` beside this module, else the one that
the environment variable `PALLAS_KERNELS_TUNED` names. A choice holds for a
chip, an operation, its form, a bucket of shapes and a dtype; for any other key
a kernel goes by its own rule. What is stored changes speed, never a result.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import platform

FORMAT = 'pallas_kernels.tune 1'
VARIABLE = 'PALLAS_KERNELS_TUNED'
DEFAULT = pathlib.Path(__file__).parent / 'tuned.json'
_ENTRY = {'choice': dict, 'seconds': dict, 'jax': str, 'date': str}


@dataclasses.dataclass(frozen=True)
class Key:
  """What a choice depends on; `rows` and `groups` by their power of 2.

  Attributes:
    chip: a name of `chips.CHIPS`, or `host()`.
    rows: R.
    groups: E.
    d: of the matrices [E, D, F].
    f: likewise.
    dtype: of the operands, by name.
  """

  chip: str
  rows: int
  groups: int
  d: int
  f: int
  dtype: str

  def text(self, op: str, form: str) -> str:
    """How the key is written in the file."""
    rows, groups = bucket(self.rows), bucket(self.groups)
    return (
      f'{self.chip} | {op} | {form} | rows {rows} groups {groups} '
      f'd {self.d} f {self.f} | {self.dtype}'
    )


def bucket(n: int) -> int:
  """The power of 2 that is nearest to `n` on a logarithmic scale."""
  low = 1 << (n.bit_length() - 1)
  return low if n * n <= 2 * low * low else 2 * low


@functools.cache
def host() -> str:
  """The kind of this machine's CPU, and how many threads it runs."""
  model = platform.machine()
  info = pathlib.Path('/proc/cpuinfo')
  if info.exists():
    lines = info.read_text().splitlines()
    names = [x.split(':', 1)[1] for x in lines if x.startswith('model name')]
    model = ' '.join(names[0].split()) if names else model
  return f'{model}, {len(os.sched_getaffinity(0))} threads'


def path() -> pathlib.Path:
  """The file that is read and written."""
  return pathlib.Path(os.environ.get(VARIABLE) or DEFAULT)


def tuned(op: str, form: str, key: Key) -> dict[str, int] | None:
  """The measured choice, or `None` where there is none.

  Raises:
    ValueError: the file is not one of these.
  """
  entry = entries(path()).get(key.text(op, form))
  return None if entry is None else dict(entry['choice'])


def build(cls: type, choice: dict[str, int]):
  """The tiles `cls` of a choice.

  Raises:
    ValueError: the choice is of other tiles.
  """
  try:
    return cls(**choice)
  except (TypeError, ValueError) as error:
    why = f'{choice} is no {cls.__name__} ({error})'
    raise _refused(path(), why) from error


def entries(file: pathlib.Path) -> dict[str, dict]:
  """Everything in `file`, by `Key.text`; empty if there is no such file."""
  try:
    stat = file.stat()
  except FileNotFoundError:
    return {}
  return _read(file, stat.st_mtime_ns, stat.st_size)


def put(file: pathlib.Path, new: dict[str, dict]) -> None:
  """Adds to `file`, in place of what it had for the same keys.

  Raises:
    ValueError: the file is there and is not one of these, or an entry is not.
  """
  content = {**entries(file), **new}
  _check(file, content)
  text = json.dumps(
    {'format': FORMAT, 'entries': dict(sorted(content.items()))}, indent=1
  )
  file.parent.mkdir(parents=True, exist_ok=True)
  # Renamed when whole, so that nobody reads half of it.
  part = file.with_name(f'{file.name}.{os.getpid()}.part')
  part.write_text(text + '\n')
  part.replace(file)
  _read.cache_clear()


# Asked for by time and size, so that a file that has changed is read again.
@functools.lru_cache(maxsize=8)
def _read(file, _mtime_ns, _size):
  try:
    content = json.loads(file.read_text())
  except ValueError as error:
    raise _refused(file, f'it is no JSON ({error})') from error
  if not isinstance(content, dict) or content.get('format') != FORMAT:
    raise _refused(file, f'its format is not {FORMAT!r}')
  _check(file, content.get('entries'))
  return content['entries']


def _check(file, content):
  if not isinstance(content, dict):
    raise _refused(file, 'it has no entries')
  for key, entry in content.items():
    for name, kind in _ENTRY.items():
      if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
        raise _refused(file, f'{key!r} has no {name} ({kind.__name__})')
    for name, value in entry['choice'].items():
      if type(value) is not int or value < 1:
        raise _refused(
          file, f'{key!r}: {name}={value!r} is not a positive integer'
        )


def _refused(file, why):
  return ValueError(
    f'{file} holds no measured tiles: {why}. Delete it and measure again '
    f'(python -m pallas_kernels.tune --help), or let {VARIABLE} name another '
    'file.'
  )
