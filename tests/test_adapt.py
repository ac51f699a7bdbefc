"""The exchange goes with the load, and nothing else changes."""

import jax
import numpy as np
import pytest

from configs import common
from moejax import adapt, sharding, step, validate
from moejax.build import ConfigError, build
from moejax.parts import Parts
from tests import steps

CHOICES = {
  'ring': dict(kind='dispatch.Ring'),
  'one': dict(kind='dispatch.AllToAll'),
  'two': dict(kind='dispatch.AllToAll', stages=2),
  'four': dict(kind='dispatch.AllToAll', stages=4),
}


def adaptive(**changes):
  choices = {name: common.node(**node) for name, node in CHOICES.items()}
  return common.node('adapt.Adaptive', **(dict(choices=choices) | changes))


def run(found, loads, cost):
  """The choices that come of a series of loads and a cost for each."""
  names = []
  for load in loads:
    names.append(found.now)
    found.decide(load, cost(found.now, load))
  return names


def test_all_are_tried_in_a_range_once_and_then_the_fastest_stays():
  def cost(name, load):
    best = 'ring' if load > 2 else 'two'
    return 1.0 if name == best else 2.0

  found = build(adaptive(edges=(2.0,)))
  low, high = [1.1] * 6, [3.0] * 6
  got = run(found, low + high + low + high, cost)
  assert got[:6] == ['four', 'one', 'ring', 'two', 'two', 'two']
  # A range is known by the load at its end: the first of it is the last's.
  assert got[6:12] == ['two', 'four', 'one', 'ring', 'ring', 'ring']
  assert got[12:18] == ['ring', *['two'] * 5]
  assert got[18:] == ['two', *['ring'] * 5]


def test_a_choice_that_has_become_slow_is_left():
  slow = set()

  def cost(name, load):
    return {'four': 4, 'one': 2, 'ring': 1, 'two': 3}[name] + 5 * (name in slow)

  found = build(adaptive(edges=()))
  assert run(found, [1.0] * 6, cost)[4:] == ['ring', 'ring']
  slow.add('ring')
  assert run(found, [1.0] * 3, cost) == ['ring', 'one', 'one']


@pytest.mark.parametrize(
  'changes,message',
  [
    (dict(choices={}), 'leaves nothing to choose'),
    (dict(every_steps=2, timed_steps=3), 'timed_steps=3 must be from 1 to'),
    (dict(edges=(2.0, 1.0)), 'must ascend'),
  ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
  with pytest.raises(ConfigError, match=message):
    build(adaptive(**changes))


def test_a_model_without_mixture_is_refused_before_anything_compiles(
  small, text, one_device
):
  config = small.config(model=small.model({'dense': small.dense()}, vocab=257))
  config.data, config.losses = text, {}
  config.train.adapt = adaptive()
  with pytest.raises(ValueError, match='no layer of the model dispatches'):
    validate.check(config)


# On eight devices.


def config(small):
  layer = small.sparse(
    router=steps.router(8), num_experts=8, shared=8, balance=None
  )
  c = small.config(model=small.model({'sparse': layer}))
  c.losses = {}
  c.mesh = dict(data=2, expert=4)
  c.train.adapt = adaptive(every_steps=1, timed_steps=1, edges=(100.0,))
  return c


def batch(small, parts, seed):
  rows = small.rows(seed, batch=8, length=16, padding=(2, 0, 8, 1))
  return sharding.put_batch(rows, parts.batch_sharding)


@pytest.mark.slow
@pytest.mark.usefixtures('quick_compilation')
def test_choices_agree_in_loss_and_gradients(small):
  found = {}
  for name, parts in adapt.variants(Parts(config(small))).items():
    compute = step.objective(parts.model, parts.loss, {})
    with sharding.use(parts.mesh, parts.rules):
      now = parts.new_state()
      (loss, _), grads = jax.jit(
        jax.value_and_grad(compute, has_aux=True),
        out_shardings=((None, None), parts.state_shardings.params),
      )(now.params, now.balance, batch(small, parts, 0))
    found[name] = float(loss), jax.tree.map(np.asarray, grads)
  assert set(found) == set(CHOICES)
  want, exact = found.pop('ring')
  for loss, grads in found.values():
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    for a, b in zip(*map(jax.tree.leaves, (exact, grads)), strict=True):
      np.testing.assert_allclose(
        a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max() + 1e-9
      )


class Counted:
  """A jitted function that notes when a program is made of it."""

  def __init__(self, jitted, made, name):
    self.jitted, self.made, self.name = jitted, made, name

  def lower(self, *args):
    self.made.append(self.name)
    return self.jitted.lower(*args)


@pytest.mark.slow
@pytest.mark.usefixtures('quick_compilation')
def test_a_step_goes_with_the_load_and_compiles_each_choice_once(
  small, monkeypatch
):
  c = config(small)
  names = ('ring', 'two')
  c.train.adapt.choices = {n: c.train.adapt.choices[n] for n in names}
  loads = iter([1, 1, 1, 200, 200, 1, 200])
  monkeypatch.setattr(adapt, 'load', lambda metrics: next(loads))
  # By range of the load, what a step of each choice takes.
  times = iter([1, 2, 1, 9, 5, 1, 5])
  ticks = [0.0]

  def clock():
    ticks.append(ticks[-1] + (next(times) if len(ticks) % 2 == 0 else 0))
    return ticks[-1]

  taken = adapt.Steps(Parts(c), clock)
  made = []
  for name, parts in taken.parts.items():
    parts.train_step = Counted(parts.train_step, made, name)
  parts = taken.parts['ring']
  used, losses = [], []
  with sharding.use(parts.mesh, parts.rules):
    now = parts.new_state()
    for seed in range(7):
      now, metrics = taken(now, batch(small, parts, seed))
      used.append(names[metrics['exchange_choice']])
      losses.append(float(metrics['loss']))
    plain = taken.compiled['two']
    now, want = parts.new_state(), []
    for seed in range(7):
      now, metrics = plain(now, batch(small, parts, seed))
      want.append(float(metrics['loss']))
  assert used == ['ring', 'two', 'ring', 'ring', 'two', 'two', 'ring']
  assert made == ['ring', 'two']
  np.testing.assert_allclose(losses, want, rtol=1e-5)
