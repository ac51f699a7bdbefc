import html.parser
import json
import pathlib
import re

import matplotlib.image
import pytest

from moejax import page
from moejax.scaling import report
from moejax.scaling.plots import style

SECTIONS = [
  'Summary',
  'What not to believe',
  'What to do next',
  'IsoFLOP parabolas',
  'Loss against compute',
  'Efficiency leverage',
  'Allocation',
  'Coefficients',
  'Held-out prediction',
  'Runs',
  'Failed and excluded runs',
  'Environment',
]
QUICK = dict(draws=20, huber_starts=3)


class _Page(html.parser.HTMLParser):
  def __init__(self):
    super().__init__()
    self.links, self.open, self.unclosed, self.headings = [], [], [], []

  def handle_starttag(self, tag, attrs):
    self.links += [v for k, v in attrs if k in ('src', 'href')]
    if tag not in ('meta', 'img'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    if self.open.pop() != tag:
      self.unclosed.append(tag)

  def handle_data(self, data):
    if self.open and self.open[-1] == 'h2':
      self.headings.append(data)


def _read(path):
  return pathlib.Path(path).read_text(encoding='utf-8')


@pytest.fixture(scope='module')
def written(rows, tmp_path_factory):
  table = rows()
  table[5] = {
    **table[5],
    'status': 'failed',
    'error': 'loss is nan | at <step> 210',
    'loss': None,
  }
  folder = tmp_path_factory.mktemp('report')
  return report.isoflop(table, folder, title='A & B', **QUICK), table


def test_html_has_every_section_and_no_external_link(written):
  text = _read(written[0]['report_html'])
  parsed = _Page()
  parsed.feed(text)
  assert parsed.headings == SECTIONS
  assert not parsed.unclosed and not parsed.open
  assert len(parsed.links) == 6
  assert all(x.startswith('data:image/png;base64,') for x in parsed.links)
  assert not re.search(r'https?://|url\(|@import|<script|<link', text)
  assert '<h1>A &amp; B</h1>' in text


def test_failed_cells_are_listed_with_their_reason(written):
  result, table = written
  name = table[5]['name']
  md = _read(result['report_md'])
  failed = md.split('## Failed and excluded runs')[1].split('##')[0]
  assert name in failed
  assert r'failed: loss is nan \| at <step> 210' in failed
  text = _read(result['report_html'])
  assert 'loss is nan | at &lt;step&gt; 210' in text
  assert '35 of 36 runs' in result['findings'][0]


def test_markdown_tables_are_rectangular_and_pictures_exist(written):
  folder = pathlib.Path(written[0]['report_md']).parent
  md = _read(written[0]['report_md'])
  for table in re.findall(r'(?:^\|.*\n)+', md, re.MULTILINE):
    lines = table.splitlines()
    assert len({len(re.findall(r'(?<!\\)\|', x)) for x in lines}) == 1
    assert len({len(x) for x in lines}) == 1
  pictures = re.findall(r'!\[[^\]]*\]\(([^)]+)\)', md)
  assert len(pictures) == 6
  for path in pictures:
    pixels = matplotlib.image.imread(folder / path)
    # A drawing, not an empty canvas.
    assert pixels.shape[1] > 600 and (pixels[..., :3] < 0.5).any()


def test_numbers_on_disk_are_those_of_the_report(written):
  result, _ = written
  record = json.loads(_read(result['fits_json']))
  assert len(record['vertices']) == 9
  assert len(record['leverage']) == 9
  # Two surfaces, a frontier and two allocations each; the joint law twice.
  assert len(record['fits']) == 3 * 5 + 2
  assert record['excluded'][0]['reason'].startswith('failed: loss is nan')
  md = _read(result['report_md'])
  for vertex in record['vertices']:
    assert page.number(vertex['loss']) in md
  theta = record['fits'][0]['theta']
  assert all(page.number(v) in md for v in theta.values())


def test_the_report_says_that_there_is_no_seed_noise(written):
  text = ' '.join(written[0]['findings'] + written[0]['doubts'])
  assert 'No cell was run with more than one seed' in text
  assert 'a pure power law there' in text


def test_seed_noise_stands_beside_the_held_out_error(rows, tmp_path):
  result = report.isoflop(rows(seeds=2, variants=('dense',)), tmp_path, **QUICK)
  text = ' '.join(result['findings'])
  assert re.search(r'mean error of dense \d\.\d\d %.*Seed noise is', text)


def _cut(table, how):
  def budget(r):
    return r['labels']['budget_flops']

  def variant(r):
    return r['labels']['variant']

  return {
    'one budget': [r for r in table if budget(r) == 1e13],
    'one variant': [r for r in table if variant(r) == 'moe 1/4'],
    'one run': table[:1],
    'no dense': [r for r in table if variant(r) != 'dense'],
    'two of three': [r for i, r in enumerate(table) if i % 3],
    'constant loss': [{**r, 'loss': 3.0} for r in table[:24]],
    'no ratio': [
      {**r, 'labels': {**r['labels'], 'activation_ratio': None}}
      for r in table[:24]
    ],
  }[how]


ABSENT = {
  'one budget': 'dense has no compute frontier',
  'one variant': 'no variant is dense',
  'one run': 'dense has no compute frontier',
  'no dense': 'no variant is dense',
  'two of three': None,
  'constant loss': 'does not fall with compute',
  'no ratio': None,
}


@pytest.mark.parametrize('how', ABSENT)
def test_a_partial_sweep_is_reported_with_what_is_absent(
  how, rows, tmp_path, monkeypatch
):
  monkeypatch.setattr(style, 'DPI', 40)
  result = report.isoflop(_cut(rows(), how), tmp_path, **QUICK)
  text = _read(result['report_md'])
  section = text.split('## Efficiency leverage')[1].split('## ')[0]
  if ABSENT[how] is None:
    assert '| leverage |' in section
  else:
    assert ABSENT[how] in section.split('Absent: ')[1]
  assert not re.search(r'\b(nan|inf)\b', text)


def test_no_usable_row_writes_nothing(rows, tmp_path):
  failed = [{**r, 'status': 'failed', 'error': 'x'} for r in rows()]
  with pytest.raises(ValueError, match='none can be used'):
    report.isoflop(failed, tmp_path / 'out', **QUICK)
  assert not (tmp_path / 'out').exists()


def test_numbers_are_written_for_people():
  assert page.number(0.00123456) == '0.001235'
  assert page.number(1234.5, 3) == '1234'
  assert page.number(2.5e18, 3) == '2.50e18'
  assert page.number(float('nan')) == '-'
  assert page.count(1_234_000) == '1.23M'
  assert page.percent(-0.0123) == '-1.23%'
  cells = [['1.2e13', '[1.0, 2.0]', '12k', 'a 1'], ['-', '3', '+1.0%', '2']]
  assert page.numeric(cells, 4) == [True, True, True, False]
