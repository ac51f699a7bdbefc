"""Topologies by name, and mistakes told in one line."""

import importlib.util

import pytest

from moejax import aot
from moejax.aot import topology
from moejax.aot.report import Memory, Report
from pallas_kernels import chips


def test_a_topology_has_its_chips_and_what_a_program_may_use_of_them():
  machine = topology.find('v5p:8x8x16')
  assert machine.devices == machine.chips == 1024
  assert machine.chip is chips.CHIPS['v5p']
  assert 0 < machine.limit_bytes < machine.chip.memory_bytes + 2**30
  assert topology.find('h100:4x8').devices == 32
  assert topology.find('h100:8') == topology.find('h100:1x8')


def test_an_unknown_topology_lists_the_known_ones(small):
  with pytest.raises(ValueError, match='v6e: 1x1 2x2') as error:
    aot.check(small.config(), 'v5p:8x8')
  assert "did you mean 'v5p:8x8x8'" in str(error.value)
  assert '\n' not in str(error.value)


def test_a_missing_compiler_says_how_to_install_it(small, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match=r"pip install -e '\.\[aot-gpu\]'"):
    aot.check(small.config(), 'h100:1x8')


def test_a_program_fits_if_its_peak_does_and_the_compiler_took_it():
  def report(total, refused=None):
    return Report(
      topology='v5e:2x2',
      devices=4,
      mesh={'data': 4},
      memory=Memory(1, 2, 0, 3, total, 100),
      model_flops=8.0,
      compile_seconds=1.0,
      peak_rss_bytes=2**30,
      assumptions='none',
      flops=10.0,
      memory_bytes=4.0,
      collective_bytes={'all-gather': 2.0},
      seconds={'compute': 0.3, 'memory': 0.1, 'links': 0.2},
      refused=refused,
    )

  assert report(100).fits and not report(101).fits
  assert not report(50, 'used 200').fits
  assert report(50).step_seconds == 0.3
  assert report(101).text().splitlines()[-1].startswith('does not fit')
  assert '80% the model counts' in report(50).text()
