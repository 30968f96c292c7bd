"""llama.cpp on a CPU, through llama-cpp-python. It runs the file that convert.py makes.

f32: weights and cache in f32, and no flash attention, which computes in f16. bf16: bf16 weights, and else llama.cpp's
own choice: a cache of f16, and flash attention where it can.
"""

import ctypes
import pathlib
import re

import llama_cpp
import numpy as np

MESSAGES: list[str] = []
"""What llama.cpp logs: the size of the cache, and why one of its functions has returned nothing."""
ERRORS: list[str] = []


@llama_cpp.llama_log_callback
def listen(level, text, _data) -> None:
    MESSAGES.append(text.decode(errors="replace"))
    if level >= 4:
        ERRORS.append(MESSAGES[-1])


def refused(what: str) -> ValueError:
    """llama.cpp's own words, or `what`."""
    return ValueError(" ".join(ERRORS) or what)


class LlamaCpp:
    """A loaded model; each use of it gets a context of its own, which is the cache."""

    def __init__(self, path: pathlib.Path, dtype: str, threads: int | None = None) -> None:
        llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.f32, self.threads, self.context = dtype == "f32", threads, None
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
        if not self.model:
            raise refused("the model does not load")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def begin(self, batch: int, length: int) -> None:
        """An empty cache for `batch` sequences."""
        if self.context:
            llama_cpp.llama_free(self.context)
        settings = llama_cpp.llama_context_default_params()
        self.length = -(-length // 256) * 256  # it rounds up to this itself
        settings.n_ctx, settings.n_seq_max = self.length * batch, batch
        if self.threads:
            settings.n_threads = settings.n_threads_batch = self.threads
        if self.f32:
            settings.type_k = settings.type_v = 0
            settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        MESSAGES.clear()
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise refused("no context for it")
        self.batch, self.fed = batch, 0
        self.piece = llama_cpp.llama_n_batch(self.context)

    def decode(self, tokens: list[tuple[int, int, int, bool]]) -> list[np.ndarray]:
        """`tokens`: id, place, sequence, and whether logits are wanted after it. Returns those logits."""
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, (token, place, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, place, 1, wanted
            batch.seq_id[i][0] = sequence
        status = llama_cpp.llama_decode(self.context, batch)
        llama_cpp.llama_batch_free(batch)
        if status:
            raise RuntimeError(" ".join([f"llama_decode returns {status}", *ERRORS]))
        places = [i for i, token in enumerate(tokens) if token[-1]]
        rows = [llama_cpp.llama_get_logits_ith(self.context, i) for i in places]  # this waits for the computation
        return [np.ctypeslib.as_array(row, (self.vocab_size,)) for row in rows]

    def feed(self, ids: list[list[int]]) -> None:
        """Single tokens of all sequences go together, longer pieces sequence by sequence."""
        width = len(ids[0])
        if width == 1:
            rows = self.decode([(row[0], self.fed, b, True) for b, row in enumerate(ids)])
            self.tokens = [int(row.argmax()) for row in rows]
        else:
            self.tokens = []
            for b, row in enumerate(ids):
                for begin in range(0, width, self.piece):
                    end = min(begin + self.piece, width)
                    last = self.decode([(row[i], self.fed + i, b, i == width - 1) for i in range(begin, end)])
                self.tokens.append(int(last[0].argmax()))
        self.fed += width

    def next_tokens(self) -> list[int]:
        return self.tokens

    def cache_bytes_per_token(self) -> tuple[float, str]:
        sizes = re.findall(r"KV buffer size\s*=\s*([\d.]+) MiB", "".join(MESSAGES))
        return sum(map(float, sizes)) * 2**20 / (self.length * self.batch), "its log: size of the buffer / room in it"
