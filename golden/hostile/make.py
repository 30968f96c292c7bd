"""Writes the files of this folder: one good model, and files each of which has one thing wrong with it.

    python make.py

Standard library only. The lines that refuse them (*.error, *.failure) are not written here: they are what `dsv2` says.
"""

import io
import json
import math
import struct
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SIZE = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I64": 8, "I32": 4, "U32": 4, "BOOL": 1, "F8_E4M3": 1}

# A good model: one layer of four experts in two groups, a few hundred weights.

CONFIG = {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "vocab_size": 7, "hidden_size": 4,
    "intermediate_size": 5, "moe_intermediate_size": 3, "num_hidden_layers": 1, "num_attention_heads": 2,
    "q_lora_rank": None, "kv_lora_rank": 3, "qk_nope_head_dim": 2, "qk_rope_head_dim": 2, "v_head_dim": 2,
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "topk_method": "group_limited_greedy",
    "n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.0, "first_k_dense_replace": 0, "rope_theta": 10000.0,
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "hidden_act": "silu",
}
LAYER = "model.layers.0"
WEIGHTS = {
    "model.embed_tokens.weight": [7, 4],
    f"{LAYER}.input_layernorm.weight": [4],
    f"{LAYER}.self_attn.q_proj.weight": [8, 4],
    f"{LAYER}.self_attn.kv_a_proj_with_mqa.weight": [5, 4],
    f"{LAYER}.self_attn.kv_a_layernorm.weight": [3],
    f"{LAYER}.self_attn.kv_b_proj.weight": [8, 3],
    f"{LAYER}.self_attn.o_proj.weight": [4, 4],
    f"{LAYER}.post_attention_layernorm.weight": [4],
    f"{LAYER}.mlp.gate.weight": [4, 4],
    **{
        f"{LAYER}.mlp.{mlp}.{proj}.weight": [4, 3] if proj == "down_proj" else [3, 4]
        for mlp in [f"experts.{expert}" for expert in range(4)] + ["shared_experts"]
        for proj in ["gate_proj", "up_proj", "down_proj"]
    },
    "model.norm.weight": [4],
    "lm_head.weight": [7, 4],
}
IDS = [1, 5, 2]


def tensor(dtype, shape, values):
    """A tensor: its type, its shape, its bytes."""
    values = list(values)
    assert len(values) == math.prod(shape)
    if dtype == "BF16":  # all of ours are multiples of an eighth: the low half of the float is zero
        return dtype, shape, b"".join(struct.pack("<f", x)[2:] for x in values)
    code = {"F16": "e", "F32": "f", "F64": "d", "I64": "q", "I32": "i", "U32": "I", "U64": "Q", "BOOL": "B",
            "F8_E4M3": "B"}[dtype]
    return dtype, shape, struct.pack(f"<{len(values)}{code}", *values)


def filled(dtype, shape, value=0):
    return tensor(dtype, shape, [value] * math.prod(shape))


def weight(name):
    shape, salt = WEIGHTS[name], len(name)
    return tensor("BF16", shape, [((7 * i + salt) % 13 - 6) / 8 for i in range(math.prod(shape))])


def without(tensors, name):
    return {other: tensor for other, tensor in tensors.items() if other != name}


def safetensors(tensors):
    """A safetensors file in good order."""
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return raw_file(json.dumps(header, separators=(",", ":")), data)


def raw_file(header, data=b""):
    """A safetensors file whose header is any text or bytes."""
    header = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(header)) + header + data


def write(path, content):
    path = HERE / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


MODEL = {name: weight(name) for name in WEIGHTS}
INPUTS = {"input_ids": tensor("I64", [1, 3], IDS)}


def good():
    write("good/config.json", json.dumps(CONFIG, indent=1) + "\n")
    write("good/model.safetensors", safetensors(MODEL))
    write("good/inputs.safetensors", safetensors(INPUTS))
    rows = b"".join(MODEL["model.embed_tokens.weight"][2][8 * i : 8 * i + 8] for i in IDS)
    write("good/dump.safetensors", safetensors({"model.embed_tokens": ("BF16", [1, 3, 4], rows)}))


