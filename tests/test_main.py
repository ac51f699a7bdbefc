"""The command: what it refuses, in which words, and what it keeps."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from moejax import command_flags, command_line, config_io, main, metrics, train

TINY = '--config=configs/tiny.py:smoke'
FFN = '--config.model.blocks.sparse.ffn'

# Words, then what the one line must hold: field, value and fix.
WRONG_WORDS = {
  'no config': ([], ['--config', 'missing', 'configs/tiny.py']),
  'no file': (
    ['--config=configs/tinny.py'],
    [
      "--config='configs/tinny.py'",
      'no file',
      "did you mean 'configs/tiny.py'",
    ],
  ),
  'folder': (
    ['--config=configs'],
    ["'configs'", 'a folder', 'path of a recipe'],
  ),
  'not Python': (
    ['--config=pyproject.toml'],
    ["'pyproject.toml'", 'no Python file', 'path of a recipe'],
  ),
  'no recipe': (
    ['--config=configs/common.py'],
    ["'configs/common.py'", 'get_config', 'add it'],
  ),
  'recipe argument': (
    ['--config=configs/tiny.py:smok'],
    ['configs/tiny.py', "'smok'", 'known: smoke'],
  ),
  'unknown override': (
    [TINY, '--config.train.stepz=3'],
    ['--config.train.stepz=3', "Did you mean 'train.steps'?"],
  ),
  'unknown section': (
    [TINY, '--config.trian.steps=3'],
    ['--config.trian.steps=3', "Did you mean 'train.steps'?"],
  ),
  'override below a leaf': (
    [TINY, '--config.train.steps.x=3'],
    ['--config.train.steps.x=3', "'train.steps' is 2", 'no fields'],
  ),
  'override type': (
    [TINY, '--config.train.steps=abc'],
    ["config.train.steps='abc'", 'is an int (2)', 'give an int'],
  ),
  'override float': (
    [TINY, '--config.train.steps=2.5'],
    ['config.train.steps=2.5', 'is an int', 'give an int'],
  ),
  'override without value': (
    [TINY, '--config.log.tensorboard'],
    ['--config.log.tensorboard', 'no value', '=VALUE'],
  ),
  'override twice': (
    [TINY, '--config.seed=1', '--config.seed=2'],
    ['--config.seed', "'1' and '2'", 'keep one'],
  ),
  'flag twice': (
    [TINY, '--workdir=a', '--workdir=b'],
    ['--workdir', "'b'", 'keep one'],
  ),
  'unknown flag': (['--wrkdir=a'], ['--wrkdir', "did you mean 'workdir'"]),
  'flag without value': (['--config'], ['--config', 'Missing value', '--help']),
  'stray argument': ([TINY, 'steps=3'], ["'steps=3'", '--config.train.steps=']),
  'unknown mode': ([TINY, '--mode=tain'], ['--mode=tain', 'train|evaluate']),
  'prompt in training': (
    [TINY, '--prompt=a'],
    ["--prompt='a'", '--mode=train', 'add --mode=generate'],
  ),
  'generate without folder': (
    ['--mode=generate'],
    ['--mode=generate', 'needs the folder', 'give --workdir'],
  ),
  'generate in a sweep': (
    ['--mode=generate', '--config=configs/scaling.py'],
    ['--mode=generate', 'a sweep', '--workdir=runs/scaling/cells/NAME'],
  ),
}

WRONG_FIELDS = {
  'peak nan': (
    ['--config.optim.schedule.peak=nan'],
    ['config.optim.schedule.peak', 'nan', 'give a number'],
  ),
  'peak infinite': (
    ['--config.optim.schedule.peak=inf'],
    ['config.optim.schedule.peak', 'inf', 'give a number'],
  ),
  'no steps': (
    ['--config.train.steps=0'],
    ['config.train.steps=0', 'at least 1'],
  ),
  'steps and budget': (
    ['--config.train.budget_flops=1e9'],
    ['steps=2', 'budget_flops=1000000000.0', 'set the other to None'],
  ),
  'budget': (
    ['--config.train.steps=None', '--config.train.budget_flops=lots'],
    ["budget_flops='lots'", 'positive number', '1e12'],
  ),
  'count that is off': (
    ['--config.evaluate.every_steps=often'],
    ["config.evaluate.every_steps='often'", 'whole number', 'at least 1'],
  ),
  'evaluation between logs': (
    ['--config.evaluate.every_steps=15'],
    ['evaluate.every_steps=15', 'log.every_steps=10', 'make it one'],
  ),
  'k': ([f'{FFN}.router.k=9'], ['router.k=9', 'num_experts=8', 'lower k']),
  'k of zero': ([f'{FFN}.router.k=0'], ['router.k=0', 'at least 1']),
  'experts scored': (
    [f'{FFN}.router.score.num_experts=4'],
    ['score.num_experts=4', 'num_experts=8', 'same number'],
  ),
  'expert axis': (
    ['--config.mesh.expert=3'],
    ['num_experts=8', 'config.mesh.expert=3', 'choose a multiple'],
  ),
  'hidden': (
    [f'{FFN}.experts.hidden=0'],
    ['experts.hidden=0', 'a whole number of at least 1'],
  ),
  'kv heads': (
    ['--config.model.blocks.dense.mixer.kv_heads=3'],
    ['blocks.dense.mixer.kv_heads=3', 'heads=4', 'choose a divisor'],
  ),
  'pattern': (
    ["--config.model.pattern=('dense', 'spars')"],
    ['config.model.pattern', "'spars'", "did you mean 'sparse'"],
  ),
  'empty pattern': (
    ['--config.model.pattern=()'],
    ['config.model.pattern=()', 'at least one block'],
  ),
  'section without a kind': (
    ['--config.loss={}'],
    ['config.loss', 'no kind', 'give a node'],
  ),
}

# These need jax: 8 devices, the model traced, or the data.
WRONG_PARTS = {
  'batch': (
    ['--config.train.batch_size=12'],
    ['config.train.batch_size=12', '8 shards', 'use a multiple of 8'],
  ),
  'accumulation': (
    ['--config.train.accumulate=3'],
    ['batch_size=8', 'accumulate=3', 'use a multiple of 24'],
  ),
  'mesh': (
    ['--config.mesh.data=3'],
    ['data=3 needs 3 devices', 'found 8', 'set config.mesh'],
  ),
  'peak negative': (
    ['--config.optim.schedule.peak=-0.1'],
    ['config.optim.schedule', 'peak=-0.1', 'give a finite number >= 0'],
  ),
  'warm-up': (
    ['--config.optim.schedule.warmup_steps=9'],
    ['config.optim.schedule', 'warmup_steps=9', 'shorten the warm-up'],
  ),
  'kind': (
    [f'{FFN}.dispatch.kind=dispatch.Sotr'],
    ["ffn.dispatch.kind='dispatch.Sotr'", "did you mean 'Sort'"],
  ),
  'kind of no module': (
    [f'{FFN}.dispatch.kind=dispach.Sort'],
    ["dispatch.kind='dispach.Sort'", 'no module', 'use the import path'],
  ),
  'field of a node': (
    [f'{FFN}.dispatch={{"kind": "dispatch.Einsum", "capacity": 1}}'],
    ['ffn.dispatch.capacity', "'capacity'", "did you mean 'capacity_factor'"],
  ),
  'missing field': (
    ['--config.model.blocks.dense.ffn={"kind": "moe.Dense"}'],
    ['config.model.blocks.dense.ffn', 'needs expert', 'add'],
  ),
  'value of a node': (
    ['--config.optim.clip_norm=-1.0'],
    ['config.optim', 'clip_norm=-1.0', 'give a number > 0'],
  ),
  'weight of no term': (
    ['--config.losses={"load": 0.1, "z": 0.1, "entrpy": 2.0}'],
    ['config.losses.entrpy=2.0', 'no layer makes', 'load, z'],
  ),
  'term without weight': (
    ['--config.losses={"load": 0.1}'],
    ['config.losses', "'z'", 'add config.losses.z'],
  ),
  'vocabulary': (
    ['--config.model.vocab=100'],
    ['config.model.vocab=100', '257', 'raise it to at least 257'],
  ),
  'glob': (
    ['--config.data.sources={"t":{"kind":"data.Files","pattern":"n/*.txt"}}'],
    ['config.data', "pattern='n/*.txt'", 'matches none', 'correct the glob'],
  ),
}

RECIPE = """
from configs import tiny

