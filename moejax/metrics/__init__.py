"""What a run measures and says: logs, progress, parameters, hardware."""

from moejax.metrics.hardware import (
  device_peak_flops,
  known_peak_flops,
  peak_memory_bytes,
)
from moejax.metrics.parameters import parameter_table, parameter_totals
from moejax.metrics.progress import Progress
from moejax.metrics.provenance import environment
from moejax.metrics.writer import Writer

__all__ = [
  'Progress',
  'Writer',
  'device_peak_flops',
  'environment',
  'known_peak_flops',
  'parameter_table',
  'parameter_totals',
  'peak_memory_bytes',
]
