"""Sweeps: grids of overrides, run as cells in folders of their own."""

from moejax.sweep.runner import run, write_csv

__all__ = ['run', 'write_csv']