def configs():
    text = json.dumps(CONFIG, separators=(",", ":"))
    rope = CONFIG["rope_scaling"]
    texts = {
        "empty": "",  # no byte at all
        "truncated": text[: len(text) // 2],  # the first half
        "a-list": "[" + text + "]",  # a config in a list
        "null": "null",  # JSON, and no object
        "a-comment": "// DeepSeek-V2\n" + text,  # JSON knows no comments
        "trailing-comma": text[:-1] + ",}",  # nor commas before a brace
        "two-objects": text + text,  # something after the end
        "not-utf-8": text.encode().replace(b"silu", b"sil\xfc"),  # Latin-1
        "nested-deeply": text[:-1] + ',"x":' + "[" * 2000 + "]" * 2000 + "}",  # must not overflow a stack
        "key-twice": text.replace('"vocab_size":7', '"vocab_size":7,"vocab_size":8'),  # first or last?
        "number-nan": text.replace('"rope_theta":10000.0', '"rope_theta":NaN'),  # Python's json takes it
        "number-too-large": text.replace('"rope_theta":10000.0', '"rope_theta":1e999'),  # infinity as a double
        "vocab-size-beyond-64-bits": text.replace('"vocab_size":7', '"vocab_size":20000000000000000000'),
    }
    changes = {
        "vocab-size-zero": {"vocab_size": 0},
        "vocab-size-negative": {"vocab_size": -7},
        "vocab-size-fraction": {"vocab_size": 7.5},
        "vocab-size-text": {"vocab_size": "7"},
        "vocab-size-null": {"vocab_size": None},
        "vocab-size-an-object": {"vocab_size": {"a\nb": [1]}},  # may not break the message
        "vocab-size-largest": {"vocab_size": 2**64 - 1},
        "hidden-size-too-large": {"hidden_size": 2**31},
        "hidden-size-no-multiple-of-heads": {"num_attention_heads": 3},
        "layers-zero": {"num_hidden_layers": 0},
        "layers-too-many": {"num_hidden_layers": 2_000_000_000},  # a list of all weights would fill the memory
        "heads-zero": {"num_attention_heads": 0},
        "key-value-heads-differ": {"num_key_value_heads": 1},
        "rope-head-odd": {"qk_rope_head_dim": 3},
        "q-lora-rank-zero": {"q_lora_rank": 0},
        "experts-zero": {"n_routed_experts": 0},
        "experts-not-divisible-by-groups": {"n_group": 3},
        "experts-per-token-too-many": {"num_experts_per_tok": 5},
        "experts-per-token-missing": {"num_experts_per_tok": None},
        "experts-in-groups-too-few": {"num_experts_per_tok": 3},  # one group of two is kept
        "groups-zero": {"n_group": 0},
        "groups-kept-zero": {"topk_group": 0},
        "groups-kept-too-many": {"topk_group": 3},
        "topk-method-of-v3": {"topk_method": "noaux_tc"},
        "activation-unknown": {"hidden_act": "swish9"},
        "model-type-unknown": {"model_type": "llama"},
        "architecture-unknown": {"architectures": ["LlamaForCausalLM"]},
        "epsilon-negative": {"rms_norm_eps": -1e-6},
        "epsilon-a-list": {"rms_norm_eps": [1e-6]},
        "tied-a-text": {"tie_word_embeddings": "false"},  # true in many languages
        "cache-a-text": {"use_cache": "yes"},
        "pad-token-beyond-vocabulary": {"pad_token_id": 7},
        "problem-type-unknown": {"problem_type": "ranking"},
        "rope-scaling-a-number": {"rope_scaling": 4},
        "rope-type-unknown": {"rope_scaling": {**rope, "type": "spiral"}},
        "rope-type-of-another-model": {"rope_scaling": {**rope, "type": "mrope"}},
        "rope-type-a-number": {"rope_scaling": {**rope, "type": 3}},
        "rope-factor-missing": {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 16}},
        "rope-factor-zero": {"rope_scaling": {**rope, "factor": 0}},
        "rope-factor-negative": {"rope_scaling": {**rope, "factor": -4.0}},
        "rope-factor-text": {"rope_scaling": {**rope, "factor": "4"}},
        "rope-original-length-zero": {"rope_scaling": {**rope, "original_max_position_embeddings": 0}},
        "rope-theta-zero": {"rope_theta": 0.0},
        "rope-theta-one": {"rope_theta": 1.0},  # YaRN divides by its logarithm
        "rope-partial": {"partial_rotary_factor": 0.5},
    }
    texts |= {what: json.dumps(CONFIG | change, separators=(",", ":")) for what, change in changes.items()}
    for what, content in texts.items():
        write(f"config/{what}.json", content)


