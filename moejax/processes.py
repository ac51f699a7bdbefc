"""Several processes, one for each host, that run one program together.

Process 0 listens, the others come to it. Whoever misses another for too long
says so in one line and ends: nothing waits for ever. Importing this does not
import jax.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import NamedTuple

TIMEOUT_S = 300
# Exit codes of the command.
FAILED, WRONG_INPUT, DOES_NOT_FIT, CTRL_C, TERMINATED = 1, 2, 3, 130, 143
AUTO = 'auto'
BEATS = 'moejax/alive/'


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

  # JAX's own watch aborts with a stack: `Watch` comes before it.
  limits = dict(
    heartbeat_timeout_seconds=3 * asked.timeout_s,
    shutdown_timeout_seconds=3 * asked.timeout_s,
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


class Watch(threading.Thread):
  """Tells the others that this process lives, and whether they do.

  Ends the process, with a line, once another has not said so for `timeout_s`.
  """

  def __init__(self, timeout_s: float):
    super().__init__(daemon=True)
    from jax._src import distributed  # there is no public way to its store

    self._state, self._timeout_s = distributed.global_state, timeout_s
    self.ending = False
    self.start()

  def run(self):
    index, heard = self._state.process_id, Heard(self._state.num_processes)
    for beat in itertools.count():
      try:
        told = self._exchange(index, beat)
      except Exception as error:  # of the connection, a bare one
        if self.ending:
          return
        end(f'process 0 does not answer: {_first_line(error)}')
      silent = heard.silent(told, time.monotonic(), self._timeout_s)
      if silent and not self.ending:
        # Without process 0 the others would end before they can tell why.
        time.sleep(0.2 * self._timeout_s if index == 0 else 0)
        end(
          f'process {silent[0]} has not answered for {self._timeout_s} s; see '
          'its own output, then start all again: they go on from the last '
          'checkpoint.'
        )
      time.sleep(0.05 * self._timeout_s)

  def _exchange(self, index, beat):
    client = self._state.client
    client.key_value_set(f'{BEATS}{index}', str(beat), allow_overwrite=True)
    return {
      int(key.rpartition('/')[2]): value
      for key, value in client.key_value_dir_get(BEATS)
    }


class Heard:
  """When each process was last heard of."""

  def __init__(self, count: int):
    self._last = dict.fromkeys(range(count), (None, None))

  def silent(
    self, told: Mapping[int, str], now_s: float, limit_s: float
  ) -> list[int]:
    """Processes that have said nothing new for longer than `limit_s`."""
    for index, (word, since_s) in self._last.items():
      if since_s is None or told.get(index) != word:
        self._last[index] = told.get(index), now_s
    last = self._last.items()
    return [index for index, (_, since_s) in last if now_s - since_s > limit_s]


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

  watch = Watch(asked.timeout_s)
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    end(
      f'the program failed: {_first_line(error)}; if another process ended '
      'first, its output says why.'
    )
  except ValueError as error:
    end(' '.join(str(error).split()), WRONG_INPUT)
  except KeyboardInterrupt:
    end('stopped; all processes have to be started again.', CTRL_C)
  except Exception:
    traceback.print_exc()
    end('this process failed, see above; the others will miss it.')
  watch.ending = True
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
