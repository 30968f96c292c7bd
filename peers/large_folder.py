"""Checkpoints of the published models' shapes, for measuring memory and time: no download, and little on the disk.

    python peers/large_folder.py v2-lite DIR --tokens 512
    python peers/large_folder.py v2 DIR --tokens 128 --layers 2
    python peers/large_folder.py v2-lite DIR --text

makes DIR/model, a Hugging Face folder with a file for each layer, and DIR/inputs.safetensors. Attention, norms, routers and
shared experts hold numbers; what is large, routed experts and embeddings, are holes in the files, which read as zeros and take
no place. With --layers only the first layers hold numbers, and all others are holes. With --text the folder has the tokenizer
and the template of text/model, and the embeddings of its tokens are numbers, so that `dsv2 generate` and `dsv2 chat` answer
from it (not in sentences: the numbers are random). It needs NumPy.
"""

import argparse
import json
import shutil
import struct
from pathlib import Path

import numpy as np

TEXT = Path(__file__).resolve().parent.parent / "text" / "model"
YARN = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "original_max_position_embeddings": 4096, "type": "yarn"}
COMMON = {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "vocab_size": 102400, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_shared_experts": 2, "num_experts_per_tok": 6,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "max_position_embeddings": 163840, "rope_theta": 10000,
    "rms_norm_eps": 1e-6, "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
CONFIGS = {
    "v2-lite": {
        "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 27,
        "num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": None, "n_routed_experts": 64,
        "n_group": 1, "topk_group": 1, "topk_method": "greedy", "routed_scaling_factor": 1.0, "norm_topk_prob": False,
        "rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "v2": {
        "hidden_size": 5120, "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_hidden_layers": 60,
        "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "n_routed_experts": 160,
        "n_group": 8, "topk_group": 3, "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0,
        "norm_topk_prob": False, "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
}


def layer_weights(c, layer):
    """Names and shapes of a layer's weights."""
    d, h, r = c["hidden_size"], c["num_attention_heads"], c["qk_rope_head_dim"]
    n, v, latent, q = c["qk_nope_head_dim"], c["v_head_dim"], c["kv_lora_rank"], c["q_lora_rank"]
    attention = {"kv_a_proj_with_mqa": (latent + r, d), "kv_a_layernorm": (latent,), "kv_b_proj": (h * (n + v), latent),
                 "o_proj": (d, h * v)}
    attention |= {"q_a_proj": (q, d), "q_a_layernorm": (q,), "q_b_proj": (h * (n + r), q)} if q else {"q_proj": (h * (n + r), d)}
    weights = {f"self_attn.{name}": shape for name, shape in attention.items()}
    weights |= {"input_layernorm": (d,), "post_attention_layernorm": (d,)}

    def mlp(name, width):
        return {f"{name}.gate_proj": (width, d), f"{name}.up_proj": (width, d), f"{name}.down_proj": (d, width)}

    if layer < c["first_k_dense_replace"]:
        weights |= mlp("mlp", c["intermediate_size"])
    else:
        weights |= {"mlp.gate": (c["n_routed_experts"], d)}
        weights |= mlp("mlp.shared_experts", c["moe_intermediate_size"] * c["n_shared_experts"])
        for expert in range(c["n_routed_experts"]):
            weights |= mlp(f"mlp.experts.{expert}", c["moe_intermediate_size"])
    return {f"model.layers.{layer}.{name}.weight": shape for name, shape in weights.items()}


def bf16(values):
    """The upper half of each number, which is the number in bf16."""
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def rows_with_numbers(name, shape, tokens):
    """The other rows of a tensor are a hole."""
    if ".mlp.experts." in name:
        return 0
    return tokens if "embed_tokens" in name or "lm_head" in name else shape[0]


def write(path, weights, random, holes, tokens):
    header, at = {}, 0
    for name, shape in weights.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        for name, shape in weights.items():
            shape = (rows_with_numbers(name, shape, tokens), *shape[1:])
            if holes or shape[0] == 0:
                continue
            file.seek(start + header[name]["data_offsets"][0])
            ones = len(shape) == 1
            numbers = np.ones(shape) if ones else random.standard_normal(shape, np.float32) / np.float32(shape[1]) ** 0.5
            file.write(bf16(numbers).tobytes())
        file.truncate(start + at)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=CONFIGS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--layers", type=int, help="only the first layers hold numbers")
    parser.add_argument("--text", action="store_true", help="with the tokenizer of text/model")
    args = parser.parse_args()
    c = {**COMMON, **CONFIGS[args.model]}
    d, layers, random = c["hidden_size"], c["num_hidden_layers"], np.random.default_rng(1)
    model = args.folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    files = {f"layer-{layer}.safetensors": layer_weights(c, layer) for layer in range(layers)}
    files["others.safetensors"] = {
        "model.embed_tokens.weight": (c["vocab_size"], d), "lm_head.weight": (c["vocab_size"], d), "model.norm.weight": (d,),
    }
    kept = layers if args.layers is None else args.layers
    tokens = 0
    if args.text:
        for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"]:
            shutil.copy(TEXT / file, model)
        tokens = json.loads((TEXT / "config.json").read_text())["vocab_size"]
    for place, (name, weights) in enumerate(files.items()):
        write(model / name, weights, random, kept <= place < layers, tokens)
    (model / "config.json").write_text(json.dumps(c, indent=1))
    index = {weight: name for name, weights in files.items() for weight in weights}
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))

    embeds = random.standard_normal((1, args.tokens, d), np.float32)
    keep = np.int64(1)
    header = {
        "inputs_embeds": {"dtype": "F32", "shape": list(embeds.shape), "data_offsets": [0, embeds.nbytes]},
        "logits_to_keep": {"dtype": "I64", "shape": [], "data_offsets": [embeds.nbytes, embeds.nbytes + 8]},
    }
    text = json.dumps(header).encode()
    inputs = struct.pack("<Q", len(text)) + text + embeds.tobytes() + keep.tobytes()
    (args.folder / "inputs.safetensors").write_bytes(inputs)


if __name__ == "__main__":
    main()
