r"""Times one sparse layer on eight host devices, by dispatch and load.

  python experiments/2026_11_exchange_cpu/bench.py 64 >> results.csv

prints a row for each dispatch and load of 64 experts: forward and backward,
median, least and most of `REPEATS` calls, in turn over the dispatches, and the
bytes that a device sends. With JAX_COMPILATION_CACHE_DIR set, a second run
spares the compilation.
"""

import os
import statistics
import sys
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

jax.config.update('jax_num_cpu_devices', 8)

from moejax import dispatch, experts, sharding  # noqa: E402
from moejax.aot.collectives import bytes_by_kind  # noqa: E402
from moejax.dispatch import traffic  # noqa: E402
from moejax.types import Chosen  # noqa: E402

RANKS, TOKENS, K, D, F, REPEATS = 8, 4096, 4, 128, 64, 7
DISPATCHES = {
  'Sort, by the compiler': dispatch.Sort(),
  'Einsum, by the compiler': dispatch.Einsum(
    capacity_factor=1.25, group_tokens=256
  ),
  'Ring': dispatch.Ring(),
  'Ring, 2 stages': dispatch.Ring(stages=2),
  'AllToAll': dispatch.AllToAll(),
  'AllToAll, 2 stages': dispatch.AllToAll(stages=2),
  'RaggedAllToAll, emulated': dispatch.RaggedAllToAll(),
}
LOADS = ('balanced', 'zipf', 'one')


def choices(load, num_experts):
  """int32 [N, K]: distinct experts of each token, but for 'one'."""
  rng = np.random.default_rng(0)
  if load == 'one':
    return np.zeros((TOKENS, K), np.int32)
  share = np.ones(num_experts)
  if load == 'zipf':
    share = 1 / np.arange(1, num_experts + 1)
  # The k largest of log share + Gumbel noise: k draws without replacement.
  noise = rng.gumbel(size=(TOKENS, num_experts))
  order = np.argsort(-(np.log(share) + noise), axis=1)
  return order[:, :K].astype(np.int32)


def compile_layer(dispatcher, num_experts, args):
  module = experts.Glu(hidden=F, num_experts=num_experts)

  def run(chosen, x, matrices, upstream):
    def forward(x, weights, matrices):
      return dispatcher.apply(
        {},
        chosen.replace(weights_NK=weights),
        x,
        lambda rows: module.apply({'params': matrices}, rows),
        mutable=['stats'],
      )

    y, pull, sown = jax.vjp(
      forward, x, chosen.weights_NK, matrices, has_aux=True
    )
    return y, pull(upstream), sown['stats']

  return jax.jit(run).lower(*args).compile()


def main(num_experts):
  axes = ('data', 'expert')
  mesh = jax.make_mesh((1, RANKS), axes, axis_types=(AxisType.Auto,) * 2)
  cut = NamedSharding(mesh, PartitionSpec('expert'))
  rng = np.random.default_rng(1)

  def normal(*shape):
    value = rng.normal(size=shape).astype(np.float32)
    return jax.device_put(value, cut)

  def assignment(load):
    ids = jax.device_put(choices(load, num_experts), cut)
    logits = jnp.zeros((TOKENS, num_experts))
    return Chosen(ids, weights, jax.device_put(logits, cut))

  x, upstream, weights = normal(TOKENS, D), normal(TOKENS, D), normal(TOKENS, K)
  shapes = {'down': (F, D), 'gate': (D, F), 'up': (D, F)}
  matrices = {k: normal(num_experts, *shape) for k, shape in shapes.items()}
  loads = {load: assignment(load) for load in LOADS}
  with sharding.use(mesh, sharding.RULES):
    args = (loads['balanced'], x, matrices, upstream)
    programs = {
      name: compile_layer(dispatcher, num_experts, args)
      for name, dispatcher in DISPATCHES.items()
    }
    for load, chosen in loads.items():
      args = (chosen, x, matrices, upstream)
      stats = {
        n: jax.block_until_ready(f(*args))[2] for n, f in programs.items()
      }
      times = {name: [] for name in programs}
      for _ in range(REPEATS):
        for name, program in programs.items():
          start = time.perf_counter()
          jax.block_until_ready(program(*args))
          times[name].append(1e3 * (time.perf_counter() - start))
      for name, found in times.items():
        told = {k: float(v[0]) for k, v in stats[name].items()}
        print(
          f'"{name}"',
          num_experts,
          load,
          *(f'{f(found):.2f}' for f in (statistics.median, min, max)),
          f'{megabytes(name, programs[name], num_experts, told):.3f}',
          told.get('exchange_rounds', 1),
          f'{told["dropped_frac"]:.3f}',
          sep=',',
          flush=True,
        )


def megabytes(name, program, num_experts, told):
  """10^6 bytes that a device sends: the formula, or the compiler's program."""
  dispatcher = DISPATCHES[name]
  if not hasattr(dispatcher, 'collective_bytes'):
    return sum(bytes_by_kind(program.as_text()).values()) / 1e6
  layer = traffic.Layer(
    tokens=TOKENS // RANKS,
    k=K,
    width=D,
    num_experts=num_experts,
    ranks=RANKS,
    itemsize=4,
  )
  more = {}
  if isinstance(dispatcher, dispatch.AllToAll):
    more = {'num_rounds': int(told['exchange_rounds'])}
  return sum(dispatcher.collective_bytes(layer, **more).values()) / 1e6


if __name__ == '__main__':
  if sys.argv[1:] == ['header']:
    print(
      'dispatch,experts,load,median_ms,least_ms,most_ms,sent_mb,rounds,dropped'
    )
  else:
    main(int(sys.argv[1]))
