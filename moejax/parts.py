"""A config, built: the parts that training, evaluation and decoding share."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from moejax import accounting, sharding, state, step
from moejax.build import build


class Parts:
  """The objects that a config describes, each made when first asked for.

  Attributes:
    config: the resolved config.
    devices: of the mesh, which need not be here; None for all that are.
  """

  def __init__(self, config: ConfigDict, devices: Sequence | None = None):
    self.config = config
    self.devices = devices

  @property
  def device_count(self) -> int:
    return jax.device_count() if self.devices is None else len(self.devices)

  @functools.cached_property
  def model(self):
    return build(self.config.model, 'config.model')

  @functools.cached_property
  def variables(self):
    """Shapes of the variables, and their logical axis names."""
    return state.abstract_variables(self.model)

  @functools.cached_property
  def data(self):
    return build(self.config.data, 'config.data')

  @functools.cached_property
  def loss(self):
    return build(self.config.loss, 'config.loss')

  @functools.cached_property
  def optimizer(self):
    return build(self.config.optim, 'config.optim')

  @functools.cached_property
  def bias_update(self):
    return build(self.config.train.bias_update, 'config.train.bias_update')

  @functools.cached_property
  def adaptive(self):
    """Which exchange a step uses; None for that of the config alone."""
    return build(self.config.train.adapt, 'config.train.adapt')

  @functools.cached_property
  def steps(self) -> int:
    """Optimiser steps: as given, or what `train.budget_flops` pays for."""
    train = self.config.train
    if train.budget_flops is None:
      return train.steps
    tokens = train.batch_size * train.seq_len
    flops = accounting.train_flops_per_token(self.model, train.seq_len)
    return accounting.steps_within(train.budget_flops, tokens * flops)

  @functools.cached_property
  def tx(self):
    """The optax transformation for this model's parameters."""
    shapes, names = self.variables
    model, lr_scale = self.model, None
    if model.parametrization is not None:
      scale = model.parametrization.lr_scale
      lr_scale = functools.partial(scale, width=model.width)
    return self.optimizer.transformation(
      shapes['params'],
      names['params'],
      total_steps=self.steps,
      lr_scale=lr_scale,
    )

  @functools.cached_property
  def learning_rate(self):
    """Schedule: steps taken to learning rate."""
    return self.optimizer.learning_rate(self.steps)

  @functools.cached_property
  def rules(self):
    return tuple((name, axis) for name, axis in self.config.rules)

  @functools.cached_property
  def mesh(self):
    return sharding.make_mesh(self.config.mesh, self.devices)

  @functools.cached_property
  def batch_sharding(self):
    return sharding.batch_sharding(self.mesh, self.rules)

  @functools.cached_property
  def abstract_state(self):
    """The TrainState as shapes with shardings, to restore into."""
    return state.abstract(self.variables, self.tx, self.mesh, self.rules)

  @functools.cached_property
  def state_names(self):
    """The TrainState with logical axis names in place of its arrays."""
    return state.axis_names(self.variables, self.tx)

  @functools.cached_property
  def state_shardings(self):
    """A TrainState of NamedShardings."""
    return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)

  @functools.cached_property
  def abstract_batch(self):
    """A batch of `step.BATCH` as shapes with shardings."""
    train = self.config.train
    row = jax.ShapeDtypeStruct(
      (train.batch_size, train.seq_len), jnp.int32, sharding=self.batch_sharding
    )
    return dict.fromkeys(step.BATCH, row)

  @functools.cached_property
  def train_step(self):
    """The jitted `(state, batch) -> (state, metrics)`; donates the state."""
    config = self.config
    return jax.jit(
      step.train_step(
        self.model,
        self.tx,
        loss=self.loss,
        weights=dict(config.losses),
        accumulate=config.train.accumulate,
        bias_update=self.bias_update,
      ),
      donate_argnums=0,
      out_shardings=(self.state_shardings, sharding.replicated(self.mesh)),
    )

  def new_state(self):
    """A freshly initialised TrainState."""
    with sharding.use(self.mesh, self.rules):
      return state.init(
        self.model, self.tx, self.config.seed, self.state_shardings
      )

  def batches(self, split: str, epochs: int | None):
    """This process's share of the batches of a split, as numpy arrays."""
    train = self.config.train
    index, count = 0, 1
    if jax.process_count() > 1:
      where = self.batch_sharding
      index, count = sharding.row_shard(where, train.batch_size)
    return self.data.batches(
      split,
      batch_size=train.batch_size,
      seq_len=train.seq_len,
      seed=self.config.seed,
      epochs=epochs,
      shard_index=index,
      shard_count=count,
    )