def get_config():
  config = tiny.get_config('smoke')
  {}
  return config
"""
WRONG_RECIPES = {
  'syntax': ('def get_config(:', ['line 1', 'invalid syntax', 'correct']),
  'import': ('import no_such_module', ['no_such_module', 'line 1', 'correct']),
  'raises': (
    RECIPE.format("config = {}['width']"),
    ['line 6', 'KeyError', "'width'", 'correct'],
  ),
  'returns no config': (
    'def get_config(): return 3',
    ['returned a int', 'must return a ConfigDict'],
  ),
  'unknown section': (
    RECIPE.format('config.trian = 3'),
    ['config.trian=3', "did you mean 'train'"],
  ),
  'unknown field of a section': (
    RECIPE.format('config.train.step = 3'),
    ['config.train.step=3', "did you mean 'steps'"],
  ),
  'missing section': (
    RECIPE.format('del config.optim'),
    ['config.optim', 'missing', 'start from'],
  ),
  'cell': (
    RECIPE.format('')
    + "def get_hyper(hyper): return hyper.sweep('train.steps', [1, 0])",
    ["cell 'steps=0'", 'config.train.steps=0', 'at least 1'],
  ),
  'sweep of an unknown path': (
    RECIPE.format('')
    + "def get_hyper(hyper): return hyper.sweep('train.stepz', [1])",
    ['train.stepz', "Did you mean 'train.steps'"],
  ),
}

# A model that compiles in seconds, and trains in milliseconds.
SMALL = """
from configs import common

