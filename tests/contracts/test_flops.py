"""FLOPs that parts claim, against the products of their lowered programs.

What a program computes beyond the claim is named here, with its reason, and
counted apart; nothing is compiled.
"""

import functools
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from moejax import dispatch, experts, mixers, moe, recipes, routers, rows
from moejax.build import build
from moejax.mixers import (
  Attention,
  AttentionExperts,
  BlockRouted,
  Latent,
  LinearAttention,
  MixtureOfMemories,
  StateSpace,
  choices,
)
from moejax.state import blank_context
from moejax.types import Padded
from pallas_kernels.route.plan import Plan
from tests.products import product_flops

D, B, T = 32, 2, 64  # whole chunks of 32 tokens, and whole blocks
ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPES = sorted(
  path
  for path in ROOT.glob('configs/**/*.py')
  if 'def get_config' in path.read_text()
)


@pytest.fixture(autouse=True)
def products_by_expert(monkeypatch):
  """One product per row in place of loops over row tiles.

  The trips of those loops depend on how many rows an expert gets, which no
  program says before it runs. Every row is multiplied by one matrix. The order
  of rows is left as it is: on CPU it is made by products that count.
  """

  def permutation(ids_NK, num_experts):
    place_R = jnp.arange(ids_NK.size, dtype=jnp.int32)
    sizes_E = jnp.zeros((num_experts,), jnp.int32)
    return Plan(place_R, place_R.reshape(ids_NK.shape), sizes_E)

  def grouped_matmul(x_RD, w_EDF, sizes_E, **_):
    return x_RD @ w_EDF[0]

  def expert_ffn(x_ND, gate, up, down, ids_NK, weights_NK, *, activation):
    x = jnp.repeat(x_ND, ids_NK.shape[1], axis=0)
    h = activation(x @ gate[0].astype(x.dtype))
    h = h if up is None else h * (x @ up[0].astype(x.dtype))
    y = h @ down[0].astype(x.dtype)
    return y.reshape(*ids_NK.shape, -1).sum(1)

  for module in (rows, choices):
    monkeypatch.setattr(module, 'permutation', permutation)
  monkeypatch.setattr(rows, 'grouped_matmul', grouped_matmul)
  monkeypatch.setattr(rows, 'expert_ffn', expert_ffn)


def seen(length, window=None):
  return np.mean([min(t + 1, window or length) for t in range(length)])


def beyond(mixer, width, length):
  """FLOPs per token that are claimed but no product, or the other way round.

  Softmax attention in plain XLA computes the whole square of logits, of which
  the causal part within the window is claimed. Short convolutions are sums of
  shifted inputs, no products.
  """
  gate = getattr(mixer, 'gate', None)
  extra = 0.0
  if isinstance(gate, mixers.gates.HeadMixture):
    # Weights are spread over heads by a product with one-hot rows.
    heads = gate.router.score.num_experts
    extra += 2 * gate.router.k * heads
  if isinstance(mixer, BlockRouted):
    size, block = mixer.head_dim or width // mixer.heads, mixer.block_tokens
    blocks = length // block
    # A block lies in two runs of places; every pick is made, found or not.
    every = 2 * (2 * block + (min(mixer.k - 1, blocks)) * block)
    every += blocks if mixer.k > 1 else 0
    return (
      extra + 2 * size * mixer.heads * every - mixer._core_flops(size, length)
    )
  if isinstance(mixer, Attention):
    size = mixer.head_dim or width // mixer.heads
    hidden = length - seen(length, mixer.window)
    return extra + 4 * size * mixer.heads * hidden
  if isinstance(mixer, Latent):
    sizes = mixer.nope_dim + mixer.rope_dim + mixer.value_dim
    return extra + 2 * mixer.heads * sizes * (length - seen(length))
  if isinstance(mixer, AttentionExperts):
    inner = mixer.kv_heads * mixer.head_dim * mixer.router.k
    return extra + 4 * inner * (length - seen(length, mixer.window))
  if isinstance(mixer, LinearAttention):
    key = mixer.head_dim or width // mixer.heads
    value = mixer.value_dim or key
    channels = 2 * mixer.heads * key
    channels += (mixer.value_heads or mixer.heads) * value
    return extra - 2 * (mixer.conv_size or 0) * channels
  if isinstance(mixer, StateSpace):
    channels = mixer.expand * width + 2 * mixer.groups * mixer.state_size
    return extra - 2 * mixer.conv_size * channels
  if isinstance(mixer, MixtureOfMemories):
    key = mixer.head_dim or width // mixer.heads
    channels = mixer.heads * (2 * key + (mixer.value_dim or key))
    used = mixer.router.k + mixer.shared
    return extra - 2 * mixer.conv_size * channels * used
  return extra


