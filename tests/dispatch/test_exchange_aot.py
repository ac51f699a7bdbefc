"""Exchanges compile for eight TPU chips that are not here."""

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('stages', ['1', '2'])
@pytest.mark.parametrize(
  'kind,room,collective',
  [
    ('Ring', (), 'reduce-scatter'),
    ('AllToAll', ('1.0',), 'all-to-all'),
    ('RaggedAllToAll', ('1.0',), 'ragged-all-to-all'),
  ],
)
def test_it_sends_the_bytes_of_the_formula_and_no_matrices(
  kind, room, collective, stages, on_topology
):
  found = on_topology('aot_exchange.py', 'v5e:2x4', kind, *room, stages)
  sent, formula = found['sent'], found['formula']
  assert sent[collective] > 0
  total = sum(formula.values())
  for name, size in sent.items():
    # Counts and sizes are small beside the tokens.
    want = pytest.approx(formula.get(name, 0), rel=0.1, abs=1e-3 * total)
    assert size == want, name
  # The experts' matrices and their gradients stay where they are.
  assert sum(sent.values()) < 1.1 * total
