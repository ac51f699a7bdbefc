"""The other side: torch, with its embedding bag for the sums.

Run by `bench.py` with a Python that has torch; it answers as `ours.py` does,
without a copy. A bag's own weights must be given per row, which is what scores
are; the products gather their rows. In the layer each core weighs a part of the
values: a bag for each, on a table of its own.
"""

import statistics
import sys
import time

import numpy as np
import problem
import torch
from torch.nn import functional

PARTS = range(problem.CORES)


def tables(given):
  """The tables alone: weighted sums of products."""
  rows = functional.embedding(given['ids'], given['pre'])
  hidden = torch.bmm(rows, given['x'][..., None])[..., 0]
  return bag(given['ids'], given['values'], given['weights'] * hidden)


def bag(ids, table, weights):
  return functional.embedding_bag(
    ids, table, per_sample_weights=weights, mode='sum'
  )


def layer(given):
  """The whole layer."""
  ids, scores = retrieved(given)
  x = given['x'] @ given['pre']
  rows = functional.embedding(ids, given['pre_values'])
  hidden = torch.bmm(rows, x[..., None])
  weights = scores * hidden
  y = [bag(ids, given[f'values_{c}'], weights[..., c]) for c in PARTS]
  return torch.stack(y, -1).flatten(1) @ given['out']


def retrieved(given):
  """Ids [N, K], and the scores of all cores [N, K, C]."""
  q = torch.einsum('nd,dare->anre', given['x'], given['query'])
  q = functional.rms_norm(q, q.shape[-1:], given['query_scale'], 1e-6)
  keys = given['keys']
  keys = functional.rms_norm(keys, keys.shape[-1:], given['key_scale'], 1e-6)
  sides = torch.einsum('anre,asre->ansr', q, keys)
  with torch.no_grad():
    u, _, v = torch.linalg.svd(given['cores'].sum(0))
    sign = torch.sign(v[0].sum())
    places = [
      (side @ vector).topk(problem.ROWS).indices
      for side, vector in zip(sides, (sign * u[:, 0], sign * v[0]), strict=True)
    ]
  few = [
    side.gather(1, place[..., None].expand(-1, -1, problem.RANKS))
    for side, place in zip(sides, places, strict=True)
  ]
  left = torch.einsum('nar,crq->nacq', few[0], given['cores'])
  grid = torch.einsum('nacq,nbq->nabc', left, few[1]).flatten(1, 2)
  best = grid.detach().sum(-1).topk(problem.ROWS).indices
  ids = (places[0][..., None] * problem.KEYS + places[1][:, None]).flatten(1)
  scores = grid.gather(1, best[..., None].expand(-1, -1, problem.CORES))
  return ids.gather(1, best), scores


def results(y, leaves):
  """Arrays by the names of the other side."""
  found = {'y': y, **{k: v.grad for k, v in leaves.items()}}
  found = {k: v.detach().numpy() for k, v in found.items()}
  if 'values_0' in found:
    parts = [found.pop(f'values_{c}') for c in PARTS]
    found['values'] = np.stack(parts, -1).reshape(len(parts[0]), -1)
  return found


def main(part):
  torch.set_num_threads(2)
  given = {k: torch.from_numpy(v) for k, v in problem.arrays(part).items()}
  dy = given.pop('dy')
  whole = {k: given.pop(k).long() for k in ('ids',) if k in given}
  if part == 'layer':
    values = given.pop('values')
    parts = {f'values_{c}': values[:, c :: len(PARTS)] for c in PARTS}
    given |= {k: v.contiguous() for k, v in parts.items()}
  leaves = {k: v.requires_grad_() for k, v in given.items()}
  forward = {'tables': tables, 'layer': layer}[part]

  def run():
    for leaf in leaves.values():
      leaf.grad = None
    y = forward(leaves | whole)
    y.backward(dy)
    return y

  for _ in range(2):
    run()
  print('ready', torch.__version__, flush=True)
  for line in sys.stdin:
    word, *rest = line.split()
    if word == 'check':
      np.savez(rest[0], **results(run(), leaves))
      print('saved', flush=True)
      continue
    times = []
    for _ in range(int(word)):
      start = time.perf_counter()
      run()
      times.append(time.perf_counter() - start)
    print(statistics.median(times), flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
