"""Rules: their equations in float64, and many tokens against single ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax.mixers import rules
from moejax.mixers.rules.rule import CHANNEL, HEAD, Inputs, run

B, T, H, G, K, V = 2, 70, 2, 4, 8, 6
RULES = [getattr(rules, name) for name in rules.__all__]


def relative(got, want):
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  return np.sqrt(((got - want) ** 2).mean() / (want**2).mean())


def draw(rule, dtype=np.float32):
  """Inputs of [B, T] tokens, correlated keys, strong and weak decays."""
  rng = np.random.default_rng(0)

  def unit(*shape):
    x = rng.uniform(size=shape)
    return (x / np.sqrt((x**2).sum(-1, keepdims=True))).astype(dtype)

  sizes = {None: None, HEAD: (G,), CHANNEL: (G, K)}[rule.decay]
  decay = beta = None
  if sizes is not None:
    decay = -(rng.uniform(size=(B, T, *sizes)) ** 4 * 5).astype(dtype)
  if rule.beta:
    beta = (rng.uniform(size=(B, T, G)) * 1.5).astype(dtype)
  v = rng.normal(size=(B, T, G, V)).astype(dtype)
  q, k = unit(B, T, H, K), unit(B, T, H, K)
  return Inputs(q, k, v, decay, beta)


def equation(name, S, q, k, v, decay, beta):
  """One head and token by matrices: transition @ S + what is written."""
  keep = np.diag(np.exp(np.broadcast_to(0.0 if decay is None else decay, K)))
  strength = 1.0 if beta is None else beta
  if 'delta' in name or name == 'kda':
    keep = (np.eye(K) - strength * np.outer(k, k)) @ keep
  S = keep @ S + strength * np.outer(k, v)
  return S, q @ S


def loop(name, inputs, state, starts):
  """All tokens by the equation, in float64."""
  q, k, v, decay, beta = (
    None if a is None else np.asarray(a, np.float64)
    for a in jax.tree.leaves(inputs, is_leaf=lambda a: a is None)
  )
  state = np.array(state, np.float64)
  y = np.zeros(v.shape)
  for b, t, g in np.ndindex(v.shape[:3]):
    h = g // (G // H)
    S = np.zeros((K, V)) if starts[b, t] else state[b, g]
    state[b, g], y[b, t, g] = equation(
      name,
      S,
      q[b, t, h],
      k[b, t, h],
      v[b, t, g],
      None if decay is None else decay[b, t, g],
      None if beta is None else beta[b, t, g],
    )
  return y, state


@pytest.fixture(params=RULES, ids=lambda rule: rule.__name__)
def rule(request):
  return request.param


def test_a_step_equals_the_equation_in_float64(rule):
  inputs = draw(rule, np.float64)
  start = np.random.default_rng(1).normal(size=(B, G, K, V))
  nowhere = np.zeros((B, T), bool)
  want, end = loop(rule.__name__, inputs, start, nowhere)
  with jax.enable_x64(True):
    per_head = jax.tree.map(jnp.asarray, inputs).per_value_head()
    per_head = jax.tree.map(lambda a: a.swapaxes(0, 1), per_head)
    state, y = jax.jit(lambda s, i: jax.lax.scan(rule, s, i))(start, per_head)
    assert y.dtype == state.dtype == jnp.float64
  assert relative(y.swapaxes(0, 1), want) < 1e-13
  assert relative(state, end) < 1e-13


def test_many_tokens_equal_single_ones_with_documents_and_a_state(rule):
  inputs = draw(rule)
  start = np.random.default_rng(1).normal(size=(B, G, K, V)).astype(np.float32)
  starts = np.zeros((B, T), bool)
  starts[0, [3, 40]] = starts[1, 0] = True
  want, end = loop(rule.__name__, inputs, start, starts)
  y, state = jax.jit(run, static_argnums=0)(rule, inputs, start, starts)
  assert relative(y, want) < 1e-5
  assert relative(state, end) < 1e-5


def test_one_token_goes_on_from_a_state_or_starts_anew(rule):
  inputs = jax.tree.map(lambda a: a[:, :1], draw(rule))
  start = np.random.default_rng(1).normal(size=(B, G, K, V)).astype(np.float32)
  starts = np.array([[True], [False]])
  want, end = loop(rule.__name__, inputs, start, starts)
  y, state = run(rule, inputs, jnp.asarray(start), starts)
  assert relative(y, want) < 1e-6
  assert relative(state, end) < 1e-6
