"""The host's memory and threads, where its libraries allow to steer them."""

from __future__ import annotations

import ctypes
import os
import sys


def return_freed_memory() -> bool:
  """Gives memory that the process has freed back to the system.

  Compiling a program takes and frees hundreds of MiB in small pieces, which
  the C library keeps. Called between the compilation of a training step and
  its first execution, this lowers the peak of the process by about as much.

  Returns:
    Whether the C library can do this (glibc can) and found something.
  """
  try:
    trim = ctypes.CDLL(None).malloc_trim
  except (AttributeError, OSError, TypeError):
    return False
  return trim(0) == 1


def one_blas_thread() -> None:
  """Keeps the products of numpy and scipy to one thread, unless told otherwise.

  Fits of laws make hundreds of thousands of products of small matrices, on
  which more threads only wait for each other: a report takes several times as
  long. XLA has threads of its own. The library reads this when it is loaded, so
  a program calls it before numpy is imported.
  """
  os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')


def huge_pages() -> dict[str, str]:
  """Environment that makes a Linux process take its memory in huge pages.

  A step of XLA:CPU takes all its temporary memory anew. In pages of 4 KiB the
  kernel spends about a third of the step on handing them out. The C library
  reads this at the start of a process only; see `restart_with_huge_pages`.

  Returns:
    The variables to set; none where it would have no effect or a tunable of
    the same library is set already.
  """
  names = getattr(os, 'confstr_names', ())
  if 'CS_GNU_LIBC_VERSION' not in names or 'GLIBC_TUNABLES' in os.environ:
    return {}
  return {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}


def restart_with_huge_pages() -> None:
  """Replaces this process by itself, with the environment of `huge_pages`.

  To be called first thing by a program; returns where nothing is to change.
  """
  wanted = huge_pages()
  if wanted:
    os.environ.update(wanted)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