def files():
    def one(entry, data=b"\0" * 8):
        return raw_file('{"w":%s}' % entry, data)

    def two(first, second, data=b"\0" * 8):
        return raw_file('{"v":%s,"w":%s}' % (first, second), data)

    def entry(shape="[2]", offsets="[0,8]", dtype='"F32"'):
        return '{"dtype":%s,"shape":%s,"data_offsets":%s}' % (dtype, shape, offsets)

    fine = one(entry())
    files = {
        "empty": b"",
        "seven-bytes": fine[:7],  # not even the length of the header
        "header-cut-off": fine[:30],  # the file ends in the header
        "header-length-zero": raw_file(""),
        "header-length-one-short": struct.pack("<Q", len(fine) - 17) + fine[8:],  # the last brace counts as data
        "header-length-beyond-the-file": struct.pack("<Q", 1000) + fine[8:],
        "header-length-2-to-the-63": struct.pack("<Q", 2**63) + fine[8:],  # negative, if signed
        "header-length-2-to-the-64-less-8": struct.pack("<Q", 2**64 - 8) + fine[8:],  # wraps around to 0
        "header-no-json": raw_file("dtype: F32"),
        "header-a-list": raw_file("[]"),
        "header-not-utf-8": raw_file(b'{"\xff":' + entry().encode() + b"}", b"\0" * 8),
        "header-of-spaces": raw_file(" " * 4000),
        "header-nested-deeply": raw_file("[" * 2000),  # must not overflow a stack
        "header-with-something-behind": raw_file('{"w":%s}{}' % entry(), b"\0" * 8),
        "metadata-twice": raw_file('{"__metadata__":{"a":"1"},"__metadata__":{"a":"2"}}'),
        "header-after-spaces": raw_file('  {"__metadata__":{}}'),
        "metadata-a-number": raw_file('{"__metadata__":{"format":1}}'),
        "one-byte-short": fine[:-1],
        "one-byte-long": fine + b"\0",
        "offsets-overlap": two(entry("[1]", "[0,4]"), entry("[1]", "[2,6]"), b"\0" * 6),
        "offsets-equal": two(entry(), entry()),
        "offsets-leave-a-gap": two(entry("[1]", "[0,4]"), entry("[1]", "[8,12]"), b"\0" * 12),
        "offsets-begin-late": one(entry(offsets="[4,12]"), b"\0" * 12),
        "offsets-beyond-the-end": one(entry("[1000]", "[0,4000]")),
        "offsets-backwards": one(entry(offsets="[8,0]")),
        "offsets-negative": one(entry(offsets="[-8,0]")),
        "offsets-largest": one(entry("[0]", "[0,18446744073709551615]"), b""),
        "offsets-three": one(entry(offsets="[0,4,8]")),
        "offsets-missing": one('{"dtype":"F32","shape":[2]}'),
        "shape-too-large-for-its-bytes": one(entry("[3]")),
        "shape-too-small-for-its-bytes": one(entry("[1]")),
        "shape-overflows": one(entry("[4294967296,4294967296]")),  # the product wraps around to 0
        "shape-overflows-to-the-right-size": one(entry("[9223372036854775809,2]")),  # wraps around to 2
        "shape-empty-but-impossible": one(entry("[0,9223372036854775807,9]", "[0,0]"), b""),
        "shape-negative": one(entry("[-2]")),
        "shape-fraction": one(entry("[2.5]")),
        "shape-text": one(entry('["2"]')),
        "shape-missing": one('{"dtype":"F32","data_offsets":[0,8]}'),
        "shape-twice": one('{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}'),
        "type-unknown": one(entry(dtype='"FLOAT"')),
        "type-a-number": one(entry(dtype="32")),
        "type-missing": one('{"shape":[2],"data_offsets":[0,8]}'),
        "type-ends-within-a-byte": one(entry("[3]", "[0,1]", '"F4"'), b"\0"),
        "name-twice": raw_file('{"w":%s,"w":%s}' % (entry(), entry()), b"\0" * 8),
        "name-twice-with-other-data": raw_file(
            '{"w":%s,"w":%s}' % (entry("[1]", "[0,4]"), entry("[1]", "[4,8]")), b"\0" * 8
        ),
        "name-with-a-line-break": raw_file('{"a\\nb":%s}' % entry("[3]"), b"\0" * 8),  # may not break the message
    }
    for what, content in files.items():
        write(f"safetensors/{what}.safetensors", content)


