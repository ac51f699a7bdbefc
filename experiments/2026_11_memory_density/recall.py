"""How many of the best slots the filters of the trained models find.

    python experiments/2026_11_memory_density/recall.py FOLDER...

A folder is that of a run, with a checkpoint; prints a line of a table for each.
"""

import sys

import jax
import numpy as np

from moejax import run_folder, sharding
from moejax.analyze import memory
from moejax.evaluate import restore
from moejax.parts import Parts
from moejax.state import context


def recalls(folder):
  """Of each layer, over the first rows of the validation split."""
  parts = Parts(run_folder.stored_config(folder))
  with sharding.use(parts.mesh, parts.rules):
    state, _ = restore(parts, folder)
    rows = next(iter(parts.batches('validation', epochs=1)))
    batch = sharding.put_batch(rows, parts.batch_sharding)
    ctx = context(batch)
    read = jax.jit(lambda v, c: memory.filter_recall(parts.model, v, c))
    return np.array(read(state.variables, ctx))


def main(folders):
  for folder in folders:
    found = recalls(folder)
    each = ' '.join(f'{x:.2f}' for x in found)
    print(f'| {folder.rsplit("/", 1)[-1]} | {found.mean():.2f} | {each} |')


if __name__ == '__main__':
  main(sys.argv[1:])
