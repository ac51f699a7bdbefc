r"""More and fewer devices along the expert axis, while a state lives.

`placement.resize` takes the state of a run to the mesh of another `Parts`: each
device is sent the experts that it lacks, moments included, and what is whole if
it is new; experts are renumbered so that the fewest move. It is a call: a run
of the command keeps its mesh.

Claim:    devices come and go without a restart; weights are reused.
Command:  python -m moejax.main --config=configs/papers/systems/elastic.py
          --config.mesh.expert=4, on four devices.
Expect:   the losses of an unchanged run after 4 -> 2 -> 8 devices, to 1e-6, and
          a state that is the same bit by bit: tests/placement/test_resize.py.
Measured: not run at this size; the test above passes on 8 devices of a CPU.
Differs:  training in place of serving, so there are moments and no key-value
          cache; the state is moved between steps, not beside them; one process;
          no virtual memory: on a device that changes, new arrays are made
          before the old ones go.
"""

from configs import common

PAPER = dict(
  title=(
    'ElasticMoE: An Efficient Auto Scaling Method for Mixture-of-Experts Models'
  ),
  arxiv='2510.02613',
  mechanisms=('placement.resize', 'placement.permute', 'dispatch.AllToAll'),
  status='mechanism',
)


def get_config(arg=None):
  arg = common.parse_arg(arg, smoke=False)
  ffn = common.moe(
    16, k=2, hidden=256, dispatch=common.node('dispatch.AllToAll')
  )
  config = common.baseline(ffn, smoke=arg.smoke)
  config.losses = {'load': 0.01, 'z': 0.001}
  return config