def checkpoints():
    gate, down = f"{LAYER}.mlp.gate.weight", f"{LAYER}.mlp.experts.3.down_proj.weight"
    head = "lm_head.weight"

    def folder(what, tensors, inputs=None, **change):
        write(f"checkpoint/{what}/config.json", json.dumps(CONFIG | change, indent=1) + "\n")
        if tensors is not None:
            write(f"checkpoint/{what}/model.safetensors", safetensors(tensors))
        if inputs is not None:
            write(f"checkpoint/{what}/inputs.safetensors", safetensors(inputs))

    def spoilt(name, index, value):
        values = [0.0] * math.prod(WEIGHTS[name])
        values[index] = value
        return MODEL | {name: tensor("BF16", WEIGHTS[name], values)}

    folder("weights-missing", None)
    folder("weights-a-folder", None)
    write("checkpoint/weights-a-folder/model.safetensors/readme.txt", "a folder\n")
    folder("weight-missing", without(MODEL, gate))
    folder("weight-transposed", MODEL | {down: filled("BF16", [3, 4])})
    folder("weight-of-no-element", MODEL | {down: filled("BF16", [4, 0])})
    folder("weight-flat", MODEL | {gate: filled("BF16", [16])})
    folder("weight-of-integers", MODEL | {gate: filled("I32", [4, 4])})
    folder("weight-of-8-bit-floats", MODEL | {gate: filled("F8_E4M3", [4, 4])})
    folder("weight-nan", spoilt(gate, 7, math.nan))  # an expert that no token goes to is not read
    folder("weight-infinite", spoilt(head, 27, -math.inf))
    folder("config-of-more-layers", MODEL, num_hidden_layers=2)
    folder("config-of-fewer-experts", MODEL, n_routed_experts=2, n_group=1)
    folder("config-of-a-larger-vocabulary", MODEL, vocab_size=8)
    folder("config-of-the-largest-vocabulary", MODEL, vocab_size=2**31 - 1)  # must not fill the memory
    folder("config-of-a-query-latent", MODEL, q_lora_rank=3)
    folder("config-of-biases", MODEL, attention_bias=True)
    folder("config-tied-for-a-classifier", MODEL, architectures=["DeepseekV2ForSequenceClassification"])

    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    where = {name: shards[name == head] for name in WEIGHTS}

    def sharded(what, index, first=without(MODEL, head), second={head: MODEL[head]}):
        folder(what, None)
        write(f"checkpoint/{what}/model.safetensors.index.json", index if isinstance(index, str) else json.dumps(index))
        for shard, tensors in zip(shards, [first, second]):
            if tensors is not None:
                content = tensors if isinstance(tensors, bytes) else safetensors(tensors)
                write(f"checkpoint/{what}/{shard}", content)

    def elsewhere(shard):
        return {"weight_map": where | {head: shard}}

    folder("index-missing", None)
    write(f"checkpoint/index-missing/{shards[1]}", safetensors({head: MODEL[head]}))
    sharded("shard-missing", {"weight_map": where}, second=None)
    sharded("shard-empty", {"weight_map": where}, second=b"")
    sharded("shard-cut-off", {"weight_map": where}, second=safetensors({head: MODEL[head]})[:-1])
    sharded("shard-in-another-folder", elsewhere("../../good/model.safetensors"), second=None)  # it is there
    sharded("shard-with-an-absolute-path", elsewhere("/etc/passwd"), second=None)
    sharded("shard-the-folder-itself", elsewhere("."), second=None)
    sharded("shard-a-number", elsewhere(2), second=None)
    sharded("shard-without-its-tensor", {"weight_map": where}, second={"score.weight": MODEL[head]})
    sharded("tensor-in-two-shards", {"weight_map": where}, first=MODEL)
    sharded("index-without-a-tensor", {"weight_map": without(where, gate)}, first=without(without(MODEL, head), gate))
    sharded("index-of-nothing", {}, None, None)
    sharded("index-without-a-map", {"metadata": {"total_size": 0}}, None, None)
    sharded("index-with-an-empty-map", {"weight_map": {}}, None, None)
    sharded("index-with-a-list", {"weight_map": sorted(where)}, None, None)
    sharded("index-truncated", json.dumps({"weight_map": where})[:300], None, None)
    sharded("index-with-a-tensor-twice", '{"weight_map": {"%s": "%s", "%s": "%s"}}' % (head, shards[0], head, shards[1]))

    # A classifier of three classes, with labels that are none.
    score = "score.weight"
    classifier = without(MODEL, head) | {score: filled("BF16", [3, 4])}

    def classified(what, labels, problem_type="single_label_classification"):
        change = {"architectures": ["DeepseekV2ForSequenceClassification"], "num_labels": 3, "pad_token_id": 0}
        folder(what, classifier, INPUTS | {"labels": labels}, **change, problem_type=problem_type)

    classified("labels-beyond-the-classes", tensor("I64", [1], [3]))
    classified("labels-too-few-for-the-batch", tensor("I64", [0], []))
    classified("labels-of-tokens", tensor("I64", [1, 3], IDS))
    classified("labels-nan", tensor("F32", [1], [math.nan]), "regression")
    classified("labels-of-too-few-sequences", filled("F32", [2, 3]), "multi_label_classification")


