"""Pictures of a scaling analysis, as figures without global state."""

from moejax.scaling.plots.ahead import ahead
from moejax.scaling.plots.compute import allocation, frontiers
from moejax.scaling.plots.leverage import leverage
from moejax.scaling.plots.parabolas import parabolas
from moejax.scaling.plots.rates import rates
from moejax.scaling.plots.residuals import residuals
from moejax.scaling.plots.style import save

__all__ = [
  'ahead',
  'allocation',
  'frontiers',
  'leverage',
  'parabolas',
  'rates',
  'residuals',
  'save',
]
