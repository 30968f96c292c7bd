"""Converts a checkpoint folder to GGUF with llama.cpp's own converter.

    VENV/bin/python convert_to_gguf.py MODEL TARGET.gguf --dtype f32|bf16 --source LLAMA_CPP

LLAMA_CPP is llama.cpp's source tree; the sdist of llama-cpp-python has one in vendor/llama.cpp. The models have no
tokenizer: the vocabulary is "none". `q_lora_rank: null` is written as 0, without which llama.cpp knows "no low rank"
from the number of layers alone.
"""

import argparse
import logging
import os
import pathlib
import sys


def convert(args: argparse.Namespace) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    sys.path[:0] = [str(args.source), str(args.source / "gguf-py")]
    import gguf
    import torch
    from conversion.deepseek import DeepseekV2Model

    class Converter(DeepseekV2Model):
        """llama.cpp's converter, for models without a tokenizer."""

        model_arch = DeepseekV2Model.model_arch

        def set_vocab(self) -> None:
            self._set_vocab_none()

        def set_gguf_parameters(self) -> None:
            if self.hparams.get("q_lora_rank") is None:
                self.hparams["q_lora_rank"] = 0
            super().set_gguf_parameters()

    logging.disable()
    kind = {"f32": gguf.LlamaFileType.ALL_F32, "bf16": gguf.LlamaFileType.MOSTLY_BF16}[args.dtype]
    part = args.target.with_suffix(".part")  # what is whole has its own name
    with torch.inference_mode():
        Converter(args.model, kind, part).write()
    part.rename(args.target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("target", type=pathlib.Path)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--source", type=pathlib.Path, required=True)
    args = parser.parse_args()
    if not (args.source / "conversion").is_dir():
        sys.exit(f"--source: expected llama.cpp's source tree with conversion/ in it, found {args.source}")
    try:
        convert(args)
    except Exception as error:  # whatever it is, it is the converter's answer
        sys.exit(" ".join(f"{type(error).__name__}: {error}".split()))


if __name__ == "__main__":
    main()
