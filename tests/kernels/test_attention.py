"""Attention by every implementation equals the one with the whole mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention import cudnn_gpu, masked, splash_tpu
from pallas_kernels.attention.api import attention


def _drawn(b=2, t=128, h=4, g=2, k=24, v=16, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = (b, t, h, k), (b, t, g, k), (b, t, g, v), (b, t, h, v)
  *args, dy = (
    jax.random.normal(key, shape, dtype)
    for key, shape in zip(keys, shapes, strict=True)
  )
  cut = t // 3
  place = jnp.arange(t)
  segments = jnp.stack(
    [1 + (place >= cut), jnp.where(place < t - 9, 1 + (place >= 2 * cut), 0)]
  )
  starts = jnp.argmax(segments[:, :, None] == segments[:, None], axis=-1)
  return args, place - starts, segments.astype(jnp.int32), dy


def _run(f, args, dy):
  y, pull = jax.vjp(f, *args)
  return y, *pull(dy)


@pytest.mark.parametrize('window', [None, 40])
def test_the_library_for_tpus_equals_the_mask(window):
  args, positions, segments, dy = _drawn()
  dy = jnp.where(segments[..., None, None] > 0, dy, 0)
  options = dict(window=window, scale=0.3)
  rest = positions, segments
  got = splash_tpu.forward(*args, *rest, **options, interpret=True)
  grads = splash_tpu.backward(*args, *rest, got, dy, **options, interpret=True)
  want = _run(lambda *a: attention(*a, *rest, **options), args, dy)
  for a, b in zip((got, *grads), want, strict=True):
    a, b = np.asarray(a)[segments > 0], np.asarray(b)[segments > 0]
    assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)


@pytest.mark.parametrize(
  'dtype',
  [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)],
)
def test_on_cpu_it_is_the_masked_one_to_the_last_bit(dtype):
  args, positions, segments, dy = _drawn(t=20, dtype=dtype)
  mask = masked.causal_mask(positions, segments, 7)

  def ours(*args):
    return attention(*args, positions, segments, window=7)

  got = jax.jit(functools.partial(_run, ours))(args, dy)
  want = jax.jit(
    functools.partial(_run, lambda *args: masked.attend(*args, mask))
  )(args, dy)
  for a, b in zip(got, want, strict=True):
    assert a.dtype == b.dtype == dtype
    np.testing.assert_array_equal(a, b)


def test_what_the_libraries_do_not_take_goes_to_the_mask(monkeypatch):
  args, *rest, _ = _drawn(t=100)
  assert 'multiple of 128' in splash_tpu.refuses(*args, *rest)
  monkeypatch.setattr(cudnn_gpu, '_installed', lambda: True)
  assert 'not float32' in cudnn_gpu.refuses(*args, *rest)
  args, *rest, _ = _drawn(k=192, v=128, dtype=jnp.bfloat16)
  assert splash_tpu.refuses(*args, *rest) is None
  assert 'heads of 192 and 128' in cudnn_gpu.refuses(*args, *rest)
  with pytest.raises(NotImplementedError, match="'splash' runs on tpu only"):
    jax.jit(functools.partial(attention, implementation='splash'))(*args, *rest)


def test_heads_that_do_not_fit_are_refused():
  args, *rest, _ = _drawn(h=3)
  with pytest.raises(ValueError, match='with G a divisor of H'):
    attention(*args, *rest)


@pytest.mark.parametrize(
  'topology',
  [
    'v5e:2x2',
    *(
      pytest.param(t, marks=pytest.mark.slow)
      for t in ('v4:2x2x1', 'v5p:2x2x1', 'v6e:2x2')
    ),
  ],
)
def test_on_tpus_it_is_kernels_without_a_matrix_of_all_pairs(
  on_topology, topology
):
  found = on_topology('kernels/aot_attention.py', topology)
  assert set(found) == {'grouped', 'latent', 'window'}
  for name, case in found.items():
    # Forward; and again for the gradient, with one for q and one for k and v.
    assert case['kernels'] >= 3, name
    # One head's logits would take as much.
    assert case['temporary_bytes'] < 4 * 2048 * 2048 * 4, name
