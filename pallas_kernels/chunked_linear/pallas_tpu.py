"""Linear attention on TPU: one scan over chunks forward, two backward.

Nothing is kept for the backward pass but the inputs. For its time there are the
states before the chunks, 4 K V / C bytes a token and value head, which a scan
gives once more; the gradient of a state never leaves fast memory, nor do the
scores.

FLOPs of one chunk of one value head, in the parts of `chunked/tpu_cost.py`:

  forward   ends + decays + scores(1) + 2 C^2 V + 4 C K V
  states    ends + 2 C K V
  backward  ends + decays + scores(1) + pull(1) + 2 C^2 V + 2 C K V
"""

from __future__ import annotations

import functools

import jax.numpy as jnp

from pallas_kernels.chunked import tpu_call
from pallas_kernels.chunked.tpu_cost import Cost
from pallas_kernels.chunked.tpu_layout import Problem
from pallas_kernels.chunked.tpu_products import Products
from pallas_kernels.chunked_linear import tpu_kernels


def forward(q, k, v, log_decay, state, *, scale, chunk, keep, interpret=False):
  """-> (y, state), and nothing that is kept."""
  p = Problem.of(q, v, log_decay, chunk)
  cost, products = Cost(p), Products(p.full)
  found = tpu_call.forward(
    functools.partial(tpu_kernels.forward_body, products, scale),
    p,
    _inputs(p, k, v, log_decay)
    | {'q': ('key', p.of_tokens(q)), 'first': ('end', p.of_state(state))},
    {'y': ('value', v.dtype), 'last': ('end', jnp.float32)},
    name='chunked_linear',
    flops=cost.ends
    + cost.decays
    + cost.scores(1)
    + cost.tokens_values
    + 2 * cost.with_state,
    exponentials=cost.exponentials,
    interpret=interpret,
  )
  y = p.to_tokens(found['y'], p.value_heads, p.values)
  return (y, p.to_state(found['last'])), ()


def shapes(*_args, **_static):
  """Of what `forward` keeps."""
  return ()


def backward(args, _kept, d_outs, *, scale, chunk, interpret=False):
  """The gradients of `args`."""
  q, k, v, log_decay, state = args
  dy, dlast = d_outs
  p = Problem.of(q, v, log_decay, chunk)
  cost, products = Cost(p), Products(p.full)
  inputs = _inputs(p, k, v, log_decay)
  before = tpu_call.forward(
    functools.partial(tpu_kernels.states_body, products),
    p,
    inputs | {'first': ('end', p.of_state(state))},
    {'before': ('state', jnp.float32)},
    name='chunked_linear_states',
    flops=cost.ends + cost.with_state,
    exponentials=cost.exponentials,
    interpret=interpret,
  )['before']
  found = tpu_call.backward(
    functools.partial(tpu_kernels.backward_body, products, scale),
    p,
    inputs
    | {
      'q': ('key', p.of_tokens(q)),
      'before': ('state', before),
      'dy': ('value', p.of_tokens(dy)),
      'dlast': ('end', p.of_state(dlast)),
    },
    tpu_call.gradients(p),
    name='chunked_linear_backward',
    flops=cost.ends
    + cost.decays
    + cost.scores(1)
    + cost.pull(1)
    + cost.tokens_values
    + cost.with_state,
    exponentials=cost.exponentials,
    interpret=interpret,
  )
  return tpu_call.to_gradients(p, found)


def refuses(q, k, v, log_decay, state, *, scale, chunk) -> str | None:
  """Why the kernels do not take these arguments, if so."""
  return tpu_call.refuses(Problem.of(q, v, log_decay, chunk))


def _inputs(p, k, v, log_decay):
  return {
    'k': ('key', p.of_tokens(k)),
    'v': ('value', p.of_tokens(v)),
    'log_decay': (p.decay_form, p.of_decay(log_decay)),
  }
