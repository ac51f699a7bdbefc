r"""A balance loss over the whole batch of a step, not over each micro-batch.

Eight micro-batches of two rows make a step. Balance within each forbids an
expert to specialise in what one text is about; balance over all of them does
not.

Claim:    a lower loss than with balance per micro-batch, and experts that
          specialise.
Command:  python -m moejax.main --config=configs/papers/routing/global_batch.py
          and the same with :micro_batch, the baseline.
Expect:   a lower validation loss than the :micro_batch form.
Measured: not run.
Differs:  4 layers of width 192 on the source of one programming language, so
          micro-batches differ less than in a mixture of domains; the loss
          weighs 0.01; the counts are those of the micro-batches so far in a
          step, so the first sees only its own.
"""

from configs import common

PAPER = dict(
  title='Demons in the Detail: On Implementing Load Balancing Loss for '
  'Training Specialized Mixture-of-Expert Models',
  arxiv='2501.11873',
  mechanisms=('balance.GlobalBatch', 'balance.load', 'routers.select.top_k'),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, micro_batch=False, smoke=False)
  term = 'balance.load' if arg.micro_batch else 'balance.GlobalBatch'
  ffn = common.moe(32, k=4, hidden=128, balance={'load': common.node(term)})
  config = common.baseline(ffn, smoke=arg.smoke)
  config.losses = {'load': 0.01}
  config.train.accumulate = 2 if arg.smoke else 8
  return config
