"""Blocks: residual topology, `(stream, ctx, state) -> (stream, state)`."""

from moejax.blocks.prenorm import PreNorm

__all__ = ['PreNorm']
