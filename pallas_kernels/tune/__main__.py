"""Measures tiles on this machine and stores the fastest.

  python -m pallas_kernels.tune --op=grouped_matmul --shape=32768,64,256,128
  python -m pallas_kernels.tune --layer='1.4B n256' --dtype=bfloat16
  python -m pallas_kernels.tune --op=expert_ffn --layer=fine

A shape is rows, groups, D, F; a layer of `expert_ffn.shapes` stands for the
shapes of its matrices. Forms of `grouped_matmul` are nn, nt and tn; those of
`expert_ffn` are forward and backward on CPU, and kernels elsewhere. The table
says what every candidate took.
"""

from __future__ import annotations

import pathlib
import sys

from absl import app, flags

from pallas_kernels.expert_ffn import shapes
from pallas_kernels.tune import measure, spaces, store, tuner

LAYERS = {**shapes.PUBLISHED, **shapes.HOST}

_OP = flags.DEFINE_string('op', 'grouped_matmul', 'operation')
_SHAPE = flags.DEFINE_multi_string('shape', [], 'rows,groups,D,F')
_LAYER = flags.DEFINE_multi_enum('layer', [], list(LAYERS), 'named layers')
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', ['float32', 'bfloat16'], 'of the operands'
)
_FORMS = flags.DEFINE_multi_string('form', [], 'forms; all if none is named')
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'timed calls', lower_bound=1)
_SEED = flags.DEFINE_integer('seed', 0, 'of operands and group sizes')
_FILE = flags.DEFINE_string('file', None, f'else ${store.VARIABLE}')


def _shape(text: str) -> tuple[int, ...]:
  try:
    shape = tuple(int(n) for n in text.split(','))
  except ValueError:
    shape = ()
  if len(shape) != 4 or min(shape) < 1:
    raise ValueError(
      f'--shape={text} is not rows,groups,D,F; give four positive integers '
      'such as 32768,64,256,128.'
    )
  return shape


def _shapes() -> list[tuple[int, ...]]:
  found = [_shape(text) for text in _SHAPE.value]
  for name in _LAYER.value:
    x = LAYERS[name]
    found.append((x.rows, x.experts, x.d, x.n))
    if _OP.value == 'grouped_matmul':
      found.append((x.rows, x.experts, x.n, x.d))
  if not found:
    raise ValueError('nothing to tune: give --shape or --layer.')
  return found


def _forms(space) -> list[str]:
  unknown = set(_FORMS.value) - set(space.forms)
  if unknown:
    raise ValueError(
      f'--form={sorted(unknown)[0]} is none of {space.op}; use '
      f'{", ".join(space.forms)}.'
    )
  return _FORMS.value or list(space.forms)


def run(argv=()) -> None:
  """Tunes what the flags say.

  Raises:
    ValueError: flags that do not fit, or a file that holds something else.
  """
  if len(argv) > 1:
    raise ValueError(f'what is {argv[1]!r}? Flags only; see --help.')
  file = store.path() if _FILE.value is None else pathlib.Path(_FILE.value)
  store.entries(file)  # refused before anything is measured
  work = [
    (space, shape, form)
    for space in spaces.here(_OP.value)
    for shape in _shapes()
    for form in _forms(space)
  ]
  for space, shape, form in work:
    entry, times = tuner.tune(
      space,
      form,
      shape,
      _DTYPE.value,
      rounds=_ROUNDS.value,
      seed=_SEED.value,
    )
    store.put(file, entry)
    rows, _, d, f = shape
    flops = 2 * rows * d * f * space.forms[form] * len(tuner.EXPONENTS)
    print(f'\n{next(iter(entry))}')
    print('\n'.join(measure.table(times, flops)))
  print(f'\n{len(work)} choices in {file}')


def main(argv):
  try:
    run(argv)
  except ValueError as error:
    sys.exit(f'tune: {error}')


if __name__ == '__main__':
  app.run(main)
