"""The same layer in torch on a GPU, two ways; a worker of bench.py.

`torch` is its grouped product, `scatter` that of scatter_side.py. Prints a JSON
object: side -> name of the shape -> forward and backward TFLOP/s, or why there
are none. A side that differs from the definition is not timed.
"""

import json
import statistics
import sys
import time

import torch

SAMPLES, CALLS = 5, 10
TOLERANCE = 2e-2  # of bf16


def layer(x, first, down, ids, weights):
  """Sorted rows, two grouped products, and a sum of each token's rows.

  `first` [E, d, 2n] are gate and up side by side.
  """
  flat = ids.flatten()
  order = flat.argsort(stable=True)
  ends = flat.bincount(minlength=first.shape[0]).cumsum(0).to(torch.int32)
  token = order // ids.shape[1]
  product = torch._grouped_mm
  gate, up = product(x[token], first, offs=ends).chunk(2, 1)
  a = torch.nn.functional.silu(gate) * up
  y = product(a, down, offs=ends)
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


def definition(x, first, down, ids, weights):
  """Every expert on every token, in f32."""
  y = torch.zeros_like(x)
  for e in range(first.shape[0]):
    gate, up = (x @ first[e]).chunk(2, 1)
    weight = torch.where(ids == e, weights, 0).sum(1, keepdim=True)
    y = y + weight * ((torch.nn.functional.silu(gate) * up) @ down[e])
  return y


def inputs(t, d, n, e, k, device, dtype):
  """Arguments of a layer, and an output gradient."""
  draw = torch.Generator(device).manual_seed(0)

  def normal(*size, fan=1):
    a = torch.randn(*size, generator=draw, device=device) / fan**0.5
    return a.to(dtype)

  x, first, down = normal(t, d), normal(e, d, 2 * n, fan=d), normal(e, n, d)
  weights = torch.rand(t, k, generator=draw, device=device)
  ids = torch.rand(t, e, generator=draw, device=device).topk(k).indices
  down = down / n**0.5
  args = *(a.requires_grad_() for a in (x, first, down)), ids
  return (*args, weights.requires_grad_()), normal(t, d)


def results(side, args, dy):
  """y and all gradients."""
  y = side(*args)
  wanted = [a for a in args if a.requires_grad]
  return y.detach(), *torch.autograd.grad(y, wanted, dy)


def difference(side, shape, device, dtype):
  """The largest error of y and the gradients, relative to each one's scale."""
  args, dy = inputs(*shape, device, dtype)
  got = results(side, args, dy)
  wide = [
    a.detach().float().requires_grad_() if a.is_floating_point() else a
    for a in args
  ]
  want = results(definition, wide, dy.float())
  errors = [
    (a.float() - b).abs().max() / b.abs().max()
    for a, b in zip(got, want, strict=True)
  ]
  return max(float(e) if e.isfinite() else float('inf') for e in errors)


def rates(side, t, d, n, e, k):
  """Forward and backward TFLOP/s: 6TKnd and 12TKnd."""
  args, dy = inputs(t, d, n, e, k, 'cuda', torch.bfloat16)
  y = side(*args)
  wanted = [a for a in args if a.requires_grad]

  def backward():
    torch.autograd.grad(y, wanted, dy, retain_graph=True)

  work = 6 * t * k * n * d / 1e12
  return work / seconds(lambda: side(*args)), 2 * work / seconds(backward)


def sides():
  found = {'torch': layer}
  try:
    import scatter_side
  except ImportError as error:
    return found, {'scatter': str(error)}
  return found | {'scatter': scatter_side.layer}, {}


def main(text):
  asked = json.loads(text)
  shapes, found = asked['shapes'], {}
  timed, missing = sides()
  for name, reason in missing.items():
    found[name] = dict.fromkeys(shapes, reason)
  for name, side in timed.items():
    error = difference(side, asked['check'], 'cuda', torch.bfloat16)
    if not error < TOLERANCE:
      found[name] = dict.fromkeys(shapes, f'wrong by {error:.1e}')
      continue
    found[name] = {}
    for shape_name, shape in shapes.items():
      try:
        found[name][shape_name] = rates(side, *shape)
      except RuntimeError as error:
        found[name][shape_name] = str(error).splitlines()[0]
      torch.cuda.empty_cache()
  print(json.dumps(found))


if __name__ == '__main__':
  main(sys.argv[1])
