"""The flags of the command line: their names, rules and help."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from absl import flags

from moejax import processes
from moejax.nearest import nearest

MODES = ('train', 'evaluate', 'generate', 'fit', 'aot', 'plan')
LAUNCHERS = ('local', 'ray')  # of sweeps
TOGETHER = ('train', 'evaluate')  # by several processes
ABROAD = ('aot', 'plan')  # for machines that are not here
HELP = """\
moejax trains sparse language models and measures them.

  python -m moejax.main --config=configs/scaling.py
  python -m moejax.main --config=configs/scaling.py --dry-run
  python -m moejax.main --config=configs/tiny.py --config.train.steps=50
  python -m moejax.main --mode=generate --workdir=runs/tiny --prompt='def '
  python -m moejax.main --mode=fit --form=chinchilla --data=runs.csv
  python -m moejax.main --mode=aot --config=configs/moe.py --topology=v5e:2x4
  python -m moejax.main --mode=plan --config=configs/moe.py --topology=v5e:2x4

A recipe with get_hyper is a sweep of runs, any other one a single run. The
same command again goes on from the last checkpoint.

{flags}
  --config.a.b=VALUE
      Overrides one field of the config; may be repeated. VALUE is Python:
      3, 1e-3, true, None, "('a', 'b')"; text needs no quotes.

Exit codes: 0 done, 1 a run failed, 2 the input is wrong, 3 the program does
not fit, 130 Ctrl-C, 143 ended by SIGTERM after saving.
"""
FLAGS = {
  'config': 'Recipe: a Python file with get_config(). Text after a colon is '
  'its argument, as in configs/tiny.py:smoke.',
  'workdir': 'Folder of the run; runs/RECIPE if not given. To evaluate or '
  'generate, a folder alone is enough: it holds its config.',
  'mode': f'What to do: {", ".join(MODES[:-1])} or {MODES[-1]}; {MODES[0]} if '
  'not given.',
  'dry-run': 'Prints the cells of a sweep, what each costs and which are '
  'dropped, and runs nothing.',
  'prompt': 'Text to continue with --mode=generate; may be repeated; - reads '
  'it from standard input.',
  'data': 'Table of runs (.csv) for --mode=fit.',
  'form': 'Law to fit: a name in moejax/scaling/forms, such as chinchilla.',
  'columns': 'Columns of the table for --mode=fit, as in '
  'N=params,D=tokens,value=loss; usual names are found by themselves.',
  'topology': 'Machine to compile for with --mode=aot, or to search meshes for '
  'with --mode=plan, as in v5p:8x8x16; none is needed.',
  'plan_compile': 'How many of the best meshes of --mode=plan to compile, '
  'minutes each; 0 if not given.',
  'launcher': 'Where the cells of a sweep run: local, on this machine, or ray, '
  'as tasks of a Ray cluster; config.sweep.jobs of them at once.',
  'coordinator': 'HOST:PORT of process 0, to train with one process on each '
  'host; all get the same, and a free port of that host.',
  'processes': 'How many processes there are.',
  'process': 'Which of them this is, from 0. It alone prints and writes if 0.',
  'distributed': 'auto asks the cluster for these three: TPU pods, Slurm, Open '
  'MPI and Kubernetes tell.',
  'process_timeout': 'Seconds to wait for a process that does not come or does '
  f'not answer, then to end with a line; {processes.TIMEOUT_S} if not given.',
  'traceback': 'Shows where in the code an error arose.',
}
_INDENT = {'initial_indent': ' ' * 6, 'subsequent_indent': ' ' * 6}


def define() -> flags.FlagValues:
  """Fresh flags: nothing is shared with what other libraries define."""
  values = flags.FlagValues()
  flags.DEFINE_string('config', None, '', values)
  flags.DEFINE_string('workdir', None, '', values)
  flags.DEFINE_enum('mode', MODES[0], MODES, '', values)
  flags.DEFINE_multi_string('prompt', [], '', values)
  flags.DEFINE_string('data', None, '', values)
  flags.DEFINE_string('form', None, '', values)
  flags.DEFINE_string('columns', None, '', values)
  flags.DEFINE_string('topology', None, '', values)
  flags.DEFINE_integer('plan_compile', 0, '', flag_values=values, lower_bound=0)
  flags.DEFINE_enum('launcher', LAUNCHERS[0], LAUNCHERS, '', values)
  flags.DEFINE_string('coordinator', None, '', values)
  flags.DEFINE_integer('processes', None, '', 1, flag_values=values)
  flags.DEFINE_integer('process', None, '', 0, flag_values=values)
  flags.DEFINE_enum('distributed', None, ('auto',), '', values)
  flags.DEFINE_integer('process_timeout', None, '', 1, flag_values=values)
  flags.DEFINE_bool('dry-run', False, '', values)
  flags.DEFINE_bool('traceback', False, '', values)
  flags.DEFINE_bool('help', False, '', short_name='h', flag_values=values)
  return values


def help_text() -> str:
  """What --help prints."""
  lines = []
  for name, text in FLAGS.items():
    lines += [f'  --{name}', *textwrap.wrap(text, 74, **_INDENT)]
  return HELP.format(flags='\n'.join(lines)).rstrip()


def read(values: flags.FlagValues, words: Sequence[str]) -> None:
  try:
    stray = values(['moejax', *words])[1:]
  except flags.UnrecognizedFlagError as error:
    name = error.flagname
    raise ValueError(
      f'--{name} is no flag; {nearest(name, [*FLAGS, "help"])}; overrides '
      'look like --config.train.steps=100.'
    ) from error
  except flags.Error as error:
    raise ValueError(f'{error}; see --help.') from error
  if stray:
    raise ValueError(
      f'stray argument {stray[0]!r}; flags begin with --, and overrides look '
      'like --config.train.steps=100.'
    )
  for name in set(FLAGS) - {'prompt'}:
    flag = values[name]
    if flag.present > 1:
      raise ValueError(
        f'--{name} is given {flag.present} times, last as {flag.value!r}; keep '
        'one.'
      )
