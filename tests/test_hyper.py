"""Grids of overrides and the names of their cells."""

import pytest

from moejax.sweep import hyper


def test_product_is_every_combination_in_order():
  grid = hyper.product(
    [hyper.sweep('config.a', (1, 2)), hyper.sweep('b.c', ('x', 'y'))]
  )
  assert grid == [
    {'a': 1, 'b.c': 'x'},
    {'a': 1, 'b.c': 'y'},
    {'a': 2, 'b.c': 'x'},
    {'a': 2, 'b.c': 'y'},
  ]


def test_zipit_fixed_and_chainit():
  pairs = hyper.zipit(
    [hyper.sweep('a', range(2)), hyper.fixed('b', 7, length=2)]
  )
  assert pairs == [{'a': 0, 'b': 7}, {'a': 1, 'b': 7}]
  assert hyper.chainit([pairs, hyper.fixed('c', None)]) == [
    *pairs,
    {'c': None},
  ]


def test_names_of_products_are_prefixes_that_nest():
  dense = hyper.product([hyper.sweep('width', (1, 2))], name='dense')
  grid = hyper.product([hyper.fixed('name', 'small'), dense])
  assert [cell.name for cell in hyper.cells(dense)] == [
    'dense-width=1',
    'dense-width=2',
  ]
  assert [cell.name for cell in hyper.cells(grid)] == [
    'small-dense-width=1',
    'small-dense-width=2',
  ]
  assert hyper.cells(dense)[1].overrides == {'width': 2}


@pytest.mark.parametrize(
  ('build', 'message'),
  [
    (
      lambda: hyper.zipit([hyper.sweep('a', (1, 2)), hyper.fixed('b', 1)]),
      r'lengths \[2, 1\]; they must be equal',
    ),
    (
      lambda: hyper.product(
        [hyper.sweep('a', (1,)), hyper.sweep('config.a', (2,))]
      ),
      "product got 'a' from two sweeps",
    ),
    (
      lambda: hyper.zipit([hyper.fixed('a', 1), hyper.fixed('a', 2)]),
      "zipit got 'a' from two sweeps",
    ),
    (lambda: hyper.sweep('a', 'xy'), 'wrap it in a list'),
    (lambda: hyper.sweep('a', []), 'has no values'),
    (lambda: hyper.sweep('a', [{1}]), 'a is a set'),
    (lambda: hyper.fixed('a', 1, length=0), 'use at least 1'),
    (lambda: hyper.cells([{'a': 1}, {'config.a': 1}]), 'sweep a seed'),
    (
      lambda: hyper.cells([{'a': 1, 'config.a': 2}]),
      "sets 'a' twice",
    ),
    (
      lambda: hyper.cells([{'name': 'x', 'a': 1}, {'name': 'X', 'a': 2}]),
      'give each its own',
    ),
    (lambda: hyper.cells([{'name': '../x'}]), 'cannot name a folder'),
  ],
)
def test_mistakes_say_what_to_do(build, message):
  with pytest.raises(ValueError, match=message):
    build()


def _names(*overrides):
  return [cell.name for cell in hyper.cells(overrides)]


def test_names_are_short_tails_and_values():
  assert _names(
    {'model.width': 64, 'labels.variant': 'moe'},
    {'model.a.width': 1, 'model.b.width': 2},
    {'optim.lr': 1e-5, 'data.path': '/some/where *.txt'},
    {'model.moe': {'kind': 'moejax.dispatch.mask.Mask'}, 'betas': (0.9, 1)},
    {},
  ) == [
    'width=64,variant=moe',
    'a.width=1,b.width=2',
    'lr=1e-05,path=-some-where-.txt',
    'moe=Mask,betas=0.9x1',
    'base',
  ]


def test_names_do_not_change_when_cells_are_added():
  cells = [{'model.width': 1}, {'model.width': 2}]
  assert _names(*cells, {'model.depth': 3})[:2] == _names(*cells)


def test_equal_names_of_different_cells_get_a_hash():
  names = _names({'a.x': 1}, {'b.x': 1}, {'a.x': 2})
  assert len(set(names)) == 3 and names[2] == 'x=2'
  assert all(name.startswith('x=1-') for name in names[:2])
  # Disks that ignore case would put these two in one folder.
  assert len({name.casefold() for name in _names({'x': 'A'}, {'x': 'a'})}) == 2


def test_long_names_are_cut_and_stay_unique():
  names = _names(*({'text': 'v' * 200 + str(i)} for i in range(3)))
  assert len(set(names)) == 3 and max(map(len, names)) <= 80
  long = hyper.product([hyper.sweep('t', ['v' * 70, 'w'])], name='p' * 20)
  assert max(len(cell.name) for cell in hyper.cells(long)) <= 80
