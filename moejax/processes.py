"""Several processes, one for each host, that run one program together.

Process 0 listens, the others come to it. Whoever misses another for too long
says so in one line and ends: nothing waits for ever. Importing this does not
import jax.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import NamedTuple

TIMEOUT_S = 300
FAILED = 1
AUTO = 'auto'


class Processes(NamedTuple):
  """Who takes part.

  Attributes:
    coordinator: 'host:port' of process 0; None where the cluster tells, as TPU
      pods, Slurm, Open MPI and Kubernetes do.
    count: of processes; None likewise.
    index: of this one; None likewise.
    timeout_s: how long to wait for one that does not come or answer.
  """

  coordinator: str | None = None
  count: int | None = None
  index: int | None = None
  timeout_s: int = TIMEOUT_S


def parse(
  coordinator: str | None,
  count: int | None,
  index: int | None,
  distributed: str | None,
  timeout_s: int | None,
) -> Processes | None:
  """What the words of a command line ask for; None for a single process.

  Raises:
    ValueError: they do not belong together, or a number is out of range.
  """
  given = {'coordinator': coordinator, 'processes': count, 'process': index}
  some = {name: v for name, v in given.items() if v is not None}
  wait = TIMEOUT_S if timeout_s is None else timeout_s
  if distributed is not None:
    if distributed != AUTO or some:
      raise ValueError(
        f'--distributed={distributed} with {_shown(some) or "nothing else"}: '
        '--distributed=auto asks the cluster; leave out the other words, or '
        'give --coordinator, --processes and --process instead.'
      )
    return Processes(timeout_s=wait)
  if not some:
    if timeout_s is not None:
      raise ValueError(
        f'--process_timeout={timeout_s} is for several processes; add '
        '--distributed=auto, or --coordinator, --processes and --process.'
      )
    return None
  if len(some) < len(given):
    missing = ' and '.join(f'--{n}' for n in given if n not in some)
    raise ValueError(
      f'{_shown(some)} without {missing}: several processes need all three, as '
      'in --coordinator=host0:1234 --processes=2 --process=0.'
    )
  if not re.fullmatch(r'[^\s:]+:\d+|\[[^\]\s]+\]:\d+', coordinator):
    raise ValueError(
      f'--coordinator={coordinator!r} is no HOST:PORT; give the host of '
      'process 0 and a free port of it, such as host0:1234.'
    )
  if not 0 <= index < count:
    raise ValueError(
      f'--process={index} with --processes={count}: processes are numbered '
      'from 0 to one less than their number; correct one.'
    )
  return Processes(coordinator, count, index, wait)


def start(asked: Processes) -> None:
  """Joins the others; every process calls it before it uses a device.

  Ends the process with a line if they are not there in time.

  Raises:
    ValueError: no cluster is found that could tell who takes part.
  """
  # Its own lines would stand beside the one of `deadline`.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  import jax

  limits = dict.fromkeys(
    ('heartbeat_timeout_seconds', 'shutdown_timeout_seconds'), asked.timeout_s
  )
  known = dict(
    coordinator_address=asked.coordinator,
    num_processes=asked.count,
    process_id=asked.index,
  )
  if asked.coordinator is not None:
    known['cluster_detection_method'] = 'deactivate'
  with deadline(asked.timeout_s, _missing(asked)):
    try:
      jax.distributed.initialize(
        **known, **limits, initialization_timeout=2 * asked.timeout_s
      )
    except ValueError as error:
      raise ValueError(
        f'--distributed=auto finds no cluster that tells who takes part '
        f'({error}); give --coordinator, --processes and --process.'
      ) from error
    except RuntimeError as error:
      end(f'{_missing(asked)} ({_first_line(error)})')
    # Devices of all are known once all have told theirs.
    jax.devices()


def is_first() -> bool:
  """Whether this process writes and prints: the only one, or process 0."""
  jax = sys.modules.get('jax')
  if jax is None or not jax.distributed.is_initialized():
    return True
  return jax.process_index() == 0


@contextlib.contextmanager
def deadline(seconds: float, line: str) -> Iterator[None]:
  """Ends the process with `line` if the body takes longer.

  Waiting happens in compiled code that no exception reaches.
  """
  timer = threading.Timer(seconds, end, [line])
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


@contextlib.contextmanager
def together(asked: Processes | None) -> Iterator[None]:
  """Around what processes do together: if one fails, it does not wait.

  A process that ends by an error leaves at once, without the meeting at the
  end that the others would not come to. One whose partner is gone says so.
  """
  if asked is None:
    yield
    return
  start(asked)
  import jax

  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    end(
      f'a collective with the other processes failed: {_first_line(error)}; '
      'see which of them ended first, then start all again.'
    )
  except (ValueError, RuntimeError) as error:
    end(' '.join(str(error).split()))
  with deadline(
    asked.timeout_s, f'the others did not end within {asked.timeout_s} s.'
  ):
    jax.distributed.shutdown()


def end(line: str, code: int = FAILED) -> None:
  """Prints one line and ends the process, whatever its threads do."""
  print(f'error: {line}', file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(code)


def _missing(asked):
  if asked.coordinator is None:
    return (
      f'not all processes were there within {asked.timeout_s} s; start one on '
      'every host, or raise --process_timeout.'
    )
  return (
    f'process {asked.index} of {asked.count} waited {asked.timeout_s} s for '
    f'the others at {asked.coordinator}; start all of them with one address '
    'that each can reach, or raise --process_timeout.'
  )


def _shown(some):
  return ' '.join(f'--{name}={value}' for name, value in some.items())


def _first_line(error):
  return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
