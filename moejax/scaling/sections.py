"""The sections of a scaling report, from top to bottom."""

from __future__ import annotations

from moejax import page
from moejax.scaling import (
  analysis,
  claims,
  doubts,
  summary,
  tables,
  tables_ahead,
)

METHOD = (
  'Each parabola is a least-squares quadratic of loss in log10 N; its vertex '
  'gives N*, D* and L*. The surface L(N, D) is fitted twice: by variable '
  'projection (non-negative least squares of relative errors inside a search '
  'over exponents) and by the sum of Huber losses of log errors (delta 1e-3, '
  'L-BFGS from many starts). Leverage inverts the dense compute frontier at '
  'the L* of each variant. Intervals: residual bootstrap, percentiles; for '
  'vertices, frontier, allocation and leverage the residuals are pooled over '
  'all parabolas after scaling by leverage, for surfaces they are those of '
  'the fit, scaled by sqrt(n / (n - p)). A draw has one error for each cell, '
  'which all its seeds share, and one for each seed; the variance between '
  'cells is what seeds do not explain. Leverages and their slopes use the same '
  'draw of dense and sparse vertices. Each draw scales its noise by '
  'sqrt(freedom / chi-square), which widens intervals from few residuals as '
  "Student's t does. Standard errors of factors (A, B, a, k) hang on a few "
  'draws; read their intervals.'
)


def blocks(a: analysis.Analysis, drawn: dict[str, str]) -> list[page.Block]:
  """The report from top to bottom."""
  out: list[page.Block] = [
    page.Heading('Summary'),
    page.Items(summary.findings(a)),
    page.Heading('What not to believe'),
    page.Items(doubts.doubts(a)),
    page.Heading('What to do next'),
    page.Items(claims.next_steps(a)),
    *_ahead_blocks(a, drawn),
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
      'in log10 N, labelled with its budget; bars are standard errors of means '
      'of seeds. Hollow: flagged, see the table.',
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
    *_rate_blocks(a, drawn),
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
      f'budgets of {a.dense}, or from an unusable vertex. Hollow beside the '
      'joint law: the largest budget, which that fit has not seen.'
    )
    out.append(_picture(drawn, 'leverage', caption))
  note = (
    f'The rows of {a.dense} compare its vertices with its own frontier: their '
    'distance from 1 is the error of that law.'
  )
  out += [tables.leverage_table(a), page.Text(note)]
  if a.trends:
    out += [page.Items(claims.trend_findings(a)), tables_ahead.trend_table(a)]
  return out


def _ahead_blocks(a, drawn) -> list[page.Block]:
  if 'ahead' not in drawn:
    return []
  caption = (
    'Least loss by the surface of each variant with its 95 % band, carried to '
    '100 times the largest budget. Filled: vertices; hollow: predictions; '
    'grey: budgets that were run.'
  )
  return [_picture(drawn, 'ahead', caption), tables_ahead.ahead_table(a)]


def _rate_blocks(a, drawn) -> list[page.Block]:
  if 'rates' not in drawn:
    return []
  caption = (
    'Loss over peak learning rate and batch; these runs enter no law. Bold: '
    'within 0.25 % of the least. Star: the minimum of a quadratic in log2 of '
    'both through the least cell and its neighbours, else the least cell.'
  )
  return [
    page.Heading('Learning rate and batch'),
    _picture(drawn, 'rates', caption),
    page.Items(claims.rate_findings(a)),
    tables_ahead.rate_table(a),
  ]


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
      'Middle and right: relative errors against compute and size; each point '
      'is the mean of the seeds of a cell. Hollow: predictions of the largest '
      'budget by fits that have not seen it.'
    )
    out.append(_picture(drawn, 'residuals', caption))
  return out
