"""The delta rule with decay in plain XLA: see `chunked.xla`."""

from __future__ import annotations

from pallas_kernels.chunked.xla import backward, forward, shapes

__all__ = ['backward', 'forward', 'shapes']
