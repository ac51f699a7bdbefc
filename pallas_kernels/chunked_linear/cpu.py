"""Linear attention with decay in plain XLA: see `chunked.xla`."""

from __future__ import annotations

from pallas_kernels.chunked import xla


def forward(q, k, v, log_decay, state, **static):
  return xla.forward(q, k, v, log_decay, None, state, **static)


def shapes(q, k, v, log_decay, state, **static):
  return xla.shapes(q, k, v, log_decay, None, state, **static)


def backward(args, kept, d_outs, **static):
  *inputs, state = args
  args = *inputs, None, state
  *grads, _, dstate = xla.backward(args, kept, d_outs, **static)
  return *grads, dstate
