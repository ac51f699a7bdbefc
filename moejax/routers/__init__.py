"""Routers: tokens to assignments, `(x_ND, ctx) -> Assignment`."""

from moejax.routers import affinities, forced, scores, select, weigh
from moejax.routers.forced import Biased, RoundRobin, Sampled
from moejax.routers.router import Router
from moejax.routers.token_rounding import TokenRounding

__all__ = [
  'Biased',
  'Router',
  'RoundRobin',
  'Sampled',
  'TokenRounding',
  'affinities',
  'forced',
  'scores',
  'select',
  'weigh',
]
