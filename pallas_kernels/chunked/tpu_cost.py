"""FLOPs of the parts of the TPU kernels, for one chunk of one value head.

Each product counts once, whatever its passes through the matrix unit. There are
n = log2 C levels of halving and m kinds of rows. Levels whose halves are whole
registers, of 8 tokens and more, multiply only the rows of second halves, so
that all of them cost n' = min(n, 3) + max(n - 3, 0) / 2:

              by channel                by head             no decay
  ends        4 C^2 K                   0                   0
  decays      2 n C^2 K                 2 C^3               0
  scores(m)   2 m n' C^2 K              2 m C^2 K           2 m C^2 K
  pull(m)     (4 m n' + 2 n + 4) C^2 K  6 m C^2 K + 2 C^3   4 m C^2 K

and `pull` 2 m C^2 V + (4 m + 2) C K V more, for each kind of decay. The inverse
is 4 (n - 1) C^3.
"""

from __future__ import annotations

import dataclasses

from pallas_kernels.chunked.tpu_layout import Problem


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of one kernel; a kernel's count is a sum of what is here."""

  problem: Problem

  @property
  def _channel(self):
    return self.problem.decay == 'channel'

  @property
  def _levels(self) -> int:
    return self.problem.chunk.bit_length() - 1

  @property
  def tokens_keys(self) -> int:
    """A product of C^2 K."""
    return 2 * self.problem.chunk**2 * self.problem.lanes[0]

  @property
  def tokens_values(self) -> int:
    """A product of C^2 V."""
    return 2 * self.problem.chunk**2 * self.problem.lanes[1]

  @property
  def with_state(self) -> int:
    """A product of C K V."""
    k, v = self.problem.lanes
    return 2 * self.problem.chunk * k * v

  @property
  def ends(self) -> int:
    """The decays from and to the ends of the chunk."""
    return 2 * self.tokens_keys if self._channel else 0

  @property
  def decays(self) -> int:
    """The decays within the chunk."""
    if self._channel:
      return self._levels * self.tokens_keys
    return 2 * self.problem.chunk**3 if self.problem.decay == 'head' else 0

  def scores(self, kinds: int) -> int:
    return int(kinds * self._halved * self.tokens_keys)

  def pull(self, kinds: int) -> int:
    """The gradient of one chunk between two states."""
    within = int(2 * kinds * self._halved * self.tokens_keys)
    if self._channel:  # sums over the steps that were summed forward
      within += self.decays + self.ends
    if self.problem.decay == 'head':
      within += kinds * self.tokens_keys + self.decays
    states = (2 * kinds + 1) * self.with_state
    return within + kinds * self.tokens_values + states

  @property
  def inverse(self) -> int:
    return 4 * (self._levels - 1) * self.problem.chunk**3

  @property
  def exponentials(self) -> int:
    """Of all decays, those from and to the ends included."""
    c, k = self.problem.chunk, self.problem.lanes[0]
    every = {
      'channel': (self._levels + 2) * c * k,
      'head': c * c + 2 * c,
      'none': 0,
    }
    return every[self.problem.decay]

  @property
  def _halved(self) -> float:
    """Products of C rows for the scores of one kind of rows."""
    n = self._levels
    return min(n, 3) + max(n - 3, 0) / 2 if self._channel else 1
