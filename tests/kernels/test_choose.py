"""The switch between implementations."""

from functools import partial

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


def test_only_what_is_lowered_is_traced():
  traced = []

  def entry(name, platforms=None):
    def call(x):
      traced.append(name)
      return x + 1

    return Entry(call, platforms=platforms)

  table = {
    'host': entry('host', ('cpu',)),
    'chip': entry('chip', ('tpu',)),
    'plain': entry('plain'),
  }

  def f(x):
    return choose('op', table, x)

  program = jax.jit(jax.vmap(f)).trace(jnp.zeros((3, 2)))
  # Its shapes are everyone's.
  assert set(traced) == {'plain'}
  for platform, name in (('cpu', 'host'), ('tpu', 'chip'), ('cuda', 'plain')):
    traced.clear()
    program.lower(lowering_platforms=(platform,))
    assert set(traced) == {name}


def test_a_program_for_many_platforms_has_the_choice_of_each():
  def f(x):
    return choose('op', TABLE, x)

  lowered = jax.jit(f).trace(jnp.zeros(2))
  text = lowered.lower(lowering_platforms=('cpu', 'tpu', 'cuda')).as_text()
  assert 'stablehlo.case' in text and text.count('stablehlo.sine') == 1
  program = jax.export.export(jax.jit(f), platforms=('tpu', 'cpu'))
  assert program(jnp.zeros(2)).call(jnp.zeros(2)).tolist() == [1, 1]


def test_entries_that_return_different_things_are_refused_when_lowered():
  table = {
    'host': Entry(lambda x: x[:1], platforms=('cpu',)),
    'plain': Entry(lambda x: x),
  }
  with pytest.raises(TypeError, match=r'op: .* cpu returns .*\(1,\)'):
    jax.jit(lambda x: choose('op', table, x))(jnp.zeros(2))


def test_what_is_traced_late_is_traced_under_the_precision_in_force():
  table = {
    'host': Entry(lambda x: x @ x, platforms=('cpu',)),
    'plain': Entry(lambda x: x + x),
  }

  def f(x):
    with jax.default_matmul_precision('highest'):
      return choose('op', table, x)

  assert 'HIGHEST' in _lower(f, jnp.ones((2, 2)), 'cpu')


# x w and an integer, by the entries of CPUs alone.
PAIR = {
  'host': Entry(lambda x, w: (x * w, jnp.argmax(x)), platforms=('cpu',)),
  'chip': Entry(lambda x, w: (x - w, jnp.argmin(x)), platforms=('tpu',)),
  'kernel': Entry(lambda x, w: (x / w, jnp.argmin(x)), platforms=('cuda',)),
  'plain': Entry(lambda x, w: (x + w, jnp.argmax(x))),
}


def _product(x, w):
  return choose('op', PAIR, x, w)[0]


def _plain_product(x, w):
  return x * w


def test_a_choice_is_differentiated_as_what_is_chosen():
  x, w = jnp.arange(1.0, 4), jnp.arange(2.0, 5)

  def all_of(f):
    def total(x, w):
      return f(x, w**2).sum() ** 2

    def scanned(x):
      body = jax.checkpoint(lambda x, _: (f(x, x), None))
      return jax.lax.scan(body, x, None, length=3)[0].sum()

    return [
      jax.grad(total, (0, 1))(x, w),
      jax.jvp(total, (x, w), (w, x)),
      jax.jacfwd(total, 1)(x, w),
      jax.hessian(total)(x, w),
      jax.vmap(jax.grad(total))(jnp.stack([x, w]), jnp.stack([w, w])),
      jax.vmap(f, (None, 0), 1)(x, jnp.stack([w, x])),
      jax.grad(scanned)(x),
    ]

  got = jax.jit(partial(all_of, _product))()
  want = jax.jit(partial(all_of, _plain_product))()
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert jnp.allclose(a, b, rtol=1e-6)


def test_a_choice_is_differentiated_outside_of_jit():
  x, w = jnp.arange(1.0, 4), jnp.arange(2.0, 5)
  dx, dw = jax.grad(lambda x, w: _product(x, w).sum(), (0, 1))(x, w)
  assert (dx == w).all() and (dw == x).all()


@pytest.mark.parametrize('check_vma', [True, False])
def test_a_choice_is_differentiated_inside_of_shard_map(check_vma):
  mesh = jax.make_mesh((8,), ('a',), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.sharding.PartitionSpec('a')
  x = jnp.arange(24.0).reshape(8, 3)

  @jax.jit
  @jax.grad
  def slope(x):
    f = jax.shard_map(
      jax.vmap(_product),
      mesh=mesh,
      in_specs=(rows, rows),
      out_specs=rows,
      check_vma=check_vma,
    )
    return f(x, x).sum()

  assert (slope(x) == 2 * x).all()


def test_a_choice_can_be_differentiated_where_something_runs():
  table = {
    'host': Entry(jnp.sin, platforms=('cpu',)),
    'chip': Entry(jnp.cos, platforms=('tpu',)),
  }
  x = jnp.float32(2)
  slope = jax.jit(jax.grad(lambda x: choose('op', table, x)))(x)
  assert slope == jnp.cos(x)


def test_what_cannot_be_partitioned_is_for_one_device_and_shard_map():
  table = {
    'kernel': Entry(lambda x: x + 1, partitions=False),
    'plain': Entry(lambda x: jnp.sin(x)),
  }

  def f(x):
    return choose('op', table, x)

  mesh = jax.make_mesh((8,), ('a',), axis_types=(jax.sharding.AxisType.Auto,))
  grid = jax.make_mesh(
    (4, 2), ('a', 'b'), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  x = jnp.zeros((8, 2))
  rows = jax.sharding.PartitionSpec('a')
  spread = jax.device_put(x, jax.sharding.NamedSharding(mesh, rows))

  def manual(mesh):
    return jax.shard_map(
      f, mesh=mesh, in_specs=rows, out_specs=rows, axis_names={'a'}
    )

  one, many = jnp.ones((8, 2)), jnp.zeros((8, 2))
  for call in (f, jax.jit(f), jax.jit(jax.vmap(f)), jax.jit(manual(mesh))):
    assert (call(x) == one).all()
  assert (jax.jit(manual(mesh))(spread) == one).all()
  for call in (jax.jit(f), jax.jit(jax.vmap(f))):
    assert (call(spread) == many).all()
  # One of two axes is left to the compiler.
  assert (jax.jit(manual(grid))(x) == many).all()
