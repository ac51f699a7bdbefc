"""One side of the benchmark: Qwen3-MoE of transformers, on torch.

Run by `bench.py` with the Python that has torch: answers each line `steps N`
with the seconds of N training steps, and `peak` with its peak memory.
"""

import argparse
import resource
import sys
import time

import torch
import transformers


def model(experts: str) -> torch.nn.Module:
  """The model of the benchmark; `experts` names the implementation."""
  config = transformers.Qwen3MoeConfig(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    moe_intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    num_experts=64,
    num_experts_per_tok=8,
    norm_topk_prob=True,
    max_position_embeddings=256,
    rope_parameters=dict(rope_type='default', rope_theta=10_000.0),
    tie_word_embeddings=False,
    use_cache=False,
    output_router_logits=False,
  )
  torch.manual_seed(0)
  return transformers.AutoModelForCausalLM.from_config(
    config, attn_implementation='sdpa', experts_implementation=experts
  )


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--experts', default='grouped_mm')
  parser.add_argument('--compile', action='store_true')
  args = parser.parse_args()
  torch.set_num_threads(2)
  net = model(args.experts)
  net.train()
  forward = torch.compile(net) if args.compile else net
  optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
  generator = torch.Generator().manual_seed(0)
  tokens = torch.randint(0, 512, (8, 256), generator=generator)

  def step():
    optimiser.zero_grad(set_to_none=True)
    loss = forward(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimiser.step()
    return loss.item()

  for _ in range(3):
    step()
  print('ready', sum(p.numel() for p in net.parameters()), flush=True)
  for line in sys.stdin:
    if line.startswith('steps'):
      for _ in range(int(line.split()[1])):
        start = time.perf_counter()
        loss = step()
        print(time.perf_counter() - start, loss, flush=True)
    else:
      peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
      print(peak_kib / 1024, flush=True)


if __name__ == '__main__':
  main()
