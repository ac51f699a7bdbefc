"""The report of an IsoFLOP sweep: Markdown, one HTML file, pictures, JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

from moejax.scaling import analysis, fit, page, plots, resample, summary, tables

METHOD = (
  'Each parabola is a least-squares quadratic of loss in log10 N; its vertex '
  'gives N*, D* and L*. The surface L(N, D) is fitted twice: by variable '
  'projection (non-negative least squares of relative errors inside a search '
  'over exponents) and by the sum of Huber losses of log errors (delta 1e-3, '
  'L-BFGS from many starts). Leverage inverts the dense compute frontier at '
  'the L* of each variant. Intervals: residual bootstrap, percentiles; for '
  'vertices, frontier, allocation and leverage the residuals are pooled over '
  'all parabolas after scaling by leverage, for surfaces they are those of '
  'the fit, scaled by sqrt(n / (n - p)). Each draw scales its noise by '
  'sqrt(freedom / chi-square), which widens intervals from few residuals as '
  "Student's t does. Standard errors of factors (A, B, a, k) hang on a few "
  'draws; read their intervals.'
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
      labels.budget_flops, labels.activation_ratio, environment.
    workdir: where the files go; pictures into `figures/`, numbers into
      `fits.json`.
    size: the parameter count used as N, one of `runs.SIZES`.
    draws: bootstrap refits; 0 for no intervals.
    huber_starts: restarts of the Huber fit; None for the full grid of 4500.

  Returns:
    `report_md`, `report_html`, `fits_json` (paths), `findings` and `doubts`
    (sentences).

  Raises:
    ValueError: if no row can be used, or a needed column is missing.
  """
  found = analysis.analyse(
    results, size=size, draws=draws, huber_starts=huber_starts, seed=seed
  )
  folder = os.fspath(workdir)
  os.makedirs(os.path.join(folder, 'figures'), exist_ok=True)
  blocks = _blocks(found, _draw(found, folder))
  paths = {
    'report_md': os.path.join(folder, 'report.md'),
    'report_html': os.path.join(folder, 'report.html'),
    'fits_json': os.path.join(folder, 'fits.json'),
  }
  _write(paths['report_md'], page.markdown(title, blocks))
  _write(paths['report_html'], page.page_html(title, blocks, folder))
  _write(paths['fits_json'], json.dumps(record(found), indent=2) + '\n')
  return {
    **paths,
    'findings': summary.findings(found),
    'doubts': summary.doubts(found),
  }


def _write(path: str, text: str) -> None:
  with open(path, 'w', encoding='utf-8') as f:
    f.write(text)


def _draw(a: analysis.Analysis, folder: str) -> dict[str, str]:
  """Draws what there is to draw; name -> path relative to `folder`."""
  wanted = {'parabolas': plots.parabolas, 'frontiers': plots.frontiers}
  if any(l.value is not None and l.activation > 0 for l in a.leverages):
    wanted['leverage'] = plots.leverage
  wanted['allocation'] = plots.allocation
  if a.surfaces or a.held_out:
    wanted['residuals'] = plots.residuals
  out = {}
  for place, (name, draw) in enumerate(wanted.items(), 1):
    out[name] = f'figures/{place}_{name}.png'
    plots.save(draw(a), os.path.join(folder, out[name]))
  return out


def _blocks(a: analysis.Analysis, drawn: dict[str, str]) -> list[page.Block]:
  """The report from top to bottom."""
  out: list[page.Block] = [
    page.Heading('Summary'),
    page.Items(summary.findings(a)),
    page.Heading('What not to believe'),
    page.Items(summary.doubts(a)),
  ]
  if a.absent:
    out += [
      page.Heading('What is absent'),
      page.Items([f'{what}: {why}' for what, why in a.absent]),
    ]
  out += [
    page.Heading('IsoFLOP parabolas'),
    _picture(
      drawn,
      'parabolas',
      'Loss against size at fixed training FLOPs; each curve is a quadratic '
      'in log10 N, labelled with its budget. Hollow: flagged, see the table.',
    ),
    tables.vertex_table(a),
    page.Heading('Loss against compute'),
    _picture(
      drawn,
      'frontiers',
      'Best loss of each variant at each budget with its compute frontier and '
      '95 % band; dots are single runs, hollow markers are flagged vertices.',
    ),
    *_leverage_blocks(a, drawn),
    page.Heading('Allocation'),
    _picture(
      drawn,
      'allocation',
      'Best size and best tokens against training compute, with power laws '
      'through the usable vertices and 95 % bands.',
    ),
    page.Heading('Coefficients'),
    page.Text(METHOD),
    tables.coefficient_table(a),
    *_held_out_blocks(a, drawn),
    page.Heading('Runs'),
    tables.run_table(a),
    page.Heading('Failed and excluded runs'),
    tables.excluded_table(a) if a.excluded else page.Text('None.'),
    page.Heading('Environment'),
    tables.environment_table(a),
  ]
  return out


