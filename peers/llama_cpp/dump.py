"""Runs llama.cpp on a checkpoint folder, which it converts first, and writes the logits of every position.

    LLAMA_CPP_SOURCE=DIR VENV/bin/python dump.py MODEL INPUTS OUTPUT f32

convert.py says what DIR is. From bf16 logits alone, an expert chosen otherwise by a near tie cannot be told from an error:
f32 only.
"""

import argparse
import pathlib
import tempfile

import contract
import numpy as np
from convert import convert
from model import LlamaCpp
from safetensors.numpy import load_file, save_file


def load(args: argparse.Namespace) -> LlamaCpp:
    if args.dtype != "f32":
        raise ValueError(f"expected f32, found {args.dtype}")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.gguf")
        convert(args.model, path, args.dtype)
        return LlamaCpp(path, args.dtype)  # the file is mapped, and may go


def run(peer: LlamaCpp, args: argparse.Namespace) -> None:
    sequences = []
    for ids in load_file(args.inputs)["input_ids"].tolist():
        peer.begin(1, len(ids))
        sequences.append(np.stack(peer.decode([(token, place, 0, True) for place, token in enumerate(ids)])))
    save_file({"lm_head": np.stack(sequences)}, args.output)


if __name__ == "__main__":
    contract.dump(__doc__, load, run)
