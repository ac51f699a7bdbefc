"""Bytes that a compiled program sends are those of the formula."""

import pytest

from moejax import dispatch
from moejax.aot.collectives import bytes_by_kind
from moejax.dispatch import traffic
from tests.dispatch.test_exchange import D, K, compiled, label, mesh

pytestmark = pytest.mark.usefixtures('quick_compilation')
RANKS, TOKENS = 8, 64


def layer(**changes):
  fields = dict(
    tokens=TOKENS, k=K, width=D, num_experts=8, ranks=RANKS, itemsize=4
  )
  return traffic.Layer(**(fields | changes))


# The text of a program has the body of a loop once: two rounds.
@pytest.mark.parametrize(
  'dispatcher,more',
  [
    (dispatch.AllToAll(), {'num_rounds': 2}),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        (dispatch.Ring(stages=2), {}),
        (dispatch.AllToAll(room=8.0), {'num_rounds': 1}),
        (
          dispatch.RaggedAllToAll(room=1.0),
          {'num_rounds': 2, 'emulated': True},
        ),
      )
    ),
  ],
  ids=label,
)
def test_bytes_of_the_compiled_program_are_those_of_the_formula(
  dispatcher, more
):
  built, _ = compiled(dispatcher, mesh(1, RANKS), 8, RANKS * TOKENS)
  got = bytes_by_kind(built.as_text())
  want = dispatcher.collective_bytes(layer(), **more)
  assert want.keys() <= got.keys()
  for kind, size in got.items():
    assert size == pytest.approx(want.get(kind, 0), rel=0.1, abs=64), kind


def test_a_call_without_gradient_sends_there_and_back_once():
  forward = layer(backward=False)
  sent = dispatch.Ring().collective_bytes(forward)
  assert sent == {
    'all-gather': 7 * TOKENS * (4 * D + 8 * K),
    'reduce-scatter': 7 * TOKENS * 4 * D,
  }
  rows = 36  # 1.5 * 64 * 3 / 8
  sent = dispatch.AllToAll().collective_bytes(forward)
  assert sent == {'all-to-all': 7 * rows * (8 * D + 8)}
  sent = dispatch.RaggedAllToAll().collective_bytes(forward)
  lines = (
    TOKENS * K // 128 + RANKS
  )  # of 128 weights, one for each rank not full
  assert sent == {
    'all-gather': 7 * 8 * 4,
    'ragged-all-to-all': 7 / 8 * (TOKENS * K * 8 * D + lines * 512),
  }