def get_config():
  config = common.base()
  config.model = common.node(
    'model.Model', vocab=257, width=8,
    blocks={'a': common.block(common.attention(1), common.dense(8))},
    pattern=('a',),
  )
  config.data.sources.stdlib.max_bytes = 100_000
  config.optim = common.adamw(1e-3, warmup_steps=0)
  config.train.steps = 2
  config.train.batch_size = 8
  config.train.seq_len = 16
  config.log.tensorboard = False
  config.evaluate.batches = 1
  config.checkpoint.every_steps = 1
  config.infer.max_tokens = 3
  return config
"""


@pytest.fixture(scope='module', autouse=True)
def quick():
  """Less time on what is not tested here: code quality, and the peak."""
  jax.config.update('jax_disable_most_optimizations', True)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(metrics, 'device_peak_flops', lambda *_: (1e12, 'known'))
    yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture
def command(capsys):
  """Runs main in this process: (exit code, stdout, stderr lines)."""

  def run(*words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
      main.main(['main', *map(str, words)])
    out, err = capsys.readouterr()
    return ended.value.code, out, err.splitlines()

  return run


@pytest.fixture
def refused(command, monkeypatch):
  """Runs main, which must refuse in one line that holds these fragments."""

  def start(*_):
    raise AssertionError('training started')

  monkeypatch.setattr(train.Run, '__init__', start)

  def check(words, fragments):
    code, out, err = command(*words)
    assert code == 2
    assert out == ''
    assert len(err) == 1
    assert err[0].startswith('error: ')
    for fragment in fragments:
      assert fragment in err[0]

  return check


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(recipe, folder) of a small run that has finished."""
  folder = tmp_path_factory.mktemp('trained')
  recipe = folder / 'small.py'
  recipe.write_text(SMALL)
  with pytest.raises(SystemExit) as ended:
    main.main(['main', f'--config={recipe}', f'--workdir={folder / "run"}'])
  assert ended.value.code == 0
  return recipe, folder / 'run'


