"""Runs mistral.rs on a checkpoint folder: the log-probabilities of the token after the last one, as logits.

    VENV/bin/python dump.py MODEL INPUTS OUTPUT f32|bf16 [--pad-values]

mistral.rs takes text and gives log-probabilities. So every token id gets a word of its own (`t7`), and the rows are written
as `lm_head` after a shift by one constant each, which a softmax does not know: to the mean of `MODEL/../case/expected.safetensors`.
"""

import argparse
import json
import pathlib
import tempfile

import contract
import numpy as np
import tensors
from mistralrs import Architecture, ChatCompletionRequest, ModelDType, Runner, Which
from safetensors.numpy import load_file, save_file

DTYPES = {"f32": ModelDType.F32, "bf16": ModelDType.BF16}
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def read_config(model: pathlib.Path) -> dict:
    return json.loads((model / "config.json").read_text())


def prepare(model: pathlib.Path, folder: pathlib.Path, pad_values: bool) -> None:
    """The checkpoint with a tokenizer of words."""
    config = read_config(model)
    for file in model.glob("model*"):
        if pad_values and file.suffix == ".safetensors":
            widened = {name: widen_values(name, tensor, config) for name, tensor in tensors.read(file).items()}
            tensors.write(folder / file.name, widened)
        else:
            (folder / file.name).symlink_to(file.resolve())
    if pad_values:
        config["v_head_dim"] = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    (folder / "config.json").write_text(json.dumps(config))
    words = {"type": "WordLevel", "vocab": {f"t{i}": i for i in range(config["vocab_size"])}, "unk_token": "t0"}
    tokenizer = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"}, "model": words}
    tokenizer["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    absent = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))
    (folder / "tokenizer.json").write_text(json.dumps(absent | tokenizer))
    special = {"bos_token": "t1", "eos_token": "t2", "unk_token": "t0", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))


def widen_values(name: str, tensor: tensors.Tensor, config: dict) -> tensors.Tensor:
    """Rows of zeros below every head's part of `kv_b_proj`, and as many columns in `o_proj`. Bits are copied as they are."""
    heads, nope, value = (config[key] for key in ("num_attention_heads", "qk_nope_head_dim", "v_head_dim"))
    extra = nope + config["qk_rope_head_dim"] - value
    dtype, shape, data = tensor
    bits = np.frombuffer(data, np.uint8).reshape(*shape, -1)
    if name.endswith("self_attn.kv_b_proj.weight"):
        bits = bits.reshape(heads, nope + value, *bits.shape[1:])
        bits = np.pad(bits, ((0, 0), (0, extra), (0, 0), (0, 0))).reshape(-1, *bits.shape[2:])
    elif name.endswith("self_attn.o_proj.weight"):
        bits = bits.reshape(bits.shape[0], heads, value, -1)
        bits = np.pad(bits, ((0, 0), (0, 0), (0, extra), (0, 0))).reshape(bits.shape[0], -1, bits.shape[-1])
    return dtype, list(bits.shape[:-1]), bits.tobytes()


def log_probabilities(runner: Runner, ids: list[int], size: int) -> np.ndarray:
    """[V], of the next token."""
    request = ChatCompletionRequest(
        messages=" ".join(f"t{i}" for i in ids),
        model="default",
        logprobs=True,
        top_logprobs=size,
        max_tokens=1,
        temperature=0.0,
    )
    answer = runner.send_chat_completion_request(request)
    if answer.usage.prompt_tokens != len(ids):
        raise ValueError(f"{len(ids)} tokens were given, {answer.usage.prompt_tokens} arrived")
    found = {one.token: one.logprob for one in answer.choices[0].logprobs.content[0].top_logprobs}
    if len(found) != size:
        raise ValueError(f"{len(found)} of {size} log-probabilities came back")
    return np.array([found[i] for i in range(size)])


def load(args: argparse.Namespace) -> Runner:
    with tempfile.TemporaryDirectory() as folder:
        prepare(args.model, pathlib.Path(folder), args.pad_values)
        which = Which.Plain(model_id=folder, arch=Architecture.DeepseekV2, dtype=DTYPES[args.dtype])
        return Runner(which, token_source="none", max_seqs=1, prefix_cache_n=0)


def run(runner: Runner, args: argparse.Namespace) -> None:
    size = read_config(args.model)["vocab_size"]
    ids = load_file(args.inputs)["input_ids"].tolist()
    rows = np.stack([log_probabilities(runner, row, size) for row in ids])
    expected = load_file(args.model.parent / "case/expected.safetensors")["lm_head"][:, -1]
    rows += (expected.astype(np.float64) - rows).mean(axis=-1, keepdims=True)
    save_file({"lm_head": rows[:, None].astype(np.float32)}, args.output)


if __name__ == "__main__":
    help_ = "widen every value head with zeros to the width of a key head: another checkpoint of the same function"
    contract.dump(__doc__, load, run, {"--pad-values": {"action": "store_true", "help": help_}})
