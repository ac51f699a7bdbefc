"""Configs as text, compared and overridden."""

import ml_collections
import numpy as np
import pytest

from moejax import config_io


def _config():
  return ml_collections.ConfigDict(
    {
      'model': {
        'width': 32,
        'cap': None,
        'rate': 0.5,
        'tied': True,
        'kind': 'a.B',
        'pattern': ({'kind': 'x', 'heads': 4}, {'kind': 'y', 'heads': 2}),
        'moe': {'kind': 'z', 'experts': 8},
      },
      'seed': 0,
      'betas': (0.9, 0.95),
    }
  )


def test_json_round_trip_is_exact():
  config = _config()
  back = config_io.from_json(config_io.to_json(config))
  assert config_io.plain(back) == config.to_dict()
  assert back.betas == (0.9, 0.95)
  assert back.model.pattern[1].heads == 2  # nodes in tuples have attributes
  assert isinstance(back.model.rate, float) and back.model.tied is True
  assert config_io.to_json(back) == config_io.to_json(config)


def test_json_text_does_not_depend_on_the_order_of_fields():
  one = config_io.to_json({'a': 1, 'b': {'c': 2, 'd': 3}})
  assert one == config_io.to_json({'b': {'d': 3, 'c': 2}, 'a': 1})


def test_lists_come_back_as_tuples_at_every_depth():
  back = config_io.from_json(config_io.to_json({'a': [1, [2, {'b': [3]}]]}))
  assert config_io.plain(back) == {'a': (1, (2, {'b': (3,)}))}


@pytest.mark.parametrize('value', [1, 1.0, 1e16, -0.1, 2**70, True, None, '1'])
def test_json_keeps_the_type_of(value):
  back = config_io.from_json(config_io.to_json({'a': value})).a
  assert type(back) is type(value) and back == value


def test_numpy_numbers_become_python_numbers():
  tree = config_io.plain({'a': np.int64(3), 'b': np.float64(0.5)})
  assert type(tree['a']) is int and type(tree['b']) is float


@pytest.mark.parametrize(
  ('value', 'message'),
  [
    (float('nan'), r'config\.a\.b\[1\] is nan'),
    (float('inf'), 'is inf, which is not a finite number'),
    ({1}, r'config\.a\.b\[1\] is a set'),
    (print, 'name code by its import path'),
    ({1: 2}, 'keys must be strings'),
  ],
)
def test_what_json_cannot_hold_is_refused(value, message):
  with pytest.raises(ValueError, match=message):
    config_io.to_json({'a': {'b': (0, value)}})


def test_text_that_is_no_config_is_refused():
  with pytest.raises(ValueError, match='holds a list'):
    config_io.from_json('[1]')


def test_difference_names_every_leaf_that_differs():
  old = {'a': {'b': 1, 'gone': 'x'}, 't': ({'h': 4}, 2), 's': 1}
  new = {'a': {'b': 2}, 't': ({'h': 8}, 2, 3), 's': 1.0}
  assert config_io.difference(old, new) == [
    'a.b: 1 -> 2',
    "a.gone: 'x' -> (absent)",
    's: 1 -> 1.0',
    't[0].h: 4 -> 8',
    't[2]: (absent) -> 3',
  ]
  assert config_io.difference(_config(), _config()) == []
  assert config_io.difference({'a': [1]}, {'a': (1,)}) == []


def test_override_sets_leaves_and_leaves_the_config_alone():
  config = _config()
  changed = config_io.override(
    config,
    {
      'config.model.width': 64,
      'model.pattern[1].heads': 8,
      'model.rate': 1,
      'betas': [0.5, 0.6],
      'model.cap': 1.5,
      'seed': None,
      'name': 'ignored',
    },
  )
  assert config_io.plain(config) == config_io.plain(_config())
  assert config_io.difference(config, changed) == [
    'betas[0]: 0.9 -> 0.5',
    'betas[1]: 0.95 -> 0.6',
    'model.cap: None -> 1.5',
    'model.pattern[1].heads: 2 -> 8',
    'model.rate: 0.5 -> 1.0',
    'model.width: 32 -> 64',
    'seed: 0 -> None',
  ]


def test_override_replaces_a_whole_node_before_what_is_inside_it():
  changed = config_io.override(
    _config(),
    {'model.moe.slots': 4, 'model.moe': {'kind': 'w', 'slots': 1}},
  )
  assert changed.model.moe.to_dict() == {'kind': 'w', 'slots': 4}


@pytest.mark.parametrize(
  ('path', 'near', 'siblings'),
  [
    ('model.widht', 'model.width', 'cap, kind, moe'),
    ('modle.width', 'model.width', 'betas, model, seed'),
    ('model.moe.expert', 'model.moe.experts', 'experts, kind'),
    ('model.pattern[0].head', 'model.pattern[0].heads', 'heads, kind'),
    ('model.pattern[2].head', 'model.pattern[1].heads', '0, 1'),
  ],
)
def test_unknown_path_names_the_nearest_and_the_siblings(path, near, siblings):
  with pytest.raises(ValueError) as caught:
    config_io.override(_config(), {path: 1})
  message = str(caught.value)
  assert message.startswith(f'{path!r} is unknown. Did you mean {near!r}?')
  assert siblings in message


def test_a_path_below_a_leaf_says_that_it_is_a_leaf():
  with pytest.raises(ValueError, match=r"'seed' is 0, which has no fields"):
    config_io.override(_config(), {'seed.a': 1})


@pytest.mark.parametrize(
  ('path', 'value', 'message'),
  [
    ('model.width', 64.0, 'is a float, but the field is an int'),
    ('model.width', True, 'is a bool, but the field is an int'),
    ('model.rate', '0.5', 'is a str, but the field is a float'),
    ('model.tied', 1, 'is an int, but the field is a bool'),
    ('model.moe', 3, 'the field is a dict'),
    ('betas', 0.9, 'the field is a tuple'),
    ('model.kind', {'kind': 'x'}, 'is a dict'),
  ],
)
def test_override_of_another_type_is_refused(path, value, message):
  with pytest.raises(ValueError, match=message):
    config_io.override(_config(), {path: value})


@pytest.mark.parametrize('path', ['', '.a', 'a..b', 'a[x]', 3])
def test_malformed_path_is_refused(path):
  with pytest.raises(ValueError, match='is not a config path'):
    config_io.override(_config(), {path: 1})
