"""The training step compiles for TPUs and GPUs that are not here."""

import importlib.util
import re

import pytest

from configs import tiny
from moejax import aot, main

pytestmark = pytest.mark.slow
RECIPE = ['moejax', '--config=configs/tiny.py:smoke', '--mode=aot']


@pytest.mark.parametrize('topology', ['v5e:2x2', 'v6e:2x2', 'v5p:2x2x1'])
@pytest.mark.parametrize('dispatch', ['Sort', 'Einsum'])
def test_the_step_compiles_over_data_and_expert_axes(
  topology, dispatch, on_topology
):
  found = on_topology('aot_step.py', topology, dispatch)
  assert found['platform'] == 'tpu'
  assert found['flops'] > 0
  # A v5e chip has 16 GB; this tiny step takes a thousandth of it.
  assert found['temporary_bytes'] < 64 * 2**20


def test_a_report_is_of_the_step_that_training_runs():
  config = tiny.get_config('smoke')
  config.mesh.expert = 2
  report = aot.check(config, 'v5e:2x2')
  assert report.fits and report.mesh['data'] == 2
  memory = report.memory
  # AdamW has two moments for each parameter, and two counts.
  assert 0 < memory.optimizer - 2 * memory.parameters < 64
  assert memory.parameters + memory.optimizer < memory.total < 2**28
  assert 0 < memory.activations <= memory.temporary
  # Useful work is most of it, and products are never fewer than the model's.
  assert 0.5 < report.model_flops / report.flops <= 1.1
  assert report.collective_bytes['all-reduce'] > 0


GPU = pytest.mark.skipif(
  importlib.util.find_spec('jax_cuda12_plugin') is None,
  reason="needs the compiler for GPUs: pip install -e '.[test,aot-gpu]'",
)


@pytest.mark.parametrize(
  'topology',
  ['v4:2x2x1', 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2']
  + [pytest.param('h100:4', marks=GPU)],
)
def test_the_command_prints_a_table_for_every_generation(topology, capsys):
  words = ['moejax', '--mode=aot', f'--topology={topology}']
  ffn = '--config.model.blocks.block_0.ffn'
  words += [
    '--config=configs/moe.py:smoke',
    '--config.mesh.expert=4',
    '--config.model.dtype=bfloat16',
    f'{ffn}.dispatch.kind=dispatch.RaggedAllToAll',
  ]
  with pytest.raises(SystemExit) as stopped:
    main.main(words)
  out = capsys.readouterr().out
  assert stopped.value.code == 0, out
  assert ': 4 devices, mesh expert=4;' in out
  assert 'ragged-all-to-all' in out and 'step at least' in out
  # Rounds of 1.5 times a fair share, and none of the products unknown.
  share = int(re.search(r'FLOPs .*\((\d+)% the model counts\)', out)[1])
  assert 30 < share <= 110
  assert 'told nowhere' not in out


@pytest.mark.parametrize('words,code', [([], 0), (['wide'], 3)])
def test_the_exit_code_says_whether_it_fits(words, code, capsys):
  wide = ['--config.model.width=65536', '--config.model.vocab=200000']
  more = wide if words else []
  with pytest.raises(SystemExit) as stopped:
    main.main([*RECIPE, '--topology=v5e:2x2', *more])
  assert stopped.value.code == code
  assert 'of 15.75 GiB' in capsys.readouterr().out
