"""Hints in messages about a name that is not known."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
  """ "did you mean 'steps'? known: batch_size, steps", the hint if it helps."""
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=1)
  hint = f'did you mean {close[0]!r}? ' if close else ''
  return f'{hint}known: {", ".join(known) or "none"}'
