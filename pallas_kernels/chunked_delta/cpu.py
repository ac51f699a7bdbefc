"""The delta rule with decay in plain XLA."""

from __future__ import annotations

import jax

from pallas_kernels.chunked_delta import reference


def forward(*args, scale, chunk, keep):
  return reference.chunked_delta(*args, scale=scale), ()


def shapes(*_args, **_static):
  return ()


def backward(args, _kept, d_outs, *, scale, chunk):
  def run(*args):
    return reference.chunked_delta(*args, scale=scale)

  return jax.vjp(run, *args)[1](d_outs)
