"""Converts a checkpoint folder to GGUF with llama.cpp's own converter.

    LLAMA_CPP_SOURCE=DIR VENV/bin/python convert.py [--pre NAME] MODEL TARGET.gguf f32|bf16

DIR is llama.cpp's source tree; the sdist of llama-cpp-python has one in vendor/llama.cpp. Most models have no tokenizer: the
vocabulary is "none". With --pre, the model's tokenizer is written, too, and NAME is what llama.cpp calls the way in which it
cuts a text before it looks for tokens (llama.cpp knows that of published models alone). `q_lora_rank: null` is written as 0,
without which llama.cpp knows "no low rank" from the number of layers alone.
"""

import logging
import os
import pathlib
import sys

import contract

SOURCE = pathlib.Path(os.environ.get("LLAMA_CPP_SOURCE", "."))
if not (SOURCE / "conversion").is_dir():
    sys.exit(f"LLAMA_CPP_SOURCE: expected llama.cpp's source tree with conversion/ in it, found {SOURCE}")
sys.path[1:1] = [str(SOURCE), str(SOURCE / "gguf-py")]
import gguf  # noqa: E402
import torch  # noqa: E402
from conversion.deepseek import DeepseekV2Model  # noqa: E402


class Converter(DeepseekV2Model):
    """llama.cpp's converter, for models without a tokenizer, or with one that it has not seen."""

    model_arch = DeepseekV2Model.model_arch
    pre: str | None = None

    def set_vocab(self) -> None:
        if self.pre:
            self._set_vocab_gpt2()
        else:
            self._set_vocab_none()

    def get_vocab_base_pre(self, tokenizer: object) -> str:
        return self.pre or super().get_vocab_base_pre(tokenizer)

    def set_gguf_parameters(self) -> None:
        if self.hparams.get("q_lora_rank") is None:
            self.hparams["q_lora_rank"] = 0
        super().set_gguf_parameters()


def convert(model: pathlib.Path, target: pathlib.Path, dtype: str, pre: str | None = None) -> None:
    """Weights in "f32", or the matrices in "bf16"."""
    logging.disable()
    kind = {"f32": gguf.LlamaFileType.ALL_F32, "bf16": gguf.LlamaFileType.MOSTLY_BF16}[dtype]
    part = target.with_suffix(".part")  # only what is whole has its own name
    with torch.inference_mode():
        converter = Converter(model, kind, part)
        converter.pre = pre
        converter.write()
    part.rename(target)


def main() -> None:
    path = pathlib.Path
    options = {"dtype": {"choices": ["f32", "bf16"]}, "--pre": {"metavar": "NAME"}}
    args = contract.parser(__doc__, {"model": path, "target": path}, options).parse_args()
    try:
        convert(args.model, args.target, args.dtype, args.pre)
    except Exception as error:  # whatever it is, it is the converter's answer
        sys.exit(contract.one_line(error))


if __name__ == "__main__":
    main()
