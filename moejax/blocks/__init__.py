"""Blocks: residual topology, `(stream, ctx, state) -> (stream, state)`."""

from moejax.blocks.prenorm import PreNorm
from moejax.blocks.skip import Skip

__all__ = ['PreNorm', 'Skip']
