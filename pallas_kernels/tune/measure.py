"""Which of several candidates is fastest."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence


def seconds(
  calls: Mapping[Hashable, Callable[[int], None]],
  cases: int,
  *,
  rounds: int,
  clock: Callable[[], float] = time.perf_counter,
) -> dict[Hashable, float]:
  """The time of each candidate: medians over rounds, summed over cases.

  Candidates take turns, each round from another one on, as a machine's speed
  drifts; the first call of each, which compiles, is not timed.

  Args:
    calls: candidate to a function that runs it on a case and waits for it.
    cases: how many cases there are.
    rounds: timed calls of each candidate on each case.
    clock: seconds.
  """
  names = list(calls)
  for name in names:
    for case in range(cases):
      calls[name](case)
  times = {name: [[] for _ in range(cases)] for name in names}
  for i in range(rounds):
    turn = i % len(names)
    for name in names[turn:] + names[:turn]:
      for case in range(cases):
        start = clock()
        calls[name](case)
        times[name][case].append(clock() - start)
  return {
    name: sum(map(statistics.median, of_cases))
    for name, of_cases in times.items()
  }


def fastest(times: Mapping[Hashable, float]) -> Hashable:
  """The candidate of the least time; of equal ones the first."""
  return min(times, key=times.__getitem__)


def table(times: Mapping[str, float], flops: float) -> Sequence[str]:
  """Lines that list candidates, fastest first."""
  best = min(times.values())
  ordered = sorted(times.items(), key=lambda item: item[1])
  width = max(map(len, times))
  return [
    f'{name:{width}}  {1e3 * t:9.3f} ms  {flops / t / 1e9:9.1f} GFLOP/s  '
    f'{t / best:6.2f} x'
    for name, t in ordered
  ]
