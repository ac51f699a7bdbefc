"""Prompt in, text out, from a checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from moejax import config_io, sharding
from moejax.build import build
from moejax.evaluate import restore
from moejax.infer import decode, pad_prompts, require_causal
from moejax.parts import Parts


def run(config: ConfigDict, workdir: str, prompts: Sequence[str]) -> list[str]:
  """Continues each prompt with the newest checkpoint of `workdir`.

  `config.infer` holds the sampler, `max_tokens`, the seed, and `overlay`:
  (path, value) pairs that change the config for decoding, such as another
  dispatch; they must leave the parameters as they are.

  Raises:
    ValueError: if there is no checkpoint, or the model cannot decode.
  """
  parts = decoding_parts(config)
  with sharding.use(parts.mesh, parts.rules):
    now, _ = restore(parts, workdir)
    return continue_prompts(parts, now.variables, prompts)


def sample(parts: Parts, variables) -> str | None:
  """`config.infer.prompt` with its continuation, for the end of a run.

  None where there is no prompt, the model cannot decode, or its parameters
  are spread over several processes.
  """
  prompt = parts.config.infer.prompt
  if prompt is None or jax.process_count() > 1:
    return None
  parts = decoding_parts(parts.config)
  try:
    require_causal(parts.model)
  except ValueError:
    return None
  return prompt + continue_prompts(parts, variables, [prompt])[0]


def decoding_parts(config: ConfigDict) -> Parts:
  """The parts of a config with `config.infer.overlay` laid over it."""
  overlay = dict(config.infer.overlay)
  return Parts(config_io.override(config, overlay) if overlay else config)


def continue_prompts(
  parts: Parts, variables, prompts: Sequence[str]
) -> list[str]:
  """The texts that follow the prompts, without the prompts."""
  infer, data = parts.config.infer, parts.data
  encoded = pad_prompts([[data.end, *data.encode(p)] for p in prompts])
  run_decode = jax.jit(
    functools.partial(
      decode,
      parts.model,
      max_tokens=infer.max_tokens,
      sample=build(infer.sampler, 'config.infer.sampler'),
      end=data.end,
    )
  )
  key = jax.random.key(infer.seed)
  tokens, lengths = jax.device_get(run_decode(variables, encoded, key=key))
  return [
    data.decode(row[:length].tolist())
    for row, length in zip(tokens, lengths, strict=True)
  ]
