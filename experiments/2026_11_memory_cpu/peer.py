"""The other side: torch, with its embedding bag for the sums.

Run by `bench.py` with a Python that has torch; it answers as `ours.py` does,
without a copy. A bag's own weights must be given per row, which is what scores
are; the products gather their rows.
"""

import statistics
import sys
import time

import numpy as np
import problem
import torch
from torch.nn import functional


def main():
  torch.set_num_threads(2)
  given = {k: torch.from_numpy(v) for k, v in problem.arrays().items()}
  ids, dy = given.pop('ids').long(), given.pop('dy')
  leaves = {k: v.requires_grad_() for k, v in given.items()}

  def run():
    for leaf in leaves.values():
      leaf.grad = None
    rows = functional.embedding(ids, leaves['pre'])
    hidden = torch.bmm(rows, leaves['x'][..., None])[..., 0]
    y = functional.embedding_bag(
      ids,
      leaves['values'],
      per_sample_weights=leaves['weights'] * hidden,
      mode='sum',
    )
    y.backward(dy)
    return y

  for _ in range(2):
    run()
  print('ready', torch.__version__, flush=True)
  for line in sys.stdin:
    word, *rest = line.split()
    if word == 'check':
      y = run().detach().numpy()
      np.savez(rest[0], y=y, **{k: v.grad.numpy() for k, v in leaves.items()})
      print('saved', flush=True)
      continue
    times = []
    for _ in range(int(word)):
      start = time.perf_counter()
      run()
      times.append(time.perf_counter() - start)
    print(statistics.median(times), flush=True)


if __name__ == '__main__':
  main()
