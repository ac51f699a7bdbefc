"""Decoding: the same model call as training, with a state."""

from moejax.infer import sampler
from moejax.infer.decode import decode, pad_prompts, require_causal

__all__ = ['decode', 'pad_prompts', 'require_causal', 'sampler']
