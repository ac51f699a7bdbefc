"""The chunked recurrences beside the plain functions of other libraries."""

import importlib
import importlib.util
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.chunked_delta.api import chunked_delta
from pallas_kernels.chunked_linear.api import chunked_linear
from tests.kernels import recurrence

torch = pytest.importorskip('torch')
HAS_FLA = importlib.util.find_spec('fla') is not None


@pytest.mark.parametrize(
  ['decay', 'family', 'names'],
  [
    (
      'channel',
      'kimi_linear',
      ('chunk_kimi_delta_attention', 'recurrent_kimi_delta_attention'),
    ),
    (
      'head',
      'qwen3_next',
      ('torch_chunk_gated_delta_rule', 'torch_recurrent_gated_delta_rule'),
    ),
  ],
)
def test_results_and_gradients_are_those_of_transformers(decay, family, names):
  pytest.importorskip('transformers')
  module = importlib.import_module(
    f'transformers.models.{family}.modeling_{family}'
  )
  _compare(decay, True, [getattr(module, name) for name in names])


@pytest.mark.skipif(not HAS_FLA, reason='needs flash-linear-attention')
@pytest.mark.parametrize(
  ['decay', 'delta', 'folder', 'names'],
  [
    ('channel', True, 'kda', ('naive_recurrent_kda', 'naive_chunk_kda')),
    (
      'head',
      True,
      'gated_delta_rule',
      ('naive_recurrent_gated_delta_rule', 'naive_chunk_gated_delta_rule'),
    ),
    ('channel', False, 'gla', ('naive_recurrent_gla',)),
    (
      'head',
      False,
      'simple_gla',
      ('naive_recurrent_simple_gla', 'naive_chunk_simple_gla'),
    ),
  ],
)
def test_results_and_gradients_are_those_of_fla(decay, delta, folder, names):
  # By path, as the package's own import wants a GPU's compiler.
  path = importlib.util.find_spec('fla').submodule_search_locations[0]
  file = pathlib.Path(path, 'ops', folder, 'naive.py')
  spec = importlib.util.spec_from_file_location(f'fla_naive_{folder}', file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  _compare(decay, delta, [getattr(module, name) for name in names])


def _compare(decay, delta, functions):
  # A whole number of their chunks, as some take no other length.
  case = recurrence.draw(T=128, H=2, K=16, V=16, decay=decay, delta=delta)
  op = chunked_delta if delta else chunked_linear
  got = recurrence.run(case, op, jnp.float32)
  for function in functions:
    found = recurrence.errors(got, _theirs(case, function))
    assert max(found.values()) < 1e-5, (function.__name__, found)


def _theirs(case, function):
  """Results and gradients in the form of `recurrence.solve`."""
  inputs = {
    name: torch.from_numpy(x.astype(np.float32)).requires_grad_()
    for name, x in case.inputs().items()
  }
  q, k, v, g, *_ = inputs.values()
  gates = {'gk' if function.__name__ == 'naive_recurrent_gla' else 'g': g}
  if case.beta is not None:
    gates['beta'] = inputs['beta']
  outs = function(
    q, k, v, initial_state=inputs['state'], output_final_state=True, **gates
  )
  cotangents = [
    torch.from_numpy(x.astype(np.float32)) for x in (case.dy, case.dstate)
  ]
  grads = torch.autograd.grad(outs, list(inputs.values()), cotangents)
  outs = tuple(x.detach().numpy() for x in outs)
  named = zip(inputs, grads, strict=True)
  return outs, {name: grad.numpy() for name, grad in named}
