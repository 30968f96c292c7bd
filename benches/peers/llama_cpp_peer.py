"""llama.cpp as a peer, through llama-cpp-python. It runs a GGUF file, which `convert_to_gguf.py` has made before.

    VENV/bin/python llama_cpp_peer.py MODEL --gguf FILE --dtype f32|bf16 --threads 2 1:512+32,4096+8 8:512+16

f32: weights and cache in f32, and no flash attention, which computes in f16. bf16: bf16 weights, and else llama.cpp's
own choice: a cache of f16, and flash attention where it can.
"""

import argparse
import ctypes
import importlib.metadata
import pathlib
import re

import llama_cpp
import numpy as np

import contract

MESSAGES: list[str] = []
"""What llama.cpp logs: errors, and the size of the cache."""


@llama_cpp.llama_log_callback
def listen(_level, text, _data) -> None:
    MESSAGES.append(text.decode(errors="replace"))


def refused(what: str) -> ValueError:
    return ValueError(f"{what}: " + " ".join(line.strip() for line in MESSAGES[-5:]))


class LlamaCpp:
    """A loaded model; each session gets a context of its own, which is the cache."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.f32, self.threads, self.context = args.dtype == "f32", args.threads, None
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(args.gguf.encode(), settings)
        if not self.model:
            raise refused("the model does not load")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def begin(self, batch: int, length: int) -> None:
        if self.context:
            llama_cpp.llama_free(self.context)
        settings = llama_cpp.llama_context_default_params()
        self.length = -(-length // 256) * 256  # it rounds up to this itself
        settings.n_ctx, settings.n_seq_max = self.length * batch, batch
        settings.n_threads = settings.n_threads_batch = self.threads
        if self.f32:
            settings.type_k = settings.type_v = 0
            settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        MESSAGES.clear()
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise refused("no context")
        self.batch, self.fed = batch, 0
        self.piece = llama_cpp.llama_n_batch(self.context)

    def feed(self, ids: list[list[int]]) -> None:
        """Single tokens of all sequences go together, longer pieces sequence by sequence."""
        width = len(ids[0])
        self.rows = []
        if width == 1:
            self.decode([(row[0], self.fed, b, True) for b, row in enumerate(ids)])
        else:
            for b, row in enumerate(ids):
                for begin in range(0, width, self.piece):
                    end = min(begin + self.piece, width)
                    self.decode([(row[i], self.fed + i, b, i == width - 1) for i in range(begin, end)])
        self.fed += width

    def decode(self, tokens: list[tuple[int, int, int, bool]]) -> None:
        """`tokens`: id, place, sequence, and whether logits are wanted after it."""
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, (token, place, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, place, 1, wanted
            batch.seq_id[i][0] = sequence
        status = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_batch_free(batch)
        if status:
            raise refused(f"llama_decode returns {status}")
        for i, (_, _, _, wanted) in enumerate(tokens):
            if wanted:  # reading them waits for the computation
                logits = llama_cpp.llama_get_logits_ith(self.context, i)
                self.rows.append(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())

    def next_tokens(self) -> list[int]:
        return [int(row) for row in self.rows]

    def cache_bytes_per_token(self) -> tuple[float, str]:
        sizes = re.findall(r"KV buffer size\s*=\s*([\d.]+) MiB", "".join(MESSAGES))
        return sum(map(float, sizes)) * 2**20 / (self.length * self.batch), "its log: size of the buffer / room in it"


def version() -> str:
    """Of the package, and the commit of the ggml inside."""
    ggml = ctypes.CDLL(str(pathlib.Path(llama_cpp.__file__).parent / "lib/libggml-base.so"))
    ggml.ggml_commit.restype = ctypes.c_char_p
    return f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}, commit {ggml.ggml_commit().decode()}"


def load(args: argparse.Namespace) -> tuple[LlamaCpp, dict[str, str]]:
    if args.device != "cpu":
        raise ValueError(f"--device: expected cpu, found {args.device}")
    llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    peer = LlamaCpp(args)
    settings = (
        "weights and cache f32, no flash attention" if peer.f32 else "weights bf16, cache f16, flash attention auto"
    )
    return peer, {"version": version(), "settings": settings}


if __name__ == "__main__":
    contract.serve(__doc__, load, gguf={"required": True, "help": "the converted model"})
