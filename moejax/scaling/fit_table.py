"""Fits a law to any table of runs: `--mode=fit`."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from moejax import files
from moejax.nearest import hint
from moejax.scaling import fit, forms, resample, table

FORMS = {
  name: form
  for name, form in vars(forms).items()
  if isinstance(form, forms.PowerSum)
}
DRAWS = 300


def run(
  data: str, form: str, columns: str = '', workdir: str | None = None
) -> str:
  """Fits by both methods; returns a report, and writes `fit.json` if asked to.

  Args:
    data: path of a CSV file.
    form: name of a law in `forms`.
    columns: `symbol=column` pairs, separated by commas.
    workdir: folder for `fit.json`, None for none.

  Raises:
    ValueError: an unknown law or column, or data that cannot support it.
  """
  if form not in FORMS:
    raise ValueError(
      f'--form={form!r} is no law{hint(form, FORMS)}; known: '
      f'{", ".join(sorted(FORMS))}.'
    )
  law = FORMS[form]
  found = table.read(data, law, _pairs(columns))
  fits = [
    resample.bootstrap(
      method(law, found.covariates, found.values),
      found.covariates,
      draws=DRAWS,
    )
    for method in (fit.varpro, fit.huber)
  ]
  if workdir is not None:
    folder = files.folder(workdir)
    content = {'form': form, 'equation': law.equation, 'data': str(data)}
    content |= {'columns': found.sources, 'excluded': list(found.excluded)}
    content['fits'] = [_record(one) for one in fits]
    path = pathlib.Path(folder) / 'fit.json'
    files.write_atomic(path, files.dumps(content, indent=2) + '\n')
  return _text(law, found, fits)


def _pairs(text: str) -> dict[str, str]:
  pairs = {}
  for part in filter(None, text.split(',')):
    symbol, given, column = part.partition('=')
    if not given or not column:
      raise ValueError(
        f'--columns: {part!r} is no pair; write symbol=column, such as '
        'D=tokens,value=loss.'
      )
    pairs[symbol.strip()] = column.strip()
  return pairs


def _record(one: fit.Fit) -> dict[str, Any]:
  intervals = {}
  for place, name in enumerate(one.form.parameters):
    draws = None if one.draws is None else one.draws[:, place]
    near = resample.interval(draws)
    intervals[name] = None if near is None else [near.low95, near.high95]
  return {
    'method': one.method,
    'theta': one.theta,
    'interval95': intervals,
    'rms_error': float(np.sqrt(np.mean(one.residuals**2))),
    'restarts': one.restarts,
    'agreeing': one.agreeing,
    'warnings': list(one.warnings),
  }


def _text(law, found: table.Table, fits) -> str:
  named = ', '.join(f'{s} from {c}' for s, c in found.sources.items())
  lines = [law.equation, f'{len(found.values)} runs: {named}']
  if found.excluded:
    rows = 'row' if len(found.excluded) == 1 else 'rows'
    lines.append(f'{len(found.excluded)} {rows} excluded:')
    lines += [f'  {reason}' for reason in found.excluded]
  for one in fits:
    record = _record(one)
    lines += [
      '',
      f'{one.method}: relative error {100 * record["rms_error"]:.2f} % (root '
      f'mean square), {one.agreeing} of {one.restarts} restarts agree',
    ]
    for name, value in one.theta.items():
      near = record['interval95'][name]
      near = '' if near is None else f'  95 % [{near[0]:.4g}, {near[1]:.4g}]'
      lines.append(f'  {name:8} {value:12.5g}{near}')
    lines += [f'  warning: {w}' for w in one.warnings]
  return '\n'.join(lines)