def inputs():
    def embeds(value, width=4):
        values = [0.0] * (3 * width)
        values[width + 1] = value
        return {"inputs_embeds": tensor("F32", [1, 3, width], values)}

    def additive(value):
        return INPUTS | {"attention_mask": filled("F32", [1, 1, 3, 3], value)}

    def added(name, dtype, shape, values):
        return INPUTS | {name: tensor(dtype, shape, values)}

    def laid_end_to_end(name, numbers, dtype="I64"):
        return {"input_ids": tensor("I64", [3], IDS), name: tensor(dtype, [len(numbers)], numbers)}

    lengths = laid_end_to_end("seq_lens", [2, 1])
    cases = {
        "of-nothing": {},
        "ids-missing": {"attention_mask": filled("I64", [1, 3], 1)},
        "ids-and-embeddings": INPUTS | embeds(0.0),
        "ids-beyond-the-vocabulary": {"input_ids": tensor("I64", [1, 3], [1, 7, 2])},
        "ids-negative": {"input_ids": tensor("I64", [1, 3], [1, 5, -1])},
        "ids-lowest": {"input_ids": tensor("I64", [1, 3], [-(2**63), 5, 2])},
        "ids-floats": {"input_ids": tensor("F32", [1, 3], IDS)},
        "ids-of-one-axis": {"input_ids": tensor("I64", [3], IDS)},
        "ids-of-no-token": {"input_ids": tensor("I64", [1, 0], [])},
        "ids-of-no-sequence": {"input_ids": tensor("I64", [0, 3], [])},
        "embeddings-nan": embeds(math.nan),
        "embeddings-infinite": embeds(math.inf),
        "embeddings-of-another-width": embeds(0.0, width=5),
        "embeddings-integers": {"inputs_embeds": filled("I64", [1, 3, 4])},
        "embeddings-of-64-bits": {"inputs_embeds": filled("F64", [1, 3, 4])},
        "embeddings-of-no-token": {"inputs_embeds": filled("F32", [1, 0, 4])},
        "mask-too-short": added("attention_mask", "I64", [1, 2], [1, 1]),
        "mask-too-long": added("attention_mask", "I64", [1, 4], [1, 1, 1, 1]),
        "mask-of-another-batch": added("attention_mask", "I64", [2, 3], [1] * 6),
        "mask-of-floats": added("attention_mask", "F32", [1, 3], [1, 1, 1]),  # to be multiplied? to be added?
        "mask-nan": additive(math.nan),
        "mask-plus-infinity": additive(math.inf),
        "mask-for-too-many-heads": INPUTS | {"attention_mask": filled("F32", [1, 3, 3, 3])},
        "positions-too-few": added("position_ids", "I64", [1, 2], [0, 1]),
        "positions-of-another-batch": added("position_ids", "I64", [2, 3], [0, 1, 2] * 2),
        "positions-of-one-axis": added("position_ids", "I64", [3], [0, 1, 2]),
        "positions-floats": added("position_ids", "F32", [1, 3], [0, 1, 2]),
        "labels-beyond-the-vocabulary": added("labels", "I64", [1, 3], [1, 2, 7]),
        "labels-negative": added("labels", "I64", [1, 3], [1, -1, 2]),  # only -100 means none
        "labels-too-few": added("labels", "I64", [1, 2], [1, 2]),
        "labels-floats": added("labels", "F32", [1, 3], [1, 2, 3]),
        "labels-truths": added("labels", "BOOL", [1, 1], [1]),
        "labels-of-a-classifier": added("labels", "I64", [1], [0]),
        "labels-not-as-many-as-logits": added("labels", "I64", [1, 3], IDS)
        | {"logits_to_keep": tensor("I64", [], [2])},
        "logits-to-keep-beyond-the-end": added("logits_to_keep", "I64", [2], [0, 3]),
        "logits-to-keep-before-the-beginning": added("logits_to_keep", "I64", [1], [-4]),
        "logits-to-keep-of-another-batch": added("logits_to_keep", "I64", [2, 1], [0, 1]),
        "logits-to-keep-mask-too-short": added("logits_to_keep", "BOOL", [1, 2], [1, 0]),
        "logits-to-keep-a-fraction": added("logits_to_keep", "F32", [], [0.5]),
        "num-items-negative": added("num_items_in_batch", "I64", [], [-1]),
        "num-items-two": added("num_items_in_batch", "I64", [2], [1, 1]),
        "name-unknown": added("attention_masks", "I64", [1, 3], [1, 1, 1]),
        "name-with-a-line-break": added("a\nb", "I64", [1, 3], [1, 1, 1]),  # may not break the message
        "ends-of-nothing": laid_end_to_end("cu_seqlens", []),
        "ends-of-no-sequence": laid_end_to_end("cu_seqlens", [0]),
        "ends-twice-the-same": laid_end_to_end("cu_seqlens", [0, 2, 2, 3]),
        "ends-falling": laid_end_to_end("cu_seqlens", [0, 4, 3]),
        "ends-not-from-0": laid_end_to_end("cu_seqlens", [1, 3]),
        "ends-before-the-last-token": laid_end_to_end("cu_seqlens", [0, 2]),
        "ends-beyond-the-last-token": laid_end_to_end("cu_seqlens", [0, 2, 4]),
        "ends-floats": laid_end_to_end("cu_seqlens", [0.0, 3.0], "F32"),
        "ends-and-lengths": lengths | laid_end_to_end("cu_seqlens", [0, 2, 3]),
        "lengths-of-nothing": laid_end_to_end("seq_lens", []),
        "lengths-zero": laid_end_to_end("seq_lens", [3, 0]),
        "lengths-negative": laid_end_to_end("seq_lens", [4, -1]),
        "lengths-largest": laid_end_to_end("seq_lens", [2**63 - 1] * 3),
        "lengths-of-fewer-tokens": laid_end_to_end("seq_lens", [1, 1]),
        "lengths-of-one-number": {"input_ids": tensor("I64", [3], IDS), "seq_lens": tensor("I64", [], [3])},
        "lengths-of-a-batch": {"input_ids": tensor("I64", [2, 3], IDS * 2), "seq_lens": tensor("I64", [2], [3, 3])},
        "lengths-beside-a-mask": lengths | {"attention_mask": filled("I64", [1, 3], 1)},
        "lengths-beside-labels": lengths | {"labels": tensor("I64", [1, 3], IDS)},
        "lengths-beside-chosen-logits": lengths | {"logits_to_keep": tensor("I64", [], [1])},
        "ids-beyond-63-bits": {"input_ids": tensor("U64", [1, 3], [1, 2**63, 2])},
        "truth-neither-0-nor-1": added("attention_mask", "BOOL", [1, 3], [1, 1, 2]),
    }
    for what, tensors in cases.items():
        write(f"inputs/{what}.safetensors", safetensors(tensors))


