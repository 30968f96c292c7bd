"""torch's own kernels for what DeepSeek-V2 does most: attention (SDPA) and grouped products of experts (grouped_mm).

    VENV/bin/python peers/torch_ops.py --device cuda --output torch-ops.json
    VENV/bin/python peers/torch_ops.py --device cpu --small --output torch-ops.json

Times stand against two ceilings of the same run: how fast memory is read, and how fast a large product is.

| operation | shapes | bytes | FLOP |
|---|---|---|---|
| prefill, expanded | q, k [1,H,S,192], v [1,H,S,128], causal | q, k, v, out | S² H (192 + 128) |
| decode, absorbed | q [B,H,1,576], k [B,1,T,576], v = the first 512 of k | k once | 2 B H T (576 + 512) |
| experts | x [N·6,D] · w [E,D,2F], 6 of E for each token | the weights of the experts met | 2 · 6N · D · 2F |
"""

import argparse
import itertools
import pathlib
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import report
import tables
from report import measurement

BEYOND_CACHE = 256 << 20
"""Bytes that are walked over before a buffer is used again: more than any cache keeps."""
TOP_K = 6
EXPERTS = {"v2-lite": (64, 2048, 1408), "v2": (160, 5120, 1536)}
HEADS = {"v2-lite": 16, "v2": 128}


