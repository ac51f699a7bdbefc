"""What README.md and CONTRIBUTING.md tell a newcomer to write works."""

import pathlib
import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from moejax import command_line, fields, mixers, papers, recipes, step, validate
from moejax.build import build, find
from moejax.config_io import override
from moejax.parts import Parts
from moejax.routers import scores
from moejax.sweep import cluster, hyper
from moejax.types import Context

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text()
CONTRIBUTING = (ROOT / 'CONTRIBUTING.md').read_text()
PODS = (ROOT / 'PODS.md').read_text()
BLOCK = re.compile(r'```(\w+)\n(.*?)```', re.DOTALL)


def _blocks(page, language):
  return [text for kind, text in BLOCK.findall(page) if kind == language]


def _write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  return path


@pytest.fixture
def contributed(monkeypatch):
  """The example members, in the rooms where the page puts them."""
  score, mixer, recipe = _blocks(CONTRIBUTING, 'python')
  for module, text in ((scores, score), (mixers.latent, mixer)):
    names = {**vars(module)}
    exec(compile(text, 'CONTRIBUTING.md', 'exec'), names)
    new = set(names) - set(vars(module))
    for name in new:
      home = mixers if module is mixers.latent else module
      monkeypatch.setattr(home, name, names[name], raising=False)
  return recipe


def test_the_example_recipe_trains_with_its_router_and_mixer(
  contributed, tmp_path, one_device
):
  path = _write(tmp_path / 'cosine.py', contributed)
  recipe = recipes.load(str(path))
  papers.check(recipe.PAPER, 'example')
  config = recipe.get_config('smoke')
  config.mesh = dict(data=1, expert=1)
  parts = Parts(config)
  assert isinstance(parts.model.blocks['block_0'].mixer, mixers.Shift)
  variables = jax.jit(parts.model.init)(
    jax.random.key(0), _context(np.zeros((1, 4), np.int32))
  )
  batch = next(parts.batches('train', epochs=None))
  objective = step.objective(parts.model, parts.loss, dict(config.losses))
  gradient = jax.jit(jax.grad(lambda p: objective(p, {}, batch)[0]))
  for leaf in jax.tree.leaves(gradient(variables['params'])):
    assert np.isfinite(leaf).all()
    assert np.any(leaf != 0)


def _context(tokens):
  positions = np.broadcast_to(
    np.arange(tokens.shape[1], dtype=np.int32), tokens.shape
  )
  return Context(tokens, positions, np.ones_like(tokens))


def test_the_example_mixer_decodes_what_it_computes_at_once(contributed):
  mixer = mixers.Shift()
  x = jax.random.normal(jax.random.key(0), (2, 5, 4))
  ctx = _context(np.zeros((2, 5), np.int32))
  variables = mixer.init(jax.random.key(1), x, ctx)
  whole, _ = mixer.apply(variables, x, ctx)
  state, parts = mixer.init_state(2, 5, 4, 'float32'), []
  for piece in (slice(0, 3), slice(3, 4), slice(4, 5)):
    now = jax.tree.map(lambda a, piece=piece: a[:, piece], ctx)
    y, state = mixer.apply(variables, x[:, piece], now, state)
    parts.append(y)
  np.testing.assert_array_equal(jnp.concatenate(parts, axis=1), whole)
  np.testing.assert_allclose(whole[:, 1], x[:, 1] + x[:, 0], rtol=1e-6)


def test_the_example_scores_do_not_depend_on_the_length_of_a_token(contributed):
  score = scores.Cosine(num_experts=3)
  x = jax.random.normal(jax.random.key(0), (6, 8))
  variables = score.init(jax.random.key(1), x)
  once, twice = (score.apply(variables, c * x) for c in (1.0, 2.0))
  np.testing.assert_allclose(once, twice, rtol=1e-5, atol=1e-5)
  assert np.all(np.abs(once) <= score.initial_scale * (1 + 1e-5))


def test_the_readme_recipe_reads_text_and_sweeps_as_written(
  tmp_path, monkeypatch, one_device
):
  (text,) = _blocks(README, 'python')
  monkeypatch.chdir(tmp_path)
  for i in range(40):
    _write(tmp_path / 'text' / f'{i}.txt', 'some words of a note\n' * 9)
  line = '{"content": "def f(): pass"}\n'
  _write(tmp_path / 'text' / 'code.jsonl', line * 200)
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  quiet = tokenizers.trainers.BpeTrainer(show_progress=False)
  tokenizer.train_from_iterator(['some words of a note def f(): pass'], quiet)
  tokenizer.save('text/tokenizer.json')
  recipe = recipes.load(str(_write(tmp_path / 'mine.py', text)))

  config = recipe.get_config()
  cells = hyper.cells(recipe.get_hyper(hyper))
  assert len({cell.name for cell in cells}) == 6
  for cell in cells:
    fields.check(override(config, cell.overrides))
  validate.check(config)
  data = build(config.data)
  batch = next(data.batches('train', batch_size=2, seq_len=16, seed=0))
  assert data.vocab <= config.model.vocab
  assert batch['tokens'].shape == (2, 16)


def test_every_member_that_the_readme_lists_is_there():
  rows = re.findall(
    r'^\| `([a-z.]+)` \| `.*` \| (.*) \|$', README, re.MULTILINE
  )
  assert len(rows) == 12
  for slot, members in rows:
    for member in re.findall(r'`(\w+)`', members):
      assert callable(find(f'{slot}.{member}'))


def test_every_local_link_and_recipe_of_the_pages_exists():
  for page in (README, CONTRIBUTING, PODS):
    links = re.findall(r'\]\(([^)#]+)\)', page)
    local = [link for link in links if not link.startswith('http')]
    assert all((ROOT / link).exists() for link in local)
  named = set(re.findall(r'--config=(configs/\w+\.py)', README))
  assert named
  assert all((ROOT / path).is_file() for path in named)


def test_the_commands_for_many_devices_are_understood(monkeypatch):
  monkeypatch.setattr(cluster, 'check_installed', lambda: None)
  commands = re.findall(r'python -m moejax\.main ([^\n&\'`]+)', PODS)
  assert len(commands) == 9
  for words in commands:
    command = command_line.parse(shlex.split(words))
    fields.check(command.config)


def test_ruff_is_pinned_to_one_version():
  setup = re.search(r'ruff==([\d.]+)', (ROOT / 'setup.py').read_text())[1]
  hooks = (ROOT / '.pre-commit-config.yaml').read_text()
  assert re.search(r'ruff-pre-commit\n\s+rev: v([\d.]+)', hooks)[1] == setup


def test_ci_finds_one_test_command_in_the_readme():
  script = (ROOT / '.ci' / 'run').read_text()
  wanted = re.search(r'grep -F "(.*)" README', script)[1]
  found = [line for line in README.splitlines() if wanted in line]
  assert len(found) == 1
  for word in ('ruff check .', 'ruff format --check .', 'python -m pytest'):
    assert word in found[0]
