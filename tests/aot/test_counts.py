"""What compiled programs send and compute, loops counted trip by trip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from moejax.aot import work
from moejax.aot.collectives import bytes_by_kind
from moejax.aot.hlo import Program

TRIPS, ROWS, WIDTH = 5, 16, 32


def mesh():
  return jax.make_mesh((2, 4), ('a', 'b'), axis_types=(AxisType.Auto,) * 2)


def compiled(body, scanned):
  """`body` TRIPS times on x [8 ROWS, WIDTH], its rows over all 8 devices."""

  def own(x):
    if not scanned:
      for _ in range(TRIPS):
        x = body(x)
      return x
    return lax.scan(lambda x, _: (body(x), None), x, None, TRIPS)[0]

  call = jax.shard_map(
    own,
    mesh=mesh(),
    in_specs=P(('a', 'b')),
    out_specs=P(('a', 'b')),
    check_vma=False,
  )
  x = jax.ShapeDtypeStruct((8 * ROWS, WIDTH), jnp.float32)
  return jax.jit(call).lower(x).compile()


def exchange(x):
  """One of each kind; what a device puts in is told beside it."""
  x = lax.all_to_all(x, 'b', 0, 0, tiled=True)  # ROWS x WIDTH, 4 devices
  y = lax.all_gather(x, 'a', tiled=True)  # ROWS x WIDTH, 2 devices
  x = lax.psum_scatter(y, 'a', tiled=True)  # 2 ROWS x WIDTH, 2 devices
  x = lax.ppermute(x, 'b', [(i, (i + 1) % 4) for i in range(4)])
  return x * lax.psum(x[0], ('a', 'b'))  # WIDTH, 8 devices


@pytest.fixture(scope='module')
def program():
  return Program(compiled(exchange, scanned=True).as_text())


def test_bytes_of_each_kind_are_those_of_the_formula_times_the_trips(program):
  block = 4 * ROWS * WIDTH
  expected = {
    'all-to-all': block * 3 / 4,
    'all-gather': block,
    'reduce-scatter': 2 * block / 2,
    'collective-permute': block,
    'all-reduce': 2 * 7 / 8 * 4 * WIDTH,
  }
  found = bytes_by_kind(program)
  assert found == {kind: TRIPS * size for kind, size in expected.items()}
  assert program.devices == 8 and not program.unknown_loops


def test_products_in_a_loop_count_as_often_as_they_run():
  def body(x):
    return jnp.tanh(x @ jnp.full((WIDTH, WIDTH), 0.1))

  product = 2 * ROWS * WIDTH * WIDTH
  looped = compiled(body, scanned=True)
  once = looped.cost_analysis()['flops']
  assert product <= once < 2 * product  # what makes the correction needed
  for found in (looped, compiled(body, scanned=False)):
    assert work.flops(Program(found.as_text())) == TRIPS * product


HEAD = 'HloModule m, num_partitions=16\n\nENTRY %e (p: f32[8]) -> f32[8] {\n'
LINE = '  %p = f32[8]{0} parameter(0)\n  ROOT %r = f32[8]{0} all-reduce(%p), '


@pytest.mark.parametrize(
  'groups,size',
  [
    ('{{0,1,2,3},{4,5,6,7}}', 4),
    ('[8,2]<=[2,8]T(1,0)', 2),
    ("mesh['x'=4,'y'=2,'z'=2] {'x','z'}", 8),
    ("mesh['x'=8,'y'=2], device_ids=([2,8]T(1,0)) {'x':(2)4}", 4),
    ('{}', 16),
  ],
)
def test_groups_are_read_in_every_notation(groups, size):
  text = f'{HEAD}{LINE}channel_id=1, replica_groups={groups}, to_apply=%a\n}}\n'
  np.testing.assert_allclose(
    bytes_by_kind(text)['all-reduce'], 2 * (size - 1) / size * 32
  )


@pytest.mark.parametrize(
  'which,times',
  [
    ('channel_id=3, ', 1),
    # Of jax.shard_map: those of a chain are one, others are not.
    ('channel_id=1, frontend_attributes={{chain_id="2"}}, ', 1),
    ('channel_id=1, ', 2),
  ],
)
def test_a_transfer_beside_other_work_counts_once(which, times):
  # Start, middle and end of one transfer, each in a fusion.
  part = '%{0} (p: f32[8]) -> f32[16] {{\n  %p = f32[8]{{0}} parameter(0)\n'
  part += '  ROOT %r = f32[16]{{0}} all-gather(%p), ' + which
  part += 'replica_groups={{{{0,1}}}}\n}}\n\n'
  text = HEAD.split('ENTRY')[0] + part.format('s') + part.format('d')
  text += 'ENTRY %e (p: f32[8]) -> f32[16] {\n  %p = f32[8]{0} parameter(0)\n'
  text += '  %x = f32[16]{0} fusion(%p), kind=kCustom, calls=%s\n'
  text += '  ROOT %y = f32[16]{0} fusion(%p), kind=kCustom, calls=%d\n}\n'
  assert bytes_by_kind(text) == {'all-gather': times * 32}


def test_what_a_loop_reads_of_a_stack_is_one_slice_a_trip():
  def f(stack, x):
    return lax.scan(lambda x, w: (jnp.tanh(x + w), None), x, stack)[0]

  shapes = (TRIPS, 1024, 64), (1024, 64)
  args = (jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)
  text = jax.jit(f).lower(*args).compile().as_text()
  array = 4 * 1024 * 64
  # Reads x and w and writes x, and may copy x at the start and at the end.
  least = 3 * TRIPS * array
  assert least <= work.memory_bytes(Program(text)) <= least + 8 * array


IN_PLACE = """
HloModule rows, num_partitions=1

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%add (t: f32[1000,64], i: s32[8], r: f32[8,64]) -> f32[1000,64] {
  %t = f32[1000,64]{1,0} parameter(0)
  %i = s32[8]{0} parameter(1)
  %r = f32[8,64]{1,0} parameter(2)
  ROOT %s = f32[1000,64]{1,0} scatter(%t, %i, %r), to_apply=%sum
}