@pytest.mark.parametrize('case', WRONG_WORDS)
def test_wrong_words_are_refused_in_one_line(case, refused):
  refused(*WRONG_WORDS[case])


@pytest.mark.parametrize('case', [*WRONG_FIELDS, *WRONG_PARTS])
def test_wrong_fields_are_refused_in_one_line(case, refused, tmp_path):
  words, fragments = (WRONG_FIELDS | WRONG_PARTS)[case]
  refused([TINY, f'--workdir={tmp_path}', *words], fragments)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('case', WRONG_RECIPES)
def test_wrong_recipes_are_refused_in_one_line(case, refused, tmp_path):
  text, fragments = WRONG_RECIPES[case]
  path = tmp_path / 'recipe.py'
  path.write_text(text)
  refused([f'--config={path}', f'--workdir={tmp_path / "run"}'], fragments)


def test_a_recipe_without_an_argument_refuses_one(refused, trained):
  recipe, _ = trained
  refused([f'--config={recipe}:smoke'], ['small.py:smoke', 'leave out'])


def test_a_folder_that_cannot_be_written_is_refused(refused, tmp_path):
  file = tmp_path / 'file'
  file.touch()
  where = str(file / 'run')
  refused(
    [TINY, f'--workdir={where}'], [where, 'cannot be written', 'choose another']
  )


def test_nothing_imports_jax_before_a_wrong_word_or_field_is_told(tmp_path):
  # One process for all: jax must be absent after the last of them too.
  tables = [
    WRONG_WORDS,
    {k: ([TINY, *w], f) for k, (w, f) in WRONG_FIELDS.items()},
  ]
  lines = [words for table in tables for words, _ in table.values()]
  program = (
    'import json, sys\n'
    'from moejax import main\n'
    'for words in json.loads(sys.argv[1]):\n'
    '  try:\n'
    "    main.main(['main', *words])\n"
    '  except SystemExit as ended:\n'
    "    assert ended.code == 2 and 'jax' not in sys.modules, words\n"
  )
  done = subprocess.run(
    [sys.executable, '-c', program, json.dumps(lines)],
    capture_output=True,
    text=True,
    env=_environment(),
  )
  assert done.returncode == 0, done.stderr
  assert len(done.stderr.splitlines()) == len(lines)


def test_the_real_command_refuses_in_one_line_with_code_2(tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'moejax.main', TINY, f'--workdir={tmp_path}']
    + ['--config.train.batch_size=7', '--config.train.accumulate=2'],
    capture_output=True,
    text=True,
    env=_environment(),
  )
  assert done.returncode == 2
  assert done.stdout == ''
  assert len(done.stderr.splitlines()) == 1
  assert 'config.train.batch_size=7' in done.stderr


def test_traceback_shows_where_an_error_arose():
  with pytest.raises(ValueError, match='stepz'):
    main.main(['main', TINY, '--config.train.stepz=3', '--traceback'])