def beyond_moe(module, width, tokens):
  """FLOPs per token of a dispatch that are no work of the chosen experts."""
  if not isinstance(module, moe.Moe):
    return 0.0
  num, k = module.experts.num_experts, module.router.k
  each, how = module.experts.flops(width), module.dispatch
  if isinstance(how, dispatch.Mask):
    # Every expert sees every token, and one-hot rows spread the weights.
    return (num - k) * each + 2 * num * width + 2 * k * num
  if isinstance(how, dispatch.Einsum):
    group = how.group_tokens or tokens
    slots = math.ceil(how.capacity_factor * group * k / num)
    slots = min(slots, group)
    # Slots may stay empty; two masks are made and multiplied with.
    filled = num * slots / group
    return (filled - k) * each + num * slots * (4 * width + 4 * k)
  return 0.0


def lowered(module, *args, **kwargs):
  shapes = jax.eval_shape(module.init, jax.random.key(0), *args, **kwargs)
  shapes = nn.unbox({'params': shapes.get('params', {})})
  return jax.jit(
    lambda variables, *args: module.apply(variables, *args, **kwargs)
  ).lower(shapes, *args)


def tokens(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_claims_of_mixers_are_their_products(mixer):
  ctx = blank_context(B, T)
  got = product_flops(lowered(mixer, tokens(B, T, D), ctx)) / (B * T)
  want = mixer.flops(D, T) + beyond(mixer, D, T)
  assert got == pytest.approx(want, rel=0.02)


def test_claims_of_gates_are_their_products(gate):
  mixer = Attention(heads=12, kv_heads=2, head_dim=4, gate=gate)
  ctx = blank_context(B, T)
  got = product_flops(lowered(mixer, tokens(B, T, D), ctx)) / (B * T)
  want = mixer.flops(D, T) + beyond(mixer, D, T)
  assert got == pytest.approx(want, rel=0.02)


@pytest.mark.parametrize('name', mixers.rules.__all__)
def test_claims_of_rules_are_their_products(name):
  rule = getattr(mixers.rules, name)
  mixer = LinearAttention(
    heads=2,
    value_heads=4,
    head_dim=16,
    value_dim=8,
    rule=rule,
    decay=mixers.decays.Softplus() if rule.decay else None,
    write=mixers.writes.Sigmoid() if rule.beta else None,
    conv_size=None,
  )
  for length in (16, T):  # less than a chunk, and several
    ctx = blank_context(B, length)
    made = lowered(mixer, tokens(B, length, D), ctx)
    want = mixer.flops(D, length) * B * length
    assert product_flops(made) == pytest.approx(want, rel=1e-9)


def test_claims_of_experts_are_their_products(expert):
  num, count = expert.num_experts, 6

  class AsRows(nn.Module):
    expert: nn.Module

    def __call__(self, x):
      return self.expert(Padded(x)).rows_ECD

  made = lowered(AsRows(expert), tokens(num, count, D))
  assert product_flops(made) == num * count * expert.flops(D)


def test_claims_of_routers_are_their_products(router):
  ctx = blank_context(B, T)
  made = lowered(router, tokens(B * T, D), ctx)
  want = router.flops(D) * B * T
  assert product_flops(made) == pytest.approx(want, rel=0.02)


def _moe(how, num=8, k=3):
  router = routers.Router(
    score=routers.scores.Linear(num_experts=num),
    k=k,
    select=routers.select.top_k,
    weigh=routers.weigh.softmax,
  )
  return moe.Moe(
    router=router,
    dispatch=how,
    experts=experts.Glu(num_experts=num, hidden=48),
    shared=moe.Dense(experts.Mlp(hidden=24)),
  )


def test_claims_of_mixtures_are_their_products(chosen_dispatch):
  module, ctx = _moe(chosen_dispatch), blank_context(B, T)
  got = product_flops(lowered(module, tokens(B, T, D), ctx)) / (B * T)
  want = module.flops(D) + beyond_moe(module, D, B * T)
  assert got == pytest.approx(want, rel=0.02)


def forward(model, batch, length):
  ctx = blank_context(batch, length)
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), ctx))

  def logits(variables):
    return model.apply(variables, ctx)[0].logits_BTV()

  return jax.jit(logits).lower(shapes)


