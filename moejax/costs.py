"""What parts of a model tell of their costs, where they do."""

from __future__ import annotations

from typing import Any


def told(part: Any, method: str) -> dict[str, Any]:
  """`part.method()`; empty where there is no such part or method."""
  return getattr(part, method, dict)()


def flops_under(path: str, part: Any, *sizes: int) -> dict[str, float]:
  """Forward FLOPs per token by path: of what a part tells apart, or of all."""
  if not hasattr(part, 'flops_by_path'):
    return {path: part.flops(*sizes)}
  inner = part.flops_by_path(*sizes)
  return {f'{path}/{name}': flops for name, flops in inner.items()}
