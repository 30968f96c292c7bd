"""Times llama.cpp.

    VENV/bin/python speed.py MODEL --converted FILE.gguf --dtype f32|bf16 --threads 2 1:512+32,4096+8 8:512+16
"""

import argparse
import ctypes
import importlib.metadata
import pathlib

import contract
import llama_cpp
from model import LlamaCpp

SETTINGS = {
    "f32": "weights and cache f32, no flash attention",
    "bf16": "weights bf16, cache f16, flash attention auto",
}


def version() -> str:
    """Of the package, and the commit of the ggml inside."""
    ggml = ctypes.CDLL(str(pathlib.Path(llama_cpp.__file__).parent / "lib/libggml-base.so"))
    ggml.ggml_commit.restype = ctypes.c_char_p
    return f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}, commit {ggml.ggml_commit().decode()}"


def load(args: argparse.Namespace) -> tuple[LlamaCpp, dict[str, str]]:
    if args.device != "cpu":
        raise ValueError(f"--device: expected cpu, found {args.device}")
    peer = LlamaCpp(args.converted, args.dtype, args.threads)
    return peer, {"version": version(), "settings": SETTINGS[args.dtype]}


if __name__ == "__main__":
    options = {"--converted": {"type": pathlib.Path, "required": True, "help": "the model as convert.py has made it"}}
    contract.speed(__doc__, load, options)
