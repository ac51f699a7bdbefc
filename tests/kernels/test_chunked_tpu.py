"""The TPU kernels of the chunked recurrences, interpreted, against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.extend.core import jaxprs_in_params

from pallas_kernels.chunked import tpu_layout, tpu_products
from pallas_kernels.chunked.inputs import FORGET
from pallas_kernels.chunked.shapes import LENGTHS, WIDTHS
from pallas_kernels.chunked.tpu_layout import Problem
from pallas_kernels.chunked.vjp import Implementation
from pallas_kernels.chunked_delta import api as delta_api
from pallas_kernels.chunked_delta import pallas_tpu as delta_tpu
from pallas_kernels.chunked_linear import api as linear_api
from pallas_kernels.chunked_linear import pallas_tpu as linear_tpu
from tests.kernels import recurrence

TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 5e-3}
# Leaves NaN in all that nothing was written to.
STRICT = pltpu.InterpretParams(uninitialized_memory='nan')


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
  """Makes the kernels an implementation that runs here."""
  for api, tpu in ((delta_api, delta_tpu), (linear_api, linear_tpu)):
    for name, interpret in (('interpreted', True), ('strict', STRICT)):
      found = Implementation(
        functools.partial(tpu.forward, interpret=interpret),
        tpu.shapes,
        functools.partial(tpu.backward, interpret=interpret),
        refuses=tpu.refuses,
      )
      monkeypatch.setitem(api.TABLE, name, found)


def _op(delta):
  return delta_api.chunked_delta if delta else linear_api.chunked_linear


def _errors(case, dtype, implementation='interpreted', **static):
  """Relative errors by result, the largest of all rows of the batch."""
  op = _op(case.beta is not None)
  (y, state), gradients = recurrence.run(
    case, op, dtype, implementation=implementation, **static
  )
  want = recurrence.solve(case)
  pairs = {'y': (y, want[0][0]), 'end': (state, want[0][1])}
  pairs |= {f'd{n}': (gradients[n], d) for n, d in want[1].items()}
  return {
    (name, row): recurrence.error(a[row], b[row])
    for name, (a, b) in pairs.items()
    for row in range(len(b))
  }


def _every_kind(starts=True, **sizes):
  """A case of which each row of the batch is of another kind."""
  cases = [
    recurrence.draw(kind, B=1, seed=n, **sizes)
    for n, kind in enumerate(recurrence.KINDS)
  ]
  fields = {
    name: np.concatenate([getattr(c, name) for c in cases])
    for name in (*cases[0].inputs(), 'dy', 'dstate')
  }
  case = cases[0].replace(**fields)
  if not starts:
    return case
  rng = np.random.default_rng(0)
  return case.replace(starts=rng.random(case.v.shape[:2]) < 0.05)


# Three chunks of which the last is not full, two value heads to a key head,
# levels of halving within a register and of several.
SMALL = dict(T=37, H=1, G=2, K=20, V=12)


@pytest.mark.parametrize(
  'delta, decay, dtype',
  [
    (True, 'channel', jnp.float32),
    pytest.param(True, 'channel', jnp.bfloat16, marks=pytest.mark.slow),
    pytest.param(True, 'head', jnp.float32, marks=pytest.mark.slow),
    (True, None, jnp.float32),
    pytest.param(False, 'channel', jnp.float32, marks=pytest.mark.slow),
    (False, 'head', jnp.bfloat16),
    (False, None, jnp.float32),
  ],
)
def test_results_and_gradients_are_the_recurrence_on_inputs_of_every_kind(
  delta, decay, dtype
):
  case = _every_kind(
    decay is not None, delta=delta, decay=decay, round_to=dtype, **SMALL
  )
  errors = _errors(case, dtype, chunk=16)
  assert max(errors.values()) < TOLERANCE[dtype], errors


def test_gradients_of_a_key_head_are_summed_over_parts_of_its_value_heads(
  monkeypatch,
):
  monkeypatch.setattr(tpu_layout, 'SHARED_BYTES', 2 * 4 * 128 * 128)
  case = recurrence.draw(
    B=1, T=20, H=2, G=8, K=8, V=4, decay='head', delta=False
  )
  p = Problem(1, 20, 2, 8, 8, 4, 16, 'head', jnp.dtype(jnp.float32))
  assert p.shared == 2 and p.group == 4
  errors = _errors(case, jnp.float32, chunk=16)
  assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize('decay', ['channel', 'head'])
def test_a_future_gate_changes_no_past_output_by_a_bit(decay):
  case = recurrence.draw('mixed', B=1, T=32, H=1, K=8, decay=decay)
  at = 11

  @jax.jit
  def run(log_decay):
    args = (jnp.asarray(x, jnp.float32) for x in (case.q, case.k, case.v))
    y, _ = delta_api.chunked_delta(
      *args,
      log_decay,
      jnp.asarray(case.beta, jnp.float32),
      implementation='interpreted',
      chunk=32,
    )
    return y

  log_decay = case.log_decay.astype(np.float32)
  y = np.asarray(run(log_decay))
  for value in (0, -3, FORGET):
    other = log_decay.copy()
    other[:, at:] = value
    other = np.asarray(run(other))
    np.testing.assert_array_equal(y[:, :at], other[:, :at])
    assert (y[:, at:] != other[:, at:]).any()


def test_sums_take_nothing_of_what_they_do_not_pick_and_forget_exactly():
  x = np.full((8, 1), FORGET, np.float32)
  x[2:5, 0] = [-0.1, -1e-20, -(1 + 2**-20)]
  ones = np.zeros((3, 8), bool)
  ones[0, 2:5] = ones[1, 1:3] = True
  for full, bound in ((True, 2**-23), (False, 2**-15)):
    found = tpu_products.Products(full).sums(jnp.array(ones), jnp.array(x))
    want = x[2:5].astype(np.float64).sum()
    assert abs(found[0, 0] / want - 1) <= bound
    assert np.isfinite(found[1, 0]) and jnp.exp(found[1, 0]) == 0
    assert found[2, 0] == 0


@pytest.mark.parametrize('decay', ['channel', 'head', None])
@pytest.mark.parametrize('delta', [True, False])
def test_kernels_multiply_what_their_count_says(delta, decay):
  """The FLOPs that the compiler reports of a kernel are our own claim."""
  case = recurrence.draw(B=1, T=128, H=1, G=2, K=60, decay=decay, delta=delta)
  for chunk in (16, 64, 128):
    static = dict(implementation='interpreted', chunk=chunk, jit=False)
    run = functools.partial(recurrence.run, case, _op(delta), jnp.float32)
    found = jax.make_jaxpr(functools.partial(run, **static))()
    kernels = list(_kernels(found.jaxpr))
    assert len(kernels) == (4 if delta else 3)
    for params in kernels:
      steps = np.prod(params['grid_mapping'].grid)
      claim = params['cost_estimate'].flops
      assert steps * _thrice_products(params['jaxpr']) == 3 * claim


def _kernels(jaxpr):
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'pallas_call':
      yield eqn.params
    for inner in jaxprs_in_params(eqn.params):
      yield from _kernels(inner)


def _thrice_products(jaxpr):
  """3 x FLOPs; a sum by a 0/1 matrix is a product of three parts in bf16."""
  total = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      left, right = (x.aval for x in eqn.invars)
      (contracted,), _ = eqn.params['dimension_numbers'][0]
      flops = 2 * left.size * right.size // left.shape[contracted]
      total += flops * (1 if left.dtype == jnp.bfloat16 else 3)
    else:
      total += sum(map(_thrice_products, jaxprs_in_params(eqn.params)))
  return total


def test_what_the_kernels_do_not_take_is_refused():
  def reason(k=64, chunk=None, dtype=jnp.float32):
    q = jax.ShapeDtypeStruct((1, 8, 2, k), dtype)
    beta = jax.ShapeDtypeStruct((1, 8, 2), jnp.float32)
    state = jax.ShapeDtypeStruct((1, 2, k, k), jnp.float32)
    args = (q, q, q, None, beta, state)
    return delta_tpu.refuses(*args, scale=1.0, chunk=chunk)

  assert reason() is None
  assert reason(256, 128) is None
  assert 'not float64' in reason(dtype=jnp.float64)
  assert 'chunk=8 is none of' in reason(chunk=8)
  assert 'bytes of fast memory' in reason(1024)


@pytest.mark.slow
@pytest.mark.parametrize('width', WIDTHS)
@pytest.mark.parametrize('tokens', LENGTHS)
def test_any_length_and_width(tokens, width):
  even = LENGTHS.index(tokens) % 2 == 0
  for delta in (True, False):
    case = recurrence.draw(
      B=1,
      T=tokens,
      H=1,
      K=width,
      V=width if even else 40,
      decay='channel' if even else 'head',
      delta=delta,
    )
    errors = _errors(case, jnp.float32)
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.slow
@pytest.mark.parametrize('chunk', [64, 128])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('decay', ['channel', 'head', None])
@pytest.mark.parametrize('delta', [True, False])
def test_full_chunks_on_inputs_of_every_kind(delta, decay, dtype, chunk):
  case = _every_kind(
    False,
    T=300,
    H=1,
    G=2,
    K=64,
    V=40,
    delta=delta,
    decay=decay,
    round_to=dtype,
  )
  errors = _errors(case, dtype, chunk=chunk)
  assert max(errors.values()) < TOLERANCE[dtype], errors


@pytest.mark.slow
@pytest.mark.parametrize('delta', [True, False])
def test_nothing_unwritten_reaches_a_result(delta):
  case = _every_kind(delta=delta, **SMALL)
  errors = _errors(case, jnp.float32, 'strict', chunk=16)
  assert max(errors.values()) < 1e-5, errors


@pytest.mark.slow
@pytest.mark.parametrize('decay', ['channel', 'head'])
def test_packed_equals_separate_and_whole_equals_pieces(decay):
  case = recurrence.draw(B=1, T=100, H=1, K=32, decay=decay)
  inputs = {n: jnp.asarray(x, jnp.float32) for n, x in case.inputs().items()}

  def run(begin, end, state, starts=None):
    cut = {n: inputs[n][:, begin:end] for n in inputs if n != 'state'}
    q, k, v, log_decay, beta = cut.values()
    return delta_api.chunked_delta(
      q,
      k,
      v,
      log_decay,
      beta,
      state_BGKV=state,
      starts_BT=starts,
      implementation='interpreted',
    )

  state = inputs['state']
  for packed in (True, False):
    starts = jnp.zeros((1, 100), bool).at[:, 37].set(packed)
    y, last = run(0, 100, state, starts)
    first, between = run(0, 37, state)
    second, end = run(37, 100, None if packed else between)
    separate = jnp.concatenate([first, second], axis=1)
    assert recurrence.error(y, separate) < 1e-6
    assert recurrence.error(last, end) < 1e-6
