"""The other side: the chunked functions of transformers, on torch.

Run by `bench.py` with a Python that has torch, and answers as `ours.py` does.
"""

import sys
import time

import numpy as np
import problem
import torch
import transformers
from transformers.models.kimi_linear import modeling_kimi_linear
from transformers.models.qwen3_next import modeling_qwen3_next

FUNCTIONS = {
  'channel': modeling_kimi_linear.chunk_kimi_delta_attention,
  'head': modeling_qwen3_next.torch_chunk_gated_delta_rule,
}


def passes(shape, decay):
  """-> a function without arguments: y and the gradients."""
  given = problem.arrays(shape, decay)
  dy = torch.from_numpy(given.pop('dy'))
  args = [torch.from_numpy(x).requires_grad_() for x in given.values()]

  def run():
    y, _ = FUNCTIONS[decay](*args)
    return y, torch.autograd.grad(y, args, dy)

  return run


def main(text, decays):
  torch.set_num_threads(2)
  shape = problem.shape(text)
  runs = {decay: passes(shape, decay) for decay in decays.split(',')}
  print('ready', torch.__version__, transformers.__version__, flush=True)
  for line in sys.stdin:
    words = line.split()
    if words[0] == 'check':
      y, grads = runs[words[1]]()
      names = ('dq', 'dk', 'dv', 'dlog_decay', 'dbeta')
      grads = {n: g.numpy() for n, g in zip(names, grads, strict=True)}
      np.savez(words[2], y=y.detach().numpy(), **grads)
      print('saved', flush=True)
      continue
    start = time.perf_counter()
    runs[words[0]]()
    print(time.perf_counter() - start, flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
