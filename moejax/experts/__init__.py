"""Experts: `Rows -> Rows`, written once against `rows.dot(w)`."""

from moejax.experts.glu import Glu
from moejax.experts.mlp import Mlp

__all__ = ['Glu', 'Mlp']
