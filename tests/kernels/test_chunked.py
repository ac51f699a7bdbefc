"""The chunked recurrences in plain XLA against the recurrence in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.chunked.shapes import LENGTHS, WIDTHS
from pallas_kernels.chunked_delta.api import chunked_delta
from pallas_kernels.chunked_linear.api import chunked_linear
from tests.kernels import recurrence
from tests.kernels.recurrence import KINDS, draw, errors, run, solve

TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 5e-3}
FORMS = [
  (delta, decay) for delta in (True, False) for decay in ('channel', 'head')
] + [(True, None), (False, None)]


def _op(delta):
  return chunked_delta if delta else chunked_linear


def _rows(kinds, **sizes):
  """One case whose rows are of different kinds: one program for all."""
  cases = [draw(kind, B=1, seed=i, **sizes) for i, kind in enumerate(kinds)]

  def joined(name):
    arrays = [getattr(case, name) for case in cases]
    return None if arrays[0] is None else np.concatenate(arrays)

  names = [f.name for f in dataclasses.fields(recurrence.Case)]
  return dataclasses.replace(
    cases[0], **{n: joined(n) for n in names if n not in ('starts', 'scale')}
  )


def _row(tree, i):
  return jax.tree.map(lambda x: x[i], tree)


def _case(delta, decay, dtype):
  # The forms that share the least are in the default run.
  few = {(True, 'channel'): (jnp.float32,), (False, 'head'): list(TOLERANCE)}
  slow = dtype not in few.get((delta, decay), ())
  return pytest.param(delta, decay, dtype, marks=[pytest.mark.slow] * slow)


@pytest.mark.parametrize(
  ['delta', 'decay', 'dtype'],
  [_case(*form, dtype) for dtype in TOLERANCE for form in FORMS],
)
def test_results_and_gradients_are_right_for_inputs_of_every_kind(
  delta, decay, dtype
):
  kinds = (*KINDS, 'mixed')
  case = _rows(
    kinds, T=100, H=1, G=2, K=64, V=40, decay=decay, delta=delta, round_to=dtype
  )
  if decay is not None:
    # The last row is of documents, which start in the midst of chunks and at
    # their edges; one has a single token.
    starts = np.zeros((len(kinds), 100), bool)
    starts[-1, [0, 32, 33, 50, 64]] = True
    case = case.replace(starts=starts)
  got, want = run(case, _op(delta), dtype), solve(case)
  for i, kind in enumerate(kinds):
    found = errors(_row(got, i), _row(want, i))
    assert max(found.values()) < TOLERANCE[dtype], (kind, found)


@pytest.mark.parametrize(
  ['T', 'K', 'V', 'chunk', 'delta', 'decay'],
  [
    (1, 60, 100, None, True, 'channel'),
    (15, 100, 60, 4, True, 'head'),
    (65, 5, 1, 1, True, 'channel'),
    (65, 60, 3, 16, False, 'channel'),
    (63, 100, 7, None, False, 'head'),
  ],
)
def test_lengths_widths_and_chunks_may_be_odd(T, K, V, chunk, delta, decay):
  case = draw(T=T, K=K, V=V, H=2, G=6, decay=decay, delta=delta)
  found = errors(run(case, _op(delta), jnp.float32, chunk=chunk), solve(case))
  assert max(found.values()) < 1e-5, found


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(['delta', 'decay'], FORMS)
def test_results_and_gradients_are_right_at_every_length_and_width(
  delta, decay, dtype
):
  for T, D in [(T, 64) for T in LENGTHS] + [(65, D) for D in WIDTHS]:
    kinds = KINDS if T == 500 else ('random', 'correlated')
    case = _rows(kinds, T=T, H=1, K=D, decay=decay, delta=delta, round_to=dtype)
    got, want = run(case, _op(delta), dtype), solve(case)
    for i, kind in enumerate(kinds):
      found = errors(_row(got, i), _row(want, i))
      assert max(found.values()) < TOLERANCE[dtype], (T, D, kind, found)


def test_documents_start_afresh_where_nothing_decays():
  starts = np.arange(80).reshape(2, 40) % 33 == 5
  case = draw(T=40, H=1, K=8, decay=None).replace(starts=starts)
  found = errors(run(case, chunked_delta, jnp.float32), solve(case))
  assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize('decay', ['channel', 'head'])
@pytest.mark.parametrize('delta', [True, False])
def test_packed_documents_equal_separate_ones_and_pieces_the_whole(
  delta, decay
):
  case = draw(B=1, T=96, H=2, K=16, decay=decay, delta=delta)
  call = _compiled(delta)
  starts = np.arange(96)[None] == 40
  inputs = jax.tree.map(_f32, case.inputs())
  state = inputs.pop('state')

  def piece(start, end, state):
    # Padded behind to one length, for one program: padding changes no state.
    padded = {
      n: jnp.zeros_like(x).at[:, : end - start].set(x[:, start:end])
      for n, x in inputs.items()
    }
    y, state = call(padded, np.zeros((1, 96), bool), state)
    return y[:, : end - start], state

  packed, end = call(inputs, starts, state)
  first, _ = piece(0, 40, state)
  second, end_of_second = piece(40, 96, jnp.zeros_like(state))
  separate = jnp.concatenate([first, second], axis=1)
  assert recurrence.error(packed, separate) < 1e-6
  assert recurrence.error(end, end_of_second) < 1e-6

  whole, end = call(inputs, np.zeros((1, 96), bool), state)
  pieces = []
  for start, stop in ((0, 1), (1, 38), (38, 96)):
    y, state = piece(start, stop, state)
    pieces.append(y)
  assert recurrence.error(jnp.concatenate(pieces, axis=1), whole) < 1e-6
  assert recurrence.error(state, end) < 1e-6


@pytest.mark.parametrize('decay', ['channel', 'head'])
@pytest.mark.parametrize('delta', [True, False])
def test_a_future_gate_changes_no_bit_of_a_past_output(delta, decay):
  case = draw('mixed', B=1, T=96, H=2, K=16, decay=decay, delta=delta)
  call = _compiled(delta)
  inputs = jax.tree.map(_f32, case.inputs())
  state = inputs.pop('state')
  starts = np.zeros((1, 96), bool)
  before = call(inputs, starts, state)[0]
  for t in (1, 31, 32, 50, 95):
    changed = inputs | {
      'log_decay': inputs['log_decay'].at[:, t:].add(-0.7),
    }
    after = call(changed, starts, state)[0]
    np.testing.assert_array_equal(after[:, :t], before[:, :t])
    assert (after[:, t] != before[:, t]).any()


@functools.cache
def _compiled(delta):
  return jax.jit(functools.partial(_call, delta))


def _call(delta, inputs, starts, state):
  inputs = dict(inputs)
  names = ['q', 'k', 'v', 'log_decay', *(['beta'] if delta else [])]
  args = [inputs[name] for name in names]
  return _op(delta)(*args, state_BGKV=state, starts_BT=starts)


def _f32(x):
  return jnp.asarray(x, jnp.float32)


def test_a_vmapped_gradient_is_that_of_the_batch():
  case = draw(B=3, T=20, H=1, K=8)
  inputs = jax.tree.map(_f32, case.inputs())
  names = list(inputs)

  def loss(*xs):
    named = dict(zip(names, xs, strict=True))
    y, state = _call(True, named, np.zeros((1, 20), bool), named['state'])
    return jnp.sum(y * y) + jnp.sum(state)

  def rowwise(*xs):
    return jax.vmap(jax.grad(loss, argnums=(0, 3)))(*[x[:, None] for x in xs])

  def batched(*xs):
    named = dict(zip(names, xs, strict=True))
    y, state = _call(True, named, np.zeros((3, 20), bool), named['state'])
    return jnp.sum(y * y) + jnp.sum(state)

  got = jax.jit(rowwise)(*inputs.values())
  want = jax.jit(jax.grad(batched, argnums=(0, 3)))(*inputs.values())
  for a, b in zip(got, want, strict=True):
    assert recurrence.error(a[:, 0], b) < 1e-6


def test_scale_and_a_sequence_without_tokens():
  case = draw(T=3, H=1, K=4, decay=None).replace(scale=0.3)
  found = errors(run(case, chunked_delta, jnp.float32), solve(case))
  assert max(found.values()) < 1e-5, found
  for delta in (True, False):
    inputs = jax.tree.map(_f32, draw(T=3, H=1, K=4, delta=delta).inputs())
    state = inputs.pop('state')
    none = {n: x[:, :0] for n, x in inputs.items()}
    y, end = _call(delta, none, np.zeros((2, 0), bool), state)
    assert y.shape == (2, 0, 1, 4)
    np.testing.assert_array_equal(end, state)


@pytest.mark.parametrize(
  ['changes', 'message'],
  [
    ({'q': (2, 5, 2, 3)}, r'takes q and k \[B, T, H, K\]'),
    ({'v': (2, 5, 3, 4)}, '3 value heads and 2 key heads'),
    ({'log_decay': (2, 5, 2)}, r'log_decay is \(2, 5, 2\)'),
    ({'beta': (2, 5, 2)}, r'beta_BTG is \(2, 5, 2\)'),
    ({'state': (2, 2, 6, 7)}, r'state_BGKV is \(2, 2, 6, 7\)'),
    ({'starts': (2, 4)}, r'starts_BT is \(2, 4\)'),
    ({'dtype': 'v'}, 'float32, float32 and bfloat16'),
    ({'dtype': 'log_decay'}, 'log_decay is bfloat16; .* float32: cast it'),
    ({'dtype': 'starts'}, 'starts_BT is bfloat16; .* bool: cast it'),
    ({'chunk': 48}, 'chunk=48 tokens; use a positive power of two'),
    ({'implementation': 'fast'}, "implementation='fast' is unknown"),
  ],
)
def test_bad_input_is_refused_with_values_and_rule(changes, message):
  shapes = dict(
    q=(2, 5, 2, 6),
    k=(2, 5, 2, 6),
    v=(2, 5, 4, 7),
    log_decay=(2, 5, 4, 6),
    beta=(2, 5, 4),
    state=(2, 4, 6, 7),
    starts=(2, 5),
  )
  shapes |= {n: s for n, s in changes.items() if n in shapes}
  dtypes = {'starts': jnp.bool_} | {changes.get('dtype'): jnp.bfloat16}
  x = {n: jnp.zeros(s, dtypes.get(n, jnp.float32)) for n, s in shapes.items()}
  static = {n: changes[n] for n in changes if n in ('chunk', 'implementation')}

  def call(op, *beta):
    return op(
      x['q'],
      x['k'],
      x['v'],
      x['log_decay'],
      *beta,
      state_BGKV=x['state'],
      starts_BT=x['starts'],
      **static,
    )

  with pytest.raises(ValueError, match=f'chunked_delta.*{message}'):
    call(chunked_delta, x['beta'])
  if 'beta' not in changes:
    with pytest.raises(ValueError, match=f'chunked_linear.*{message}'):
      call(chunked_linear)
