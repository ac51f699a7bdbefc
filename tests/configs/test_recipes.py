"""Every recipe builds, is what its listing says, and takes two steps."""

import ast
import math
import os
import pathlib

import pytest

from moejax import accounting, papers, recipes, train
from moejax.build import build

pytestmark = pytest.mark.usefixtures('quick_compilation')
ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / 'tests' / 'golden'
UPDATE = 'UPDATE_GOLDEN'
HEADINGS = ['Claim:', 'Command:', 'Expect:', 'Measured:', 'Differs:']
RECIPES = sorted(
  path
  for path in ROOT.glob('configs/**/*.py')
  if 'def get_config' in path.read_text()
)


def name_of(path):
  return path.relative_to(ROOT / 'configs').with_suffix('').as_posix()


@pytest.fixture(params=RECIPES, ids=name_of)
def path(request):
  return request.param


def test_recipes_are_found():
  assert {'tiny', 'scaling'} <= set(map(name_of, RECIPES))


def test_a_recipe_says_what_it_claims_under_five_headings(path):
  doc = ast.get_docstring(ast.parse(path.read_text())).splitlines()
  first = [line.split()[0] for line in doc if line.strip()]
  assert [word for word in first if word in HEADINGS] == HEADINGS


def test_a_recipe_has_at_most_100_lines(path):
  assert len(path.read_text().splitlines()) <= 100


def test_the_parameters_of_a_recipe_are_those_of_its_golden_listing(path):
  model = build(recipes.load(str(path)).get_config().model, 'config.model')
  rows = accounting.parameter_rows(model)
  lines = [
    f'{row.path}  {",".join(map(str, row.logical_axes))}  '
    f'{"x".join(map(str, row.shape))}'
    for row in rows
  ]
  listing = '\n'.join(lines) + '\n'
  golden = GOLDEN / f'{name_of(path)}.txt'
  if os.environ.get(UPDATE):
    golden.parent.mkdir(parents=True, exist_ok=True)
    golden.write_text(listing)
  assert golden.exists() and golden.read_text() == listing, (
    f'the parameters differ from {golden}; if that is meant, run '
    f'{UPDATE}=1 python -m pytest {pathlib.Path(__file__).name} and commit'
  )


def test_no_golden_listing_is_left_without_its_recipe():
  found = {
    p.relative_to(GOLDEN).with_suffix('').as_posix()
    for p in GOLDEN.glob('**/*.txt')
  }
  assert found == set(map(name_of, RECIPES))


def slow_if_of_a_paper(path):
  # The step compiles for seconds, and there is no end of papers.
  many = {'papers', 'pods'} & set(path.parts)
  marks = [pytest.mark.slow] if many else []
  return pytest.param(path, id=name_of(path), marks=marks)


@pytest.mark.parametrize('path', list(map(slow_if_of_a_paper, RECIPES)))
def test_the_smoke_form_takes_two_steps(path, text, tmp_path, one_device):
  config = recipes.load(str(path)).get_config('smoke')
  assert config.train.steps == 2
  if 'stdlib' in config.data.sources:
    config.data = text  # the standard library takes longer to read
  config.log.tensorboard = False
  # Fewer rows: the program is the same and compiles sooner.
  config.train.batch_size = 2 * config.train.accumulate
  config.train.seq_len = min(config.train.seq_len, 16)
  result = train.run(config, str(tmp_path))
  assert result['steps'] == 2 and result['skipped_steps'] == 0

  assert math.isfinite(result['loss'])
  assert result['loss'] < 2 * math.log(config.model.vocab)


def test_a_paper_names_what_exists(path):
  paper = getattr(recipes.load(str(path)), 'PAPER', None)
  if paper is None:
    assert 'papers' not in path.parts
    return
  papers.check(paper, name_of(path))
