r"""PAPERS.md: every paper with a recipe, from the recipes' `PAPER`.

  python -m moejax.papers

rewrites it. A recipe lies at configs/papers/<family>/<name>.py.
"""

from __future__ import annotations

import inspect
import pathlib
import re
from typing import Any

from moejax import build, files
from moejax.recipes import load

ROOT = pathlib.Path(__file__).resolve().parents[1]
FIELDS = ('arxiv', 'mechanisms', 'status', 'title')
# What each status promises, weakest first.
STATUS = {
  'mechanism': 'built and tested',
  'recipe': 'trains',
  'reproduced': "the claim's trend was measured; the table is committed",
  'parity': "numerically equal to the authors' public code",
}
_ARXIV = re.compile(r'\d{4}\.\d{4,5}')


def recipes(root: pathlib.Path = ROOT) -> list[pathlib.Path]:
  """The files of all paper recipes, by family and name."""
  found = (root / 'configs' / 'papers').glob('*/*.py')
  return sorted(path for path in found if path.name != '__init__.py')


def page(root: pathlib.Path = ROOT) -> str:
  """The text of PAPERS.md.

  Raises:
    ValueError: naming the recipe and the field of `PAPER` that is wrong.
  """
  legend = '; '.join(f'*{name}*: {what}' for name, what in STATUS.items())
  lines = [
    '# Papers',
    '',
    'Written by `python -m moejax.papers` from the recipes under',
    '`configs/papers/`. A title links to its recipe, a mechanism to its code.',
    'Status: ' + legend + '.',
    '',
    '| title | arXiv | family | mechanisms | status |',
    '|---|---|---|---|---|',
    *(row(path, root) for path in recipes(root)),
  ]
  return '\n'.join(lines) + '\n'


def row(path: pathlib.Path, root: pathlib.Path = ROOT) -> str:
  """The line of one recipe in the table."""
  where = path.relative_to(root).as_posix()
  paper = getattr(load(str(path)), 'PAPER', None)
  check(paper, where)
  links = ', '.join(
    f'[{kind}]({source(kind, where)})' for kind in paper['mechanisms']
  )
  arxiv = paper['arxiv']
  cells = (
    f'[{paper["title"]}]({where})',
    f'[{arxiv}](https://arxiv.org/abs/{arxiv})',
    path.parent.name,
    links,
    paper['status'],
  )
  return f'| {" | ".join(cells)} |'


def check(paper: Any, where: str) -> None:
  """Checks a `PAPER` dict.

  Raises:
    ValueError: naming the recipe, the field and the rule.
  """
  if not isinstance(paper, dict) or sorted(paper) != sorted(FIELDS):
    have = sorted(paper) if isinstance(paper, dict) else paper
    raise ValueError(
      f'{where}: PAPER has {have}; it must be a dict of exactly '
      f'{", ".join(FIELDS)}.'
    )
  if not _ARXIV.fullmatch(paper['arxiv']):
    raise ValueError(
      f"{where}: PAPER['arxiv']={paper['arxiv']!r} must look like 2101.03961."
    )
  if paper['status'] not in STATUS:
    raise ValueError(
      f"{where}: PAPER['status']={paper['status']!r} must be one of "
      f'{", ".join(STATUS)}.'
    )
  if isinstance(paper['mechanisms'], str) or not paper['mechanisms']:
    raise ValueError(
      f"{where}: PAPER['mechanisms']={paper['mechanisms']!r} must be a tuple "
      "of kinds, such as ('dispatch.Sort',)."
    )


def source(kind: str, where: str) -> str:
  """The file that defines a mechanism, relative to the repository.

  Raises:
    ValueError: if there is no such mechanism.
  """
  found = build.find(kind, f"{where}: PAPER['mechanisms']")
  return pathlib.Path(inspect.getfile(found)).relative_to(ROOT).as_posix()


if __name__ == '__main__':
  files.write_atomic(ROOT / 'PAPERS.md', page())
  print(f'wrote {ROOT / "PAPERS.md"}')
