"""Small files that other programs read: atomic, and strict JSON."""

import json
import math
import os
import pathlib
import tempfile


def folder(workdir):
  """The local folder `workdir` as a Path, created if it is missing.

  Raises:
    ValueError: `workdir` is a URL (a mounted path is needed), or cannot be
      written.
  """
  if '://' in str(workdir):
    raise ValueError(
      f'workdir={str(workdir)!r} is a URL; logs and sweeps are appended and '
      'renamed in place, so give a local or mounted folder.'
    )
  path = pathlib.Path(workdir)
  try:
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
      pass
  except OSError as error:
    raise ValueError(
      f'workdir={str(workdir)!r} cannot be written ({error.strerror}); choose '
      'another --workdir.'
    ) from error
  return path


def write_atomic(path, text):
  """Writes `text` so that readers see the old file or all of the new one."""
  path = pathlib.Path(path)
  partial = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  with open(partial, 'w', encoding='utf-8') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(partial, path)


def strict(value, where='value'):
  """`value` in types that strict JSON can hold.

  Arrays and their scalars become Python numbers and lists; nan and the
  infinities become the strings 'nan', 'inf' and '-inf'; tuples become lists.

  Raises:
    ValueError: a value of any other type, named by `where`.
  """
  if hasattr(value, 'tolist'):
    value = value.tolist()
  if value is None or isinstance(value, (bool, int, str)):
    return value
  if isinstance(value, float):
    return float(value) if math.isfinite(value) else str(float(value))
  if hasattr(value, 'items'):
    return {str(k): strict(v, f'{where}.{k}') for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [strict(v, f'{where}[{i}]') for i, v in enumerate(value)]
  raise ValueError(
    f'{where} is a {type(value).__name__}, which JSON cannot hold; return '
    'numbers, strings, None, and lists or dicts of them.'
  )


def dumps(value, **options):
  """Strict JSON text of `value`, see `strict`."""
  return json.dumps(strict(value), allow_nan=False, **options)
