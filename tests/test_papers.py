"""PAPERS.md says what the recipes say."""

import ast

import pytest

from moejax import papers

HEADINGS = ('Claim:', 'Command:', 'Expect:', 'Measured:', 'Differs:')
RECIPES = papers.recipes()


def test_papers_md_is_what_would_be_generated():
  committed = (papers.ROOT / 'PAPERS.md').read_text()
  assert committed == papers.page(), 'run python -m moejax.papers'


def test_every_recipe_has_one_row_and_its_links_exist():
  page = papers.page()
  for recipe in RECIPES:
    where = recipe.relative_to(papers.ROOT).as_posix()
    assert page.count(f']({where})') == 1
    row = next(line for line in page.splitlines() if f']({where})' in line)
    links = [part.split(')')[0] for part in row.split('](')[1:]]
    local = [link for link in links if not link.startswith('https://')]
    assert len(local) >= 2  # the recipe and a mechanism at least
    assert all((papers.ROOT / link).is_file() for link in local)


@pytest.mark.parametrize('recipe', RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_five_headings_and_its_own_command(recipe):
  text = ast.get_docstring(ast.parse(recipe.read_text()))
  starts = [line.split(' ')[0] for line in text.splitlines()]
  assert [word for word in starts if word in HEADINGS] == list(HEADINGS)
  where = recipe.relative_to(papers.ROOT).as_posix()
  assert f'python -m moejax.main --config={where}\n' in text


GOOD = dict(
  title='A', arxiv='2101.03961', mechanisms=('dispatch.Sort',), status='recipe'
)
RECIPE = 'PAPER = {!r}\n\n\ndef get_config(arg=None):\n  return None\n'


@pytest.mark.parametrize(
  'change, named',
  [
    (dict(arxiv='21.1'), "PAPER['arxiv']='21.1'"),
    (dict(status='done'), "PAPER['status']='done'"),
    (dict(mechanisms='dispatch.Sort'), "PAPER['mechanisms']='dispatch.Sort'"),
    (dict(mechanisms=('dispatch.Snort',)), "did you mean 'Sort'"),
    (dict(author='B'), 'exactly arxiv, mechanisms, status, title'),
  ],
)
def test_a_wrong_entry_is_refused_by_recipe_and_field(tmp_path, change, named):
  recipe = tmp_path / 'configs' / 'papers' / 'routing' / 'wrong.py'
  recipe.parent.mkdir(parents=True)
  recipe.write_text(RECIPE.format(GOOD | change))
  with pytest.raises(ValueError, match='configs/papers/routing/wrong') as error:
    papers.page(tmp_path)
  assert named in str(error.value)


def test_a_new_recipe_appears_without_being_listed_anywhere(tmp_path):
  recipe = tmp_path / 'configs' / 'papers' / 'memory' / 'new.py'
  recipe.parent.mkdir(parents=True)
  recipe.write_text(RECIPE.format(GOOD))
  last = papers.page(tmp_path).splitlines()[-1]
  assert last == (
    '| [A](configs/papers/memory/new.py) | '
    '[2101.03961](https://arxiv.org/abs/2101.03961) | memory | '
    '[dispatch.Sort](moejax/dispatch/sort.py) | recipe |'
  )
