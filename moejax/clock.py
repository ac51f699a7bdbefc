"""Time as people read it."""


def duration(seconds):
  """'45s', '1m20s' or '2h05m'."""
  seconds = max(0, round(seconds))
  if seconds < 60:
    return f'{seconds}s'
  if seconds < 3600:
    return f'{seconds // 60}m{seconds % 60:02}s'
  return f'{seconds // 3600}h{seconds % 3600 // 60:02}m'
