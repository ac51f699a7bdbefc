"""Where the best size is expected: laws `(variant, flops, cost) -> size`."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping

from moejax.nearest import hint
from moejax.scaling import fit, forms, isoflop, leverage, rates, runs
from moejax.scaling.forms import Cost

# How the report names this law in fits.json.
ALLOCATION = 'N* = k C^a'


@dataclasses.dataclass(frozen=True)
class Surface:
  """The least of L = E + A / N^alpha + B / D^beta at given FLOPs.

  Attributes:
    theta: a label of `forms.chinchilla.published`, or {E, A, B, alpha, beta}.
  """

  theta: str | Mapping[str, float] = 'refit'

  def __post_init__(self):
    known, theta = forms.chinchilla.published, self.theta
    if isinstance(theta, str) and theta not in known:
      raise ValueError(
        f'theta={theta!r} is no published surface{hint(theta, known)}; known: '
        f'{", ".join(known)}, or give E, A, B, alpha and beta.'
      )
    names = forms.chinchilla.parameters
    if not isinstance(theta, str) and set(theta) != set(names):
      raise ValueError(
        f'theta={dict(theta)} must give {", ".join(names)} and no other.'
      )
    forms.optimum(self._coefficients, 1e18)

  def __call__(self, variant: str, flops: float, cost: Cost) -> float:
    return float(forms.optimum(self._coefficients, flops, cost)[0])

  def told(self, size: str) -> str:
    if isinstance(self.theta, str):
      return forms.chinchilla.published[self.theta].source
    return forms.chinchilla.equation + ', coefficients as given'

  @property
  def _coefficients(self):
    if isinstance(self.theta, str):
      return forms.chinchilla.published[self.theta].theta
    return self.theta


@dataclasses.dataclass(frozen=True)
class Power:
  """N* = k C^a, the same for all variants."""

  k: float
  a: float

  def __post_init__(self):
    if not (self.k > 0 and 0 < self.a < 1):
      raise ValueError(
        f'k={self.k}, a={self.a} give no optimum: N* = k C^a needs k above 0 '
        'and a between 0 and 1, so that size and tokens both grow.'
      )

  def __call__(self, variant: str, flops: float, cost: Cost) -> float:
    return float(forms.allocation(vars(self), {'C': flops})[0])

  def told(self, size: str) -> str:
    return f'N* = {self.k:g} C^{self.a:g}'


@dataclasses.dataclass(frozen=True)
class Fitted:
  """The law of an earlier sweep.

  Attributes:
    path: `fits.json` of a report, `fit.json` of --mode=fit, or `results.csv`
      of a sweep, whose vertices are then fitted anew.
    variant: whose law serves every variant; None takes each one's own.
    size: the count of parameters that the law is in.
  """

  path: str
  variant: str | None = None
  size: str = 'params_active'

  def __call__(self, variant: str, flops: float, cost: Cost) -> float:
    laws = self._laws()
    wanted = self.variant or variant
    if None in laws:  # one law for all
      wanted = None
    if wanted not in laws:
      raise ValueError(
        f'{self.path} has no allocation of {wanted!r}; it has '
        f'{", ".join(map(str, laws)) or "none"}: name one of these as '
        'optimum.variant, or give another law.'
      )
    theta = laws[wanted]
    if 'alpha' in theta:
      return float(forms.optimum(theta, flops, cost)[0])
    return Power(theta['k'], theta['a'])(variant, flops, cost)

  def told(self, size: str) -> str:
    if size != self.size:
      raise ValueError(
        f'optimum.size={self.size!r} differs from plan.size={size!r}; sizes '
        'are compared with the law, so set both to one count.'
      )
    return f'fitted in {self.path}'

  def _laws(self) -> Mapping[str | None, Mapping[str, float]]:
    path = pathlib.Path(self.path)
    try:
      if path.suffix == '.csv':
        return _of_results(path, self.size)
      return _of_fits(json.loads(path.read_text()), path, self.size)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
      reason = getattr(error, 'strerror', None) or error
      raise ValueError(
        f'{path}: {reason}; give the fits.json, fit.json or results.csv of an '
        'earlier sweep.'
      ) from error


def _of_results(path: os.PathLike[str], size: str):
  found, _ = runs.parse(runs.load(path), size)
  good = [run for run in found if run.role != rates.ROLE]
  vertices = isoflop.parabolas(good)
  laws = {}
  for variant in runs.variants(good):
    mine = [p for p in vertices if p.variant == variant]
    try:
      laws[variant] = leverage.allocation(mine, 'size', draws=0).fit.theta
    except fit.FitRefused:
      continue  # the caller names the variants that have a law
  return laws


def _of_fits(record, path, size: str):
  if 'form' in record:
    if record['form'] not in ('chinchilla', 'allocation'):
      raise ValueError(
        f'{path} holds the law {record["form"]!r}, which has no best size; fit '
        'chinchilla or allocation.'
      )
    return {None: record['fits'][0]['theta']}
  if record.get('size') != size:
    raise ValueError(
      f'{path} counts N as {record.get("size")!r}, but optimum.size={size!r}; '
      'set that to the count of the fits.'
    )
  laws = {}
  for one in record['fits']:
    # Of two fits of a surface the first counts; a law of vertices before both.
    if one['law'] == ALLOCATION:
      laws[one['variant']] = one['theta']
    elif one['law'] == forms.chinchilla.equation:
      laws.setdefault(one['variant'], one['theta'])
  return laws
