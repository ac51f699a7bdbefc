"""Named shapes (N, E, K), shared by tests and benchmarks."""

SMALL = {
  'smoke': (24, 8, 2),
  'one token': (1, 8, 2),
  'one expert each': (70, 8, 1),
  'every expert': (33, 6, 6),
  'odd': (101, 56, 8),
  'odd tiles': (130, 100, 3),
}
# Tokens, experts and choices of the layers that the benchmarks time.
LARGE = {
  'coarse': (4096, 8, 2),
  'fine': (4096, 64, 8),
  'wide': (8192, 64, 8),
  '1.4B': (40960, 128, 8),
  '30B': (32768, 256, 16),
}