def test_help_names_every_flag_and_ends_with_0(command):
  for word in ('--help', '-h'):
    code, out, err = command(word)
    assert (code, err) == (0, [])
    for flag in command_flags.FLAGS:
      assert f'--{flag}\n' in out
    assert out.count('python -m moejax.main') >= 3
    assert '--config.a.b=VALUE' in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
  'word, path, value',
  [
    ('--config.train.steps=7', 'train.steps', 7),
    ('-config.train.steps=7', 'train.steps', 7),
    ('--config.optim.schedule.peak=1', 'optim.schedule.peak', 1.0),
    ('--config.optim.schedule.peak=1e-4', 'optim.schedule.peak', 1e-4),
    ('--config.log.tensorboard=false', 'log.tensorboard', False),
    ('--config.evaluate.batches=None', 'evaluate.batches', None),
    ('--config.evaluate.every_steps=10', 'evaluate.every_steps', 10),
    ('--config.infer.prompt=3', 'infer.prompt', '3'),
    ('--config.infer.prompt=a = 1', 'infer.prompt', 'a = 1'),
    ('--config.infer.prompt=a\nb', 'infer.prompt', 'a\nb'),
    ('--config.infer.prompt=None', 'infer.prompt', None),
    ("--config.model.pattern=['dense']", 'model.pattern', ('dense',)),
    ('--config.rules[1][1]=data', 'rules[1][1]', 'data'),
    (
      f'{FFN}.dispatch.kind=dispatch.Mask',
      'model.blocks.sparse.ffn.dispatch',
      {'kind': 'dispatch.Mask'},
    ),
  ],
)
def test_an_override_is_read_by_the_type_of_its_field(word, path, value):
  config = command_line.parse([TINY, word]).config
  found = config_io.lookup(config, path)
  assert (found, type(found)) == (value, type(value))


def test_runs_of_one_recipe_with_two_arguments_have_two_folders():
  smoke = command_line.parse([TINY])
  whole = command_line.parse(['--config=configs/tiny.py'])
  assert (smoke.workdir, whole.workdir) == ('runs/tiny-smoke', 'runs/tiny')
  assert (smoke.config.train.steps, whole.config.train.steps) == (2, 300)


def test_a_finished_run_ends_with_its_prompt_continued(trained):
  _, folder = trained
  result = json.loads((folder / 'result.json').read_text())
  assert result['steps'] == 2
  assert result['sample'].startswith('def ')


def test_a_finished_run_prints_its_result_again(trained, command, monkeypatch):
  recipe, folder = trained
  monkeypatch.setattr(train, 'run', None)
  code, out, err = command(
    f'--config={recipe}', f'--workdir={folder}', '--config.log.every_steps=1'
  )
  result = json.loads((folder / 'result.json').read_text())
  assert (code, err) == (0, [])
  assert f'"loss": {result["loss"]}' in out


def test_another_config_is_refused_with_the_difference(refused, trained):
  recipe, folder = trained
  refused(
    [f'--config={recipe}', f'--workdir={folder}', '--config.train.seq_len=32'],
    [str(folder), 'train.seq_len: 16 -> 32', 'choose another --workdir'],
  )


def test_another_evaluation_measures_the_same_model_again(
  trained, command, tmp_path
):
  recipe, folder = trained
  shutil.copytree(folder, tmp_path / 'run')
  code, out, _ = command(
    f'--config={recipe}',
    f'--workdir={tmp_path / "run"}',
    '--config.evaluate.batches=2',
    '--config.infer.prompt=None',
  )
  before, after = (
    json.loads((where / 'result.json').read_text())
    for where in (folder, tmp_path / 'run')
  )
  assert code == 0
  assert 'going on from step 2' in out
  assert after['validation_tokens'] > before['validation_tokens']
  assert after['sample'] is None


def test_generate_continues_every_prompt(trained, command, monkeypatch):
  _, folder = trained
  monkeypatch.setattr(sys, 'stdin', io.StringIO('typed in\n'))
  code, out, err = command(
    '--mode=generate',
    f'--workdir={folder}',
    '--prompt=first',
    '--prompt=-',
    '--config.infer.max_tokens=1',
    '--config.infer.sampler={"kind": "infer.sampler.greedy"}',
  )
  assert (code, err) == (0, [])
  assert out.startswith('first')
  assert '\ntyped in' in out


def test_what_a_model_writes_cannot_steer_a_terminal():
  assert main.readable('a\x1b[2Jé\n\tb\x00') == 'a\ufffd[2Jé\n\tb\ufffd'


