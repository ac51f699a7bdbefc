"""Packaging of moejax: `pip install -e .` for use, `.[test]` for the tests."""

import setuptools

setuptools.setup(
  name='moejax',
  version='0.1.0',
  description='Sparsely activated models in JAX: mixture of experts, memory '
  'layers and hybrid linear attention.',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=setuptools.find_packages(
    include=['moejax*', 'pallas_kernels*', 'configs*']
  ),
  install_requires=[
    'absl-py',
    'array_record',
    'etils[epath]',
    'flax>=0.12.8',
    'grain>=0.2.18',
    'jax>=0.10.2,<0.13',
    'matplotlib',
    'ml-collections>=1.1',
    'numpy',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12.8',
    'pyarrow',
    'rich',
    'scipy',
    'tensorboardX',
    'tokenizers',
  ],
  extras_require={
    'test': [
      'hypothesis',
      'ipykernel',
      # The TPU compiler that belongs with the jax installed: 0.0.42.* with jax
      # 0.10.2. A mismatched pair compiles ragged_dot dense on most TPUs.
      'jax[tpu]',
      'nbclient',
      'nbformat',
      'pytest',
      'pytest-xdist',
      'qwix>=0.1.8',
      'ruff==0.17.6',
    ],
    'aot': ['jax[tpu]'],
    'cuda': ['jax[cuda12]'],
    'quant': ['qwix>=0.1.8'],
    # Sweeps over the nodes of a cluster.
    'ray': ['ray'],
    # Compiles for GPUs, on machines without one.
    'aot-gpu': ['jax[cuda12]'],
  },
)
