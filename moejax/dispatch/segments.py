"""Runs of rows that ranks send each other, and their transfer.

`ship` is `jax.lax.ragged_all_to_all` where the hardware has it, and gathers and
picks on CPU, which has not. Its gradient ships the other way.

A TPU sends a row that is one number as 128 of them. So numbers of rows, such as
their weights, go by lines of so many: what a rank has for another is packed
into lines of its own, and the receiver knows from the runs which is whose.
"""

from __future__ import annotations

import functools

import flax.struct as struct
import jax
import jax.numpy as jnp
from jax import lax

LANES = 128  # numbers of a line


@struct.dataclass
class Segments:
  """Runs of rows between this rank and all, S of each rank's: [P * S] int32.

  Attributes:
    out_starts: where each run to send begins.
    out_sizes: its rows.
    in_starts: where each run received begins.
    in_sizes: its rows.
    there_starts: where what is sent begins on its receiver.
    back_starts: where what is received began on its sender.
    lines: the same of the lines of numbers, one run between two ranks; None in
      that itself.
  """

  out_starts: jax.Array
  out_sizes: jax.Array
  in_starts: jax.Array
  in_sizes: jax.Array
  there_starts: jax.Array
  back_starts: jax.Array
  lines: Segments | None = None

  def back(self) -> Segments:
    """The same runs on their way back."""
    return Segments(
      out_starts=self.in_starts,
      out_sizes=self.in_sizes,
      in_starts=self.out_starts,
      in_sizes=self.out_sizes,
      there_starts=self.back_starts,
      back_starts=self.there_starts,
      lines=self.lines and self.lines.back(),
    )


def window(counts_PS: jax.Array, rank, begin, size: int) -> Segments:
  """The runs of one round, where rows arrive in the order of experts.

  A rank's rows to send are sorted by slot. All that a rank is to receive has an
  order, by expert and then by sender; the round takes places begin to
  begin + size of it.

  Args:
    counts_PS: int32, rows of each sender for each slot; slots are those of
      the first rank, then of the second...
    rank: this rank, int32 scalar.
    begin: int32 scalar.
    size: of a receiver's buffer.
  """
  ranks, slots = counts_PS.shape
  held = slots // ranks
  starts_PS = jnp.cumsum(counts_PS, axis=1) - counts_PS
  # Places in the receivers' orders: [receiver, expert, sender].
  by_receiver = counts_PS.reshape(ranks, ranks, held).transpose(1, 2, 0)
  flat = by_receiver.reshape(ranks, held * ranks)
  places = (jnp.cumsum(flat, axis=1) - flat).reshape(by_receiver.shape)
  places_PS = places.transpose(2, 0, 1).reshape(ranks, slots)
  lo_PS = jnp.clip(places_PS, begin, begin + size)
  hi_PS = jnp.clip(places_PS + counts_PS, begin, begin + size)
  starts_PS += lo_PS - places_PS
  sizes_PS, there_PS = hi_PS - lo_PS, lo_PS - begin
  rows = _of_rank(starts_PS, sizes_PS, there_PS, rank)
  return rows.replace(lines=_lines(sizes_PS, rank))


