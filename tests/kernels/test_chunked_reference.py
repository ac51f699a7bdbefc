"""The references of the chunked recurrences, against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.chunked_delta.api import chunked_delta
from pallas_kernels.chunked_linear.api import chunked_linear
from tests.kernels import recurrence


@pytest.mark.parametrize('delta', [True, False])
@pytest.mark.parametrize('decay', ['channel', 'head', None])
def test_reference_and_its_gradients_are_the_recurrence_in_float64(
  delta, decay
):
  case = recurrence.draw(T=9, H=2, G=4, K=6, V=5, decay=decay, delta=delta)
  case = case.replace(starts=np.arange(18).reshape(2, 9) % 7 == 3)
  with jax.enable_x64(True):
    got = recurrence.run(
      case,
      chunked_delta if delta else chunked_linear,
      jnp.float64,
      implementation='reference',
    )
    errors = recurrence.errors(got, recurrence.solve(case))
  assert max(errors.values()) < 1e-12, errors
