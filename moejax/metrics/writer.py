"""A run's scalars: metrics.jsonl and TensorBoard."""

import json
import math

import jax
import tensorboardX

from moejax import files


class Writer:
  """Appends one JSON object a line to `workdir/metrics.jsonl`.

  Each line is strict JSON: the key 'step', then the scalars as given, where
  non-finite numbers are the strings 'nan', 'inf' and '-inf'. A value is a
  number, None, or a list or array [L] of one number per layer. TensorBoard gets
  the same numbers under `workdir/tensorboard`, layers as `name/layer_03`.
  Processes other than 0 write nothing.
  """

  def __init__(self, workdir, tensorboard=True):
    self._active = jax.process_index() == 0
    self._tensorboard = tensorboard
    self._file = self._events = self._purge_step = None
    if self._active:
      self._folder = files.folder(workdir)
      self._path = self._folder / 'metrics.jsonl'

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()

  def write(self, step, scalars):
    """Writes one line; it is on its way to the disk when this returns.

    Raises:
      ValueError: a value is neither a number nor one number per layer.
    """
    if not self._active:
      return
    row = {'step': int(step)}
    for name, value in scalars.items():
      row[name] = _checked(name, files.strict(value, name))
    self._open()
    self._file.write(json.dumps(row, allow_nan=False) + '\n')
    self._file.flush()
    if self._events is not None:
      for tag, value in _tags(row):
        self._events.add_scalar(tag, value, row['step'])

  def rewind(self, step):
    """Drops what was logged after `step`, the step of the checkpoint in use.

    Then the log goes on as if the run had not been cut. `step=-1` drops all.

    Raises:
      ValueError: a line other than a half-written last one is not JSON.
    """
    if not self._active:
      return
    self.close()
    self._purge_step = step + 1
    if not self._path.exists():
      return
    lines = self._path.read_text(encoding='utf-8').splitlines(keepends=True)
    kept = [
      line
      for number, line in enumerate(lines, 1)
      if line.endswith('\n') and self._step(line, number) <= step
    ]
    if len(kept) < len(lines):
      files.write_atomic(self._path, ''.join(kept))

  def close(self):
    """Ends both logs; a later `write` opens them again."""
    for log in (self._file, self._events):
      if log is not None:
        log.close()
    self._file = self._events = None

  def _open(self):
    if self._file is not None:
      return
    _end_with_whole_line(self._path)
    self._file = open(self._path, 'a', encoding='utf-8')  # noqa: SIM115
    if self._tensorboard:
      folder = files.folder(self._folder / 'tensorboard')
      # A file is named after the second in which it is opened: without a
      # number, one that is opened in the same second would overwrite it.
      number = sum(1 for _ in folder.iterdir())
      self._events = tensorboardX.SummaryWriter(
        str(folder),
        purge_step=self._purge_step,
        filename_suffix=f'.{number:04}',
      )

  def _step(self, line, number):
    try:
      return json.loads(line)['step']
    except (ValueError, KeyError, TypeError):
      raise ValueError(
        f'{self._path}, line {number} is not a line of metrics; remove it, or '
        'move the file away to start a new log.'
      ) from None


def _checked(name, value):
  if name == 'step':
    raise ValueError("a scalar is named 'step', which is the line's own key.")
  for item in value if isinstance(value, list) else [value]:
    if isinstance(item, (list, dict)):
      raise ValueError(
        f'{name}={value!r}; give a number, or one number per layer.'
      )
    if isinstance(item, str) and item not in ('nan', 'inf', '-inf'):
      raise ValueError(f'{name}={value!r} is text; give a number.')
  return value


def _tags(row):
  for name, value in row.items():
    if isinstance(value, list):
      pairs = [(f'{name}/layer_{i:02}', item) for i, item in enumerate(value)]
    else:
      pairs = [(name, value)]
    for tag, item in pairs:
      if name != 'step' and item is not None and math.isfinite(float(item)):
        yield tag, float(item)


def _end_with_whole_line(path):
  """Cuts off a last line that a killed process left half written."""
  if path.exists():
    text = path.read_bytes()
    if text and not text.endswith(b'\n'):
      files.write_atomic(path, text[: text.rfind(b'\n') + 1].decode('utf-8'))