class Bench:
    """Times operations, and keeps what came out."""

    def __init__(self, device: str, small: bool) -> None:
        self.device, self.small = device, small
        self.dtype = torch.bfloat16
        self.rows: list[list[str]] = []
        self.measurements: list[dict] = []
        self.not_run: list[dict] = []

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def copies(self, make: Callable[[], tuple]) -> list[tuple]:
        """As many sets of arguments as it takes to leave the cache, at most 16."""
        first = make()
        held = sum(t.nbytes for t in first if t is not None)
        return [first, *(make() for _ in range(min(15, BEYOND_CACHE // held)))]

    def seconds(self, run: Callable, arguments: list[tuple]) -> list[float]:
        """Of single calls, for half a second at least and five calls at least, after two that are not counted."""
        turns, times = itertools.cycle(arguments), []
        for count in itertools.count(-2):
            values = next(turns)
            self.wait()
            start = time.perf_counter()
            run(*values)
            self.wait()
            if count >= 0:
                times.append(time.perf_counter() - start)
            if count >= 4 and (sum(times) > 0.5 or self.small):
                return times

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def ceilings(self) -> None:
        """Bytes read per second, FLOP per second."""
        size = (64 if self.small else 1024) << 20
        blocks = [(torch.ones(size // 4, device=self.device),) for _ in range(2)]
        self.bandwidth = size / min(self.seconds(torch.sum, blocks))
        n = 512 if self.small else 2048 if self.device == "cpu" else 8192
        squares = self.copies(lambda: (self.random(n, n), self.random(n, n)))
        self.peak = 2 * n**3 / min(self.seconds(torch.matmul, squares))
        for kind, unit, value in (("read", "GB/s", self.bandwidth / 1e9), ("matmul", "TFLOP/s", self.peak / 1e12)):
            self.measurements.append(measurement(f"torch/ceiling/{kind}", unit, "more", [value]))

    def operation(self, name: str, run: Callable, make: Callable[[], tuple], bytes_: float, flop: float) -> None:
        """One line of the table, or of what does not run."""
        with warnings.catch_warnings(record=True) as reasons:  # torch warns of what keeps a backend from running
            warnings.simplefilter("always")
            try:
                times = self.seconds(run, self.copies(make))
            except RuntimeError as error:
                said = reasons[-1].message if reasons else error
                self.not_run.append({"what": name, "why": " ".join(str(said).split(" (Triggered")[0].split())[:200]})
                return
        median = statistics.median(times)
        floor = max(bytes_ / self.bandwidth, flop / self.peak)
        figures = [1e3 * median, bytes_ / median / 1e9, flop / median / 1e12, 100 * floor / median]
        self.rows.append([name, *(f"{figure:.3g}" for figure in figures)])
        self.measurements.append(measurement("torch/" + name.replace(", ", "/").replace(" ", "-"), "s", "less", times))

    def attention(self, name: str, make: Callable[[], tuple], bytes_: float, flop: float, **options) -> None:
        """As torch chooses, and with each of its backends by itself."""

        def run(q, k, v=None):
            # In the absorbed form the values are a part of the keys.
            return F.scaled_dot_product_attention(q, k, k[..., :512] if v is None else v, **options)

        q, k, v = make()
        chosen = torch._fused_sdp_choice(q, k, k[..., :512] if v is None else v, **options)
        backend = SDPBackend(chosen).name if chosen >= 0 else "none"
        self.operation(f"{name}, by choice {backend}", run, make, bytes_, flop)
        on_gpu = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION] if self.device == "cuda" else []
        for alone in (SDPBackend.FLASH_ATTENTION, *on_gpu, SDPBackend.MATH):
            with sdpa_kernel([alone]):
                self.operation(f"{name}, {alone.name}", run, make, bytes_, flop)

    def prefill(self, preset: str, length: int) -> None:
        heads = HEADS[preset]

        def make():
            return [self.random(1, heads, length, width) for width in (192, 192, 128)]

        flop = length**2 * heads * (192 + 128)  # half of the scores are masked
        bytes_ = 2 * heads * length * (192 + 192 + 128 + 128)
        self.attention(f"prefill, {preset}, S={length}", make, bytes_, flop, is_causal=True)

    def decode(self, preset: str, batch: int, context: int) -> None:
        heads = HEADS[preset]

        def make():
            return self.random(batch, heads, 1, 576), self.random(batch, 1, context, 576), None

        flop = 2 * batch * heads * context * (576 + 512)
        name = f"decode absorbed, {preset}, B={batch}, T={context}"
        self.attention(name, make, 2 * batch * context * 576, flop, enable_gqa=True)

    def experts(self, preset: str, tokens: int) -> None:
        count, hidden, width = EXPERTS[preset]
        grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm
        chosen = torch.cat([torch.randperm(count)[:TOP_K] for _ in range(tokens)])
        loads = torch.bincount(chosen, minlength=count)
        offsets = loads.cumsum(0).to(self.device, torch.int32)
        met = int((loads > 0).sum())

        def make():
            return self.random(tokens * TOP_K, hidden), self.random(count, hidden, 2 * width)

        bytes_, flop = 2 * met * hidden * 2 * width, 2 * tokens * TOP_K * hidden * 2 * width
        name = f"experts, {preset}, {tokens} tokens, {met} experts met"
        self.operation(name, lambda x, w: grouped_mm(x, w, offs=offsets), make, bytes_, flop)

    def run(self) -> None:
        """Everything; small sizes to try the program."""
        presets = ["v2-lite"] if self.small or self.device == "cpu" else list(HEADS)
        self.ceilings()
        for preset in presets:
            for length in [128] if self.small else [512, 4096]:
                self.prefill(preset, length)
            for batch, context in [(2, 256)] if self.small else [(1, 512), (1, 4096), (8, 4096), (64, 4096)]:
                self.decode(preset, batch, context)
            for tokens in [1, 16] if self.small else [1, 8, 64, 512]:
                self.experts(preset, tokens)
                print(f"{preset}: experts of {tokens} tokens done", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU [default: 2]")
    parser.add_argument("--small", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: expected a CUDA device, found none")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    run, bench = report.Run("peers/torch_ops.py", args.threads, args.small), Bench(args.device, args.small)
    run.control.sample()
    with torch.inference_mode():
        bench.run()
    run.control.sample()
    notes = [
        f"Ceilings of the same run: {bench.bandwidth / 1e9:.1f} GB/s read, {bench.peak / 1e12:.3g} TFLOP/s.",
        "% of the floor: the least time that the ceilings allow, over the time. Buffers rotate beyond the caches.",
    ]
    columns = ["operation", "ms", "GB/s", "TFLOP/s", "% of the floor"]
    table = tables.table(f"torch's kernels, bf16, {args.device}", columns, bench.rows, notes)
    content = {"measurements": bench.measurements, "tables": [table], "plots": []}
    run.write(args.output, {"torch": torch.__version__}, bench.not_run, content)


if __name__ == "__main__":
    main()
