"""Bytes of the packed cache formats: `python -m dsv2_export.cache_bytes` writes golden/cache/vectors.json, and
`python -m dsv2_export.cache_bytes check` compares the committed file. Needs PyTorch and nothing else.

The casts to e4m3 and bfloat16 are PyTorch's; scales are its float32 arithmetic; bits are put together as text, so that
nothing here works as the Rust code does.
"""

import json
import random
import struct
import sys
from pathlib import Path

import torch

FILE = Path(__file__).resolve().parents[2] / "cache" / "vectors.json"
BF16_MAX = torch.finfo(torch.bfloat16).max


def saturated(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.isfinite(), x.clamp(-BF16_MAX, BF16_MAX), x)


def raw(x: torch.Tensor) -> bytes:
    return bytes(x.reshape(-1).view(torch.uint8).tolist())


def bf16(x: torch.Tensor) -> bytes:
    """PyTorch's NaN has one sign and fraction in a vectorised cast and others in a plain one; ours is 7fc0."""
    bits = x.to(torch.bfloat16).view(torch.int16)
    return raw(torch.where(x.isnan(), 0x7FC0, bits.int()).to(torch.int16))


def usable(scale: torch.Tensor) -> torch.Tensor:
    """A scale that is not a normal number is 1; NaN stays."""
    smallest_normal = torch.finfo(torch.float32).tiny
    return torch.where(scale < smallest_normal, torch.ones_like(scale), scale)


def largest(group: torch.Tensor) -> torch.Tensor:
    return group.abs().max() if group.isfinite().all() else torch.tensor(torch.nan)


def e4m3_tiles(x: torch.Tensor, tile: int) -> bytes:
    codes, scales = b"", b""
    for part in x.split(tile):
        scale = usable(largest(part) / 448)
        quotient = torch.where(scale.isnan(), torch.nan, part / scale)
        codes += raw(quotient.clamp(-448, 448).to(torch.float8_e4m3fn))
        scales += raw(scale)
    return codes + scales


def integers(x: torch.Tensor, bits: int, group: int) -> bytes:
    top = 2 ** (bits - 1) - 1
    text, scales = "", b""
    for part in x.split(group):
        scale = usable((largest(part) / top).to(torch.bfloat16).float())
        codes = torch.nan_to_num(part / scale, nan=0.0).round().clamp(-top, top).int().tolist()
        # the first code is the last word of the text, that is, the lowest bits
        text = "".join(format(code % 2**bits, f"0{bits}b") for code in reversed(codes)) + text
        scales += bf16(scale)
    count = (len(text) + 7) // 8
    return int(text, 2).to_bytes(count, "little") + scales


FORMATS = {
    "bf16": lambda latent, key: bf16(latent) + bf16(key),
    "int8": lambda latent, key: integers(latent, 8, 32) + integers(key, 8, 32),
    "fp8": lambda latent, key: e4m3_tiles(latent, 128) + bf16(key),
    "six-bit": lambda latent, key: integers(latent, 5, 32) + integers(key, 8, 8),
}


def number(bits: int) -> float:
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def cases() -> dict[str, tuple[list[float], list[float]]]:
    """What a token's latent and key are, by name."""
    rng = random.Random(405_04434)
    normal = lambda n, size=1.0: [rng.gauss(0, size) for _ in range(n)]  # noqa: E731
    nan, inf, most = float("nan"), float("inf"), number(0x7F7F_FFFF)
    e4m3 = [c * s for c in (1, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875) for s in (1, -2)]
    return {
        "published sizes, as after a norm": (normal(512), normal(64, 3)),
        "published sizes, each group of another size": (
            [x * 2.0 ** rng.randint(-12, 12) for x in normal(512)],
            [x * 4.0 ** (i // 8) for i, x in enumerate(normal(64))],
        ),
        "last groups are shorter": (normal(150), normal(12)),
        "odd sizes": (normal(13), normal(2)),
        "zeros of both signs": ([0.0] * 130 + [-0.0] * 6, [0.0, -0.0] * 3),
        "one zero group between others": ([1.0] * 32 + [0.0] * 32 + [-3.0] * 32, [0.5] * 8 + [-0.0] * 8),
        # scale 1: the largest number is 448, 15 or 127
        "ties in e4m3": ([448.0, 17, 18, 19, 20, 21, 22, 26, 30, 1.0625, -1.1875, 464, 2**-10, 3 * 2**-10, 5 * 2**-10, 447.99],
                         [448.0, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 3 * 2**-8, 1 + 2**-8 + 2**-20, 2**-133, 3 * 2**-134, 1.0]),
        "ties in integers of 5 bits": ([15.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 14.5, -14.5, 0.4999, 0.5001], [127.0, 0.5, 1.5, -2.5]),
        "numbers of e4m3 itself": ([448.0, *e4m3, *(x / 64 for x in e4m3), 2**-9, 2**-6, -(2**-7)], e4m3),
        "just around the scales' roundings": ([number(0x3F80_0000 + 12345 * i) for i in range(64)], [1.0, number(0x3F80_8000)]),
        "subnormal": ([number(1), -number(0x0040_0000), number(0x0080_0000)] * 11, [number(0x0070_0000), -number(3)]),
        "one of the largest": ([most, -most, 1e38, 1.0, -1e30], [-most, 2e38, 1e-3, number(0x7F7F_8000)]),
        "not a number in one group": ([1.0] * 40 + [nan] + [2.0] * 120, [1.0] * 9 + [nan, 1.0]),
        "infinite": ([1.0, inf] + [-1.0] * 31 + [-inf] + [2.0] * 100, [inf, 1.0] + [2.0] * 10),
    }  # fmt: skip


def vectors() -> dict:
    out = []
    for name, (latent, key) in cases().items():
        parts = [torch.tensor(part, dtype=torch.float64).to(torch.float32) for part in (latent, key)]
        out.append({
            "name": name,
            "latent": raw(parts[0]).hex(),
            "key": raw(parts[1]).hex(),
            "bytes": {kind: encode(*map(saturated, parts)).hex() for kind, encode in FORMATS.items()},
        })  # fmt: skip
    return {"schema": "dsv2-cache-bytes/1", "vectors": out}


def main() -> int:
    text = json.dumps(vectors(), indent=1) + "\n"
    if sys.argv[1:] == ["check"]:
        same = FILE.read_text() == text
        print(f"{FILE.name}: {'the same' if same else 'DIFFERS'}")
        return 0 if same else 1
    FILE.write_text(text)
    print(f"{FILE.name}: {len(text)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
