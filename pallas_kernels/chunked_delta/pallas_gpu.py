"""The delta rule with decay in Triton kernels, for NVIDIA GPUs."""

from __future__ import annotations

from pallas_kernels.chunked import gpu_chunks

refuses = gpu_chunks.refuses


def forward(*args, scale, chunk, keep, interpret=False):
  del chunk
  outs, kept = gpu_chunks.forward(*args, scale=scale, interpret=interpret)
  return outs, kept if keep else ()


def shapes(q, k, v, log_decay, beta, state, *, scale, chunk):
  del k, log_decay, state, scale, chunk
  return gpu_chunks.kept(q, v, beta)


def backward(args, kept, d_outs, *, scale, chunk, interpret=False):
  del chunk
  return gpu_chunks.backward(
    *args, kept, *d_outs, scale=scale, interpret=interpret
  )