def beyond_model(model, batch, length):
  return sum(
    repeats
    * (
      beyond(block.mixer, model.width, length)
      + beyond_moe(block.ffn, model.width, batch * length)
    )
    for _, block, repeats in model.layer_paths()
  )


def _marked(path):
  name = path.relative_to(ROOT / 'configs').with_suffix('').as_posix()
  marks = [pytest.mark.slow] if '/' in name else []
  return pytest.param(path, id=name, marks=marks)


@pytest.mark.parametrize('path', list(map(_marked, RECIPES)))
def test_claims_of_recipes_are_their_products(path):
  config = recipes.load(str(path)).get_config()
  model = build(config.model, 'config.model')
  batch, length = 2, min(config.train.seq_len, 256)
  got = product_flops(forward(model, batch, length)) / (batch * length)
  want = model.flops(length) + beyond_model(model, batch, length)
  assert got == pytest.approx(want, rel=0.02)


WIDE = {
  'attention': Attention(heads=16, kv_heads=4),
  'window': Attention(heads=16, kv_heads=4, window=32),
  'latent': Latent(16, latent_dim=128, nope_dim=64, rope_dim=32, value_dim=64),
  'gated delta': LinearAttention(
    heads=1,
    rule=mixers.rules.gated_delta,
    decay=mixers.decays.Softplus(),
    write=mixers.writes.Sigmoid(),
    conv_size=None,
  ),
  'retention': LinearAttention(
    heads=1,
    rule=mixers.rules.retention,
    decay=mixers.decays.Retention(),
    conv_size=None,
  ),
}


@pytest.mark.parametrize('name', WIDE)
def test_xla_counts_as_many_where_element_wise_work_is_little(name):
  """XLA counts the body of a loop once: one group of chunks, one sequence."""
  mixer = WIDE[name]
  width, length = (1024, 64) if hasattr(mixer, 'kv_heads') else (512, 64)
  width = 1024 if isinstance(mixer, Latent) else width
  made = lowered(mixer, tokens(1, length, width), blank_context(1, length))
  got = made.cost_analysis()['flops'] / length
  want = mixer.flops(width, length) + beyond(mixer, width, length)
  assert got == pytest.approx(want, rel=0.02)


@pytest.mark.parametrize('how', ['mask', 'einsum', 'sort'])
def test_xla_counts_as_many_for_a_mixture(how):
  modules = {
    'mask': dispatch.Mask(),
    'einsum': dispatch.Einsum(capacity_factor=1.0),
    'sort': dispatch.Sort(),
  }
  module = _moe(modules[how]).clone(
    experts=experts.Glu(num_experts=8, hidden=1024)
  )
  made = lowered(module, tokens(1, 64, 1024), blank_context(1, 64))
  got = made.cost_analysis()['flops'] / 64
  want = module.flops(1024) + beyond_moe(module, 1024, 64)
  assert got == pytest.approx(want, rel=0.02)


def test_training_costs_three_forward_passes_but_for_what_is_repeated():
  """A gradient has two products for each; attention makes its logits again."""
  width, heads, size = 64, 4, 16
  model = build(
    common.uniform(
      common.block(common.attention(heads), common.dense(96)),
      1,
      vocab=97,
      width=width,
    )
  )
  ctx = blank_context(B, T)
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), ctx))

  def loss(variables):
    return model.apply(variables, ctx)[0].logits_BTV().mean()

  made = jax.jit(jax.value_and_grad(loss)).lower(shapes)
  again = 2 * heads * size * T
  square = beyond_model(model, B, T)
  want = 3 * (model.flops(T) + square) + again
  assert product_flops(made) / (B * T) == pytest.approx(want, rel=1e-9)


def test_a_loop_of_unknown_length_is_refused_as_an_oracle():
  def double(x, n):
    return jax.lax.while_loop(
      lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] @ c[1]), (0, x)
    )[1]

  made = jax.jit(double).lower(jnp.ones((4, 4)), 3)
  with pytest.raises(AssertionError, match='trips of a loop'):
    product_flops(made)
  scanned = functools.partial(
    jax.lax.scan, lambda c, _: (c @ c, None), length=5
  )
  made = jax.jit(lambda x: scanned(x, None)[0]).lower(jnp.ones((4, 4)))
  assert product_flops(made) == 5 * 2 * 4**3
