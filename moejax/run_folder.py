"""The folder of a run: whose it is, and what is already there.

It holds `config.json`, `metrics.jsonl`, `checkpoints/` and, once the run is
finished, `result.json`. Nothing here imports jax.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from moejax import config_io, files

# Sections that may change when a run goes on: they alter neither the trained
# model nor its result.
FREE = ('checkpoint', 'infer', 'log', 'sweep')
# This one alters the result, but not the model.
MEASURING = ('evaluate',)


def difference(old: ConfigDict, new: ConfigDict, ignore=FREE) -> list[str]:
  """Lines 'path: old -> new', less those of the sections to ignore."""
  return config_io.difference(_without(old, ignore), _without(new, ignore))


def check(config: ConfigDict, folder: pathlib.Path) -> None:
  """Checks that `folder` is free, or holds a run of this config.

  Raises:
    ValueError: showing the difference.
  """
  path = pathlib.Path(folder) / 'config.json'
  if not path.exists():
    return
  lines = difference(_read(path), config, FREE + MEASURING)
  if lines:
    raise ValueError(
      f'workdir={str(folder)!r} holds a run of another config '
      f'({_shown(lines)}); choose another --workdir, or remove that folder.'
    )


def claim(config: ConfigDict, folder: pathlib.Path) -> None:
  """Writes `config.json`; a result measured in another way is dropped.

  Raises:
    ValueError: if the folder holds a run of another config.
  """
  check(config, folder)
  path = folder / 'config.json'
  if path.exists() and difference(_read(path), config):
    (folder / 'result.json').unlink(missing_ok=True)
  files.write_atomic(path, config_io.to_json(config))


def result(config: ConfigDict, folder: pathlib.Path) -> dict[str, Any] | None:
  """The result of this very run, if it is finished.

  Raises:
    ValueError: if the folder holds a run of another config.
  """
  check(config, folder)
  path = folder / 'result.json'
  if not path.exists() or difference(_read(folder / 'config.json'), config):
    return None
  return json.loads(path.read_text())


def stored_config(folder: str | pathlib.Path) -> ConfigDict:
  """The config of the run in `folder`.

  Raises:
    ValueError: if there is none.
  """
  path = pathlib.Path(folder) / 'config.json'
  if not path.is_file():
    raise ValueError(
      f'workdir={str(folder)!r} holds no run (no config.json); train there '
      'first, or correct --workdir.'
    )
  return _read(path)


def check_trained(config: ConfigDict, folder: str | pathlib.Path) -> None:
  """Checks that `folder` holds a checkpoint of this config's model.

  Raises:
    ValueError: another model, or no checkpoint.
  """
  old = stored_config(folder)
  lines = config_io.difference({'model': old.model}, {'model': config.model})
  if lines:
    raise ValueError(
      f'workdir={str(folder)!r} holds another model ({_shown(lines)}); leave '
      'out --config to use its own, or correct --workdir.'
    )
  steps = pathlib.Path(folder).glob('checkpoints/*')
  if not any(step.name.isdigit() for step in steps):
    raise ValueError(
      f'workdir={str(folder)!r} holds no checkpoint; train there first, with '
      'config.checkpoint.every_steps set.'
    )


def _read(path):
  try:
    return config_io.from_json(path.read_text())
  except (ValueError, OSError) as error:
    raise ValueError(
      f'{path} cannot be read ({error}); choose another --workdir, or remove '
      'that folder.'
    ) from error


def _without(config, names):
  return {k: v for k, v in config.items() if k not in names}


def _shown(lines):
  return '; '.join(lines[:5]) + ('; ...' if len(lines) > 5 else '')
