"""The share of attention to the first token, against a softmax by hand."""

import flax.linen as nn
import jax
import numpy as np

from moejax.analyze import attention
from moejax.build import build


def test_the_share_of_the_first_token_is_that_of_a_softmax_by_hand(small):
  fields = dict(qk_norm=False, rope_theta=None)
  blocks = {
    'one': small.dense(**fields),
    'two': small.dense(window=3, **fields),
  }
  model = build(small.model(blocks, repeats=2))
  batch = small.rows(0, padding=(0, 3), document=5)
  ctx = small.context(batch)
  variables = nn.unbox(jax.jit(model.init)(jax.random.key(0), ctx))
  got = attention.first_token_mass(model, variables, ctx)
  assert got.shape == (4,)
  assert ((got > 0) & (got < 1)).all()
  # A window of 3 rarely reaches back to the first token.
  assert got[1] < got[0] and got[3] < got[2]

  # The first layer, whose input is the embedding.
  p = jax.tree.map(
    lambda a: np.asarray(a[0], np.float64),
    variables['params']['layers']['blocks_0'],
  )
  x = np.asarray(variables['params']['embedding'], np.float64)
  x = x[batch['tokens']] * x.shape[-1] ** 0.5
  x /= np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
  q = np.einsum('btd,dhk->bhtk', x, p['mixer']['query']['kernel'])
  k = np.einsum('btd,dgk->bgtk', x, p['mixer']['key']['kernel'])[:, 0]
  shares = []
  for b, t in np.argwhere((batch['segments'] > 0) & (batch['positions'] > 0)):
    first = t - batch['positions'][b, t]
    logits = q[b, :, t] @ k[b, first : t + 1].T / np.sqrt(q.shape[-1])
    weights = np.exp(logits)
    shares.append((weights[:, 0] / weights.sum(-1)).mean())
  np.testing.assert_allclose(got[0], np.mean(shares), rtol=1e-5)
