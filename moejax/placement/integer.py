"""Placement by an integer programme over load and routing between layers."""

from __future__ import annotations

import numpy as np
from scipy import optimize, sparse

from moejax.placement.pack import held_by_each


def programme(
  load_LE: np.ndarray,
  ranks: int,
  *,
  next_LEE: np.ndarray | None = None,
  balance: float = 1.0,
  timeout_s: float = 10.0,
) -> np.ndarray:
  """int [L, E]: an order of experts for each layer.

  With x[e, p] in {0, 1} for "expert e is on rank p", one rank for each expert
  and E / P experts for each rank, a layer minimises

    balance * max_p sum_e load_e x[e, p] + sum_ef next_ef [rank_e != rank_f]

  where e is an expert of the layer before, placed already, so that the second
  sum is linear in x. All is in tokens.  Source: 2502.06643, the idea alone.
  Differs: one layer after the other, each to its optimum; the paper's joint
  programme has products of two unknowns.

  Args:
    load_LE: tokens of each expert.
    ranks: P.
    next_LEE: tokens that go from expert e of a layer to f of the next, [L - 1,
      E, E]; None for load alone.
    balance: what a token on the busiest rank counts beside one that changes
      rank.
    timeout_s: for each layer; past it, the best found so far is taken.

  Raises:
    ValueError: the ranks do not divide the experts.
    RuntimeError: no order was found in time.
  """
  load_LE = np.asarray(load_LE, np.float64)
  layers, experts = load_LE.shape
  held = held_by_each(experts, ranks)
  orders = []
  for i in range(layers):
    stay_EP = np.zeros((experts, ranks))
    if next_LEE is not None and i:
      rank_E = np.argsort(orders[-1]) // held
      for p in range(ranks):
        stay_EP[:, p] = np.asarray(next_LEE[i - 1])[rank_E == p].sum(0)
    x_EP = _layer(load_LE[i], stay_EP, held, balance, timeout_s)
    orders.append(np.argsort(x_EP.argmax(1), kind='stable'))
  return np.array(orders)


def _layer(load_E, stay_EP, held, balance, timeout_s):
  """[E, P], of the unknowns x[e, p] and, last, the load of the busiest rank."""
  experts, ranks = stay_EP.shape
  each = sparse.kron(np.eye(experts), np.ones(ranks))
  every = sparse.kron(np.ones(experts), np.eye(ranks))
  load = sparse.kron(load_E, np.eye(ranks))
  none, busiest = (lambda n: np.zeros((n, 1))), -np.ones((ranks, 1))
  rules = [
    optimize.LinearConstraint(sparse.hstack([each, none(experts)]), 1, 1),
    optimize.LinearConstraint(sparse.hstack([every, none(ranks)]), held, held),
    optimize.LinearConstraint(sparse.hstack([load, busiest]), -np.inf, 0),
  ]
  unknowns = experts * ranks
  upper = np.append(np.ones(unknowns), np.inf)
  found = optimize.milp(
    np.append(-stay_EP.reshape(-1), balance),
    integrality=np.append(np.ones(unknowns), 0),
    bounds=optimize.Bounds(0, upper),
    constraints=rules,
    options={'time_limit': timeout_s},
  )
  if found.x is None:
    raise RuntimeError(
      f'no placement of {experts} experts on {ranks} ranks in {timeout_s} s '
      f'({found.message}); raise timeout_s or use placement.pack.'
    )
  return found.x[:-1].reshape(experts, ranks)
