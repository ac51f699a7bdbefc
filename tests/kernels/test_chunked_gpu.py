"""The chunked GPU kernels, interpreted, against the recurrence in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.chunked import gpu_decays, gpu_scores
from pallas_kernels.chunked.gpu_parts import dot, split
from pallas_kernels.chunked.inputs import FORGET
from pallas_kernels.chunked_delta import pallas_gpu as delta_gpu
from pallas_kernels.chunked_delta.api import TABLE as DELTA
from pallas_kernels.chunked_delta.api import chunked_delta
from pallas_kernels.chunked_linear import pallas_gpu as linear_gpu
from pallas_kernels.chunked_linear.api import TABLE as LINEAR
from pallas_kernels.chunked_linear.api import chunked_linear
from tests.kernels import recurrence

TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 5e-3}
KINDS = recurrence.KINDS
SMALL = dict(B=1, T=100, H=1, G=2, K=24, V=20)
SMALL_BF16 = dict(B=1, T=130, H=2, K=64)


@functools.cache
def _compiled(delta, dtype, scale, decay):
  """Results and gradients of the kernels, as `recurrence.solve` has them."""
  part = delta_gpu if delta else linear_gpu
  del decay  # another program

  def call(args, dy, dstate):
    static = dict(scale=scale, chunk=None, interpret=True)
    outs, kept = part.forward(*args, keep=True, **static)
    return outs, part.backward(args, kept, (dy, dstate), **static)

  # Else the compiler leaves out what rounds to bf16.
  return jax.jit(call, compiler_options={'xla_allow_excess_precision': False})


def _run(case, dtype):
  """What the kernels make of a case, in the form of `recurrence.solve`."""
  names = ['q', 'k', 'v', 'log_decay', 'beta', 'state']
  if case.beta is None:
    names.remove('beta')
  args = [getattr(case, name) for name in names]
  log = case.log_decay
  if case.starts is not None:
    starts = np.expand_dims(case.starts, tuple(range(2, log.ndim)))
    args[3] = np.where(starts, FORGET, log)
  args = [
    None if x is None else jnp.asarray(x, dtype if i < 3 else jnp.float32)
    for i, x in enumerate(args)
  ]
  scale = case.q.shape[-1] ** -0.5
  decay = None if log is None else log.ndim
  run = _compiled(case.beta is not None, dtype, scale, decay)
  dy = jnp.asarray(case.dy, dtype)
  outs, found = run(args, dy, jnp.asarray(case.dstate, jnp.float32))
  found = dict(zip(names, found, strict=True))
  if case.starts is not None:
    found['log_decay'] = jnp.where(starts, 0, found['log_decay'])
  return outs, {n: d for n, d in found.items() if d is not None}


def _check(dtype, kind, starts=False, **sizes):
  case = recurrence.draw(kind, round_to=dtype, **sizes)
  if starts:
    B, T = case.q.shape[:2]
    case = case.replace(starts=np.arange(B * T).reshape(B, T) % 37 == 5)
  found = recurrence.errors(_run(case, dtype), recurrence.solve(case))
  assert max(found.values()) < TOLERANCE[dtype], (kind, found)


@pytest.mark.parametrize(
  'decay', ['channel', pytest.param('head', marks=pytest.mark.slow)]
)
def test_the_delta_rule_and_its_gradients_are_the_recurrence(decay):
  for kind in KINDS:
    _check(jnp.float32, kind, decay=decay, **SMALL)
  _check(jnp.float32, 'random', starts=True, decay=decay, **SMALL)


@pytest.mark.parametrize(
  'decay', ['channel', pytest.param('head', marks=pytest.mark.slow)]
)
def test_bf16_keeps_its_digits_where_keys_are_alike(decay):
  for kind in KINDS:
    _check(jnp.bfloat16, kind, decay=decay, **SMALL_BF16)


def test_linear_attention_and_its_gradients_are_the_recurrence():
  for kind in ('random', 'saturated', 'mixed'):
    _check(jnp.float32, kind, delta=False, decay='channel', **SMALL)
  _check(jnp.float32, 'random', delta=False, decay=None, **SMALL)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('delta', [True, False])
@pytest.mark.parametrize('decay', ['channel', 'head', None])
@pytest.mark.parametrize(
  'T, D', [(1, 64), (15, 60), (63, 64), (65, 100), (500, 128), (200, 256)]
)
def test_all_lengths_and_widths_are_the_recurrence(T, D, decay, delta, dtype):
  for kind in KINDS:
    _check(dtype, kind, decay=decay, delta=delta, B=1, T=T, H=1, K=D)


def test_a_future_gate_never_changes_a_past_output():
  case = recurrence.draw(decay='channel', **SMALL)
  (y, _), _ = _run(case, jnp.float32)
  for at in (70, 20):
    log = case.log_decay.copy()
    log[:, at:] = -60.0 * (np.arange(24) % 2)
    (other, _), _ = _run(case.replace(log_decay=log), jnp.float32)
    np.testing.assert_array_equal(y[:, :at], other[:, :at])
    assert (y[:, at:] != other[:, at:]).any()


def test_a_split_is_exact_in_three_parts_and_never_rounded_away():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 64)), jnp.float32)
  parts = jax.jit(lambda x: split(x, 3))(x)
  total = sum(np.asarray(p, np.float64) for p in parts)
  np.testing.assert_array_equal(total, np.asarray(x, np.float64))
  want = np.asarray(x, np.float64) @ np.asarray(x, np.float64)
  bounds = {1: (1e-3, 4e-3), 2: (1e-7, 1e-5), 3: (0, 5e-7)}
  for count, (low, high) in bounds.items():
    run = jax.jit(
      functools.partial(dot, contract=(1, 0), parts=count),
      compiler_options={'xla_allow_excess_precision': False},
    )
    assert low <= recurrence.error(run(x, x), want) < high, count


def test_decays_are_of_the_tokens_between_alone():
  log = np.where(np.arange(64) % 7 == 3, FORGET, -0.01 * np.arange(64))
  log = log.astype(np.float32)
  want = np.array(
    [
      [
        np.exp(log[j + 1 : i + 1].sum(dtype=np.float64)) * (i >= j)
        for j in range(64)
      ]
      for i in range(64)
    ]
  )
  got = gpu_decays.between(jnp.asarray(log), 3)
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=0)


def test_the_ladder_inverts_what_powers_cannot():
  lower = np.tril(np.full((64, 64), 1.9, np.float32), -1)
  got = gpu_scores.ladder(jnp.asarray(lower), 3)
  want = np.linalg.inv(np.eye(64) + lower.astype(np.float64))
  assert recurrence.error(got, want) < 1e-6


@pytest.mark.parametrize('op', ['delta', 'linear'])
def test_the_kernels_are_chosen_for_cuda_and_refuse_by_name(op):
  call, table = {
    'delta': (chunked_delta, DELTA),
    'linear': (chunked_linear, LINEAR),
  }[op]
  q = jax.ShapeDtypeStruct((1, 70, 2, 64), jnp.bfloat16)
  rest = [jax.ShapeDtypeStruct((1, 70, 2), jnp.float32)]
  rest *= 2 if op == 'delta' else 1

  def loss(q, *rest, **static):
    y, state = call(q, q, q, *rest, **static)
    return y.astype(jnp.float32).sum() + state.sum()

  for f in (loss, jax.grad(loss)):
    traced = jax.jit(f).trace(q, *rest)
    text = traced.lower(lowering_platforms=('cuda',)).as_text()
    assert 'chunk_states' in text
  assert table['triton'].refuses(q, q, q, scale=1.0, chunk=None) is None
  with pytest.raises(NotImplementedError, match='64 tokens .*not chunk=32'):
    jax.eval_shape(
      functools.partial(loss, implementation='triton', chunk=32), q, *rest
    )
  wide = jax.ShapeDtypeStruct((1, 70, 2, 300), jnp.bfloat16)
  with pytest.raises(NotImplementedError, match='up to 256 channels'):
    jax.eval_shape(
      functools.partial(loss, implementation='triton'), wide, *rest
    )
