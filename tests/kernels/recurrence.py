"""The recurrences in float64, with their gradients, in numpy; and inputs.

The oracle of every implementation of `chunked_delta` and `chunked_linear`:
token by token forwards, and the adjoint of each step backwards.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass
class Case:
  """Inputs in float64, whose values are those of the dtype they were drawn for.

  Attributes:
    q, k: [B, T, H, K].
    v: [B, T, G, V].
    log_decay: [B, T, G] or [B, T, G, K], or None.
    beta: [B, T, G], or None for linear attention.
    state: [B, G, K, V].
    dy, dstate: cotangents, as v and state.
    starts: bool [B, T], or None.
    scale: of the queries, or None.
  """

  q: np.ndarray
  k: np.ndarray
  v: np.ndarray
  log_decay: np.ndarray | None
  beta: np.ndarray | None
  state: np.ndarray
  dy: np.ndarray
  dstate: np.ndarray
  starts: np.ndarray | None = None
  scale: float | None = None

  def replace(self, **changes):
    return dataclasses.replace(self, **changes)

  def inputs(self):
    """What gradients are taken of, in the order in which they are returned."""
    names = ('q', 'k', 'v', 'log_decay', 'beta', 'state')
    return {
      name: getattr(self, name)
      for name in names
      if getattr(self, name) is not None
    }


KINDS = (
  'random',
  'correlated',  # all-positive keys, as of a network's first steps
  'identical',  # one key for all tokens, beta near 1
  'negative',  # correlated, beta 1.9: I - beta k^T k has negative eigenvalues
  'saturated',  # log decays at -5
  'mixed',  # log decays of 0 or -60
  'idle',  # beta 0 at every third token
)


def draw(
  kind='random',
  B=2,
  T=65,
  H=2,
  K=64,
  G=None,
  V=None,
  *,
  decay='channel',
  delta=True,
  round_to=np.float32,
  seed=0,
):
  """A case of a kind.

  Args:
    kind: one of KINDS.
    B, T, H, K, G, V: sizes; G is H and V is K unless given.
    decay: 'channel', 'head' or None.
    delta: whether there is a beta.
    round_to: the dtype of q, k, v and dy; the rest are rounded to f32.
    seed: of the draw.
  """
  rng = np.random.default_rng(seed)
  G, V = G or H, V or K
  shape = {'channel': (B, T, G, K), 'head': (B, T, G)}.get(decay)
  q, k = rng.normal(size=(2, B, T, H, K))
  v, dy = rng.normal(size=(2, B, T, G, V))
  state, dstate = rng.normal(size=(2, B, G, K, V))
  # log of sigmoids, most of them close to 0.
  log_decay = -np.log1p(np.exp(-rng.normal(size=shape or ()) - 2))
  beta = rng.random((B, T, G))
  if kind in ('correlated', 'negative'):
    k = rng.random(k.shape)
    log_decay = log_decay * 0 - 1e-3
    beta = beta * 0 + (1.9 if kind == 'negative' else 0.835)
  elif kind == 'identical':
    k = k[:, :1] + 0 * k
    log_decay = log_decay * 0 - 1e-3
    beta = beta * 0 + 0.999
  elif kind == 'saturated':
    log_decay = 1e-3 * rng.random(log_decay.shape) - 5
  elif kind == 'mixed':
    log_decay = -60.0 * (rng.random(log_decay.shape) < 0.1)
  elif kind == 'idle':
    beta[:, ::3] = 0
  elif kind != 'random':
    raise ValueError(kind)
  q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))

  def rounded(x, dtype=np.float32):
    return x.astype(dtype).astype(np.float64)

  return Case(
    *(rounded(x, round_to) for x in (q, k, v)),
    rounded(log_decay) if shape else None,
    rounded(beta) if delta else None,
    rounded(state),
    rounded(dy, round_to),
    rounded(dstate),
  )


def solve(case):
  """Results and gradients of a case.

  Returns:
    y and state; and a dict of gradients named as the inputs.
  """
  q, k, v, decay, scale = _spread(case)
  B, T, G, V = v.shape
  K = q.shape[-1]
  S = case.state
  before, decayed, after, error = [], [], [], np.zeros(v.shape)
  y = np.zeros(v.shape)
  for t in range(T):
    before.append(S)
    S = decay[:, t, :, :, None] * S
    decayed.append(S)
    error[:, t] = v[:, t]
    if case.beta is not None:
      error[:, t] = case.beta[:, t, :, None] * (v[:, t] - _read(k[:, t], S))
    S = S + k[:, t, :, :, None] * error[:, t, :, None]
    after.append(S)
    y[:, t] = scale * _read(q[:, t], S)
  end = S
  dq, dk = np.zeros(q.shape), np.zeros(q.shape)
  dv, ddecay = np.zeros(v.shape), np.zeros(q.shape)
  dbeta = np.zeros(v.shape[:3])
  dS = case.dstate
  for t in reversed(range(T)):
    dy = case.dy[:, t]
    dq[:, t] = scale * _write(after[t], dy)
    dS = dS + scale * q[:, t, :, :, None] * dy[:, :, None]
    dk[:, t] = _write(dS, error[:, t])
    derror = _read(k[:, t], dS)
    if case.beta is None:
      dv[:, t] = derror
    else:
      plain = v[:, t] - _read(k[:, t], decayed[t])
      dbeta[:, t] = (derror * plain).sum(-1)
      dv[:, t] = case.beta[:, t, :, None] * derror
      dk[:, t] -= _write(decayed[t], dv[:, t])
      dS = dS - k[:, t, :, :, None] * dv[:, t, :, None]
    ddecay[:, t] = (dS * before[t]).sum(-1)
    dS = decay[:, t, :, :, None] * dS
  H = case.q.shape[2]
  gradients = {
    'q': dq.reshape(B, T, H, G // H, K).sum(3),
    'k': dk.reshape(B, T, H, G // H, K).sum(3),
    'v': dv,
    'log_decay': _of_log_decay(case, ddecay * decay),
    'beta': dbeta,
    'state': dS,
  }
  return (y, end), {name: gradients[name] for name in case.inputs()}


def _spread(case):
  """q, k, v and decay of each value head and channel; the scale."""
  G = case.v.shape[2]
  shared = G // case.q.shape[2]
  q, k = np.repeat(case.q, shared, 2), np.repeat(case.k, shared, 2)
  log_decay = case.log_decay
  if log_decay is None:
    log_decay = np.zeros(case.v.shape[:3])
  if log_decay.ndim == 3:
    log_decay = log_decay[..., None]
  decay = np.exp(log_decay) * np.ones(q.shape)
  if case.starts is not None:
    decay = np.where(case.starts[:, :, None, None], 0.0, decay)
  scale = q.shape[-1] ** -0.5 if case.scale is None else case.scale
  return q, k, case.v, decay, scale


def _of_log_decay(case, dlog_decay):
  if case.starts is not None:
    dlog_decay = np.where(case.starts[:, :, None, None], 0.0, dlog_decay)
  if case.log_decay is not None and case.log_decay.ndim == 3:
    return dlog_decay.sum(-1)
  return dlog_decay


def _read(x, S):
  return np.matmul(x[:, :, None], S)[:, :, 0]


def _write(S, x):
  return np.matmul(S, x[..., None])[..., 0]


def error(got, want):
  """Root mean square of the difference, relative to that of `want`.

  Of zeros, to 1e-12: what is read and written is about 1.
  """
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  difference = np.sqrt(np.mean((got - want) ** 2))
  return difference / max(np.sqrt(np.mean(want**2)), 1e-12)


def run(case, op, dtype, jit=True, **static):
  """What `op` makes of a case, in the form of `solve`.

  Args:
    case: the inputs.
    op: `chunked_delta` or `chunked_linear`.
    dtype: of q, k and v.
    jit: whether to compile.
    **static: for `op`.
  """
  inputs = case.inputs()
  wide = jnp.promote_types(dtype, jnp.float32)
  dtypes = {name: dtype for name in ('q', 'k', 'v')}
  inputs = {
    name: jnp.asarray(x, dtypes.get(name, wide)) for name, x in inputs.items()
  }

  def call(inputs, starts, dy, dstate):
    def forward(inputs):
      beta = [] if case.beta is None else [inputs['beta']]
      return op(
        inputs['q'],
        inputs['k'],
        inputs['v'],
        inputs.get('log_decay'),
        *beta,
        state_BGKV=inputs['state'],
        starts_BT=starts,
        scale=case.scale,
        **static,
      )

    outs, vjp = jax.vjp(forward, inputs)
    return outs, vjp((dy, dstate))[0]

  cotangents = jnp.asarray(case.dy, dtype), jnp.asarray(case.dstate, wide)
  call = jax.jit(call) if jit else call
  return call(inputs, case.starts, *cotangents)


def errors(got, want):
  """Relative error of each result and gradient, by name."""
  (y, state), gradients = got
  pairs = {'y': (y, want[0][0]), 'end': (state, want[0][1])}
  pairs |= {f'd{n}': (gradients[n], d) for n, d in want[1].items()}
  return {name: error(*pair) for name, pair in pairs.items()}
