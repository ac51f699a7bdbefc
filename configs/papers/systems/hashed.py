r"""Like tokens travel to their expert as one, in training.

On each device the tokens of an expert that share six cross-polytope hashes are
a bucket. Its mean travels; a token gets the expert's output for the mean, and
what it differs from the mean.

Claim:    about the loss of plain training with a fifth of the bytes sent.
Command:  python -m moejax.main --config=configs/papers/systems/hashed.py
          --config.mesh.expert=8, and the same with :exact, the baseline.
Expect:   the validation loss of the :exact form, within its standard error over
          seeds; moe/bucket_frac says how many means were sent.
Measured: not run.
Differs:  room for a fifth of the choices, fixed; where there are more buckets,
          neighbours in the order of hashes share a mean; 4 layers of width 192
          on bytes, where tokens of a step are few and less alike.
"""

from configs import common

PAPER = dict(
  title=(
    'LSH-MoE: Communication-efficient MoE Training via Locality-Sensitive '
    'Hashing'
  ),
  arxiv='2411.08446',
  mechanisms=('dispatch.Hashed', 'dispatch.AllToAll', 'balance.load'),
  status='recipe',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, exact=False, smoke=False)
  dispatch = common.node('dispatch.AllToAll')
  if not arg.exact:
    dispatch = common.node(
      'dispatch.Hashed', exact=dispatch, rate=0.2, hashes=6
    )
  ffn = common.moe(16, k=2, hidden=256, dispatch=dispatch)
  config = common.baseline(ffn, smoke=arg.smoke)
  config.losses = {'load': 0.01, 'z': 0.001}
  return config
