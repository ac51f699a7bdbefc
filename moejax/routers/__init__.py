"""Routers: tokens to assignments, `(x_ND, ctx) -> Assignment`."""

from moejax.routers import affinities, scores, select, weigh
from moejax.routers.router import Router
from moejax.routers.token_rounding import TokenRounding

__all__ = [
  'Router',
  'TokenRounding',
  'affinities',
  'scores',
  'select',
  'weigh',
]
