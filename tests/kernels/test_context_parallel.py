"""The chunked recurrences where devices share a sequence equal one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from pallas_kernels.chunked import context
from tests.kernels import recurrence

T = 32
ROWS = P('data', 'context')
OPS = {'delta': context.delta, 'linear': context.linear}


def over_mesh(f, in_specs, out_specs):
  """Two devices for rows times four for time."""
  kinds = (AxisType.Auto,) * 2
  mesh = jax.make_mesh((2, 4), ('data', 'context'), axis_types=kinds)
  return jax.shard_map(
    f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
  )


def shared(op):
  """`op` of `context` for arrays of all tokens."""

  def call(*args, state_BGKV, starts_BT, **static):
    def own(args, state, starts):
      return op('context', *args, state_BGKV=state, starts_BT=starts, **static)

    specs = (ROWS,) * len(args), P('data'), ROWS
    done = over_mesh(own, specs, (ROWS, P('data')))
    return done(args, state_BGKV, starts_BT)

  return call


def draw(op, kind='random', starts=None, **fields):
  """A case with documents that start at `starts`, None for one document."""
  fields = dict(T=T, H=1, G=2, K=8, V=6) | fields
  case = recurrence.draw(kind, delta=op == 'delta', **fields)
  if starts is None:
    return case
  return case.replace(starts=np.tile(np.isin(np.arange(T), starts), (2, 1)))


# A device has tokens 0 to 7, 8 to 15, 16 to 23 or 24 to 31.
@pytest.mark.parametrize(
  'decay,kind,starts',
  [
    ('channel', 'mixed', (5, 21)),  # one document is on three devices
    pytest.param(  # they start with a device
      'head', 'saturated', (8, 16, 23, 24), marks=pytest.mark.slow
    ),
    (None, 'correlated', None),
  ],
)
@pytest.mark.parametrize('op', OPS)
def test_results_and_gradients_are_those_of_the_recurrence(
  op, decay, kind, starts
):
  case = draw(op, kind, starts, decay=decay)
  got = recurrence.run(case, shared(OPS[op]), jnp.float32)
  errors = recurrence.errors(got, recurrence.solve(case))
  assert max(errors.values()) < 1e-5, errors


@pytest.mark.slow
@pytest.mark.parametrize('op', OPS)
def test_bf16_keeps_its_digits(op):
  case = draw(op, starts=(11,), decay='channel', round_to=jnp.bfloat16)
  got = recurrence.run(case, shared(OPS[op]), jnp.bfloat16)
  errors = recurrence.errors(got, recurrence.solve(case))
  assert max(errors.values()) < 5e-3, errors


@pytest.mark.parametrize('op', OPS)
def test_the_last_state_is_bit_for_bit_the_same_on_every_device(op):
  case = draw(op, decay='head')
  inputs = [
    None if x is None else jnp.asarray(x, jnp.float32)
    for x in (case.q, case.k, case.v, case.log_decay, case.beta)
  ][: 5 if op == 'delta' else 4]

  def own(*args):
    return OPS[op]('context', *args)[1][None]

  ends = over_mesh(own, ROWS, P('context', 'data'))
  ends = np.asarray(jax.jit(ends)(*inputs))
  assert ends.shape[0] == 4 and np.abs(ends).max() > 0.1
  for end in ends[1:]:
    np.testing.assert_array_equal(end, ends[0])


@pytest.mark.parametrize('op', OPS)
def test_nothing_comes_from_a_later_device_or_an_earlier_document(op):
  case = draw(op, decay='head', starts=(13,))
  names = ('q', 'k', 'v', 'log_decay', 'beta', 'state')
  names = [name for name in names if name in case.inputs()]

  @jax.jit
  def run(inputs):
    *args, state = (jnp.asarray(inputs[name], jnp.float32) for name in names)
    return shared(OPS[op])(*args, state_BGKV=state, starts_BT=case.starts)

  plain, end = run(case.inputs())
  later = {n: np.copy(x) for n, x in case.inputs().items()}
  for name in names[:-1]:
    later[name][:, 16:] *= 0.5
  np.testing.assert_array_equal(run(later)[0][:, :16], plain[:, :16])
  earlier = {n: np.copy(x) for n, x in case.inputs().items()}
  earlier['state'] *= 2
  for name in names[:-1]:
    earlier[name][:, :13] *= 0.5
  changed, end_again = run(earlier)
  assert np.abs(changed - plain)[:, :13].max() > 0.1
  np.testing.assert_array_equal(changed[:, 13:], plain[:, 13:])
  np.testing.assert_array_equal(end_again, end)


def test_a_halo_is_what_the_left_neighbour_ends_with():
  x = np.arange(2 * T * 3.0).reshape(2, T, 3)

  def own(x):
    return context.halo(x, 3, 'context')

  got = over_mesh(own, ROWS, ROWS)(x).reshape(2, 4, 3, 3)
  np.testing.assert_array_equal(got[:, 0], 0)
  want = x.reshape(2, 4, 8, 3)[:, :-1, 5:]
  np.testing.assert_array_equal(got[:, 1:], want)


def test_a_halo_wider_than_the_tokens_of_a_device_is_refused():
  def own(x):
    return context.halo(x, 9, 'context')

  with pytest.raises(
    ValueError, match='8 tokens per device .* fewer than the 9'
  ):
    over_mesh(own, ROWS, ROWS)(np.zeros((2, T)))
