"""Optimisers: schedules, AdamW, Muon, parameter groups and their chain."""

from moejax.optim.adamw import AdamW
from moejax.optim.chain import Chain
from moejax.optim.clip import clip_by_global_norm, global_norm
from moejax.optim.groups import Group
from moejax.optim.guard import SkipNonfinite, SkipState
from moejax.optim.maximal_update import MaximalUpdate
from moejax.optim.muon import Muon
from moejax.optim.parameters import Parameter, state_names
from moejax.optim.rows import Rows, numbers
from moejax.optim.schedules import constant, cosine, warmup_stable_decay

__all__ = [
  'AdamW',
  'Chain',
  'Group',
  'MaximalUpdate',
  'Muon',
  'Parameter',
  'Rows',
  'SkipNonfinite',
  'SkipState',
  'clip_by_global_norm',
  'constant',
  'cosine',
  'global_norm',
  'numbers',
  'state_names',
  'warmup_stable_decay',
]
