"""What the golden cases are: configurations, weights and inputs. No arithmetic of the model is here.

Sizes are small and, where the model allows, all different: a transposed weight or a wrong split then changes a shape
or a value instead of passing by luck. Sequence lengths are odd, and rows (B*S) no multiple of 16.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from . import forms
from .prng import bf16_exact
from .trained import held_out_ids

HF = "5.23.0"
PINS = {"hf": (HF, "5.24.0"), "hf-pre-5.15": ("5.3.0",)}
"""The Transformers versions that speak for each dialect: the first builds its cases, all of them must agree with them."""

HOT_RULES = [
    {"suffix": "norm.weight", "mean": 1.0, "std": 0.3},
    {"suffix": "embed_tokens.weight", "mean": 0.0, "std": 1.0},
    {"suffix": "bias", "mean": 0.0, "std": 0.2},
    {"suffix": "q_proj.weight", "gain": 1.5},
    {"suffix": "q_b_proj.weight", "gain": 1.5},
    {"suffix": "mlp.gate.weight", "gain": 1.5},
    {"suffix": "lm_head.weight", "gain": 2.0},
    {"suffix": "weight", "gain": 1.0},
]
"""Weights that keep activations near 1 and attention far from uniform. With a model's usual initialisation (0.02)
attention is uniform and a wrong softmax scale hides below the noise of bfloat16."""


def rules(*first: dict) -> list[dict]:
    return [*first, *HOT_RULES]


@dataclass
class Case:
    name: str
    description: str
    features: list[str]
    config: dict
    inputs: Callable[[np.random.Generator, dict], dict]
    options: dict = field(default_factory=lambda: {"use_cache": True})
    rules: list[dict] = field(default_factory=lambda: HOT_RULES)
    dialect: str = "hf"
    architecture: str = "DeepseekV2ForCausalLM"
    checkpoint: dict | None = None
    """None: generated weights. {"dtype", "shards"}: the same, written out. {"trained": True}: see trained.py."""


# ---------------------------------------------------------------------------------------------------------------------
# Configurations, in the layout of the released checkpoints


def yarn(original=64, factor=40, mscale=0.707, mscale_all_dim=0.707) -> dict:
    """YaRN as the checkpoints write it. A small original length makes the ramp act within a dozen positions."""
    scaling = {"beta_fast": 32, "beta_slow": 1, "factor": factor, "mscale": mscale, "mscale_all_dim": mscale_all_dim,
               "original_max_position_embeddings": original, "type": "yarn"}  # fmt: skip
    return {key: value for key, value in scaling.items() if value is not None}


def v2_config(**changes) -> dict:
    """DeepSeek-V2 in small: low-rank queries, device-limited routing, large scaling factor, first layer dense."""
    config = {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "aux_loss_alpha": 0.001,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "ep_size": 1,
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": 44,
        "initializer_range": 0.02,
        "intermediate_size": 60,
        "kv_lora_rank": 18,
        "max_position_embeddings": 2560,
        "moe_intermediate_size": 20,
        "moe_layer_freq": 1,
        "n_group": 4,
        "n_routed_experts": 12,
        "n_shared_experts": 2,
        "norm_topk_prob": False,
        "num_attention_heads": 4,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "pretraining_tp": 1,
        "q_lora_rank": 26,
        "qk_nope_head_dim": 10,
        "qk_rope_head_dim": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": yarn(),
        "rope_theta": 10000,
        "routed_scaling_factor": 16.0,
        "scoring_func": "softmax",
        "seq_aux": True,
        "tie_word_embeddings": False,
        "topk_group": 2,
        "topk_method": "group_limited_greedy",
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "v_head_dim": 14,
        "vocab_size": 112,
    }
    unknown = changes.keys() - config.keys() - {"mlp_bias", "pad_token_id", "num_labels", "problem_type",
                                                "original_max_position_embeddings"}  # fmt: skip
    assert not unknown, unknown
    return {**config, **changes}


def lite_config(**changes) -> dict:
    """DeepSeek-V2-Lite in small: one query projection, plain top-k, scaling factor 1."""
    return v2_config(**{"hidden_size": 45, "intermediate_size": 58, "kv_lora_rank": 22, "moe_intermediate_size": 17,
                        "n_group": 1, "n_routed_experts": 10, "num_attention_heads": 3, "num_key_value_heads": 3,
                        "q_lora_rank": None, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "routed_scaling_factor": 1.0,
                        "topk_group": 1, "topk_method": "greedy", "v_head_dim": 13, "vocab_size": 104, **changes})  # fmt: skip


def small_config(**changes) -> dict:
    """Two layers of the Lite kind, for cases whose subject lies outside the layers."""
    return lite_config(**{"num_hidden_layers": 2, "hidden_size": 30, "intermediate_size": 40, "kv_lora_rank": 16,
                          "moe_intermediate_size": 14, "n_routed_experts": 6, "num_experts_per_tok": 2, **changes})  # fmt: skip


def smallest_config(**changes) -> dict:
    """One dense layer, for cases whose subject is attention alone."""
    return small_config(**{"num_hidden_layers": 1, "vocab_size": 40, **changes})


def tiny_config(**changes) -> dict:
    """The model that is trained; here several sizes coincide, as in the released models."""
    return v2_config(**{"vocab_size": 256, "hidden_size": 64, "intermediate_size": 160, "moe_intermediate_size": 32,
                        "qk_nope_head_dim": 16, "v_head_dim": 16, "kv_lora_rank": 16, "q_lora_rank": 48,
                        "n_routed_experts": 16, "num_experts_per_tok": 4, **changes})  # fmt: skip


def classifier_config(num_labels: int, problem_type: str) -> dict:
    return small_config(
        architectures=["DeepseekV2ForSequenceClassification"],
        pad_token_id=0,
        num_labels=num_labels,
        problem_type=problem_type,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Inputs


def ids(rng, config, batch: int, length: int) -> np.ndarray:
    """Random tokens; never the padding token, which is 0 where there is one."""
    return rng.integers(1, config["vocab_size"], (batch, length), dtype=np.int64)


def tokens(batch: int = 2, length: int = 11, **more) -> Callable:
    """Token ids, and arrays or functions (rng, config) -> array for other inputs."""

    def build(rng, config):
        made = {"input_ids": ids(rng, config, batch, length)}
        for name, value in more.items():
            made[name] = value(rng, config) if callable(value) else value
        return made

    return build


def mask(*rows: str) -> np.ndarray:
    """A 2-D attention mask from strings such as "0011111"."""
    return np.array([[int(c) for c in row] for row in rows], np.int64)


def counted_positions(attention_mask: np.ndarray) -> np.ndarray:
    """Positions as `generate` makes them: real tokens are counted from 0, padding gets 1."""
    positions = attention_mask.cumsum(-1) - 1
    return np.where(attention_mask == 0, 1, positions)


def spread_positions(batch: int, length: int, low: int, high: int) -> Callable:
    """Sorted positions with gaps: long-range rotation for the price of a short sequence."""

    def build(rng, _config):
        rows = [np.sort(rng.choice(np.arange(low, high), length, replace=False)) for _ in range(batch)]
        return np.stack(rows).astype(np.int64)

    return build


def ones(batch: int, length: int) -> np.ndarray:
    """An all-ones mask. With gaps in the positions and no mask, Transformers would see several packed sequences."""
    return np.ones((batch, length), np.int64)


def embeds(batch: int, length: int, low: float = 1.0, high: float = 1.0) -> Callable:
    """Embeddings whose rows have RMS from `low` to `high`, geometrically spaced."""

    def build(rng, config):
        values = rng.standard_normal((batch * length, config["hidden_size"]))
        values /= np.sqrt((values**2).mean(-1, keepdims=True))
        values *= np.geomspace(low, high, batch * length)[:, None]
        return {"inputs_embeds": bf16_exact(values.reshape(batch, length, -1).astype(np.float32))}

    return build


def prefix_mask(lengths: list[int], size: int, bias: float = 0.0) -> np.ndarray:
    """[B,1,S,S] additive: causal, but each row of the batch sees all of its prefix; `bias` per step of distance.

    float32's minimum stands for minus infinity, as in the masks that Transformers makes.
    """
    masks = []
    for length in lengths:
        q, t = np.indices((size, size))
        allowed = (t <= q) | (t < length)
        masks.append(np.where(allowed, bias * np.abs(q - t), np.finfo(np.float32).min)[None])
    return np.stack(masks).astype(np.float32)


def mask_of_heads(heads: int, size: int) -> np.ndarray:
    """[1,H,S,S] additive: causal, and in each head another distance beyond which nothing is seen, and another slope."""
    q, t = np.indices((size, size))
    masks = []
    for head in range(heads):
        allowed = (t <= q) & (q - t <= 1 + 2 * head)
        masks.append(np.where(allowed, -0.125 * head * (q - t), np.finfo(np.float32).min))
    return np.stack(masks)[None].astype(np.float32)


def mask_of_keys(*rows: str) -> np.ndarray:
    """[B,1,1,T] additive from strings such as "0011111": which keys any query sees, and no causal rule."""
    return np.where(mask(*rows) == 1, 0, np.finfo(np.float32).min)[:, None, None].astype(np.float32)


def as_generate_feeds(attention_mask: np.ndarray, **changes) -> Callable:
    """Padded ids alone, as `generate` of Transformers feeds them to the model: with the mask that it infers."""

    def build(rng, config):
        from .run import fed_by_generate

        return fed_by_generate({**config, **changes}, padded_ids(attention_mask)(rng, config))

    return build


def labels_with_holes(rng, config, batch=2, length=11, ignored=4) -> np.ndarray:
    made = rng.integers(0, config["vocab_size"], (batch, length), dtype=np.int64)
    made.ravel()[rng.choice(batch * length, ignored, replace=False)] = -100
    return made


def padded_ids(attention_mask: np.ndarray) -> Callable:
    def build(rng, config):
        return np.where(attention_mask == 0, 0, ids(rng, config, *attention_mask.shape))

    return build


# ---------------------------------------------------------------------------------------------------------------------
# The cases

LEFT = mask("00001111111", "11111111111")
RIGHT = mask("11111110000", "11111111111")
MIDDLE = mask("11100111111", "11111101011")
SHORT_LEFT = mask("0001111", "1111111", "0000011")
SHORT_RIGHT = mask("1111000", "1111111", "1100000")
SHORT_MIDDLE = mask("1101110", "0110011", "1111111")

CASES: list[Case] = []


def case(name: str, description: str, features: str, config: dict, inputs: Callable, **more) -> None:
    CASES.append(Case(name, description, features.split(), config, inputs, **more))


# Shapes of the released models

case("v2-lite", "DeepSeek-V2-Lite's structure: one query projection, greedy routing, YaRN with mscale 0.707.",
     "yarn greedy dense-first", lite_config(), tokens())  # fmt: skip
case("v2", "DeepSeek-V2's structure: low-rank queries, device-limited routing scaled by 16, YaRN with mscale 0.707.",
     "q_lora yarn group_limited_greedy dense-first", v2_config(), tokens())  # fmt: skip
case("v2-5", "DeepSeek-V2.5: as V2 with mscale 1.0, so a softmax scale 1.87 times the plain one.",
     "q_lora yarn group_limited_greedy", v2_config(rope_scaling=yarn(mscale=1.0, mscale_all_dim=1.0),
     num_hidden_layers=2), tokens())  # fmt: skip
case("v2-real-heads", "V2's real head sizes (128 + 64 / 128, latent 512, real YaRN) with two heads and gapped positions.",
     "q_lora yarn real-heads gapped",
     v2_config(hidden_size=64, num_attention_heads=2, num_key_value_heads=2, qk_nope_head_dim=128, qk_rope_head_dim=64,
               v_head_dim=128, kv_lora_rank=512, q_lora_rank=96, num_hidden_layers=1, first_k_dense_replace=0,
               rope_scaling=yarn(original=4096), max_position_embeddings=163840, vocab_size=96),
     tokens(1, 17, attention_mask=ones(1, 17), position_ids=spread_positions(1, 17, 0, 4096)))  # fmt: skip

# The released models' head sizes, which are all that engines' MLA kernels take, in few and narrow layers. Token ids say all
# (but for the mask of unequal lengths): many engines take nothing else.


def real(config: Callable = v2_config, **changes) -> dict:
    return config(**{"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "qk_nope_head_dim": 128,
                     "qk_rope_head_dim": 64, "v_head_dim": 128, "kv_lora_rank": 512, "intermediate_size": 96,
                     "moe_intermediate_size": 32, "n_routed_experts": 8, "num_hidden_layers": 2, "vocab_size": 128,
                     "rope_scaling": yarn(original=4096), "max_position_embeddings": 163840, **changes})  # fmt: skip


RAGGED = mask("1110000", "1111111", "1111100")

case("real-lite", "V2-Lite's head sizes (128 + 64 / 128, latent 512) and YaRN; no low-rank queries, no groups.",
     "yarn greedy real-heads ids-only", real(lite_config), tokens(2, 7))  # fmt: skip
case("real-v2", "V2's head sizes and YaRN, low-rank queries, eight groups of which three are kept, weights times 16.",
     "q_lora yarn group_limited_greedy real-heads ids-only", real(q_lora_rank=96, n_routed_experts=16, n_group=8,
     topk_group=3, num_experts_per_tok=4), tokens(2, 7))  # fmt: skip
case("real-norope", "V2's head sizes without rope_scaling: plain rotary embedding and plain softmax scale.",
     "rope-default greedy real-heads ids-only", real(lite_config, rope_scaling=None, max_position_embeddings=4096,
     first_k_dense_replace=0, num_hidden_layers=1), tokens(2, 9))  # fmt: skip
case("real-decode", "V2's head sizes: a prefill of nine tokens, then four single tokens through the cache of latents.",
     "q_lora yarn group_limited_greedy cache chunked real-heads ids-only", real(q_lora_rank=96, n_group=4, topk_group=2,
     num_experts_per_tok=3), tokens(1, 13), options={"use_cache": True, "chunks": [9, 1, 1, 1, 1]})  # fmt: skip
case("real-varlen", "V2-Lite's head sizes: sequences of 3, 7 and 5 tokens, each by itself (padded on the right here).",
     "yarn greedy padding real-heads", real(lite_config, first_k_dense_replace=0, num_hidden_layers=1),
     tokens(3, 7, input_ids=padded_ids(RAGGED), attention_mask=RAGGED))  # fmt: skip

# RoPE and the softmax scale

case("mscale-differs", "mscale 1.0 and mscale_all_dim 0.707: cos and sin carry their quotient, the scale only the latter.",
     "q_lora yarn mscale", v2_config(rope_scaling=yarn(mscale=1.0), num_hidden_layers=2), tokens())  # fmt: skip
case("mscale-lone", "Only mscale_all_dim is given: Transformers then falls back to an attention factor of 0.1 ln(40) + 1.",
     "yarn mscale", lite_config(rope_scaling=yarn(mscale=None), num_hidden_layers=2), tokens())  # fmt: skip
case("rope-default", "No rope_scaling: plain frequencies and plain softmax scale.",
     "q_lora rope-default", v2_config(rope_scaling=None, num_hidden_layers=2), tokens())  # fmt: skip
case("rope-linear", "Linear scaling together with mscale_all_dim, which multiplies the softmax scale by 1.87 here as well.",
     "rope-linear mscale gapped",
     lite_config(rope_scaling={"type": "linear", "factor": 40.0, "mscale_all_dim": 1.0}, num_hidden_layers=2),
     tokens(2, 11, attention_mask=ones(2, 11), position_ids=spread_positions(2, 11, 0, 600)))  # fmt: skip
case("rope-dynamic", "Dynamic NTK scaling: 13 positions where max_position_embeddings is 8.",
     "rope-dynamic", lite_config(rope_scaling={"type": "dynamic", "factor": 2.0}, max_position_embeddings=8,
     num_hidden_layers=2), tokens(2, 13))  # fmt: skip
case("rope-dynamic-chunked", "Dynamic NTK in pieces: frequencies grow between calls while cached keys keep the old ones.",
     "rope-dynamic chunked", lite_config(rope_scaling={"type": "dynamic", "factor": 2.0}, max_position_embeddings=8,
     num_hidden_layers=2), tokens(2, 13), options={"use_cache": True, "chunks": [6, 4, 3]})  # fmt: skip
case("yarn-betas", "YaRN with other ramp limits and fractional bounds (beta 16 and 2, truncate false).",
     "yarn gapped", lite_config(qk_rope_head_dim=16, num_hidden_layers=2,
     rope_scaling={**yarn(original=256), "beta_fast": 16, "beta_slow": 2, "truncate": False}),
     tokens(2, 11, attention_mask=ones(2, 11), position_ids=spread_positions(2, 11, 0, 1000)))  # fmt: skip
case("yarn-attention-factor", "An explicit attention_factor: it scales cos and sin and leaves the softmax scale alone.",
     "yarn mscale", lite_config(rope_scaling={**yarn(), "attention_factor": 0.8}, num_hidden_layers=2), tokens())  # fmt: skip
case("yarn-original-beside", "A top-level original_max_position_embeddings, which overrules that of rope_scaling.",
     "yarn", smallest_config(original_max_position_embeddings=512), tokens(1, 9))  # fmt: skip
case("rope-llama3", "Llama 3.1's scaling: fast pairs as they are, slow ones divided by 8, a ramp over the turns between.",
     "rope-llama3 gapped", smallest_config(qk_rope_head_dim=16, rope_scaling={"type": "llama3", "factor": 8.0,
     "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}),
     tokens(1, 9, attention_mask=ones(1, 9), position_ids=spread_positions(1, 9, 0, 600)))  # fmt: skip
case("rope-longrope", "LongRoPE in pieces: the call that ends beyond the original 8 positions takes the long divisors, cached "
     "keys keep the short ones; cos and sin carry sqrt(1 + ln 4 / ln 8).",
     "rope-longrope chunked", smallest_config(rope_scaling={"type": "longrope", "factor": 4.0, "short_factor": [1, 1.25, 1.5, 2],
     "long_factor": [1, 3, 7, 40], "original_max_position_embeddings": 8}), tokens(1, 11),
     options={"use_cache": True, "chunks": [8, 3]})  # fmt: skip
case("rope-proportional", "Half of the pairs turn, at a quarter of the speed; mscale_all_dim multiplies the softmax scale here, too.",
     "rope-proportional mscale", smallest_config(rope_scaling={"type": "proportional", "partial_rotary_factor": 0.5,
     "factor": 4.0, "mscale_all_dim": 1.0}), tokens(1, 9))  # fmt: skip
case("gapped-positions", "Positions up to 2000 with gaps, different in each row, under an all-ones mask.",
     "q_lora yarn gapped", v2_config(num_hidden_layers=2),
     tokens(2, 11, attention_mask=ones(2, 11), position_ids=spread_positions(2, 11, 0, 2000)))  # fmt: skip
case("far-positions", "Positions from 100000 to 163839 with V2's real frequencies: fast or low-precision trigonometry fails.",
     "yarn far gapped", lite_config(hidden_size=32, num_attention_heads=2, num_key_value_heads=2, qk_nope_head_dim=24,
     qk_rope_head_dim=64, v_head_dim=20, kv_lora_rank=40, num_hidden_layers=2, rope_scaling=yarn(original=4096),
     max_position_embeddings=163840),
     tokens(2, 9, attention_mask=ones(2, 9), position_ids=lambda rng, c: np.concatenate(
         [np.sort(rng.choice(np.arange(100000, 163839), (1, 8), replace=False)), [[163839]]], 1).astype(np.int64)))  # fmt: skip

# Masks and positions

case("left-padding", "A row padded on the left, positions left to the default, which counts the padding.",
     "q_lora yarn padding", v2_config(num_hidden_layers=2), tokens(attention_mask=LEFT))  # fmt: skip
case("left-padding-positions", "A row padded on the left with the positions that generation uses.",
     "q_lora yarn padding", v2_config(num_hidden_layers=2),
     tokens(attention_mask=LEFT, position_ids=counted_positions(LEFT)))  # fmt: skip
case("right-padding", "A row padded on the right.",
     "yarn padding", lite_config(num_hidden_layers=2), tokens(attention_mask=RIGHT))  # fmt: skip
case("middle-padding", "Padding inside the sequences, with positions that skip it.",
     "yarn padding", lite_config(num_hidden_layers=2),
     tokens(attention_mask=MIDDLE, position_ids=counted_positions(MIDDLE)))  # fmt: skip
case("packed", "Several sequences packed into one row: positions restart, no mask, no cache, so attention is block-diagonal.",
     "q_lora yarn packed", v2_config(num_hidden_layers=2), options={"use_cache": False},
     inputs=tokens(2, 13, position_ids=np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2, 3],
                                                 [0, 1, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 0]], np.int64)))  # fmt: skip
case("packed-with-cache", "The same kind of positions with a cache: Transformers then looks across the restarts.",
     "yarn packed", lite_config(num_hidden_layers=2),
     tokens(1, 13, position_ids=np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2, 3]], np.int64)))  # fmt: skip
case("mask-4d", "A 4-D additive mask that is not causal: every query sees a prefix (prefix language model).",
     "yarn mask-4d", lite_config(num_hidden_layers=2), tokens(attention_mask=prefix_mask([5, 3], 11)))  # fmt: skip
case("mask-4d-bias", "A 4-D additive mask with finite values: it is added to the scores, not read as yes or no.",
     "yarn mask-4d", lite_config(num_hidden_layers=2), tokens(attention_mask=prefix_mask([0, 2], 11, bias=-0.25)))  # fmt: skip
case("mask-4d-zeros", "A 4-D mask of zeros: attention in both directions, no causality is added.",
     "yarn mask-4d", lite_config(num_hidden_layers=2),
     tokens(attention_mask=np.zeros((2, 1, 11, 11), np.float32)))  # fmt: skip

case("mask-4d-heads", "A 4-D mask with an entry for each head, one for all sequences: windows and slopes of different lengths.",
     "yarn mask-4d", smallest_config(), tokens(2, 7, attention_mask=mask_of_heads(3, 7)))  # fmt: skip
case("mask-4d-keys", "A 4-D mask with one row for all queries: padding on the right, and no causality.",
     "yarn mask-4d", smallest_config(), tokens(2, 5, attention_mask=mask_of_keys("11111", "11100")))  # fmt: skip
case("generate-padding", "Padded ids as generate() of Transformers feeds them: mask and positions are inferred from pad_token_id.",
     "yarn padding", smallest_config(pad_token_id=0), as_generate_feeds(SHORT_LEFT))  # fmt: skip

# Cache

case("decode", "A prefill of 7 tokens, then five single tokens through the cache of latents.",
     "q_lora yarn group_limited_greedy cache chunked", v2_config(num_hidden_layers=2), tokens(2, 12),
     options={"use_cache": True, "chunks": [7, 1, 1, 1, 1, 1]})  # fmt: skip
case("decode-left-padding", "Decoding with a row padded on the left; the mask covers the past as well.",
     "yarn cache chunked padding", lite_config(num_hidden_layers=2), options={"use_cache": True, "chunks": [7, 1, 1, 1, 1]},
     inputs=tokens(attention_mask=LEFT, position_ids=counted_positions(LEFT)))  # fmt: skip
case("chunked-prefill", "A prefill in pieces of 5, 4 and 3 tokens.",
     "yarn cache chunked", lite_config(), tokens(2, 12), options={"use_cache": True, "chunks": [5, 4, 3]})  # fmt: skip
case("no-cache", "No cache object at all.",
     "q_lora yarn", v2_config(num_hidden_layers=2), tokens(2, 9), options={"use_cache": False})  # fmt: skip
case("batch-of-one", "One sequence.",
     "q_lora yarn group_limited_greedy", v2_config(), tokens(1, 17))  # fmt: skip
case("one-token", "One token at position 0: attention is the value itself whatever the scale.",
     "q_lora yarn", v2_config(num_hidden_layers=2), tokens(1, 1))  # fmt: skip

# Inputs and outputs of the model

case("inputs-embeds", "Embeddings given in place of tokens.",
     "yarn inputs-embeds", lite_config(num_hidden_layers=2), embeds(2, 11))  # fmt: skip
case("labels", "Loss with shifted labels, some of them ignored.",
     "yarn labels", small_config(), tokens(labels=labels_with_holes))  # fmt: skip
case("labels-num-items", "Loss as a sum divided by num_items_in_batch in place of a mean.",
     "yarn labels", small_config(), tokens(labels=labels_with_holes, num_items_in_batch=np.array(37, np.int64)))  # fmt: skip
case("labels-logits-to-keep", "Labels for the kept logits only: the shift happens inside the slice.",
     "yarn labels logits-to-keep", small_config(), options={"use_cache": True, "logits_to_keep": 5},
     inputs=tokens(2, 9, labels=lambda rng, c: labels_with_holes(rng, c, 2, 5, 2)))  # fmt: skip
case("labels-right-padding", "Loss with padding on the right, ignored by its labels and by nothing else.",
     "yarn labels padding", small_config(),
     tokens(attention_mask=RIGHT, labels=lambda rng, c: np.where(RIGHT == 0, -100, ids(rng, c, 2, 11))))  # fmt: skip
case("logits-to-keep-int", "The last 3 logits.", "yarn logits-to-keep", small_config(), tokens(2, 7),
     options={"use_cache": True, "logits_to_keep": 3})  # fmt: skip
case("logits-to-keep-negative", "A negative number drops that many logits from the front.", "yarn logits-to-keep",
     small_config(), tokens(2, 7), options={"use_cache": True, "logits_to_keep": -2})  # fmt: skip
case("logits-to-keep-list", "Logits of listed positions, one of them twice.", "yarn logits-to-keep", small_config(),
     tokens(2, 7, logits_to_keep=np.array([4, 0, 6, 4], np.int64)))  # fmt: skip
case("logits-to-keep-per-row", "Other positions for each row.", "yarn logits-to-keep", small_config(),
     tokens(2, 7, logits_to_keep=np.array([[5, 1, 2], [0, 6, 3]], np.int64)))  # fmt: skip
case("logits-to-keep-bool", "Positions picked by a mask; the logits come out flat, [kept,V].", "yarn logits-to-keep",
     small_config(), tokens(2, 7, logits_to_keep=np.array([[0, 1, 1, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0, 1]], bool)))  # fmt: skip

CLASSIFIER = "DeepseekV2ForSequenceClassification"
case("classify-regression", "One label, mean squared error; padding on the right decides which token is pooled.",
     "yarn classification padding", classifier_config(1, "regression"), architecture=CLASSIFIER,
     options={"use_cache": True, "problem_type": "regression", "num_labels": 1},
     inputs=tokens(3, 7, input_ids=padded_ids(SHORT_RIGHT), attention_mask=SHORT_RIGHT,
                   labels=lambda rng, c: bf16_exact(rng.standard_normal(3).astype(np.float32))))  # fmt: skip
case("classify-single-label", "Five classes, cross entropy; padding on the left (pooling by the first pad would fail).",
     "yarn classification padding", classifier_config(5, "single_label_classification"), architecture=CLASSIFIER,
     options={"use_cache": True, "problem_type": "single_label_classification", "num_labels": 5},
     inputs=tokens(3, 7, input_ids=padded_ids(SHORT_LEFT), attention_mask=SHORT_LEFT,
                   labels=lambda rng, c: rng.integers(0, 5, 3, dtype=np.int64)))  # fmt: skip
case("classify-multi-label", "Four independent labels, binary cross entropy; pads in the middle and no attention mask.",
     "yarn classification", classifier_config(4, "multi_label_classification"), architecture=CLASSIFIER,
     options={"use_cache": True, "problem_type": "multi_label_classification", "num_labels": 4},
     inputs=tokens(3, 7, input_ids=padded_ids(SHORT_MIDDLE),
                   labels=lambda rng, c: rng.integers(0, 2, (3, 4)).astype(np.float32)))  # fmt: skip

case("classify-no-pad", "No padding token and no labels: one sequence, pooled at its last position.",
     "yarn classification", {key: value for key, value in classifier_config(3, "single_label_classification").items()
                             if key != "pad_token_id"}, architecture=CLASSIFIER, inputs=tokens(1, 9),
     options={"use_cache": True, "problem_type": "single_label_classification", "num_labels": 3})  # fmt: skip

# Structure

case("odd-dims", "Odd and unequal sizes everywhere, biases, tied embeddings, gelu, epsilon 1e-5, default RoPE of another base.",
     "q_lora bias tied gelu rope-default",
     v2_config(hidden_size=45, num_attention_heads=3, num_key_value_heads=3, qk_nope_head_dim=8, qk_rope_head_dim=6,
               v_head_dim=9, kv_lora_rank=10, q_lora_rank=13, intermediate_size=29, moe_intermediate_size=15,
               n_shared_experts=1, n_routed_experts=7, num_experts_per_tok=2, topk_method="greedy", n_group=1,
               topk_group=1, routed_scaling_factor=1.5, vocab_size=97, attention_bias=True, mlp_bias=True,
               tie_word_embeddings=True, hidden_act="gelu", rms_norm_eps=1e-5, rope_scaling=None, rope_theta=500.0),
     tokens(3, 7))  # fmt: skip
case("bias-lite", "Biases without low-rank queries: the query projection has none, the output projection has one.",
     "yarn bias", lite_config(attention_bias=True, mlp_bias=True, num_hidden_layers=2), tokens())  # fmt: skip
case("relu", "ReLU in place of SiLU.", "yarn relu", lite_config(hidden_act="relu", num_hidden_layers=2), tokens())  # fmt: skip
case("gelu-tanh", "GELU in its tanh form, tied embeddings.", "yarn gelu-tanh tied",
     lite_config(hidden_act="gelu_pytorch_tanh", tie_word_embeddings=True, num_hidden_layers=2), tokens())  # fmt: skip
case("first-k-dense-0", "Every layer is a mixture of experts.",
     "q_lora yarn group_limited_greedy", v2_config(first_k_dense_replace=0, num_hidden_layers=2), tokens())  # fmt: skip
case("all-dense", "No layer is a mixture of experts.",
     "q_lora yarn dense", v2_config(first_k_dense_replace=5, num_hidden_layers=2), tokens())  # fmt: skip
case("unread-fields", "All layers dense: what the router's fields hold is not looked at (topk_method null, k null, and others).",
     "yarn dense", smallest_config(topk_method=None, num_experts_per_tok=None, moe_layer_freq=None, scoring_func=3),
     tokens(1, 5))  # fmt: skip
case("one-shared-expert", "One shared expert, scaling factor 2.5.",
     "yarn greedy", lite_config(n_shared_experts=1, routed_scaling_factor=2.5, num_hidden_layers=2), tokens())  # fmt: skip
case("all-experts", "Every expert is chosen (k = E).",
     "yarn greedy", lite_config(n_routed_experts=5, num_experts_per_tok=5, num_hidden_layers=2), tokens())  # fmt: skip
case("one-expert-per-token", "A single expert per token (k = 1).",
     "yarn greedy", lite_config(num_experts_per_tok=1, num_hidden_layers=2), tokens())  # fmt: skip
case("many-groups", "Eight groups of which three are kept, six experts per token, as in V2.",
     "q_lora yarn group_limited_greedy", v2_config(n_routed_experts=32, n_group=8, topk_group=3, num_experts_per_tok=6,
     num_hidden_layers=2), tokens())  # fmt: skip

case("tight-groups", "As many experts per token as the kept groups hold: the choice of groups decides everything.",
     "q_lora yarn group_limited_greedy", v2_config(num_experts_per_tok=6, num_hidden_layers=2), tokens())  # fmt: skip

# Small variances, where epsilon shows

case("epsilon-inner-norms", "rms_norm_eps 1e-3 and small latents: the norms inside attention keep 1e-6 all the same.",
     "q_lora yarn epsilon", v2_config(rms_norm_eps=1e-3, num_hidden_layers=2), tokens(),
     rules=rules({"suffix": "q_a_proj.weight", "gain": 0.03}, {"suffix": "kv_a_proj_with_mqa.weight", "gain": 0.03}))  # fmt: skip
case("small-variance", "Embeddings and latents of a few thousandths: a wrong epsilon changes the norms by several per cent.",
     "q_lora yarn epsilon", v2_config(num_hidden_layers=2), tokens(),
     rules=rules({"suffix": "embed_tokens.weight", "mean": 0.0, "std": 0.006},
                 {"suffix": "q_a_proj.weight", "gain": 0.004}, {"suffix": "kv_a_proj_with_mqa.weight", "gain": 0.004}))  # fmt: skip
case("small-variance-embeds", "Input rows with RMS from 5e-4 to 8e-3.",
     "yarn epsilon inputs-embeds", lite_config(num_hidden_layers=2), embeds(2, 11, 5e-4, 8e-3))  # fmt: skip

# Complete checkpoint folders


def tiny_form_config(**changes) -> dict:
    """Sides that blocks of 8 x 16 divide (Transformers can do no others), and as few numbers as may be."""
    return lite_config(**{"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 32, "kv_lora_rank": 16,
                          "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
                          "num_attention_heads": 2, "num_key_value_heads": 2, "qk_nope_head_dim": 8, "v_head_dim": 8,
                          "vocab_size": 64, **changes})  # fmt: skip


NEW_LAYOUT = {key: value for key, value in v2_config().items()
              if key not in ("rope_scaling", "rope_theta", "torch_dtype", "aux_loss_alpha", "ep_size", "moe_layer_freq",
                             "scoring_func", "seq_aux")}  # fmt: skip

case("checkpoint-sharded", "A checkpoint folder in float16, in three shards with an index; config.json in the old layout.",
     "yarn checkpoint sharded f16", {**lite_config(num_hidden_layers=2),
     "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV2Config",
                  "AutoModel": "modeling_deepseek.DeepseekV2Model",
                  "AutoModelForCausalLM": "modeling_deepseek.DeepseekV2ForCausalLM"},
     "transformers_version": "4.33.1"}, tokens(), checkpoint={"dtype": "F16", "shards": 3})  # fmt: skip
case("checkpoint-tied", "A checkpoint folder in float32 with tied embeddings; config.json in the new layout (rope_parameters).",
     "q_lora yarn checkpoint tied group_limited_greedy", {**NEW_LAYOUT, "dtype": "float32", "tie_word_embeddings": True,
     "num_hidden_layers": 2, "rope_parameters": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 40.0, "mscale": 0.707,
     "mscale_all_dim": 0.707, "original_max_position_embeddings": 64, "rope_theta": 10000.0, "rope_type": "yarn"},
     "transformers_version": HF}, tokens(), checkpoint={"dtype": "F32", "shards": 1})  # fmt: skip

case("untied-fused", "Tied in config.json, but the checkpoint holds another lm_head: not tied. The experts of a layer in one tensor; one \
tensor too many.", "yarn checkpoint fused bf16", {**tiny_form_config(num_hidden_layers=1, first_k_dense_replace=0),
     "tie_word_embeddings": True}, tokens(1, 5),
     checkpoint={"dtype": "BF16", "forms": [forms.untied, forms.fused]})  # fmt: skip
case("fp8-blocks", "A checkpoint in fp8 with a scale for each block of a matrix, dequantised by Transformers on loading.",
     "yarn checkpoint fp8", {**tiny_form_config(), "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3",
     "quant_method": "fp8", "weight_block_size": [8, 16]}}, tokens(1, 7),
     checkpoint={"dtype": "BF16", "forms": [partial(forms.fp8, block=[8, 16])]})  # fmt: skip
case("fp8-matrices", "fp8 with a scale for each matrix, and scales of activations, which mean nothing when dequantised.",
     "yarn checkpoint fp8", {**tiny_form_config(num_hidden_layers=1, first_k_dense_replace=0), "quantization_config": {"activation_scheme": "static",
     "quant_method": "fp8", "weight_block_size": None}}, tokens(1, 5),
     checkpoint={"dtype": "BF16", "forms": [partial(forms.fp8, block=None, static=True)]})  # fmt: skip

# Trained weights

case("trained-tiny-grouped", "A model trained briefly on program text: low-rank queries, device-limited routing.",
     "q_lora yarn group_limited_greedy checkpoint bf16 trained", tiny_config(), held_out_ids(2, 17),
     checkpoint={"trained": True})  # fmt: skip
case("trained-tiny-greedy", "A model trained briefly on program text: one query projection, greedy routing.",
     "yarn greedy checkpoint bf16 trained", tiny_config(q_lora_rank=None, topk_method="greedy", n_group=1,
     topk_group=1, routed_scaling_factor=1.0), held_out_ids(2, 17), checkpoint={"trained": True})  # fmt: skip

# Before 5.15

case("pre515-yarn", "Transformers before 5.15: the softmax scale lacks mscale squared under YaRN.",
     "yarn mscale pre515", lite_config(num_hidden_layers=2), tokens(), dialect="hf-pre-5.15")  # fmt: skip
case("pre515-default", "Transformers before 5.15 without YaRN, low-rank queries and padding: nothing differs from now.",
     "q_lora rope-default pre515 padding", v2_config(rope_scaling=None, topk_method="greedy", n_group=1, topk_group=1,
     num_hidden_layers=2), tokens(attention_mask=LEFT), dialect="hf-pre-5.15")  # fmt: skip
