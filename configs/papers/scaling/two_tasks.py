r"""Total, active and top-k varied at equal compute, on two kinds of task.

`:facts=false` and `:chains=false` leave a task out. An answer is right if
greedy decoding gives it; the generalisation gap is test loss minus train loss.

Claim:    remembering improves with the total parameters; on reasoning what is
          held out saturates or gets worse, though the loss in training falls;
          top-k alone does little; active parameters help reasoning.
Command:  python -m moejax.main --config=configs/papers/scaling/two_tasks.py
Expect:   from 4 to 64 experts the accuracy on facts rises, the gap on chains
          widens, and the accuracy on held-out chains does not rise.
Measured: facts with 16 and 64 experts only, too few to tell a trend; chains
          not run: experiments/2026_11_optimal_sparsity_cpu.
Differs:  a task of its own for each model, not text; 2 layers of width 32, not
          16 of up to 2048. Facts stand for questions of knowledge, sums worked
          out step by step for arithmetic; documents are seen many times. No
          reinforcement learning.
"""

from configs import common

PAPER = dict(
  title='Optimal Sparsity of Mixture-of-Experts Language Models for Reasoning '
  'Tasks',
  arxiv='2508.18672',
  mechanisms=('data.Facts', 'data.Chains', 'losses.scored.right_answers'),
  status='recipe',
)
LETTERS = common.node('data.Characters', alphabet='abcdefghijklmnopqrstuvwxyz=')
ARGUMENTS = dict(facts=True, chains=True, smoke=False)
TASKS = {
  'facts': common.node('data.Facts', count=1500),
  'chains': common.node('data.Chains', count=500, held_out=1000, modulus=10),
}
# Experts, active ones, width of each. Total parameters are those of E16 in k1,
# k4 and active, active ones in all but the last.
VARIANTS = {
  'dense': (None, 1, 64),
  'E4': (4, 2, 32),
  'E16': (16, 2, 32),
  'E64': (64, 2, 32),
  'k1': (8, 1, 64),
  'k4': (32, 4, 16),
  'active': (16, 4, 32),
}


def get_config(arg=None):
  arg = common.parse_arg(arg, **ARGUMENTS)
  config = common.base()
  config.data = _data('facts')
  config.model = _model(*VARIANTS['dense'])
  config.optim = common.adamw(6e-3, warmup_steps=50)
  config.train.steps, config.train.budget_flops = None, 7e10
  config.train.batch_size, config.train.seq_len = 8, 72  # 8 or 9 documents
  config.evaluate.batches, config.evaluate.splits = None, ('train', 'test')
  config.log = dict(every_steps=100, tensorboard=False)
  config.infer.prompt = 'abcd'
  config.labels = dict(variant='dense', task='facts', num_experts=0, k=1)
  config.labels.update(activation_ratio=1.0, cost=1.0, budget_flops=7e10)
  config.sweep.jobs = 2
  return common.two_steps(config) if arg.smoke else config


def get_hyper(hyper, arg=None):
  del hyper
  arg = common.parse_arg(arg, **ARGUMENTS)
  tasks = [task for task in TASKS if arg[task]]
  return [_cell(t, v, s) for t in tasks for v in VARIANTS for s in range(3)]


def _cell(task, variant, seed):
  experts, k, hidden = VARIANTS[variant]
  return {
    'name': f'{task}-{variant}-{seed}',
    'seed': seed,
    'data': _data(task),
    'model': _model(experts, k, hidden),
    'losses': {'load': 0.01, 'z': 0.001} if experts else {},
    'labels.task': task,
    'labels.variant': variant,
    'labels.num_experts': experts or 0,
    'labels.k': k,
    'labels.activation_ratio': k / experts if experts else 1.0,
    'labels.cost': 1.0 + (experts or 0) / 32,
  }


def _data(task):
  fields = dict(sources={task: TASKS[task]}, tokenizer=LETTERS, prompt_end='=')
  return common.node('data.Text', **fields)


def _model(experts, k, hidden):
  ffn = common.moe(experts, k, hidden) if experts else common.dense(hidden)
  layer = common.block(common.attention(2), ffn)
  return common.uniform(layer, 2, width=32, vocab=28)
