"""Bytes of decode state of every mixer recipe, beside full attention.

  python experiments/2026_11_decode_state/table.py
writes results.csv beside this file and prints it as Markdown. Nothing is
allocated: the shapes are those that `init_state` would make.
"""

import csv
import pathlib

import jax

from configs import common
from moejax.build import build
from moejax.recipes import load

HERE = pathlib.Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / 'configs'
LENGTHS = {'4k': 2**12, '128k': 2**17, '1M': 2**20}
DTYPE = 'bfloat16'

# One layer at published sizes.
LAYERS = {
  'latent 512 + 64, any number of heads': common.node(
    'mixers.Latent',
    heads=128,
    latent_dim=512,
    nope_dim=128,
    rope_dim=64,
    value_dim=128,
  ),
  'grouped, 8 kv heads of 128': common.attention(64, 8, head_dim=128),
  'every head its own, 128 of 128': common.attention(128, head_dim=128),
  'window of 4096, 8 kv heads of 128': common.attention(
    64, 8, head_dim=128, window=4096
  ),
}


def state_bytes(init_state) -> int:
  leaves = jax.tree.leaves(jax.eval_shape(init_state))
  return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def recipes():
  """(name, model config), those of papers by name, after the house's own."""
  papers = sorted(CONFIGS.glob('papers/mixers/*.py'))
  for path in [CONFIGS / 'dense.py', CONFIGS / 'hybrid.py', *papers]:
    if path.exists() and path.stem != '__init__':
      model = load(str(path)).get_config().model
      model.dtype = DTYPE
      yield path.relative_to(CONFIGS).as_posix(), model


def with_full_attention(model):
  """The same layers, each mixer the house's attention: 2 kv heads of 32."""
  model = model.copy_and_resolve_references()
  for block in model.blocks.values():
    if 'mixer' in block:
      block.mixer = common.attention(6, 2, head_dim=32)
  return model


def rows():
  for name, config in recipes():
    model, full = build(config), build(with_full_attention(config))
    for label, length in LENGTHS.items():
      ours, theirs = (
        state_bytes(lambda m=m, n=length: m.init_state(1, n))
        for m in (model, full)
      )
      yield row(name, label, length, ours, theirs)
  full = build(LAYERS['grouped, 8 kv heads of 128'])
  for name, config in LAYERS.items():
    mixer = build(config)
    for label, length in LENGTHS.items():
      ours, theirs = (
        state_bytes(lambda m=m, n=length: m.init_state(1, n, 7168, DTYPE))
        for m in (mixer, full)
      )
      yield row(f'one layer: {name}', label, length, ours, theirs)


def row(name, label, length, ours, theirs):
  return {
    'what': name,
    'tokens': label,
    'state_bytes': ours,
    'bytes_per_token': f'{ours / length:.1f}',
    'full_attention_bytes': theirs,
    'frac_of_full_attention': f'{ours / theirs:.4f}',
  }


def main():
  found = list(rows())
  with open(HERE / 'results.csv', 'w', newline='') as file:
    writer = csv.DictWriter(file, found[0], lineterminator='\n')
    writer.writeheader()
    writer.writerows(found)
  print('|', ' | '.join(found[0]), '|')
  print('|---' * len(found[0]) + '|')
  for line in found:
    print('|', ' | '.join(map(str, line.values())), '|')


if __name__ == '__main__':
  main()
