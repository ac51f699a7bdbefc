"""Named shapes (tokens, rows of each, slots, width, parts)."""

SMALL = {
  'smoke': (24, 4, 40, 16, 1),
  'two parts': (70, 3, 50, 24, 2),
  'one token': (1, 9, 30, 8, 1),
  'one slot': (130, 3, 1, 8, 2),
  'odd': (65, 10, 200, 36, 3),
}
# Tables of the published memory layers.
PUBLISHED = {
  '227M': (2048, 32, 360**2, 192, 2),
  '1B': (2048, 128, 528**2, 768, 2),
}
