"""Freed memory goes back to the system."""

import pathlib
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
