"""Converts a checkpoint folder to GGUF with llama.cpp's own converter, runs it, and writes the logits of every position.

    LLAMA_CPP_SOURCE=DIR python llama_cpp_adapter.py MODEL INPUTS OUTPUT f32

DIR is llama.cpp's source tree with `conversion/` in it; the sdist of llama-cpp-python has one in vendor/llama.cpp. Weights and
cache are f32. The tiny models have no tokenizer: the vocabulary is "none". `q_lora_rank: null` is written as 0, without
which llama.cpp knows "no low rank" from the number of layers alone.
Exit status 2: llama.cpp takes no such model. 1: it took it, and stopped with an error. One line on stderr says what.
"""

import ctypes
import logging
import os
import pathlib
import sys
import tempfile

os.environ.setdefault("TQDM_DISABLE", "1")
import llama_cpp  # noqa: E402
import numpy as np  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

SOURCE = pathlib.Path(os.environ.get("LLAMA_CPP_SOURCE", "."))
if not (SOURCE / "conversion").is_dir():
    sys.exit(f"LLAMA_CPP_SOURCE: expected llama.cpp's source tree with conversion/ in it, found {SOURCE}")
sys.path[:0] = [str(SOURCE), str(SOURCE / "gguf-py")]
import gguf  # noqa: E402
import torch  # noqa: E402
from conversion.deepseek import DeepseekV2Model  # noqa: E402

MESSAGES: list[str] = []
"""What llama.cpp logs: when it refuses, its functions return nothing, and the reason is here."""


@llama_cpp.llama_log_callback
def listen(level, text, _data) -> None:
    if level >= 4:  # errors
        MESSAGES.append(text.decode(errors="replace"))


class Converter(DeepseekV2Model):
    """llama.cpp's converter, for models without a tokenizer."""

    model_arch = DeepseekV2Model.model_arch

    def set_vocab(self) -> None:
        self._set_vocab_none()

    def set_gguf_parameters(self) -> None:
        if self.hparams.get("q_lora_rank") is None:
            self.hparams["q_lora_rank"] = 0
        super().set_gguf_parameters()


def convert(model: pathlib.Path, target: pathlib.Path) -> None:
    logging.disable()
    with torch.inference_mode():
        Converter(model, gguf.LlamaFileType.ALL_F32, target, eager=True).write()


def open_context(path: pathlib.Path, length: int):
    """A model and a context for one sequence, everything in f32."""
    llama_cpp.llama_backend_init()
    model_settings = llama_cpp.llama_model_default_params()
    model_settings.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_settings)
    if not model:
        raise ValueError(" ".join(MESSAGES) or "the model does not load")
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = max(64, length)
    settings.type_k = settings.type_v = 0  # f32
    settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it computes in f16
    context = llama_cpp.llama_init_from_model(model, settings)
    if not context:
        raise ValueError(" ".join(MESSAGES) or "no context for it")
    return model, context


def logits(context, ids: list[int], size: int) -> np.ndarray:
    """[S,V] of one sequence, from an empty cache."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for place, token in enumerate(ids):
        batch.token[place], batch.pos[place], batch.n_seq_id[place], batch.logits[place] = token, place, 1, 1
        batch.seq_id[place][0] = 0
    status = llama_cpp.llama_decode(context, batch)
    if status:
        raise RuntimeError(f"llama_decode returns {status} " + " ".join(MESSAGES))
    rows = [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, i), (size,)).copy() for i in range(len(ids))]
    llama_cpp.llama_batch_free(batch)
    return np.stack(rows)


def main() -> None:
    model, inputs, output = (pathlib.Path(argument) for argument in sys.argv[1:4])
    if sys.argv[4] != "f32":
        sys.exit("f32 only")
    ids = load_file(inputs)["input_ids"]
    llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
    status = 2
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "model.gguf")
            convert(model, path)
            loaded, context = open_context(path, ids.shape[1])
            size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(loaded))
            status = 1
            rows = np.stack([logits(context, row.tolist(), size) for row in ids])
    except Exception as error:  # whatever it is, it is llama.cpp's answer
        print(" ".join(f"{type(error).__name__}: {error}".split()), file=sys.stderr)
        sys.exit(status)
    save_file({"lm_head": rows}, output)


if __name__ == "__main__":
    main()
