"""What recipes share: nodes, arguments, and presets."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

# Defaults of a model that flags change: a flag is for a field that is there.
NUMERICS = dict(dtype='float32', remat=None)


def node(kind: str, **fields: Any) -> ConfigDict:
  """A config node: `kind` is an import path under moejax."""
  return ConfigDict({'kind': kind, **fields})


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
  """Reads `a=1,smoke` of `--config=file.py:a=1,smoke` by the defaults' types.

  A name alone stands for name=True.

  Raises:
    ValueError: for an unknown name or a value of another type.
  """
  values = dict(defaults)
  for part in filter(None, (arg or '').split(',')):
    name, given, text = part.partition('=')
    if name not in defaults:
      raise ValueError(
        f'recipe argument {name!r} is unknown; known: '
        f'{", ".join(sorted(defaults))}.'
      )
    values[name] = _typed(name, text if given else 'true', defaults[name])
  return ConfigDict(values)


def _typed(name, text, default):
  if isinstance(default, bool):
    if text.lower() not in ('true', 'false', '1', '0'):
      raise ValueError(
        f'recipe argument {name}={text!r} must be true or false.'
      )
    return text.lower() in ('true', '1')
  try:
    return type(default)(text)
  except ValueError:
    raise ValueError(
      f'recipe argument {name}={text!r} must be a '
      f'{type(default).__name__}, like {default!r}.'
    ) from None


def base() -> ConfigDict:
  """Every section of a config with its defaults, but for the model.

  The sections are documented here, once.
  """
  config = ConfigDict()
  config.seed = 0
  config.labels = ConfigDict()  # anything; copied into the result
  config.model = ConfigDict()
  config.data = node(
    'data.Text', sources={'stdlib': node('data.StandardLibrary')}
  )
  config.loss = node('losses.cross_entropy')
  config.losses = ConfigDict()  # weight of each balance term, by name
  config.optim = adamw(1e-3)
  config.train = ConfigDict(
    dict(
      steps=1000,
      budget_flops=None,  # instead of steps: training FLOPs to spend
      batch_size=16,  # rows of a step, over all devices and micro-batches
      seq_len=256,
      accumulate=1,  # micro-batches in a step
      adapt=None,  # node; chooses the exchange of a step by its load
      bias_update=None,  # node; moves the selection biases of routers
      max_skipped_steps=10,  # in a row, before the run stops
    )
  )
  # -1: what is left. The last axis has neighbours that are near each other.
  # `pipe` is for the stages of config.model.pipeline: see `pipeline` below.
  config.mesh = ConfigDict(
    dict(pipe=1, data=-1, fsdp=1, expert=1, context=1, tensor=1)
  )
  # Where each logical axis lives. A name with 'moe/' in front, as in
  # ('moe/expert', ('expert', 'tensor')), is for layers of experts alone.
  config.rules = (
    ('batch', ('data', 'fsdp', 'expert', 'pipe')),
    ('expert', 'expert'),
    ('time', 'context'),
    ('embed', 'fsdp'),
    ('heads', 'tensor'),
    ('mlp', 'tensor'),
    ('vocab', 'tensor'),
    ('layers', 'pipe'),
    *((name, None) for name in ('kv', 'latent', 'memory')),
    *((name, None) for name in ('router', 'slots', 'value')),
  )
  config.log = ConfigDict(dict(every_steps=10, tensorboard=True))
  config.evaluate = ConfigDict(
    dict(
      every_steps=None,
      batches=16,
      splits=(),  # besides validation: train, test; into the result
    )
  )
  config.checkpoint = ConfigDict(dict(every_steps=None, keep=2))
  config.infer = ConfigDict(
    dict(
      prompt='def ',
      max_tokens=200,
      seed=0,
      sampler=node('infer.sampler.temperature', temperature=0.8, top_k=20),
      overlay=(),  # (path, value) pairs that change the config to decode
    )
  )
  config.sweep = ConfigDict(
    dict(
      jobs=1,  # cells at once
      report=None,  # node; called with the results
      plan=None,  # node; chooses among the cells, and tells what they cost
    )
  )
  return config


def adamw(peak: float, warmup_steps: int = 20, **fields: Any) -> ConfigDict:
  """AdamW with a cosine schedule to a tenth of `peak`."""
  return node(
    'optim.Chain',
    optimizer=node('optim.AdamW', **fields),
    schedule=node(
      'optim.cosine', peak=peak, warmup_steps=warmup_steps, final_frac=0.1
    ),
    clip_norm=1.0,
  )


def attention(heads: int, kv_heads: int | None = None, **fields) -> ConfigDict:
  """Grouped-query attention; as many kv heads as heads if not given."""
  return node(
    'mixers.Attention', heads=heads, kv_heads=kv_heads or heads, **fields
  )


def kda(heads: int, head_dim: int, **fields) -> ConfigDict:
  """Kimi Delta Attention as published; gates of rank `head_dim`."""
  parts = dict(
    rule=node('mixers.rules.kda'),
    decay=node('mixers.decays.Softplus', rank=head_dim),
    write=node('mixers.writes.Sigmoid'),
    gate=node('mixers.gates.Gate', rank=head_dim),
    norm_epsilon=1e-5,
  )
  return node(
    'mixers.LinearAttention',
    heads=heads,
    head_dim=head_dim,
    **(parts | fields),
  )


def dense(hidden: int) -> ConfigDict:
  """A dense gated feed-forward."""
  return node('moe.Dense', expert=node('experts.Glu', hidden=hidden))


def moe(
  num_experts: int, k: int, hidden: int, *, shared: int | None = None, **fields
) -> ConfigDict:
  """Softmax top-k over gated experts, dropless.

  Args:
    num_experts: E.
    k: experts per token.
    hidden: width of each expert.
    shared: width of a shared expert, None for none.
    **fields: replace fields of the composer, such as `dispatch`.
  """
  parts = dict(
    router=node(
      'routers.Router',
      score=node('routers.scores.Linear', num_experts=num_experts),
      k=k,
      select=node('routers.select.top_k'),
      weigh=node('routers.weigh.softmax'),
    ),
    dispatch=node('dispatch.Sort'),
    experts=node('experts.Glu', num_experts=num_experts, hidden=hidden),
    shared=None if shared is None else dense(shared),
    balance={'load': node('balance.load'), 'z': node('balance.z')},
  )
  return node('moe.Moe', **(parts | fields))


def table(slots: int, **fields: Any) -> ConfigDict:
  """A table of rows: of one layer, or of all under `model.shared`."""
  return node('memory.tables.Table', slots=slots, **fields)


def beside(memory: ConfigDict, hidden: int) -> ConfigDict:
  """A memory and a dense gated feed-forward, which read the same input."""
  return node('moe.Sum', parts={'dense': dense(hidden), 'memory': memory})


def sigmoid_router(ffn: ConfigDict, scale: float) -> ConfigDict:
  """A mixture that weighs by sigmoids and is balanced by selection biases.

  `train.bias_update` moves these; `scale` is of the normalised weights.
  """
  ffn.router.affinity = node('routers.affinities.sigmoid')
  ffn.router.weigh = node('routers.weigh.sigmoid', scale=scale)
  ffn.router.selection_bias = True
  return ffn


def block(mixer: ConfigDict, ffn: ConfigDict | None) -> ConfigDict:
  """A pre-norm block; without a feed-forward if that is None."""
  return node('blocks.PreNorm', mixer=mixer, ffn=ffn)


def uniform(layer: ConfigDict, layers: int, **fields: Any) -> ConfigDict:
  """A model of like layers; `fields` are those of `model.Model`."""
  return node(
    'model.Model',
    blocks={'block': layer},
    pattern=('block',),
    repeats=layers,
    **(NUMERICS | fields),
  )


def layers(
  config: ConfigDict,
  middle: ConfigDict,
  repeats: int,
  *,
  first: ConfigDict | None = None,
  last: ConfigDict | None = None,
) -> ConfigDict:
  """Replaces the blocks of a config: first, middle x repeats, last."""
  model, blocks = config.model, {'middle': middle}
  model.pattern, model.repeats = ('middle',), repeats
  if first is not None:
    blocks['first'], model.prefix = first, ('first',)
  if last is not None:
    blocks['last'], model.suffix = last, ('last',)
  model.blocks = ConfigDict(blocks)
  return config


def pod(config: ConfigDict, *, expert: int, fsdp: int) -> ConfigDict:
  """Spreads a model over expert * fsdp chips, a row of 4,096 tokens on each.

  Parameters and moments are cut over all chips: those of experts over the
  experts and then over `fsdp`, all others by their width; from latents to
  heads, where no side is the width, over `expert` alone.
  """
  config.model.dtype, config.model.remat = 'bfloat16', 'full'
  config.train.batch_size, config.train.seq_len = expert * fsdp, 4096
  config.mesh = ConfigDict(dict(data=1, fsdp=fsdp, expert=expert))
  own = {'embed': ('fsdp', 'expert'), 'latent': 'expert'}
  config.rules = (
    *((name, own.get(name, to)) for name, to in config.rules),
    ('moe/embed', 'fsdp'),
  )
  return config


def pipeline(
  config: ConfigDict, *, stages: int, microbatches: int, repeats: int = 1
) -> ConfigDict:
  """Spreads the repeats of the pattern over stages, each with its devices."""
  config.mesh.pipe = stages
  config.model.pipeline = node(
    'pipeline.Circular',
    stages=stages,
    microbatches=microbatches,
    repeats=repeats,
  )
  return config


def two_steps(config: ConfigDict) -> ConfigDict:
  """Cuts a run down to whether it runs."""
  config.train.steps, config.train.budget_flops = 2, None
  config.optim.schedule.warmup_steps = 1
  config.evaluate.batches = 2
  return config


def text_of(folder: str) -> ConfigDict:
  """Text of your own: array_record files, and tokenizer.json, in a folder."""
  files = node('data.Files', pattern=f'{folder}/**/*.array_record')
  tokenizer = node('data.TokenizerFile', path=f'{folder}/tokenizer.json')
  return node('data.Text', sources={'files': files}, tokenizer=tokenizer)


def baseline(*ffns: ConfigDict, smoke: bool = False) -> ConfigDict:
  """A config at the size at which mechanisms are compared with each other.

  4 layers of width 192, 500 steps of 4,096 bytes. A feed-forward whose active
  hidden width is 512 makes 1.6M active parameters, embeddings left out.

  Args:
    *ffns: feed-forwards of successive layers, repeated; 1, 2 or 4 of them.
    smoke: two steps on few short rows instead.
  """
  config = base()
  names = tuple(f'block_{i}' for i in range(len(ffns)))
  blocks = (block(attention(6, 2), ffn) for ffn in ffns)
  config.model = node(
    'model.Model',
    vocab=257,
    width=192,
    blocks=dict(zip(names, blocks, strict=True)),
    pattern=names,
    repeats=4 // len(ffns),
    **NUMERICS,
  )
  config.optim = adamw(2e-3, warmup_steps=1 if smoke else 50)
  config.train.steps = 2 if smoke else 500
  config.train.batch_size = 4 if smoke else 16
  config.train.seq_len = 64 if smoke else 256
  config.evaluate.batches = 2 if smoke else 64
  config.checkpoint.every_steps = None if smoke else 250
  return config