def test_evaluate_measures_what_training_measured(trained, command):
  _, folder = trained
  code, out, _ = command('--mode=evaluate', f'--workdir={folder}')
  result = json.loads((folder / 'result.json').read_text())
  values = json.loads(out)
  assert code == 0
  assert values['step'] == 2
  assert values['validation/loss'] == result['loss']


@pytest.mark.parametrize('mode', ['evaluate', 'generate'])
def test_another_model_is_refused(mode, refused, trained):
  recipe, folder = trained
  refused(
    [f'--mode={mode}', f'--config={recipe}', f'--workdir={folder}']
    + ['--config.model.width=16'],
    [str(folder), 'model.width: 8 -> 16', 'leave out --config'],
  )


@pytest.mark.parametrize('mode', ['evaluate', 'generate'])
def test_a_folder_without_a_run_is_refused(mode, refused, tmp_path):
  refused(
    [f'--mode={mode}', f'--workdir={tmp_path}'],
    [str(tmp_path), 'holds no run', 'train there first'],
  )
  assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_checkpoint_cannot_generate(refused, trained, tmp_path):
  _, folder = trained
  text = (folder / 'config.json').read_text()
  (tmp_path / 'config.json').write_text(text)
  refused(
    ['--mode=generate', f'--workdir={tmp_path}'],
    [str(tmp_path), 'holds no checkpoint', 'checkpoint.every_steps'],
  )


def test_a_damaged_config_is_refused(refused, tmp_path):
  (tmp_path / 'config.json').write_text('{"seed": ')
  refused(
    ['--mode=generate', f'--workdir={tmp_path}'],
    ['config.json', 'cannot be read', 'choose another'],
  )


def test_a_token_outside_the_vocabulary_ends_training(
  trained, command, monkeypatch, tmp_path
):
  recipe, _ = trained
  bad = np.full((8, 16), 300, np.int32)
  batch = dict.fromkeys(('tokens', 'targets', 'segments', 'positions'), bad)
  monkeypatch.setattr(
    'moejax.data.Text.batches', lambda *_, **__: iter([batch])
  )
  code, _, err = command(
    f'--config={recipe}',
    f'--workdir={tmp_path}',
    '--config.checkpoint.every_steps=None',
  )
  assert code == 2
  assert len(err) == 1
  for fragment in ('tokens', '300', 'vocab=257', 'raise the vocabulary'):
    assert fragment in err[0]


@pytest.mark.parametrize(
  'error, code',
  [
    (KeyboardInterrupt(), 130),
    (KeyboardInterrupt('SIGTERM'), 143),
    (train.Diverged('the loss is nan'), 1),
  ],
)
def test_how_a_run_ends_is_told_in_one_line(
  error, code, trained, command, monkeypatch, tmp_path
):
  def run(*_, **__):
    raise error

  recipe, _ = trained
  monkeypatch.setattr(train, 'run', run)
  found, _, err = command(f'--config={recipe}', f'--workdir={tmp_path}')
  assert found == code
  assert len(err) == 1


def test_sigterm_saves_the_step_that_it_ends(trained, tmp_path):
  recipe, _ = trained
  command = [sys.executable, '-m', 'moejax.main', f'--config={recipe}']
  command += [f'--workdir={tmp_path / "run"}', '--config.train.steps=100000']
  command += ['--config.checkpoint.every_steps=None']
  with subprocess.Popen(
    command, stdout=subprocess.PIPE, text=True, env=_environment()
  ) as process:
    for line in process.stdout:
      if line.startswith('step 20/'):
        break
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
  assert process.returncode == 143
  stopped = next(s for s in rest.splitlines() if s.startswith('stopped at'))
  step = int(stopped.split()[3])
  assert (tmp_path / 'run' / 'checkpoints' / str(step)).is_dir()


def _environment():
  quick = {'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  return os.environ | quick