%take (t: f32[1000,64], i: s32[8]) -> f32[8,64] {
  %t = f32[1000,64]{1,0} parameter(0)
  %i = s32[8]{0} parameter(1)
  ROOT %g = f32[8,64]{1,0} gather(%t, %i), offset_dims={1}
}

ENTRY %main (t: f32[1000,64], i: s32[8]) -> f32[1000,64] {
  %t = f32[1000,64]{1,0} parameter(0)
  %i = s32[8]{0} parameter(1)
  %r = f32[8,64]{1,0} fusion(%t, %i), kind=kLoop, calls=%take
  ROOT %y = f32[1000,64]{1,0} fusion(%t, %i, %r), kind=kCustom, calls=%add
}
"""


def test_rows_that_are_read_or_added_in_place_count_alone():
  rows, ids = 8 * 64 * 4, 8 * 4
  taken = ids + rows + rows
  added = ids + rows + rows + rows  # ids, what is added, the sum's old and new
  assert work.memory_bytes(Program(IN_PLACE)) == taken + added


SPLASH = """
HloModule attention, num_partitions=1

ENTRY %main (q: bf16[2,256,24]) -> bf16[2,256,16] {
  %q = bf16[2,256,24]{2,1,0} parameter(0)
  ROOT %NAME.1 = bf16[2,256,16]{2,1,0} custom-call(%q), custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,2,2]{2,1,0}, s8[1,2,2]{2,1,0}, bf16[2,256,24]{2,1,0}, bf16[2,256,24]{2,1,0}, bf16[2,256,16]{2,1,0}, s32[256,128]{1,0}}
}
"""  # noqa: E501


@pytest.mark.parametrize(
  'name,products',
  [
    ('splash_mha_fwd_residuals', [24, 16]),  # scores, outputs
    ('splash_mha_dq_segmented', [24, 16, 24]),  # scores, dP, dQ
    ('splash_mha_dkv_segmented', [24, 16, 16, 24]),  # and dV, dK for dQ
    ('other', []),
  ],
)
def test_splash_attention_is_counted_by_blocks_of_its_causal_mask(
  name, products
):
  heads, blocks, block = 2, 3, 128  # of four blocks one is above the diagonal
  want = sum(2 * heads * blocks * block**2 * depth for depth in products)
  assert work.flops(Program(SPLASH.replace('NAME', name))) == want


GPU = """
HloModule kernels, num_partitions=1

ENTRY %main (q: bf16[2,256,4,24]) -> bf16[2,4,256,16] {
  %q = bf16[2,256,4,24]{3,2,1,0} parameter(0)
  %told.1 = bf16[8,8]{1,0} custom-call(%q), custom_call_target="__gpu$xla.gpu.triton", backend_config={grid_x = 2 : i32, ir = "ML", serialized_metadata = "{\\22flops\\22: \\22640\\22}"}
  %silent.1 = bf16[8,8]{1,0} custom-call(%q), custom_call_target="__gpu$xla.gpu.triton", backend_config={grid_x = 2 : i32, ir = "ML"}
  ROOT %attend.1 = bf16[2,4,256,16]{3,1,2,0} custom-call(%q), custom_call_target="__cudnn$fmhaScaleBiasSoftmaxKIND", operand_layout_constraints={bf16[2,256,4,24]{3,2,1,0}, bf16[2,256,2,24]{3,2,1,0}, bf16[2,256,2,16]{3,2,1,0}}, api_version=API_VERSION_STATUS_RETURNING, backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["2", "4", "256", "256"]}, "mask_type": "CAUSAL"}}
}
"""  # noqa: E501


@pytest.mark.parametrize(
  'kind,products', [('', [24, 16]), ('Backward', [24, 16, 24, 16, 24])]
)
def test_kernels_of_a_gpu_are_counted_and_those_that_tell_nothing(
  kind, products
):
  program = Program(GPU.replace('KIND', kind))
  pairs = 2 * 4 * 256 * 256 / 2  # causal: half of all
  assert work.flops(program) == 640 + sum(2 * pairs * n for n in products)
  assert work.silent_kernels(program) == 1
