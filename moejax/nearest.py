"""Hints in messages about a name that is not known."""

import difflib
from collections.abc import Iterable


def hint(name: str, known: Iterable[str]) -> str:
  """ " (did you mean 'steps'?)", or nothing where no name is close."""
  close = difflib.get_close_matches(name, list(known), n=1)
  return f' (did you mean {close[0]!r}?)' if close else ''


def nearest(name: str, known: Iterable[str]) -> str:
  """ "did you mean 'steps'? known: batch_size, steps", the hint if it helps."""
  known = sorted(known)
  question = hint(name, known).strip(' ()')
  return f'{question} known: {", ".join(known) or "none"}'.strip()
