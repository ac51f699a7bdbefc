"""Routers: tokens to assignments, `(x_ND, ctx) -> Assignment`."""

from moejax.routers import affinities, scores, select, weigh
from moejax.routers.router import Router

__all__ = ['Router', 'affinities', 'scores', 'select', 'weigh']
