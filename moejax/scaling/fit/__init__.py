"""Fits of `forms.PowerSum` laws, with restarts counted and doubts named."""

from __future__ import annotations

import numpy as np

from moejax.scaling import forms
from moejax.scaling.fit import projection, robust
from moejax.scaling.fit.projection import varpro
from moejax.scaling.fit.result import Fit, FitRefused
from moejax.scaling.fit.robust import huber

__all__ = ['Fit', 'FitRefused', 'huber', 'refit', 'varpro']


def refit(fit: Fit, covariates: forms.Covariates, loss: np.ndarray) -> list:
  """Parameters, in the form's order, refitted to other losses."""
  method = projection if fit.delta is None else robust
  theta = method.refit(fit, covariates, loss)
  return [theta[name] for name in fit.form.parameters]