def _picture(drawn, name, caption) -> page.Block:
  return page.Picture(drawn[name], caption)


def _leverage_blocks(a, drawn) -> list[page.Block]:
  out: list[page.Block] = [page.Heading('Efficiency leverage')]
  if not a.leverages:
    why = [why for what, why in a.absent if what == 'efficiency leverage']
    return [*out, page.Text(f'Absent: {"; ".join(why)}.')]
  if 'leverage' in drawn:
    caption = (
      f'Compute that {a.dense} needs for the same loss, divided by the '
      "variant's own, with 95 % intervals. Hollow: extrapolated beyond the "
      f'budgets of {a.dense}, or from an unusable vertex.'
    )
    out.append(_picture(drawn, 'leverage', caption))
  note = (
    f'The rows of {a.dense} compare its vertices with its own frontier: their '
    'distance from 1 is the error of that law.'
  )
  return [*out, tables.leverage_table(a), page.Text(note)]


def _held_out_blocks(a, drawn) -> list[page.Block]:
  out: list[page.Block] = [page.Heading('Held-out prediction')]
  if a.held_out:
    out += [
      page.Text(
        'Every law is fitted again without the largest budget, then predicts '
        f'it. Errors are predicted / measured - 1. {summary.noise_text(a)}'
      ),
      tables.held_out_table(a),
    ]
  else:
    why = '; '.join(w for what, w in a.absent if what.startswith('held-out'))
    out.append(page.Text(f'Absent: {why}'))
  if 'residuals' in drawn:
    caption = (
      'Left: loss predicted by the parametric law against measured loss. '
      'Right: relative errors against compute. Hollow: predictions of the '
      'largest budget by fits that have not seen it.'
    )
    out.append(_picture(drawn, 'residuals', caption))
  return out


def record(a: analysis.Analysis) -> dict[str, Any]:
  """The numbers of the report as plain values, for other programs."""
  return _plain({
    'size': a.size,
    'draws': a.draws,
    'seed': a.seed,
    'runs': len(a.runs),
    'excluded': [vars(e) for e in a.excluded],
    'absent': [list(pair) for pair in a.absent],
    'seed_noise': vars(a.noise) if a.noise else None,
    'vertices': [
      {
        'variant': p.variant, 'budget_flops': p.budget, 'flops': p.flops,
        'activation_ratio': p.activation, 'size': p.size, 'tokens': p.tokens,
        'loss': p.loss, 'flat': p.flat, 'flags': p.flags,
      }
      for p in a.parabolas
    ],
    'fits': [_fit_record(*each) for each in tables.fits(a)],
    'leverage': [
      {**vars(l), 'interval': l.interval and vars(l.interval)}
      for l in a.leverages
    ],
    'held_out': [
      {
        'variant': h.variant, 'budget_flops': h.budget,
        'runs': [r.name for r in h.runs], 'predicted': h.predicted.tolist(),
        'actual': h.actual.tolist(), 'vertex': h.vertex,
        'frontier': h.frontier,
      }
      for h in a.held_out
    ],
  })  # fmt: skip


def _fit_record(
  variant: str, law: str, found: fit.Fit, notes
) -> dict[str, Any]:
  intervals = {}
  for place, name in enumerate(found.form.parameters):
    if found.draws is not None and name not in found.pinned:
      near = resample.interval(found.draws[:, place])
      intervals[name] = near and vars(near)
  return {
    'variant': variant, 'law': law, 'method': found.method,
    'theta': found.theta, 'pinned': found.pinned, 'intervals': intervals,
    'objective': found.objective, 'n': len(found.residuals),
    'restarts': found.restarts, 'agreeing': found.agreeing,
    'notes': [*notes, *found.warnings],
  }  # fmt: skip


def _plain(value):
  """Numbers that JSON can hold: what is not finite becomes None."""
  if isinstance(value, dict):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(v) for v in value]
  if isinstance(value, float):
    return float(value) if math.isfinite(value) else None
  return value
