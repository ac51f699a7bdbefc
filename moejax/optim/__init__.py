"""Optimisers: schedules, AdamW, Muon, parameter groups and their chain."""

from moejax.optim.adamw import AdamW
from moejax.optim.chain import Chain
from moejax.optim.groups import Group
from moejax.optim.guard import SkipState, skip_nonfinite
from moejax.optim.muon import Muon
from moejax.optim.parameters import Parameter, state_names
from moejax.optim.schedules import constant, cosine, warmup_stable_decay

__all__ = [
  'AdamW',
  'Chain',
  'Group',
  'Muon',
  'Parameter',
  'SkipState',
  'constant',
  'cosine',
  'skip_nonfinite',
  'state_names',
  'warmup_stable_decay',
]
