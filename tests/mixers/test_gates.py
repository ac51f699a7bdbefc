"""Gates after attention against their equations, token by token."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moejax import balance, routers, stats
from moejax.mixers import Attention, gates
from moejax.types import Context

B, T, D, H, V, SHARED, K = 2, 5, 8, 6, 3, 2, 2
SEGMENTS = jnp.asarray([[1] * 5, [1] * 4 + [0]])


def _context():
  zeros = jnp.zeros((B, T), jnp.int32)
  return Context(zeros, zeros + jnp.arange(T), SEGMENTS)


def _mixture(shared=SHARED, experts=H - SHARED, **fields):
  router = routers.Router(
    score=routers.scores.Linear(num_experts=experts),
    k=K,
    select=routers.select.top_k,
    weigh=routers.weigh.softmax,
  )
  return gates.HeadMixture(shared=shared, router=router, **fields)


def _run(module, **fields):
  y = jax.random.normal(jax.random.key(0), (B, T, H, V))
  x = jax.random.normal(jax.random.key(1), (B, T, D))
  params = nn.unbox(module.init(jax.random.key(2), y, x, _context()))['params']
  out = module.apply({'params': params}, y, x, _context(), **fields)
  wide = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, y, x))
  return out, *wide


def _softmax(z):
  e = np.exp(z - z.max())
  return e / e.sum()


@pytest.mark.parametrize('headwise', [False, True])
def test_a_sigmoid_of_the_input_gates_every_head(headwise):
  got, p, y, x = _run(gates.Gate(headwise=headwise))
  kernel = p['logits']['kernel']
  assert kernel.shape == (D, H, 1 if headwise else V)
  gate = 1 / (1 + np.exp(-np.einsum('btd,dhv->bthv', x, kernel)))
  np.testing.assert_allclose(got, y * gate, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('shared', [SHARED, 0])
def test_heads_weigh_as_published(shared):
  got, p, y, x = _run(_mixture(shared, H - shared))
  for b in range(B):
    for t in range(T):
      weights = np.zeros(H)
      logits = x[b, t] @ p['router']['score']['kernel']
      picked = np.argsort(-logits)[:K]
      weights[shared + picked] = K * _softmax(logits[picked])
      if SEGMENTS[b, t] == 0:
        weights[shared:] = 0
      if shared:
        both = 2 * _softmax(x[b, t] @ p['both']['kernel'])
        weights[shared:] *= both[1]
        always = _softmax(x[b, t] @ p['shared']['kernel'])
        weights[:shared] = both[0] * shared * always
      np.testing.assert_allclose(
        got[b, t], weights[:, None] * y[b, t], rtol=1e-5, atol=1e-6
      )


def test_a_mixture_of_heads_sows_its_balance_and_its_counts():
  module = _mixture(balance={'heads_load': balance.load})
  (_, sown), *_ = _run(module, mutable=['losses', 'stats'])
  counts = sown['stats']['heads_counts'][0]
  assert counts.shape == (H - SHARED,) and counts.sum() == 9 * K
  assert sown['losses']['heads_load'][0] > 0
  layers = {'heads_counts': [[counts[None]]]}
  summary = stats.summarise(layers)
  assert set(summary) == {
    'moe/heads_load_max_over_mean',
    'moe/heads_dead_experts',
  }


def test_heads_that_do_not_add_up_are_refused():
  with pytest.raises(ValueError, match='shared=2 and 3 routed heads do not'):
    _run(_mixture(experts=3))


def test_a_gate_adds_its_flops():
  plain = Attention(heads=H, kv_heads=1, head_dim=4)
  assert (
    plain.clone(gate=gates.Gate()).flops(D, 10) - plain.flops(D, 10)
    == 2 * D * H * 4
  )
  assert (
    plain.clone(gate=gates.Gate(headwise=True)).flops(D, 10)
    - plain.flops(D, 10)
    == 2 * D * H
  )
  assert plain.clone(gate=_mixture()).flops(D, 10) - plain.flops(
    D, 10
  ) == 2 * D * (H - SHARED + SHARED + 2)