def _lines(sizes_PS, rank):
  """The lines of a window: ranks send theirs in order, and get them so."""
  ranks = len(sizes_PS)
  sizes_PP = sizes_PS.reshape(ranks, ranks, -1).sum(-1)
  lines_PP = -(-sizes_PP // LANES)
  starts_PP = jnp.cumsum(lines_PP, axis=1) - lines_PP
  there_PP = jnp.cumsum(lines_PP, axis=0) - lines_PP
  return _of_rank(starts_PP, lines_PP, there_PP, rank)


def _of_rank(starts_PS, sizes_PS, there_PS, rank):
  """What one rank has to know of all runs, [sender, slot]."""
  ranks, slots = sizes_PS.shape
  held = slots // ranks

  def sent(a_PS):
    return a_PS[rank]

  def received(a_PS):
    own_PS = lax.dynamic_slice_in_dim(a_PS, rank * held, held, axis=1)
    return own_PS.reshape(-1)

  return Segments(
    out_starts=sent(starts_PS),
    out_sizes=sent(sizes_PS),
    in_starts=received(there_PS),
    in_sizes=received(sizes_PS),
    there_starts=sent(there_PS),
    back_starts=received(starts_PS),
  )


def ship(
  a_R: jax.Array, segments: Segments, size: int, axes: tuple[str, ...]
) -> jax.Array:
  """[size, ...]: the rows received, zeros where there are none.

  Args:
    a_R: [R, ...], this rank's rows; [R] goes by lines.
    segments: what goes where.
    size: rows of the result.
    axes: mesh axes of the ranks.
  """
  if a_R.ndim > 1:
    return _ship(size, axes, a_R, segments)
  lines = segments.lines
  ranks = lines.out_sizes.size
  out = _in_lines(lines.out_starts, segments.out_sizes)
  into = _in_lines(lines.in_starts, segments.in_sizes)
  # As many lines as are full, and one for each rank that is not.
  there = (a_R.size // LANES + ranks) * LANES
  here = size // LANES + ranks
  a_R = _move(there, a_R, segments.out_sizes, segments.out_starts, out)
  a_R = _ship(here, axes, a_R.reshape(-1, LANES), lines).reshape(-1)
  return _move(size, a_R, segments.in_sizes, into, segments.in_starts)


def _in_lines(starts_P, sizes_PS):
  """Where runs begin in the numbers of lines, one after the other by rank."""
  sizes_PS = sizes_PS.reshape(len(starts_P), -1)
  within_PS = jnp.cumsum(sizes_PS, axis=1) - sizes_PS
  return (starts_P[:, None] * LANES + within_PS).reshape(-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _move(size, a_R, sizes, sources, targets):
  """[size]: runs of numbers in other places, zeros where there are none."""
  run_R, within_R, there_R = _places(size, sizes, targets)
  from_R = jnp.where(there_R, sources[run_R] + within_R, a_R.size)
  return a_R.at[from_R].get(mode='fill', fill_value=0)


def _move_forward(size, a_R, sizes, sources, targets):
  like = jnp.zeros((a_R.size, 0), jnp.bool_)
  saved = sizes, sources, targets, like
  return _move(size, a_R, sizes, sources, targets), saved


def _move_backward(_, saved, dout_R):
  sizes, sources, targets, like = saved
  return _move(len(like), dout_R, sizes, targets, sources), None, None, None


_move.defvjp(_move_forward, _move_backward)


def _places(size, sizes, starts):
  """The run that each place is in, where in it, and whether it is in one."""
  # Runs in the order in which they lie, those without rows last.
  starts = jnp.where(sizes > 0, starts, size)
  order = jnp.argsort(starts)
  place_R = jnp.arange(size)
  run_R = jnp.searchsorted(
    starts[order], place_R, side='right', method='compare_all'
  )
  run_R = order[jnp.maximum(run_R - 1, 0)]
  within_R = place_R - starts[run_R]
  return run_R, within_R, (within_R >= 0) & (within_R < sizes[run_R])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ship(size, axes, a_R, segments):
  return lax.platform_dependent(
    a_R,
    segments,
    cpu=functools.partial(_emulated, size, axes),
    default=functools.partial(_native, size, axes),
  )


def _forward(size, axes, a_R, segments):
  like = jnp.zeros((a_R.shape[0], 0), jnp.bool_)
  return _ship(size, axes, a_R, segments), (segments, like)


def _backward(size, axes, saved, dout_R):
  segments, like = saved
  return _ship(like.shape[0], axes, dout_R, segments.back()), None


_ship.defvjp(_forward, _backward)


def _native(size, axes, a_R, segments):
  out_R = jnp.zeros((size, *a_R.shape[1:]), a_R.dtype)
  return lax.ragged_all_to_all(
    a_R,
    out_R,
    segments.out_starts,
    segments.out_sizes,
    segments.there_starts,
    segments.in_sizes,
    axis_name=axes,
  )


def _emulated(size, axes, a_R, segments):
  """The same by way of all rows of all ranks."""
  rows = a_R.shape[0]
  every_R = lax.all_gather(a_R, axes, tiled=True)
  runs = segments.in_starts.size
  ranks = every_R.shape[0] // rows
  run_R, within_R, there = _places(size, segments.in_sizes, segments.in_starts)
  sender_R = run_R // (runs // ranks)
  row_R = sender_R * rows + segments.back_starts[run_R] + within_R
  row_R = jnp.where(there, row_R, every_R.shape[0])
  return every_R.at[row_R].get(mode='fill', fill_value=0)
