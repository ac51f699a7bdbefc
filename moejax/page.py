"""A report as blocks, written as Markdown and as one self-contained HTML."""

from __future__ import annotations

import base64
import dataclasses
import html
import math
import os
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Heading:
  """A section title."""

  text: str


@dataclasses.dataclass(frozen=True)
class Text:
  """A paragraph."""

  text: str


@dataclasses.dataclass(frozen=True)
class Items:
  """A bulleted list."""

  items: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Table:
  """Cells as text; columns whose every cell is a number align right."""

  header: Sequence[str]
  rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Picture:
  """A PNG below the report's folder, with its caption."""

  path: str
  caption: str


Block = Heading | Text | Items | Table | Picture

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #1d2430;
  background: #fff; max-width: 66rem; margin: 2.5rem auto; padding: 0 1.25rem }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 1rem }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .75rem; padding-bottom: .3rem;
  border-bottom: 1px solid #d5dae1 }
p, li { max-width: 46rem }
figure { margin: 1.25rem 0 }
figure img { max-width: 100%; height: auto }
figcaption { color: #566173; font-size: .9rem; max-width: 46rem }
.wide { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-size: .85rem;
  font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e6e9ee }
th { border-bottom: 2px solid #aab3c0; vertical-align: bottom }
.number { text-align: right; white-space: nowrap }
.short { white-space: nowrap }
"""


def markdown(title: str, blocks: Sequence[Block]) -> str:
  """The report as Markdown; pictures by relative path."""
  parts = [f'# {title}']
  for block in blocks:
    match block:
      case Heading(text):
        parts.append(f'## {text}')
      case Text(text):
        parts.append(text)
      case Items(items):
        parts.append('\n'.join(f'- {item}' for item in items))
      case Picture(path, caption):
        parts.append(f'![{caption}]({path})\n\n*{caption}*')
      case Table(header, rows):
        parts.append(markdown_table(header, rows))
  return '\n\n'.join(parts) + '\n'


def markdown_table(header: Sequence, rows: Sequence[Sequence]) -> str:
  """Cells as text in columns of one width; numbers align right."""
  right = numeric(rows, len(header))
  cells = [[_one_line(c).replace('|', '\\|') for c in r] for r in rows]
  titles = [_one_line(h) for h in header]
  widths = [
    max(3, *(len(r[i]) for r in [titles, *cells])) for i in range(len(titles))
  ]
  lines = [_row(titles, widths, right)]
  rule = [
    '-' * (w - 1) + (':' if r else '-')
    for w, r in zip(widths, right, strict=True)
  ]
  lines.append(f'| {" | ".join(rule)} |')
  lines += [_row(r, widths, right) for r in cells]
  return '\n'.join(lines)


def _row(cells, widths, right) -> str:
  padded = [
    c.rjust(w) if r else c.ljust(w)
    for c, w, r in zip(cells, widths, right, strict=True)
  ]
  return f'| {" | ".join(padded)} |'


def _one_line(text) -> str:
  return ' '.join(str(text).split())


def numeric(rows: Sequence[Sequence[str]], columns: int) -> list[bool]:
  """Which columns hold only numbers, intervals and blanks."""
  out = []
  for i in range(columns):
    cells = [str(r[i]) for r in rows if str(r[i]).strip() not in ('', '-')]
    out.append(bool(cells) and all(_is_number(c) for c in cells))
  return out


def _is_number(cell) -> bool:
  # Letters are allowed only as e of an exponent and k, M, G, T suffixes.
  return all(
    part.rstrip('kMGT%').replace('e', '').lstrip('+-').replace('-', '')
    .replace('+', '').replace('.', '').replace(',', '').isdigit()
    for part in cell.strip('[]').replace(' ', '').split(',')
    if part
  )  # fmt: skip


def page_html(title: str, blocks: Sequence[Block], folder: str) -> str:
  """The report as one HTML file that needs no other.

  Args:
    folder: where the pictures' relative paths start.
  """
  body = [f'<h1>{_escape(title)}</h1>']
  for block in blocks:
    match block:
      case Heading(text):
        body.append(f'<h2>{_escape(text)}</h2>')
      case Text(text):
        body.append(f'<p>{_escape(text)}</p>')
      case Items(items):
        inside = ''.join(f'<li>{_escape(item)}</li>' for item in items)
        body.append(f'<ul>{inside}</ul>')
      case Picture(path, caption):
        body.append(_figure(os.path.join(folder, path), caption))
      case Table(header, rows):
        body.append(_html_table(header, rows))
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{_escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n'
    '<body>\n' + '\n'.join(body) + '\n</body>\n</html>\n'
  )


def _figure(path, caption) -> str:
  with open(path, 'rb') as f:
    data = base64.b64encode(f.read()).decode('ascii')
  text = _escape(caption)
  return (
    f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
    f'<figcaption>{text}</figcaption></figure>'
  )


def _html_table(header, rows) -> str:
  right = numeric(rows, len(header))

  def line(tag, cells):
    out = []
    for cell, is_number in zip(cells, right, strict=True):
      short = len(str(cell)) <= 28
      name = 'number' if is_number else 'short' if short else ''
      mark = f' class="{name}"' if name and tag == 'td' else ''
      mark = ' class="number"' if tag == 'th' and is_number else mark
      out.append(f'<{tag}{mark}>{_escape(cell)}</{tag}>')
    return f'<tr>{"".join(out)}</tr>'

  body = ''.join(line('td', r) for r in rows)
  return (
    f'<div class="wide"><table><thead>{line("th", header)}</thead>'
    f'<tbody>{body}</tbody></table></div>'
  )


def _escape(text) -> str:
  return html.escape(str(text), quote=True)


def number(value: float | None, digits: int = 4) -> str:
  """A number for a table: '-' for none, powers of ten where they are short."""
  if value is None or not math.isfinite(value):
    return '-'
  if value == 0:
    return '0'
  if 1e-3 <= abs(value) < 1e5:
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f'{value:.{places}f}'
  return f'{value:.{digits - 1}e}'.replace('e+', 'e')


def count(value: float | None) -> str:
  """Parameters or tokens, as 123k or 4.56M."""
  if value is None or not math.isfinite(value):
    return '-'
  for scale, letter in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if value >= scale:
      return f'{value / scale:.3g}{letter}'
  return f'{value:.3g}'


def percent(value: float | None) -> str:
  """A fraction as a signed percentage."""
  if value is None or not math.isfinite(value):
    return '-'
  return f'{100 * value:+.2f}%'


def count_span(low: float, high: float) -> str:
  """`[low, high]` of counts."""
  return f'[{count(low)}, {count(high)}]'


def span(low: float, high: float, digits: int = 4) -> str:
  """An interval."""
  return f'[{number(low, digits)}, {number(high, digits)}]'
