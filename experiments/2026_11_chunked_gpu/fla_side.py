"""The same operations by fla's Triton kernels; bench.py imports it."""

import functools

import torch
import torch.nn.functional as F
from fla.ops.gated_delta_rule import chunk_gated_delta_rule
from fla.ops.gla import chunk_gla
from fla.ops.kda import chunk_kda
from fla.ops.simple_gla import chunk_simple_gla

OPERATIONS = {
  'kda': (chunk_kda, 'channel', True),
  'gated_delta': (chunk_gated_delta_rule, 'head', True),
  'gla': (chunk_gla, 'channel', False),
  'simple_gla': (chunk_simple_gla, 'head', False),
}


def rates(name, shape, seconds, calls):
  """Seconds of forward, and of forward and backward."""
  torch.manual_seed(0)
  op, decay, delta = OPERATIONS[name]
  B, T, G, K = shape.B, shape.T, shape.G, shape.K
  draw = functools.partial(torch.randn, device='cuda', dtype=torch.bfloat16)
  q, k = (F.normalize(draw(B, T, shape.H, K), dim=-1) for _ in range(2))
  gates = (B, T, G, K) if decay == 'channel' else (B, T, G)
  log = F.logsigmoid(torch.randn(gates, device='cuda') + 2)
  leaves = dict(q=q, k=k, v=draw(B, T, G, shape.V), g=log)
  if delta:
    leaves['beta'] = torch.rand(B, T, G, device='cuda').bfloat16()
  leaves = {key: a.detach().requires_grad_() for key, a in leaves.items()}

  def forward():
    return op(**leaves, output_final_state=True)[0]

  d_y = draw(B, T, G, shape.V)

  def both():
    return torch.autograd.grad(forward(), list(leaves.values()), d_y)

  def wait(_):
    torch.cuda.synchronize()

  with torch.no_grad():
    one = seconds(forward, wait=wait, calls=calls)
  return one, seconds(both, wait=wait, calls=calls)
