"""What a run carries from step to step, made where it lives."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct as struct
import jax
import jax.numpy as jnp

from moejax import optim, sharding
from moejax.types import Context


@struct.dataclass
class TrainState:
  """Everything that the step changes.

  Attributes:
    step: int32, optimiser steps done.
    params: f32 masters.
    opt_state: of the optax transformation.
    balance: selection biases and counts; no gradient.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  balance: Any

  @property
  def variables(self) -> dict[str, Any]:
    return {'params': self.params, 'balance': self.balance}


def context(batch, train: bool = False) -> Context:
  """The context of a batch of `tokens`, `positions` and `segments`."""
  return Context(
    tokens_BT=batch['tokens'],
    positions_BT=batch['positions'],
    segments_BT=batch['segments'],
    train=train,
  )


def blank_context(batch: int = 1, length: int = 2) -> Context:
  """A context of zeros, to initialise or to trace with."""
  zeros = jnp.zeros((batch, length), jnp.int32)
  return Context(zeros, zeros, zeros + 1)


def abstract_variables(model: nn.Module) -> tuple[Any, Any]:
  """Shapes of the variables, and a like tree of logical axis names.

  Nothing is computed.
  """
  boxed = jax.eval_shape(model.init, jax.random.key(0), blank_context())
  boxed = {name: boxed.get(name, {}) for name in ('params', 'balance')}

  def shape(leaf):  # flax's own unboxing would want real arrays under a mesh
    return leaf.value if _is_box(leaf) else leaf

  return jax.tree.map(shape, boxed, is_leaf=_is_box), _axis_names(boxed)


def _axis_names(boxed):
  def names(leaf):
    return tuple(leaf.names) if _is_box(leaf) else (None,) * leaf.ndim

  return jax.tree.map(names, boxed, is_leaf=_is_box)


def _is_box(node):
  return isinstance(node, nn.LogicallyPartitioned)


def init(
  model: nn.Module,
  tx: optim.SkipNonfinite,
  seed: int,
  where: TrainState,
) -> TrainState:
  """A new state, each array made on the devices that hold it.

  Args:
    model: the model.
    tx: of `optim.Chain`.
    seed: of the parameters.
    where: NamedShardings.
  """

  def make(key):
    boxed = model.init(key, blank_context())
    variables = nn.unbox(boxed)
    params = variables['params']
    if model.parametrization is not None:
      names = _axis_names(boxed['params'])
      params = model.parametrization.initial(params, names, model.width)
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=tx.init(params),
      balance=variables.get('balance', {}),
    )

  # It runs once: on a CPU most of its time would go into optimising it.
  on_cpu = where.step.mesh.devices.flat[0].platform == 'cpu'
  options = {'xla_backend_optimization_level': 0} if on_cpu else None
  jitted = jax.jit(make, out_shardings=where, compiler_options=options)
  return jitted(jax.random.key(seed))


def abstract(
  variables: tuple[Any, Any],
  tx: optim.SkipNonfinite,
  mesh: jax.sharding.Mesh,
  rules: sharding.Rules,
) -> TrainState:
  """The state as ShapeDtypeStructs with shardings, to restore into.

  Args:
    variables: shapes and axis names, from `abstract_variables`.
    tx: of `optim.Chain`.
    mesh: the mesh.
    rules: logical axis to mesh axis.
  """
  shapes, _ = variables
  state = TrainState(
    step=jax.ShapeDtypeStruct((), jnp.int32),
    params=shapes['params'],
    opt_state=jax.eval_shape(tx.init, shapes['params']),
    balance=shapes['balance'],
  )
  return jax.tree.map(
    lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
    state,
    sharding.shardings(axis_names(variables, tx), mesh, rules),
  )


def axis_names(
  variables: tuple[Any, Any], tx: optim.SkipNonfinite
) -> TrainState:
  """The state with a tuple of logical axis names in place of each array."""
  shapes, names = variables
  opt_state = jax.eval_shape(tx.init, shapes['params'])
  return TrainState(
    step=(),
    params=names['params'],
    opt_state=optim.state_names(opt_state, shapes['params'], names['params']),
    balance=names['balance'],
  )
