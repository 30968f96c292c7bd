"""Speed and memory of Hugging Face Transformers (fp32, CPU) on a checkpoint folder: the peer of reference/examples/throughput.rs.

    python benches/transformers_cpu.py DIR [CONTEXT] [STEPS] [THREADS]

Needs the packages of golden/export/requirements.txt. Prefill goes in pieces of 512 tokens, then STEPS single tokens.
"""

import resource
import sys
import time

import torch
from transformers import DeepseekV2ForCausalLM, DynamicCache

directory = sys.argv[1]
context, steps, threads = (int(a) for a in (sys.argv[2:] + ["512", "32", "2"][len(sys.argv) - 2 :])[:3])
torch.set_num_threads(threads)

start = time.perf_counter()
model = DeepseekV2ForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
print(f"load     {time.perf_counter() - start:8.2f} s")

ids = (torch.arange(context + steps + 1) * 7919 % model.config.vocab_size)[None]
cache = DynamicCache(config=model.config)


def feed(begin: int, end: int) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        model(input_ids=ids[:, begin:end], past_key_values=cache, logits_to_keep=1)
    return time.perf_counter() - start


prefill = sum(feed(at, min(at + 512, context)) for at in range(0, context, 512))
print(f"prefill  {context / prefill:8.1f} tokens/s  ({context} tokens, {threads} threads)")
feed(context, context + 1)
times = sorted(feed(context + step, context + step + 1) for step in range(1, steps + 1))
print(f"decode   {steps / sum(times):8.2f} tokens/s  (best {1 / times[0]:.2f}, at context {context}, {steps} steps)")
print(f"peak     {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9:8.2f} GB")
