"""What a step costs on a machine that is not here."""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of one device.

  Attributes:
    parameters: f32 masters, as they are sharded.
    optimizer: moments.
    activations: what the scan over layers keeps for its backward pass; a part
      of `temporary`.
    temporary: all else than arguments, at the peak.
    total: at the peak, the program included. If the compiler refused, what
      it asked for.
    limit: what a program may use.
  """

  parameters: float
  optimizer: float
  activations: float
  temporary: float
  total: float
  limit: float


@dataclasses.dataclass(frozen=True)
class Report:
  """One compiled step, per device.

  Attributes:
    topology: its name.
    devices: their number.
    mesh: sizes by axis.
    memory: of a device.
    flops: of matrix products; None if the compiler refused, as is all below.
    model_flops: those that the model itself counts, shared evenly.
    memory_bytes: to and from main memory.
    collective_bytes: sent, by kind.
    seconds: least time for each: 'compute', 'memory', 'links'.
    assumptions: the rates that `seconds` divides by, in words.
    compile_seconds: lowering and compilation.
    peak_rss_bytes: of the process that compiled.
    refused: what the compiler said if the program does not fit.
    unknown_loops: loops that count once as their trips could not be told.
    silent_kernels: calls whose FLOPs are told nowhere and left out.
  """

  topology: str
  devices: int
  mesh: dict[str, int]
  memory: Memory
  model_flops: float
  compile_seconds: float
  peak_rss_bytes: float
  assumptions: str
  flops: float | None = None
  memory_bytes: float | None = None
  collective_bytes: dict[str, float] | None = None
  seconds: dict[str, float] | None = None
  refused: str | None = None
  unknown_loops: int = 0
  silent_kernels: int = 0

  @property
  def fits(self) -> bool:
    return self.refused is None and self.memory.total <= self.memory.limit

  @property
  def step_seconds(self) -> float | None:
    """The roofline: the slowest of three that overlap perfectly."""
    return self.seconds and max(self.seconds.values())

  def text(self) -> str:
    """What is printed."""
    mesh = ' x '.join(f'{k}={v}' for k, v in self.mesh.items() if v > 1)
    lines = [
      f'{self.topology}: {self.devices} devices, mesh {mesh or "of one"}; '
      f'compiled in {self.compile_seconds:.0f} s, '
      f'{self.peak_rss_bytes / GIB:.1f} GiB here',
      *_table('memory of a device', _memory_rows(self.memory)),
    ]
    if self.refused is None:
      lines += _table('work of a device and step', _work_rows(self))
      lines += _table('roofline', _time_rows(self))
      lines.append(f'  {self.assumptions}')
    if self.unknown_loops:
      lines.append(
        f'  {self.unknown_loops} loop(s) of unknown length count once'
      )
    if self.silent_kernels:
      lines.append(
        f'  FLOPs of {self.silent_kernels} kernel call(s) are told nowhere and '
        'left out'
      )
    return '\n'.join([*lines, self._verdict()])

  def _verdict(self):
    used = f'{self.memory.total / GIB:.2f} of {self.memory.limit / GIB:.2f} GiB'
    if self.fits:
      return f'fits: {used}'
    said = f' ({self.refused})' if self.refused else ''
    return f'does not fit: {used}{said}'


def from_dict(fields: dict) -> Report:
  """The report of `dataclasses.asdict`."""
  return Report(**fields | {'memory': Memory(**fields['memory'])})


def _memory_rows(memory):
  return [
    (name, f'{value / GIB:.2f} GiB')
    for name, value in dataclasses.asdict(memory).items()
  ]


def _work_rows(report):
  useful = report.model_flops / report.flops if report.flops else 0
  rows = [
    ('FLOPs', f'{report.flops:.3e} ({useful:.0%} the model counts)'),
    ('main memory', f'{report.memory_bytes / GIB:.2f} GiB'),
  ]
  for kind, size in sorted(report.collective_bytes.items()):
    rows.append((kind, f'{size / GIB:.3f} GiB sent'))
  return rows


def _time_rows(report):
  rows = [(n, f'{s * 1e3:.1f} ms') for n, s in report.seconds.items()]
  total = sum(report.seconds.values())
  at_most = (
    f'{report.step_seconds * 1e3:.1f} ms, {total * 1e3:.1f} unoverlapped'
  )
  return [*rows, ('step at least', at_most)]


def _table(title, rows):
  return [title, *(f'  {name:<20} {value}' for name, value in rows)]
