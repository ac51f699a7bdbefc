"""Learning rate as a function of the step; each returns an optax schedule.

Step 0 already learns: a warm-up of `w` steps climbs in equal strides through
`peak * (i + 1) / (w + 1)` and meets the peak at step `w`.
"""

import math

import jax.numpy as jnp
import optax


def constant(peak, total_steps=None, warmup_steps=0):
  """The peak for ever, after a linear warm-up; `total_steps` may be None.

  Raises: ValueError on a rate or a step count that cannot be.
  """
  _check(peak, total_steps, warmup_steps)
  return _warmed(peak, warmup_steps, optax.constant_schedule(peak))


def cosine(peak, total_steps, warmup_steps=0, final_frac=0.1):
  """Half a cosine from the peak to `final_frac * peak` at `total_steps`.

  Source: arXiv 1608.03983 eq. 5, without restarts.
  Raises: ValueError on a rate, a fraction or a step count that cannot be.
  """
  _check(peak, total_steps, warmup_steps)
  _check_frac('final_frac', final_frac)
  fall_steps = max(total_steps - warmup_steps, 1)
  return _warmed(
    peak,
    warmup_steps,
    optax.cosine_decay_schedule(peak, fall_steps, alpha=final_frac),
  )


def warmup_stable_decay(
  peak,
  total_steps,
  warmup_steps=0,
  decay_frac=0.2,
  shape='sqrt',
  final_frac=0.0,
  constant_frac=0.0,
):
  """The peak, a fall to `final_frac * peak`, and that rate to the end.

  The fall takes `decay_frac` of the steps, the end `constant_frac`. With t
  from 0 to 1 over the fall, the height above the final rate is `1 - sqrt(t)`
  for shape 'sqrt' and `1 - t` for 'linear'.

  Source: arXiv 2404.06395 sec. 4; arXiv 2405.18392 eq. 1 for 1 - sqrt; a
  constant end: arXiv 2503.12167.
  Raises: ValueError on a rate, a fraction or a step count that cannot be.
  """
  _check(peak, total_steps, warmup_steps)
  _check_frac('decay_frac', decay_frac)
  _check_frac('final_frac', final_frac)
  _check_frac('constant_frac', constant_frac)
  if shape not in ('sqrt', 'linear'):
    raise ValueError(f"shape={shape!r} is not known; use 'sqrt' or 'linear'.")
  fall_steps = round(decay_frac * total_steps)
  end_steps = round(constant_frac * total_steps)
  start = total_steps - end_steps - fall_steps
  if warmup_steps > start:
    raise ValueError(
      f'warmup_steps={warmup_steps}, decay_frac={decay_frac} (that is '
      f'{fall_steps} steps) and constant_frac={constant_frac} ({end_steps} '
      f'steps) do not fit into total_steps={total_steps}; shorten one of them.'
    )
  final, power = final_frac * peak, 0.5 if shape == 'sqrt' else 1.0

  def fall(step):
    t = jnp.clip(step / max(fall_steps, 1), 0.0, 1.0)
    return final + (peak - final) * (1.0 - t**power)

  return _warmed(
    peak,
    warmup_steps,
    optax.join_schedules(
      [optax.constant_schedule(peak), fall],
      [start - warmup_steps],
    ),
  )


def _warmed(peak, warmup_steps, schedule):
  if not warmup_steps:
    return schedule
  ramp = optax.linear_schedule(peak / (warmup_steps + 1), peak, warmup_steps)
  return optax.join_schedules([ramp, schedule], [warmup_steps])


def _check(peak, total_steps, warmup_steps):
  if not (math.isfinite(peak) and peak >= 0):
    raise ValueError(
      f'peak={peak} is no learning rate; give a finite number >= 0.'
    )
  counts = [('warmup_steps', warmup_steps, 0)]
  if total_steps is not None:
    counts.append(('total_steps', total_steps, 1))
  for name, value, least in counts:
    if value != int(value) or value < least:
      raise ValueError(
        f'{name}={value} is no step count; give a whole number >= {least}.'
      )
  if total_steps is not None and warmup_steps > total_steps:
    raise ValueError(
      f'warmup_steps={warmup_steps} exceeds total_steps={total_steps}; '
      'shorten the warm-up or train longer.'
    )


def _check_frac(name, value):
  if not 0 <= value <= 1:  # Also refuses nan.
    raise ValueError(f'{name}={value} is no fraction; give one from 0 to 1.')
