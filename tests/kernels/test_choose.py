"""The switch between implementations."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.choose import Entry, choose


def _odd(x):
  return None if x.shape[0] % 2 == 0 else f'{x.shape[0]} rows are odd'


TABLE = {
  'host': Entry(lambda x: x + 1, platforms=('cpu',), refuses=_odd),
  'chip': Entry(lambda x: x + 2, platforms=('tpu',)),
  'plain': Entry(lambda x: jnp.sin(x)),
}


def _lower(f, x, platform):
  return jax.jit(f).trace(x).lower(lowering_platforms=(platform,)).as_text()


def test_none_takes_the_first_that_runs_and_fits():
  assert choose('op', TABLE, jnp.zeros(2)).tolist() == [1, 1]
  assert choose('op', TABLE, jnp.zeros(1)).tolist() == [0]


def test_the_choice_is_made_for_the_platform_lowered_for():
  def f(x):
    return choose('op', TABLE, x)

  x = jnp.zeros(2)
  assert 'sine' not in _lower(f, x, 'cpu')
  assert 'sine' not in _lower(f, x, 'tpu')
  assert 'sine' in _lower(f, x, 'cuda')


def test_a_name_is_that_one():
  y = choose('op', TABLE, jnp.ones(2), implementation='plain')
  assert y.tolist() == jnp.sin(jnp.ones(2)).tolist()


def test_an_unknown_name_lists_the_known():
  with pytest.raises(ValueError, match='use None or one of host, chip, plain'):
    choose('op', TABLE, jnp.zeros(2), implementation='other')


def test_a_name_that_refuses_the_shape_says_why_and_what_runs():
  with pytest.raises(NotImplementedError, match='3 rows are odd') as error:
    choose('op', TABLE, jnp.zeros(3), implementation='host')
  assert 'cpu: plain; cuda: plain;' in str(error.value)


@pytest.mark.parametrize('under', [lambda f: f, jax.jit, jax.vmap])
def test_a_name_of_another_platform_fails_when_lowered(under):
  f = under(lambda x: choose('op', TABLE, x, implementation='chip'))
  with pytest.raises(NotImplementedError, match='runs on tpu only'):
    f(jnp.zeros((2, 2)))


def test_a_name_lowers_for_its_platform_on_another_host():
  def f(x):
    return choose('op', TABLE, x, implementation='chip')

  assert 'stablehlo.add' in _lower(f, jnp.zeros(2), 'tpu')


def test_a_table_with_nothing_for_a_platform_fails_only_there():
  table = {'chip': TABLE['chip']}

  def f(x):
    return choose('op', table, x)

  assert 'stablehlo.add' in _lower(f, jnp.zeros(2), 'tpu')
  with pytest.raises(NotImplementedError, match='cpu: nothing'):
    _lower(f, jnp.zeros(2), 'cpu')


def test_a_choice_can_be_differentiated_where_something_runs():
  table = {
    'host': Entry(jnp.sin, platforms=('cpu',)),
    'chip': Entry(jnp.cos, platforms=('tpu',)),
  }
  x = jnp.float32(2)
  slope = jax.jit(jax.grad(lambda x: choose('op', table, x)))(x)
  assert slope == jnp.cos(x)
