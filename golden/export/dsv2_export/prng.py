"""Counter-based weights: a few integers in `case.json` stand for megabytes of tensors.

Everything is integer arithmetic or exactly rounded float64 arithmetic, so that any language reproduces the weights
bit for bit. Values are rounded to bfloat16, so that float64, float32 and bfloat16 runs load the same numbers and
weight rounding is never a source of error.
"""

import hashlib

import numpy as np

MASK = (1 << 64) - 1


def splitmix64(x: int) -> int:
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def fnv1a64(text: str) -> int:
    h = 0xCBF29CE484222325
    for byte in text.encode("utf-8"):
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return h


def _splitmix64_array(x: np.ndarray) -> np.ndarray:
    """`splitmix64` on a whole uint64 array; numpy's unsigned arithmetic wraps as wanted."""
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def round_to_bf16(values: np.ndarray) -> np.ndarray:
    """Rounds to the nearest bfloat16 (ties to even), by way of float32; returns the upper 16 bits."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def bf16_exact(values: np.ndarray) -> np.ndarray:
    """float32 values that bfloat16 can hold."""
    return bf16_to_f32(round_to_bf16(values))


def generate_bf16(name: str, shape, mean: float, std: float, seed: int) -> np.ndarray:
    """The bfloat16 bits of one tensor. The sum of four uniform numbers is bell-shaped enough and needs no logarithm."""
    count = int(np.prod(shape, dtype=np.int64))
    base = splitmix64(fnv1a64(name) ^ seed)
    with np.errstate(over="ignore"):
        z = _splitmix64_array(np.uint64(base) + np.arange(count, dtype=np.uint64))
    s = sum(((z >> np.uint64(16 * i)) & np.uint64(0xFFFF)).astype(np.int64) for i in range(4))
    u = ((s + 2) / 65536.0 - 2.0) * np.sqrt(3.0)
    return round_to_bf16((mean + u * std).astype(np.float32)).reshape(shape)


def generate(name: str, shape, rule: dict, seed: int) -> np.ndarray:
    """One tensor as float32 (bfloat16-exact) after its rule: `mean` and `std`, or `gain` = std * sqrt(fan_in)."""
    if "gain" in rule:
        mean, std = 0.0, rule["gain"] / np.sqrt(float(shape[-1]))
    else:
        mean, std = rule["mean"], rule["std"]
    return bf16_to_f32(generate_bf16(name, shape, mean, std, seed))


def find_rule(name: str, rules: list[dict]) -> dict:
    """The first rule whose suffix ends the tensor's name."""
    for rule in rules:
        if name.endswith(rule["suffix"]):
            return rule
    raise KeyError(f"no weight rule matches the tensor {name!r}")


TEST_VECTOR = {
    "name": "model.layers.0.self_attn.kv_b_proj.weight",
    "shape": (128, 16),
    "mean": 0.0,
    "std": 0.25,
    "seed": 0,
    "first": ["be05", "be20", "3ed2", "bf00"],
    "sha256_starts": "e378dc73685a877c",
}


def check_test_vector() -> None:
    t = TEST_VECTOR
    bits = generate_bf16(t["name"], t["shape"], t["mean"], t["std"], t["seed"])
    assert [f"{int(b):04x}" for b in bits.ravel()[:4]] == t["first"], "weight generator: first values are wrong"
    digest = hashlib.sha256(bits.astype("<u2").tobytes()).hexdigest()
    assert digest.startswith(t["sha256_starts"]), "weight generator: digest is wrong"
