"""The delta rule on TPU.

Forward, the scores A and the inverse X = (I + L)^-1 of all chunks come first,
in no order, then a scan over chunks with the state in fast memory. Backward, a
scan gives the states before the chunks once more, and a scan from the last to
the first makes all gradients, so that the gradient of a state never leaves fast
memory.

Kept for the backward pass, beside the inputs, are A and X: 8 C bytes a token
and value head. For the time of the backward pass alone there are the states,
4 K V / C bytes. (At C = 64 and K = V = 128 these are 512 and 1024, and a decay
by channel is 512.) Widths are those of whole registers, of 128 lanes.

FLOPs of one chunk of one value head, in the parts of `chunked/tpu_cost.py`:

  phase 1   decays + scores(2) + inverse
  phase 2   ends + 4 C^2 V + 6 C K V
  states    ends + 2 C^2 V + 4 C K V
  backward  ends + decays + pull(2) + 6 C^2 V + 4 C K V
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.chunked import tpu_call
from pallas_kernels.chunked.tpu_cost import Cost
from pallas_kernels.chunked.tpu_layout import Problem
from pallas_kernels.chunked.tpu_products import Products
from pallas_kernels.chunked_delta import tpu_kernels


def forward(
  q, k, v, log_decay, beta, state, *, scale, chunk, keep, interpret=False
):
  """-> (y, state), and A and X of all chunks if `keep`."""
  p = Problem.of(q, v, log_decay, chunk)
  cost, products = Cost(p), Products(p.full)
  inputs = _inputs(p, k, log_decay, beta) | {'q': ('key', p.of_tokens(q))}
  pair = tpu_call.forward(
    functools.partial(tpu_kernels.inside_body, products, scale),
    p,
    inputs,
    {'pair': ('pair', jnp.float32)},
    parallel=True,
    name='chunked_delta_inside',
    flops=cost.decays + cost.scores(2) + cost.inverse,
    exponentials=cost.exponentials,
    interpret=interpret,
  )['pair']
  found = tpu_call.forward(
    functools.partial(tpu_kernels.forward_body, products, scale),
    p,
    inputs
    | {
      'v': ('value', p.of_tokens(v)),
      'pair': ('pair', pair),
      'first': ('end', p.of_state(state)),
    },
    {'y': ('value', v.dtype), 'last': ('end', jnp.float32)},
    name='chunked_delta',
    flops=cost.ends + 2 * cost.tokens_values + 3 * cost.with_state,
    exponentials=cost.exponentials,
    interpret=interpret,
  )
  y = p.to_tokens(found['y'], p.value_heads, p.values)
  return (y, p.to_state(found['last'])), pair if keep else ()


def shapes(q, k, v, log_decay, beta, state, *, scale, chunk):
  """Of what `forward` keeps."""
  p = Problem.of(q, v, log_decay, chunk)
  return jax.ShapeDtypeStruct(p.shape('pair', p.value_heads), jnp.float32)


def backward(args, pair, d_outs, *, scale, chunk, interpret=False):
  """The gradients of `args`."""
  q, k, v, log_decay, beta, state = args
  dy, dlast = d_outs
  p = Problem.of(q, v, log_decay, chunk)
  cost, products = Cost(p), Products(p.full)
  inputs = _inputs(p, k, log_decay, beta) | {
    'v': ('value', p.of_tokens(v)),
    'pair': ('pair', pair),
  }
  before = tpu_call.forward(
    functools.partial(tpu_kernels.states_body, products),
    p,
    inputs | {'first': ('end', p.of_state(state))},
    {'before': ('state', jnp.float32)},
    name='chunked_delta_states',
    flops=cost.ends + cost.tokens_values + 2 * cost.with_state,
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
    tpu_call.gradients(p) | {'dbeta': ('number', jnp.float32)},
    name='chunked_delta_backward',
    flops=cost.ends
    + cost.decays
    + cost.pull(2)
    + 3 * cost.tokens_values
    + 2 * cost.with_state,
    exponentials=cost.exponentials,
    interpret=interpret,
  )
  dq, dk, dv, dlog, dfirst = tpu_call.to_gradients(p, found)
  return dq, dk, dv, dlog, p.to_numbers(found['dbeta']), dfirst


def refuses(q, k, v, log_decay, beta, state, *, scale, chunk) -> str | None:
  """Why the kernels do not take these arguments, if so."""
  return tpu_call.refuses(Problem.of(q, v, log_decay, chunk))


def _inputs(p, k, log_decay, beta):
  return {
    'k': ('key', p.of_tokens(k)),
    'log_decay': (p.decay_form, p.of_decay(log_decay)),
    'beta': ('number', p.of_numbers(beta)),
  }
