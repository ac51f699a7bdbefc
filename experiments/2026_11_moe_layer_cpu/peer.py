"""The other side: Qwen3-MoE's sparse block of transformers, on torch.

Run by `bench.py` with a Python that has torch. After `ready`, each line
`CALLS` is answered by the median seconds of a forward and backward pass;
`check FILE` saves their results.
"""

import statistics
import sys
import time

import numpy as np
import problem
import torch
import transformers
from transformers.models.qwen3_moe import modeling_qwen3_moe


def block(shape: problem.Layer, implementation: str, given) -> torch.nn.Module:
  config = transformers.Qwen3MoeConfig(
    hidden_size=shape.d,
    moe_intermediate_size=shape.n,
    num_experts=shape.experts,
    num_experts_per_tok=shape.k,
    norm_topk_prob=True,
  )
  config._experts_implementation = implementation
  made = modeling_qwen3_moe.Qwen3MoeSparseMoeBlock(config)
  first = np.concatenate([given['gate'], given['up']], axis=2)
  state = {
    'gate.weight': given['router'].T,
    'experts.gate_up_proj': first.transpose(0, 2, 1),
    'experts.down_proj': given['down'].transpose(0, 2, 1),
  }
  made.load_state_dict(
    {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in state.items()}
  )
  return made


def main(shape, skew, implementation):
  torch.set_num_threads(2)
  shape = problem.shape(shape)
  given = problem.arrays(shape, skew)
  module = block(shape, implementation, given)
  x = torch.from_numpy(given['x'])[None].requires_grad_()
  dy = torch.from_numpy(given['dy'])[None]

  def run():
    module.zero_grad(set_to_none=True)
    x.grad = None
    y = module(x)
    y.backward(dy)
    return y

  for _ in range(2):
    run()
  print('ready', torch.__version__, transformers.__version__, flush=True)
  for line in sys.stdin:
    word, *rest = line.split()
    if word == 'check':
      save(rest[0], run(), x, module, shape)
      print('saved', flush=True)
      continue
    times = []
    for _ in range(int(word)):
      start = time.perf_counter()
      run()
      times.append(time.perf_counter() - start)
    print(statistics.median(times), flush=True)


def save(path, y, x, module, shape):
  first = module.experts.gate_up_proj.grad.numpy().transpose(0, 2, 1)
  gate, up = np.split(first, 2, axis=2)
  np.savez(
    path,
    y=y[0].detach().numpy(),
    dx=x.grad[0].numpy(),
    router=module.gate.weight.grad.numpy().T,
    gate=gate,
    up=up,
    down=module.experts.down_proj.grad.numpy().transpose(0, 2, 1),
  )


if __name__ == '__main__':
  main(*sys.argv[1:])
