"""What the machine can do at best, and how much memory a process took."""

import functools
import re
import resource
import sys
import time

import jax
import jax.numpy as jnp

# Dense bf16 FLOPs/s of one jax device, by device_kind. Source: data sheets. A
# chip of v4 and v5p is one device (its two cores are joined), one of TPU7x two.
_PEAK_FLOPS = {
  r'TPU v4': 275e12,
  r'TPU v5 lite|TPU v5e': 197e12,
  r'TPU v5p?': 459e12,
  r'TPU v6 lite|TPU v6e': 918e12,
  r'TPU7x': 2307e12 / 2,
  r'.*\bA100\b.*': 312e12,
  r'.*\bH100\b.*PCIe.*': 756e12,
  r'.*\bH[12]00 NVL\b.*': 835e12,
  r'.*\b(H100|H200|GH200)\b.*': 989e12,
  r'.*\bB200\b.*': 2250e12,
}


def known_peak_flops(device_kind):
  """Dense bf16 FLOPs/s of one device by the data sheet, None if not known."""
  for pattern, flops_per_s in _PEAK_FLOPS.items():
    if re.fullmatch(pattern, device_kind):
      return flops_per_s
  return None


def device_peak_flops(device, dtype=jnp.float32):
  """Peak (FLOPs/s, 'known' or 'measured') of one device.

  Known is the dense bf16 rate of the data sheet, whatever the dtype. Other
  devices are measured once per process, as the best rate of a large matrix
  product in `dtype`; on a CPU that takes about a second, and other load on the
  machine lowers it.

  Args:
    device: a jax device; all local devices of a CPU share its cores.
    dtype: the compute dtype of the run.
  """
  known = known_peak_flops(device.device_kind)
  if known is not None:
    return known, 'known'
  return _measured(device, jnp.dtype(dtype)), 'measured'


@functools.cache
def _measured(device, dtype, budget_s=1.0):
  size = 2048 if device.platform == 'cpu' else 8192
  x = jax.device_put(jnp.ones((size, size), dtype), device)
  multiply = jax.jit(jnp.dot).lower(x, x).compile()
  times_s = []
  # Twice at least: the first call pays for page faults.
  while len(times_s) < 2 or (sum(times_s) < budget_s and len(times_s) < 10):
    start_s = time.perf_counter()
    multiply(x, x).block_until_ready()
    times_s.append(time.perf_counter() - start_s)
  return 2 * size**3 / min(times_s)


def peak_memory_bytes():
  """Dict of the peak memory of this process: 'host', and 'device' or None.

  Host is the largest resident set so far; under a sweep it starts anew with
  each cell (on Linux). Device is the largest peak of the local devices, None
  where the backend does not count it.
  """
  peaks = [
    (device.memory_stats() or {}).get('peak_bytes_in_use')
    for device in jax.local_devices()
  ]
  known = [peak for peak in peaks if peak is not None]
  return {'host': _host_peak_bytes(), 'device': max(known, default=None)}


def _host_peak_bytes():
  # On Linux ru_maxrss also holds the size of the process that started this
  # one, which can be larger; VmHWM is this program's own.
  try:
    with open('/proc/self/status') as file:
      found = re.search(r'VmHWM:\s+(\d+) kB', file.read())
    if found:
      return int(found[1]) * 1024
  except OSError:
    pass
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else peak * 1024
