"""Tiles that were measured: a store that kernels ask, and what fills it.

`python -m pallas_kernels.tune --op=grouped_matmul --shape=...` measures; see
`__main__`. Kernels ask `store.tuned` while they are traced.
"""
