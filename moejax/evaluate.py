"""Loss on held-out text."""

from __future__ import annotations

import collections
import itertools
from typing import Any

import jax
from ml_collections import ConfigDict

from moejax import sharding, step
from moejax.checkpoint import Checkpoints
from moejax.data import check_tokens
from moejax.parts import Parts


class Evaluator:
  """Mean loss over a split, compiled once."""

  def __init__(self, parts: Parts):
    self.parts = parts
    self.step = jax.jit(step.evaluate_step(parts.model, parts.loss))

  def __call__(
    self, variables: Any, split: str, batches: int | None
  ) -> dict[str, float]:
    """`<split>/loss` (nats per target that counts) and `<split>/tokens`.

    Where the data tells answers from prompts, also `<split>/accuracy`: the
    share of answers that greedy decoding gives.

    Args:
      variables: of the model.
      split: 'train', 'validation' or 'test'.
      batches: how many from the start of the split, None for all.
    """
    nll, total = 0.0, collections.Counter()
    data = self.parts.batches(split, epochs=1)
    for host in itertools.islice(data, batches):
      check_tokens(host, self.parts.model.vocab)
      batch = sharding.put_batch(host, self.parts.batch_sharding)
      values = jax.device_get(self.step(variables, batch))
      nll += float(values.pop('loss')) * float(values['tokens'])
      total.update({name: float(value) for name, value in values.items()})
    tokens = total['tokens']
    found = {'loss': nll / max(tokens, 1.0), 'tokens': tokens}
    if 'answers' in total:
      found['accuracy'] = total['right'] / max(total['answers'], 1.0)
    return {f'{split}/{name}': value for name, value in found.items()}


def run(config: ConfigDict, workdir: str) -> dict[str, float]:
  """Evaluates the newest checkpoint of `workdir` on validation and test.

  Raises:
    ValueError: if there is no checkpoint.
  """
  parts = Parts(config)
  with sharding.use(parts.mesh, parts.rules):
    now, at = restore(parts, workdir)
    evaluator = Evaluator(parts)
    batches = config.evaluate.batches
    values = {'step': at}
    for split in ('validation', 'test'):
      values |= evaluator(now.variables, split, batches)
  return values


def restore(parts: Parts, workdir: str):
  """(state, step) of the newest checkpoint under `workdir`.

  Raises:
    ValueError: if there is none.
  """
  with Checkpoints(f'{workdir}/checkpoints') as checkpoints:
    found = checkpoints.restore(parts.abstract_state, None)
  if found is None:
    raise ValueError(
      f'workdir={str(workdir)!r} holds no checkpoint; train there first, with '
      'config.checkpoint.every_steps set.'
    )
  return found
