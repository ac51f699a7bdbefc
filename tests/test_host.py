"""Freed memory goes back to the system; BLAS has one thread."""

import os
import pathlib
import subprocess
import sys

import pytest

from moejax import host

STATUS = pathlib.Path('/proc/self/status')


def _resident_kib():
  lines = STATUS.read_text().splitlines()
  return int(next(l for l in lines if l.startswith('VmRSS')).split()[1])


@pytest.mark.skipif(not STATUS.exists(), reason='needs /proc')
def test_freed_pieces_leave_the_process():
  # The last piece stays, so that the heap cannot shrink by itself.
  pieces = [bytes([i % 256]) * 100_000 for i in range(1000)]
  last = pieces[-1]
  pieces.clear()
  before = _resident_kib()
  if not host.return_freed_memory():
    pytest.skip('this C library has no malloc_trim')
  assert _resident_kib() < before - 50_000
  assert sys.getsizeof(last) > 100_000


PROGRAM = """
import sys
import moejax.main
assert 'numpy' not in sys.modules, 'it has read its number of threads'
moejax.main.host.one_blas_thread()
import os
print(os.environ['OPENBLAS_NUM_THREADS'])
"""


@pytest.mark.parametrize('given,used', [(None, '1'), ('3', '3')])
def test_blas_is_told_its_threads_before_numpy_is_imported(given, used):
  env = {k: v for k, v in os.environ.items() if k != 'OPENBLAS_NUM_THREADS'}
  env |= {} if given is None else {'OPENBLAS_NUM_THREADS': given}
  ended = subprocess.run(
    [sys.executable, '-c', PROGRAM], env=env, capture_output=True, text=True
  )
  assert (ended.stdout.strip(), ended.stderr) == (used, '')
