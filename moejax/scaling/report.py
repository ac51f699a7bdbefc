"""The report of an IsoFLOP sweep: Markdown, one HTML file, pictures, JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from moejax import page
from moejax.scaling import (
  analysis,
  claims,
  doubts,
  plots,
  record,
  sections,
  summary,
)


def isoflop(
  results: Iterable[Mapping[str, Any]],
  workdir: str | os.PathLike[str],
  *,
  title: str = 'IsoFLOP scaling report',
  size: str = 'params_active',
  draws: int = 300,
  huber_starts: int | None = 96,
  seed: int = 0,
) -> dict[str, Any]:
  """Fits a sweep's runs and writes report.md, report.html and pictures.

  Args:
    results: one mapping per run, nested or dotted keys: status, error, loss
      (nats per token), tokens, train_flops, parameter counts, labels.variant,
      labels.budget_flops, labels.activation_ratio, environment; where told
      labels.seed or seed and labels.granularity. Rows with labels.role 'rates'
      (labels.peak_lr, labels.batch_tokens) are mapped and enter no law.
    workdir: where the files go; pictures into `figures/`, numbers into
      `fits.json`.
    size: the parameter count used as N, one of `runs.SIZES`.
    draws: bootstrap refits; 0 for no intervals.
    huber_starts: restarts of the Huber fit; None for the full grid of 4500.

  Returns:
    `report_md`, `report_html`, `fits_json` (paths), `findings`, `doubts` and
    `next_steps` (sentences).

  Raises:
    ValueError: if no row can be used, or a needed column is missing.
  """
  found = analysis.analyse(
    results, size=size, draws=draws, huber_starts=huber_starts, seed=seed
  )
  folder = os.fspath(workdir)
  os.makedirs(os.path.join(folder, 'figures'), exist_ok=True)
  blocks = sections.blocks(found, _draw(found, folder))
  paths = {
    'report_md': os.path.join(folder, 'report.md'),
    'report_html': os.path.join(folder, 'report.html'),
    'fits_json': os.path.join(folder, 'fits.json'),
  }
  _write(paths['report_md'], page.markdown(title, blocks))
  _write(paths['report_html'], page.page_html(title, blocks, folder))
  _write(paths['fits_json'], json.dumps(record.record(found), indent=2) + '\n')
  return {
    **paths,
    'findings': summary.findings(found),
    'doubts': doubts.doubts(found),
    'next_steps': claims.next_steps(found),
  }


def _write(path: str, text: str) -> None:
  with open(path, 'w', encoding='utf-8') as f:
    f.write(text)


def _draw(a: analysis.Analysis, folder: str) -> dict[str, str]:
  """Draws what there is to draw; name -> path relative to `folder`."""
  wanted = {'parabolas': plots.parabolas, 'frontiers': plots.frontiers}
  if any(l.value is not None and l.activation > 0 for l in a.leverages):
    wanted['leverage'] = plots.leverage
  if a.choices:
    wanted['ahead'] = plots.ahead
  if a.maps:
    wanted['rates'] = plots.rates
  wanted['allocation'] = plots.allocation
  if a.surfaces or a.held_out:
    wanted['residuals'] = plots.residuals
  out = {}
  for place, (name, draw) in enumerate(wanted.items(), 1):
    out[name] = f'figures/{place}_{name}.png'
    plots.save(draw(a), os.path.join(folder, out[name]))
  return out
