"""The one switch between implementations of an operation.

The choice is made when a program is lowered, because only then is the platform
known: a host without an accelerator may well compile for one. Shapes and
dtypes are known earlier, while tracing, and decide what is eligible. What is
not chosen is never traced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from pallas_kernels.choice import PLATFORMS
from pallas_kernels.choice import choice as _choice


def _takes_everything(*_args) -> None:
  return None


@dataclasses.dataclass(frozen=True)
class Entry:
  """One implementation of an operation.

  Attributes:
    call: the function; all entries of a table take and return the same. It is
      traced when the program is lowered, so it may depend on nothing but its
      arguments and what is static.
    platforms: where it runs; `None` is everywhere.
    refuses: from the arguments (their static shapes and dtypes only), the
      reason why this entry does not take them, or `None`.
    partitions: whether the compiler can spread it over the devices of a mesh.
      If not, it is for programs of one device and for the inside of a
      `jax.shard_map`; elsewhere the next entry that does takes its place.
  """

  call: Callable[..., Any]
  platforms: tuple[str, ...] | None = None
  refuses: Callable[..., str | None] = _takes_everything
  partitions: bool = True

  def runs_on(self, platform: str) -> bool:
    return self.platforms is None or platform in self.platforms


def choose(
  op: str,
  table: Mapping[str, Entry],
  *args,
  implementation: str | None = None,
):
  """Calls one implementation of `op` on `args`.

  Args:
    op: the operation's name, for messages.
    table: name to entry, best first.
    *args: trees of arrays.
    implementation: `None` takes, on each platform, the first entry that runs
      there and takes these arguments; a name takes that one or fails.

  Raises:
    ValueError: the name is not in the table.
    NotImplementedError: the named entry does not take these arguments (while
      tracing) or does not run on the platform (while lowering).
  """
  if implementation is not None:
    return _named(op, table, args, implementation)
  best = {p: _best(table, _names(table, args, p)) for p in PLATFORMS}
  if len(set(best.values())) == 1 and len(best['cpu']) == 1:
    return table[best['cpu'][0]].call(*args)
  calls = {p: _calls(table, names) for p, names in best.items() if names}
  message = f'{op}: nothing runs here; {_here(table, args)}'
  if not calls:
    raise NotImplementedError(message)
  return _choice(op, calls, _plainest(table, best), message, args)


def _named(op, table, args, name):
  if name not in table:
    raise ValueError(
      f'{op}: implementation={name!r} is unknown; use None or one of '
      f'{", ".join(table)}.'
    )
  entry = table[name]
  here = _here(table, args)
  reason = entry.refuses(*args)
  if reason is not None:
    raise NotImplementedError(
      f'{op}: implementation={name!r} refuses: {reason}; {here}'
    )
  if entry.platforms is None:
    return entry.call(*args)
  message = (
    f'{op}: implementation={name!r} runs on {", ".join(entry.platforms)} '
    f'only; {here}'
  )
  calls = {p: (entry.call,) for p in PLATFORMS if entry.runs_on(p)}
  return _choice(op, calls, entry.call, message, args)


def _plainest(table, best):
  """The entry to trace for shapes: a kernel is the dearest to trace."""
  names = dict.fromkeys(name for names in best.values() for name in names)
  plain = [name for name in names if table[name].platforms is None]
  return table[[*plain, *names][0]].call


def _names(table, args, platform) -> list[str]:
  return [
    name
    for name, entry in table.items()
    if entry.runs_on(platform) and entry.refuses(*args) is None
  ]


def _best(table, names) -> tuple[str, ...]:
  """The first name, and the first that partitions if that one does not."""
  if not names or table[names[0]].partitions:
    return tuple(names[:1])
  return (names[0], *[n for n in names if table[n].partitions][:1])


def _calls(table, names):
  return tuple(table[name].call for name in names)


def _here(table, args) -> str:
  """Says what runs where, for messages."""
  places = (
    f'{p}: {", ".join(_names(table, args, p)) or "nothing"}' for p in PLATFORMS
  )
  return f'for these arguments there is {"; ".join(places)}.'
