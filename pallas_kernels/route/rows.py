"""Tokens to rows in expert order, and back: checks, gradients, choice.

Both directions read rows by index and sum in place: there is no scatter.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.choose import Entry, choose
from pallas_kernels.route import cpu, pallas_gpu, reference
from pallas_kernels.route.plan import Plan


def gather_rows(x_ND: jax.Array, plan: Plan) -> jax.Array:
  """[R, D]: the token of each row of the plan.

  The gradient of a token is the sum over its rows, but for those of no expert,
  whose gradient may hold anything.

  Args:
    x_ND: [N, D].
    plan: of `permutation`.

  Raises:
    ValueError: the plan is of another number of tokens.
  """
  wanted = (plan.place_NK.shape[0], *x_ND.shape[1:])
  _check_rows('gather_rows', x_ND.shape, wanted, plan)
  return _gather(x_ND, plan)


@jax.custom_vjp
def _gather(x_ND, plan):
  return x_ND.at[plan.token_R].get(mode='promise_in_bounds')


def _gather_backward(plan, dx_RD):
  ones_NK = jnp.ones(plan.place_NK.shape, jnp.float32)
  return _sum(dx_RD, ones_NK, plan, None), None


_gather.defvjp(lambda x_ND, plan: (_gather(x_ND, plan), plan), _gather_backward)


def combine(
  y_RD: jax.Array,
  weights_NK: jax.Array,
  plan: Plan,
  *,
  implementation: str | None = None,
) -> jax.Array:
  """[N, D]: the weighted sum of each token's rows, accumulated in f32.

  Rows of no expert add nothing, whatever they hold; they and their weights get
  a zero gradient.

  Args:
    y_RD: [R, D] rows in the order of the plan, f32 or bf16.
    weights_NK: f32 [N, K].
    plan: of `permutation`.
    implementation: `None` chooses for the platform that the program is lowered
      for; 'slots' (CPU), 'triton' (CUDA) or 'reference'.

  Returns:
    [N, D], in the dtype of `y_RD`.

  Raises:
    ValueError: shapes that do not fit together, or an unknown name.
    NotImplementedError: the named implementation does not run here.
  """
  wanted = ((plan.pair_R.size, *y_RD.shape[1:]), plan.place_NK.shape)
  _check_rows('combine', (y_RD.shape, weights_NK.shape), wanted, plan)
  return _combine(implementation, y_RD, weights_NK, plan)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _combine(implementation, y_RD, weights_NK, plan):
  return _sum(y_RD, weights_NK, plan, implementation)


def _forward(implementation, y_RD, weights_NK, plan):
  y_ND = _sum(y_RD, weights_NK, plan, implementation)
  return y_ND, (y_RD, weights_NK, plan)


def _backward(implementation, saved, dy_ND):
  y_RD, weights_NK, plan = saved
  table = {
    'triton': Entry(pallas_gpu.combine_gradient, platforms=('cuda',)),
    'reference': Entry(reference.combine_gradient),
  }
  if implementation not in table:
    implementation = None
  args = y_RD, weights_NK, plan, dy_ND
  dy_RD, dweights_NK = choose(
    'combine (backward)', table, *args, implementation=implementation
  )
  return dy_RD, dweights_NK.astype(weights_NK.dtype), None


_combine.defvjp(_forward, _backward)


def _sum(y_RD, weights_NK, plan, implementation):
  table = {
    'slots': Entry(cpu.combine, platforms=('cpu',)),
    'triton': Entry(pallas_gpu.combine, platforms=('cuda',)),
    'reference': Entry(reference.combine),
  }
  args = y_RD, weights_NK, plan
  return choose('combine', table, *args, implementation=implementation)


def _check_rows(op, found, wanted, plan):
  if found != wanted:
    raise ValueError(
      f'{op}: the plan of ids {plan.place_NK.shape} goes with shapes {wanted}, '
      f'not {found}.'
    )
