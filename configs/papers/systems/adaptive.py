r"""The exchange and its stages, chosen between steps by the measured load.

For each range of the load, gathering all tokens and sending rows in one, two or
four stages are timed in turn, and the fastest is kept. All have one layout of
parameters and batches.

Claim:    choosing parallelism and stages as the load changes makes steps
          shorter than any fixed choice, at no cost of moving.
Command:  python -m moejax.main --config=configs/papers/systems/adaptive.py
          --config.mesh.expert=8, and with :fixed, an all-to-all in one stage.
Expect:   the losses of the :fixed form, within rounding, and no more time for a
          step once ranges of the load are known; exchange_choice is logged.
Measured: not run.
Differs:  which device computes which expert does not change, so that data
          parallelism with gathered experts is no choice; times are measured in
          training, never modelled; 4 layers of width 192 on bytes.
"""

from configs import common

PAPER = dict(
  title='Tutel: Adaptive Mixture-of-Experts at Scale',
  arxiv='2206.03382',
  mechanisms=('adapt.Adaptive', 'dispatch.Ring', 'dispatch.AllToAll'),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, fixed=False, smoke=False)
  sent = {
    stages: common.node('dispatch.AllToAll', stages=stages)
    for stages in (1, 2, 4)
  }
  ffn = common.moe(16, k=2, hidden=256, dispatch=sent[1])
  config = common.baseline(ffn, smoke=arg.smoke)
  config.losses = {'load': 0.01, 'z': 0.001}
  if not arg.fixed:
    config.train.adapt = common.node(
      'adapt.Adaptive',
      choices={
        'gathered': common.node('dispatch.Ring'),
        **{f'sent_in_{stages}': node for stages, node in sent.items()},
      },
      every_steps=2 if arg.smoke else 10,
    )
  return config
