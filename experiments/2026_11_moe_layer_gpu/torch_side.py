"""The same layer by torch's grouped product, on a GPU; a worker of bench.py.

Prints a JSON object: name of the shape -> forward and backward TFLOP/s.
"""

import json
import statistics
import sys
import time

import torch

SAMPLES, CALLS = 5, 10


def layer(x, gate, up, down, ids, weights):
  """Sorted rows, three grouped products, and a sum of each token's rows."""
  flat = ids.flatten()
  order = flat.argsort(stable=True)
  ends = flat.bincount(minlength=gate.shape[0]).cumsum(0).to(torch.int32)
  token = order // ids.shape[1]
  product = torch._grouped_mm
  rows = x[token]
  a = torch.nn.functional.silu(product(rows, gate, offs=ends))
  y = product(a * product(rows, up, offs=ends), down, offs=ends)
  y = y * weights.flatten()[order, None].to(y.dtype)
  return torch.zeros_like(x).index_add(0, token, y)


def seconds(f):
  """The median over samples of the mean over calls, after two warm-ups."""
  samples = []
  for _ in range(2):
    f()
  for _ in range(SAMPLES):
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(CALLS):
      f()
    torch.cuda.synchronize()
    samples.append((time.perf_counter() - start) / CALLS)
  return statistics.median(samples)


def rates(t, d, n, e, k):
  """Forward and backward TFLOP/s: 6TKnd and 12TKnd."""
  torch.manual_seed(0)
  leaf = dict(device='cuda', dtype=torch.bfloat16, requires_grad=True)
  x = torch.randn(t, d, **leaf)
  gate, up = (torch.randn(e, d, n, **leaf) for _ in range(2))
  down = torch.randn(e, n, d, **leaf)
  weights = torch.rand(t, k, device='cuda', requires_grad=True)
  ids = torch.rand(t, e, device='cuda').topk(k).indices
  args = x, gate, up, down, ids, weights
  y = layer(*args)
  dy = torch.randn_like(y)
  wanted = (x, gate, up, down, weights)

  def backward():
    torch.autograd.grad(y, wanted, dy, retain_graph=True)

  work = 6 * t * k * n * d / 1e12
  return work / seconds(lambda: layer(*args)), 2 * work / seconds(backward)


def main(shapes):
  found = {}
  for name, shape in json.loads(shapes).items():
    try:
      found[name] = rates(*shape)
    except RuntimeError as error:
      found[name] = str(error).splitlines()[0]
    torch.cuda.empty_cache()
  print(json.dumps(found))


if __name__ == '__main__':
  main(sys.argv[1])
