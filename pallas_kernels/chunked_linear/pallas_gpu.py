"""Linear attention with decay in Triton kernels, for NVIDIA GPUs."""

from __future__ import annotations

from pallas_kernels.chunked import gpu_chunks

refuses = gpu_chunks.refuses


def forward(q, k, v, log, state, *, scale, chunk, keep, interpret=False):
  del chunk
  outs, kept = gpu_chunks.forward(
    q, k, v, log, None, state, scale=scale, interpret=interpret
  )
  return outs, kept if keep else ()


def shapes(q, k, v, log_decay, state, *, scale, chunk):
  del k, log_decay, state, scale, chunk
  return gpu_chunks.kept(q, v, None)


def backward(args, kept, d_outs, *, scale, chunk, interpret=False):
  del chunk
  *inputs, state = args
  *found, _, d_state = gpu_chunks.backward(
    *inputs, None, state, kept, *d_outs, scale=scale, interpret=interpret
  )
  return *found, d_state