def dumps():
    scores, gate = f"{LAYER}.self_attn.attn_scores", f"{LAYER}.mlp.gate"

    def scores_with(value):
        values = [0.0] * 18
        values[1] = value  # the first query may not see the second key
        return {scores: tensor("F32", [1, 2, 3, 3], values)}

    def experts(*chosen):
        return {f"{gate}.topk_indices": tensor("I64", [3, 2], chosen)}

    cases = {
        # refused
        "of-nothing": {},
        "without-a-stage": {"transformer.h.0": filled("F32", [1, 3, 4])},
        # nothing to compare: names that are stages of other models, or of none
        "layer-beyond-the-last": {f"model.layers.{layer}": filled("F32", [1, 3, 4]) for layer in (1, 99)},
        "layer-with-zeros": {"model.layers.00.mlp": filled("F32", [1, 3, 4])},
        "layer-with-a-sign": {"model.layers.+0.mlp": filled("F32", [1, 3, 4])},
        "stage-of-a-classifier": {"score": filled("F32", [1, 3, 2]), "pooled_logits": filled("F32", [1, 2])},
        "stage-of-a-query-latent": {f"{LAYER}.self_attn.q_a_proj": filled("F32", [1, 3, 3])},
        "loss-without-labels": {"loss": filled("F32", [])},
        "stage-of-4-bit-floats": {"model.norm": ("F4", [1, 3, 4], b"\0" * 6)},
        "stage-complex": {"model.norm": ("C64", [1, 3, 4], b"\0" * 96)},
        "truth-neither-0-nor-1": {"model.norm": filled("BOOL", [1, 3, 4], 2)},
        # judged a failure
        "stage-of-wrong-shape": {"lm_head": filled("F32", [3])},
        "stage-of-wrong-rank": {"lm_head": filled("F32", [3, 7, 2])},
        "stage-of-no-element": {"lm_head": filled("F32", [1, 0, 7])},
        "stage-of-integers": {"lm_head": filled("I64", [1, 3, 7])},
        "stage-of-8-bit-floats": {"model.norm": filled("F8_E4M3", [1, 3, 4])},
        "stage-of-unsigned": {"model.norm": filled("U32", [1, 3, 4])},
        "stage-infinite": {"lm_head": filled("F16", [1, 3, 7], math.inf)},
        "stage-nan": {"model.norm": filled("F32", [1, 3, 4], math.nan)},
        "score-nan-where-masked": scores_with(math.nan),
        "score-finite-where-masked": scores_with(0.0),
        "experts-of-no-model": experts(0, 4, 0, 1, 0, 1),
        "experts-negative": experts(-1, 0, 0, 1, 0, 1),
        "experts-largest": experts(-(2**63), -1, 0, 2**63 - 1, 0, 1),
        "experts-twice-the-same": experts(0, 0, 1, 1, 2, 2),
        "experts-of-two-groups": experts(0, 2, 0, 2, 0, 2),  # one group is kept
        "experts-too-many": {f"{gate}.topk_indices": tensor("I64", [3, 3], [0, 1, 2] * 3)},
        "experts-floats": {f"{gate}.topk_indices": tensor("F32", [3, 2], [0.5, 1] * 3)},
        "experts-of-no-weight": {f"{gate}.topk_weights": filled("F32", [3, 2])},
    }
    for what, tensors in cases.items():
        write(f"dump/{what}.safetensors", safetensors(tensors))


