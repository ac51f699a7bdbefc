"""Trains cells of configs/width_transfer.py, all rates of one compiled program.

  python run.py WIDTH VARIANT PARAM results.csv LEAST MOST [SEED]

PARAM is standard or maximal, LEAST and MOST are log2 of rates. Rows are added
to the table as they come; those that it has are skipped. The run of a rate
equals that of `moejax.main` but for rounding: same model, seed, batches,
schedule and evaluation.
"""

import csv
import dataclasses
import functools
import itertools
import math
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np

from configs import width_transfer
from moejax import accounting, config_io, optim, sharding, state
from moejax.evaluate import Evaluator
from moejax.parts import Parts
from moejax.step import train_step
from moejax.sweep import hyper

FIELDS = (
  'width', 'variant', 'parametrization', 'log2_rate', 'loss', 'loss_train',
  'params_active', 'params_total', 'train_flops', 'tokens', 'seed', 'seconds',
  'data_digest', 'commit', 'jax', 'via',
)  # fmt: skip


def cells(width, variant, maximal):
  """Config and rate of each cell."""
  for cell in hyper.cells(width_transfer.get_hyper(hyper, f'width={width}')):
    base = width_transfer.get_config()
    config = config_io.override(base, cell.overrides)
    labels = config.labels
    if (labels.variant, labels.maximal) == (variant, maximal):
      yield config, config.optim.schedule.peak


def trainer(parts):
  """`(state, rate, batches) -> (params, losses)`, jitted."""
  unit = functools.partial(
    optim.cosine, peak=1.0, warmup_steps=20, final_frac=0.1
  )
  shapes, names = parts.variables
  p = parts.model.parametrization
  scale = p and functools.partial(p.lr_scale, width=parts.model.width)

  @jax.jit
  def run(params, rate, batches):
    def schedule(total_steps):
      one = unit(total_steps=total_steps)
      return lambda count: rate * one(count)

    chain = dataclasses.replace(parts.optimizer, schedule=schedule)
    tx = chain.transformation(
      shapes['params'],
      names['params'],
      total_steps=parts.steps,
      lr_scale=scale,
    )
    step = train_step(
      parts.model, tx, loss=parts.loss, weights=dict(parts.config.losses)
    )
    now = state.TrainState(0, params, tx.init(params), {})

    def body(now, batch):
      now, values = step(now, batch)
      return now, values['loss']

    now, losses = jax.lax.scan(body, now, batches)
    return now.params, losses

  return run


def main(width, variant, parametrization, path, least, most, seed=0):
  path = pathlib.Path(path)
  old = list(csv.DictReader(path.open())) if path.exists() else []
  done = {
    (int(r['width']), r['variant'], r['parametrization'], float(r['log2_rate']))
    for r in old
    if int(r['seed']) == seed
  }
  found = list(cells(width, variant, parametrization == 'maximal'))
  parts = Parts(config_io.override(found[0][0], {'seed': seed}))
  commit = subprocess.run(
    ['git', 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True
  ).stdout.strip()
  with sharding.use(parts.mesh, parts.rules):
    first, run, evaluate = parts.new_state(), trainer(parts), Evaluator(parts)
    taken = itertools.islice(parts.batches('train', epochs=None), parts.steps)
    batches = jax.tree.map(lambda *a: np.stack(a), *map(dict, taken))
    for _, rate in found:
      power = math.log2(rate)
      key = (width, variant, parametrization, power)
      if key in done or not least <= power <= most:
        continue
      begun = time.monotonic()
      params, losses = run(first.params, rate, batches)
      held = evaluate({'params': params}, 'validation', 64)
      train = parts.config.train
      tokens = parts.steps * train.batch_size * train.seq_len
      row = dict(zip(FIELDS, (*key, held['validation/loss']), strict=False))
      costs = accounting.describe(parts.model, train.seq_len, parts.variables)
      row |= {
        'loss_train': float(losses[-1]),
        'params_active': costs['params_active'],
        'params_total': costs['params_total'],
        'train_flops': tokens * costs['flops_per_token'],
        'tokens': tokens,
        'seed': parts.config.seed,
        'seconds': round(time.monotonic() - begun, 1),
        'data_digest': parts.data.digest(),
        'commit': commit,
        'jax': jax.__version__,
        'via': 'run.py',
      }
      fresh = not path.exists()
      with path.open('a', newline='') as f:
        writer = csv.DictWriter(f, FIELDS)
        if fresh:
          writer.writeheader()
        writer.writerow(row)
      print(key, row['loss'], row['seconds'], flush=True)


if __name__ == '__main__':
  numbers = map(float, sys.argv[5:7])
  main(int(sys.argv[1]), *sys.argv[2:5], *numbers, *map(int, sys.argv[7:]))
