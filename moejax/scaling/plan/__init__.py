"""Plans of sweeps: which cells, how they spend, what it all costs.

`config.sweep.plan` of a recipe is a node of `Plan`. The cells of get_hyper are
then the family: one for each variant, budget and size that may be run. The
plan chooses those about the expected best size, gives them batch, steps and
learning rate, and drops what breaks a rule, with the reason.
"""

from moejax.scaling.plan.choose import Around, RateGrid
from moejax.scaling.plan.memory import Compiled
from moejax.scaling.plan.optimum import Fitted, Power, Surface
from moejax.scaling.plan.plan import Outcome, Plan
from moejax.scaling.plan.rates import Rates
from moejax.scaling.plan.speed import Chip, Measured
from moejax.scaling.plan.text import markdown

__all__ = [
  'Around',
  'Chip',
  'Compiled',
  'Fitted',
  'Measured',
  'Outcome',
  'Plan',
  'Power',
  'RateGrid',
  'Rates',
  'Surface',
  'markdown',
]
