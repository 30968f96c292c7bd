"""Times Hugging Face Transformers, on a CPU or a GPU.

    VENV/bin/python speed.py MODEL --dtype f32|bf16 --threads 2 [--device cuda] 1:512+32,4096+8 8:512+16

Prompts go in one piece. Attention and experts are computed as it chooses by itself.
"""

import argparse

import contract
import model
import torch
import transformers


class Transformers:
    """DeepseekV2ForCausalLM with a DynamicCache, which keeps the latents and expands all of them at every step."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = args.device
        self.model = model.load(args.model, args.dtype).to(args.device)
        self.vocab_size = self.model.config.vocab_size

    def begin(self, batch: int, length: int) -> None:
        self.cache = transformers.DynamicCache(config=self.model.config)

    def feed(self, ids: list[list[int]]) -> None:
        with torch.inference_mode():
            ids = torch.tensor(ids, device=self.device)
            self.logits = self.model(input_ids=ids, logits_to_keep=1, **{model.CACHE: self.cache}).logits[:, -1]
        if self.device == "cuda":
            torch.cuda.synchronize()

    def next_tokens(self) -> list[int]:
        return self.logits.argmax(-1).tolist()

    def cache_bytes_per_token(self) -> tuple[float, str]:
        tensors = [t for layer in self.cache.layers for t in (layer.keys, layer.values) if t is not None]
        return sum(t.nbytes for t in tensors) / self.cache.get_seq_length(), "bytes of the cache's tensors"


def load(args: argparse.Namespace) -> tuple[Transformers, dict[str, str]]:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("--device cuda: expected a CUDA device, found none")
    torch.set_num_threads(args.threads)
    peer = Transformers(args)
    config = peer.model.config
    settings = [f"attention {config._attn_implementation}"]
    if experts := getattr(config, "_experts_implementation", None):
        settings.append(f"experts {experts}")
    if args.device == "cuda":
        settings.append(torch.cuda.get_device_name())
    version = f"{transformers.__version__}, torch {torch.__version__}"
    return peer, {"version": version, "settings": ", ".join(settings)}


if __name__ == "__main__":
    contract.speed(__doc__, load)