def archives():
    norm = "model.norm"

    def zipped(*members, method=zipfile.ZIP_STORED):
        """A zip archive of names and bytes, in this order; a name may be there twice."""
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as archive:
            for name, content in members:
                info = zipfile.ZipInfo(name)
                info.compress_type = method
                archive.writestr(info, content)
        return out.getvalue()

    def npy(descr="<f4", shape="(1, 3, 4)", data=b"\0" * 48, header=None):
        text = header or "{'descr': '%s', 'fortran_order': False, 'shape': %s, }\n" % (descr, shape)
        return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode() + data

    def npz(*arrays, **how):
        return zipped(*[(f"{name}.npy", content) for name, content in arrays], **how)

    def text(string):
        return b"X" + struct.pack("<I", len(string)) + string.encode()

    def number(n):
        return b"\x8a\x08" + struct.pack("<q", n)

    def numbers(ns):
        return b"(" + b"".join(number(n) for n in ns) + b"t"

    def tensor(offset=0, shape=(1, 3, 4), strides=(12, 4, 1), function=b"ctorch._utils\n_rebuild_tensor_v2\n"):
        """The instructions that put a tensor together, out of storage 0."""
        storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(12) + b"tQ"
        rest = b"\x89ccollections\nOrderedDict\n)R"
        return function + b"(" + storage + number(offset) + numbers(shape) + numbers(strides) + rest + b"tR"

    def of(instructions):
        """A dictionary with the one stage that the instructions make."""
        return b"\x80\x02}" + text(norm) + instructions + b"s."

    def pt(pickle, storage=b"\0" * 48, more=(), **how):
        return zipped(("a/data.pkl", pickle), *([("a/data/0", storage)] if storage is not None else []), *more, **how)

    # A bomb: the archive says that a few bytes become 2^40.
    small = npz((norm, npy()), method=zipfile.ZIP_DEFLATED)
    directory = small.rindex(b"PK\1\2")
    bomb = small[: directory + 24] + struct.pack("<I", 2**31) + small[directory + 28 :]

    contents = {
        "calls-os-system.pt": pt(of(b"cposix\nsystem\n" + text("touch /tmp/x") + b"\x85R")),
        "calls-eval-of-a-newer-pickle.pt": pt(of(text("builtins") + text("eval") + b"\x93" + text("1") + b"\x85R")),
        "calls-a-function-of-torch.pt": pt(of(b"ctorch\nload\n" + text("x") + b"\x85R")),
        "makes-an-object.pt": pt(of(b"ctorch\nFloatStorage\n)\x81")),
        "a-program.pt": pt(of(tensor()), more=[("a/code/model.py", "pass")]),
        "pickle-empty.pt": pt(b""),
        "pickle-cut-off.pt": pt(of(tensor())[:-9]),
        "pickle-nested-deeply.pt": pt(b"\x80\x02" + b"]" * 9000 + b"a" * 8999 + b"."),  # must not overflow a stack
        "pickle-contains-itself.pt": pt(b"\x80\x02]q\0h\0a."),
        "pickle-doubles.pt": pt(b"\x80\x02" + tensor() + b"q\0" + b"h\0h\0\x86q\0" * 40 + b"."),  # 2^40 tensors
        "pickle-without-a-memo.pt": pt(of(b"h\0")),
        "storage-missing.pt": pt(of(tensor()), None),
        "storage-too-short.pt": pt(of(tensor()), b"\0" * 44),
        "storage-compressed.pt": pt(of(tensor()), method=zipfile.ZIP_DEFLATED),
        "tensor-beyond-its-storage.pt": pt(of(tensor(offset=1))),
        "tensor-of-negative-strides.pt": pt(of(tensor(offset=11, strides=(-12, -4, -1)))),
        "tensor-of-overflowing-strides.pt": pt(of(tensor(strides=(12, 2**62, 2**62)))),
        "tensor-of-too-few-strides.pt": pt(of(tensor(strides=(4, 1)))),
        "tensor-expanded-beyond-memory.pt": pt(of(tensor(shape=(2**20, 2**20, 4), strides=(0, 0, 1)))),
        "tensor-of-an-impossible-shape.pt": pt(of(tensor(shape=(0, 2**62, 2**62)))),
        "big-endian.pt": pt(of(tensor()), more=[("a/byteorder", "big")]),
        "old-format.pt": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
        "object-array.npz": npz((norm, npy("|O"))),
        "structured-array.npz": npz((norm, npy(header="{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (1,), }"))),
        "shape-too-large.npz": npz((norm, npy(shape="(1, 3, 5)"))),
        "shape-overflows.npz": npz((norm, npy(shape="(4294967296, 4294967296)"))),
        "header-nested-deeply.npz": npz((norm, npy(header="(" * 9000))),  # must not overflow a stack
        "header-cut-off.npz": npz((norm, npy()[:40])),
        "version-9.npz": npz((norm, b"\x93NUMPY\x09" + npy()[7:])),
        "bomb.npz": bomb,
        "checksum-wrong.npz": npz((norm, npy())).replace(b"\0" * 48, b"\1" + b"\0" * 47),
        "member-twice.npz": npz((norm, npy()), (norm, npy())),
        "member-with-a-path.npz": npz(("../../etc/passwd", npy())),
        "member-named-with-a-line-break.npz": zipped(("a\nb", b"")),
        "directory-cut-off.npz": npz((norm, npy()))[:-30],
        "of-texts.npz": zipped(("readme.txt", "x")),
        "gzip.npz": b"\x1f\x8b\x08\0\0\0\0\0\0\3" + b"\0" * 20,
        "hdf5.safetensors": b"\x89HDF\r\n\x1a\n" + b"\0" * 40,
        "git-lfs-pointer.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "pickle-alone.pt": b"\x80\x04\x95" + b"\0" * 30,
    }
    for what, content in contents.items():
        write(f"archive/{what}", content)


if __name__ == "__main__":
    good(), configs(), files(), checkpoints(), inputs(), dumps(), archives()
