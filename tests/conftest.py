"""Eight host devices for every test, and small things to build."""

import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys
import types

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Threads of BLAS only wait for each other on matrices as small as the tests'.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)

from configs import common  # noqa: E402
from moejax.state import context  # noqa: E402

VOCAB = 32


def rows(seed, batch=2, length=8, vocab=VOCAB, padding=(0,), document=None):
  """A batch of packed rows; `padding` tokens end the rows, in turn."""
  rng = np.random.default_rng(seed)
  shape = (batch, length)
  ids = rng.integers(1, vocab, (batch, length + 1), dtype=np.int32)
  segments = np.zeros(shape, np.int32)
  positions = np.zeros(shape, np.int32)
  document = document or length
  for b in range(batch):
    place = np.arange(length - padding[b % len(padding)])
    segments[b, : len(place)] = place // document + 1
    positions[b, : len(place)] = place % document
  used = segments > 0
  return {
    'tokens': ids[:, :-1] * used,
    'targets': ids[:, 1:] * used,
    'segments': segments,
    'positions': positions,
  }


def model(blocks=None, **fields):
  """A config node of a model of width 16, by default one sparse block."""
  return common.node(
    'model.Model',
    **dict(
      dict(
        vocab=VOCAB,
        width=16,
        blocks=blocks or {'sparse': sparse()},
        pattern=tuple(blocks or ('sparse',)),
      ),
      **fields,
    ),
  )


def sparse(num_experts=4, k=2, hidden=8, **fields):
  """A block with a mixture of experts."""
  return common.block(
    common.attention(2, 1), common.moe(num_experts, k, hidden, **fields)
  )


def dense(hidden=16, **mixer):
  """A block with a dense feed-forward."""
  return common.block(common.attention(2, 1, **mixer), common.dense(hidden))


def config(**changes):
  """A config of the small model, 4 steps without warm-up, logged each."""
  c = common.base()
  c.model = model()
  c.losses = {'load': 0.01, 'z': 0.001}
  c.optim = common.adamw(1e-2, warmup_steps=1)
  c.train.steps = 4
  c.train.batch_size = 8
  c.train.seq_len = 8
  c.log.every_steps = 1
  c.log.tensorboard = False
  c.evaluate.batches = 1
  for name, value in changes.items():
    c[name] = value
  return c


@pytest.fixture(scope='session')
def small():
  """Builders of small configs and batches."""
  return types.SimpleNamespace(
    VOCAB=VOCAB,
    config=config,
    context=lambda batch, train=False: context(batch, train),
    dense=dense,
    model=model,
    rows=rows,
    sparse=sparse,
  )


@pytest.fixture(scope='module')
def quick_compilation():
  """Spares most of the time of LLVM, for what does not depend on it.

  XLA makes the same program of fused operations; only their machine code is
  less optimised. Not for claims on the CPU's own kernels, on bits, on memory or
  on time.
  """
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture
def one_device(monkeypatch):
  """Lets a run believe that there is one device."""
  monkeypatch.setattr(jax, 'device_count', lambda: 1)


@pytest.fixture(scope='session')
def text(tmp_path_factory):
  """A data node: a few small files, with all splits."""
  folder = tmp_path_factory.mktemp('text')
  rng = np.random.default_rng(0)
  words = np.array(['a', 'bit', 'of', 'text', 'to', 'train', 'on', 'twice'])
  for split, count in (('train', 12), ('validation', 2), ('test', 2)):
    for i in range(count):
      line = ' '.join(rng.choice(words, 60))
      (folder / f'{split}_{i}.txt').write_text(line)
  patterns = {s: str(folder / f'{s}_*.txt') for s in ('validation', 'test')}
  files = common.node(
    'data.Files', pattern=str(folder / 'train_*.txt'), **patterns
  )
  return common.node('data.Text', sources={'files': files})


@pytest.fixture(scope='session')
def two_processes():
  """Runs a script of this folder as 0 and 1, which meet at an address."""
  tests = pathlib.Path(__file__).parent
  env = os.environ | {'PYTHONPATH': str(tests.parent), 'JAX_PLATFORMS': 'cpu'}

  def run(script, *args, timeout_s=240):
    with socket.socket() as free:
      free.bind(('localhost', 0))
      address = f'localhost:{free.getsockname()[1]}'
    processes = [
      subprocess.Popen(
        [sys.executable, tests / script, str(i), address, *args],
        env=env,
        stderr=subprocess.PIPE,
        text=True,
      )
      for i in range(2)
    ]
    try:
      for process in processes:
        _, errors = process.communicate(timeout=timeout_s)
        assert process.returncode == 0, errors[-2000:]
    finally:
      for process in processes:
        process.kill()

  return run


@pytest.fixture(scope='session')
def on_topology():
  """Runs a script of this folder for a TPU topology: what it tells."""
  if importlib.util.find_spec('libtpu') is None:
    pytest.skip("needs the TPU compiler: pip install -e '.[test]'")
  tests = pathlib.Path(__file__).parent
  path = os.pathsep.join(map(str, (tests.parent, tests)))

  def run(script, topology, *args, timeout_s=600):
    done = subprocess.run(
      [sys.executable, tests / script, topology, *args],
      capture_output=True,
      text=True,
      timeout=timeout_s,
      env=os.environ | {'PYTHONPATH': path},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])

  return run
