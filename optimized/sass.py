#!/usr/bin/env python3
"""What ptxas makes of kernels/ptx for real GPUs, without one: kernels/sass.txt, and limits that no kernel may break.

    pip install --no-deps nvidia-cuda-nvcc==13.0.88 nvidia-cuda-nvdisasm==13.2.51        Python 3.11 or later
    python optimized/sass.py            writes kernels/sass.txt, if no limit is broken
    python optimized/sass.py --check    compares instead; exits with 1 and names each difference

A row is a kernel on a GPU: registers, the warps of a multiprocessor that they leave room for, bytes of static shared memory,
and how often each kind of instruction stands in its code (not how often it is executed: that is counted by the emulator).
"""

import argparse
import importlib.metadata
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

from compiler import COUNTED, Problem
from nvrtc import KERNELS, PTX, aligned, put

PACKAGES = {"ptxas": "nvidia-cuda-nvcc==13.0.88", "nvdisasm": "nvidia-cuda-nvdisasm==13.2.51"}
TABLE = KERNELS / "sass.txt"

# Kernels whose products are made by tensor cores. All others do without, those in fp32 for their bits.
TENSOR_CORES = ["gemm*_tuned_bf16", "linear_*_tuned_bf16", "absorb_*_tuned_bf16", "gate_up*_tuned_bf16", "down*_tuned_bf16",
                "mla_prefill*_tuned_bf16", "mla_decode*_tuned_bf16"]
# Kernels that may have local memory, and why.
LOCAL = {
    "rotary_naive_f32": "the slow path of CUDA's sine, which is why there is a tuned one",
    "route_tuned_f32": "a list of expert groups that is indexed by what is known at run time only",
}

# Columns, and the opcodes (up to their first dot) that they count.
KINDS = {
    "all": "",
    "mma": "HMMA IMMA DMMA BMMA QMMA OMMA HGMMA IGMMA QGMMA BGMMA",
    "ldmatrix": "LDSM",
    "cp.async": "LDGSTS UBLKCP UTMALDG",
    "global": "LDG LD STG ST",
    "shared": "LDS STS",
    "local": "LDL STL",
    "atomics": "ATOM ATOMG ATOMS RED REDG REDS",
    "fp32": "FFMA FADD FMUL",
    "fp64": "DFMA DADD DMUL DSETP",
    "special": "MUFU",
    "warp": "SHFL VOTE MATCH REDUX",
    "barriers": "BAR",
    "calls": "CALL",
}
KIND_OF = {opcode: kind for kind, opcodes in KINDS.items() for opcode in opcodes.split()}
SIZES = ["registers", "warps", "static shared"]
INSTRUCTION = re.compile(r"(?m)^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{ )?(?:@!?\w+ )?([A-Z][A-Z0-9_.]*)")
# Of a multiprocessor: four parts with so many registers each, given to warps in pieces.
PART, PIECE, MOST_WARPS = 16384, 256, 64


def tools() -> dict[str, Path]:
    """The two programs, of the pinned packages."""
    found = {}
    for name, package in PACKAGES.items():
        wanted, version = package.split("==")
        try:
            distribution = importlib.metadata.distribution(wanted)
        except importlib.metadata.PackageNotFoundError:
            raise Problem(f"{name}: expected the package {package}, found none") from None
        if distribution.version != version:
            raise Problem(f"{name}: expected the package {package}, found {distribution.version}")
        places = [file.locate() for file in distribution.files or [] if file.name == name and file.parent.name == "bin"]
        if len(places) != 1:
            raise Problem(f"{name}: expected it once in the package {package}, found it {len(places)} times")
        found[name] = Path(places[0])
    return found


def run(command: list) -> str:
    """What a program says; if it fails, that is a problem."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise Problem(f"{Path(command[0]).name} {Path(command[-1]).name}: {(done.stderr or done.stdout).strip()}")
    return done.stdout + done.stderr


def rows(programs: dict[str, Path], ptx: Path, gpu: str, folder: Path) -> tuple[list[dict], list[str]]:
    """The rows of the kernels of a module, and the limits that they break."""
    cubin = folder / f"{ptx.stem}.{gpu}.cubin"
    said = run([programs["ptxas"], "-v", f"-arch={gpu}", "-o", cubin, ptx])
    parts = re.split(r"(?m)^\.text\.(\w+):\n", run([programs["nvdisasm"], "-c", cubin]))
    code = dict(zip(parts[1::2], parts[2::2]))
    threads = dict(re.findall(r"(?s)\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+)", ptx.read_text()))
    table, broken = [], []
    for kernel, about in re.findall(r"Function properties for (\w+)\n(.*\n.*: Used .*)", said):
        def number(what: str) -> int:
            return int(found[1]) if (found := re.search(what, about)) else 0

        if kernel not in code or kernel not in threads:
            raise Problem(f"{ptx.name}: {kernel}: expected its code and its launch bound, found only {sorted(code)}")
        opcodes = Counter(INSTRUCTION.findall(code[kernel]))
        counts = Counter()
        for opcode, count in opcodes.items():
            root = opcode.split(".")[0]
            if root != "NOP":
                counts["all"] += count
            if root in KIND_OF:
                counts[KIND_OF[root]] += count
        registers, warps = number(r"Used (\d+) registers"), -(-int(threads[kernel]) // 32)
        row = {"kernel": kernel, "gpu": gpu, "registers": registers, "warps": resident(registers, warps),
               "static shared": number(r"(\d+) bytes smem"), **{kind: counts[kind] for kind in KINDS}}
        spilled = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
        wrong = limits(kernel, row, spilled, [opcode for opcode in opcodes if "TF32" in opcode])
        broken += [f"{kernel} on {gpu}: {what}" for what in wrong]
        table.append(row)
    if {row["kernel"] for row in table} != set(threads):
        raise Problem(f"{ptx.name}: expected the kernels {sorted(threads)}, found {[row['kernel'] for row in table]}")
    return table, broken


def resident(registers: int, warps: int) -> int:
    """How many warps of a multiprocessor have registers, in whole blocks of so many warps."""
    of_warp = -(-registers * 32 // PIECE) * PIECE
    return min(PART // of_warp * 4, MOST_WARPS) // warps * warps


def limits(kernel: str, row: dict, spilled: int, tf32: list[str]) -> list[str]:
    """What a kernel must not do, if it does."""
    matrix = any(fnmatch(kernel, pattern) for pattern in TENSOR_CORES)
    wrong = {
        f"{spilled} bytes of registers are spilled": spilled,
        f"{row['local']} accesses of local memory, and it is not listed in LOCAL": row["local"] and kernel not in LOCAL,
        "no instruction for tensor cores": matrix and not row["mma"],
        f"{row['mma']} instructions for tensor cores, and it is not listed in TENSOR_CORES": row["mma"] and not matrix,
        f"fp32 is rounded to TF32 ({', '.join(tf32)})": tf32,
        "not one block has enough registers": not row["warps"],
    }
    return [what for what, is_so in wrong.items() if is_so]


def everything() -> list[dict]:
    """All rows by name; a broken limit is a problem."""
    programs, paths = tools(), sorted(PTX.glob("*.ptx"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        work = [pool.submit(rows, programs, path, gpu, Path(folder)) for path in paths for gpu in COUNTED]
        found = [one.result() for one in work]
    table = sorted((row for rows, _ in found for row in rows), key=lambda row: (row["kernel"], row["gpu"]))
    names = {row["kernel"] for row in table}
    broken = [line for _, lines in found for line in lines]
    broken += [f"{kernel}: listed in LOCAL, and no such kernel has local memory" for kernel in LOCAL
               if not any(row["kernel"] == kernel and row["local"] for row in table)]
    broken += [f"{pattern}: listed in TENSOR_CORES, and there is no such kernel" for pattern in TENSOR_CORES
               if not any(fnmatch(kernel, pattern) for kernel in names)]
    if broken:
        raise Problem("\n".join(sorted(broken)))
    return table


def text(table: list[dict]) -> str:
    """The table as it is written."""
    columns = ["kernel", "gpu", *SIZES, *KINDS]
    return aligned([columns, *([str(row[column]) for column in columns] for row in table)])


def parsed(held: str) -> dict[tuple[str, str], dict[str, str]]:
    """A table that was written, by kernel and GPU."""
    lines = [[cell.strip() for cell in line.split("|")] for line in held.splitlines()]
    return {(line[0], line[1]): dict(zip(lines[0], line)) for line in lines[1:] if len(line) > 1}


def differences(held: str, made: str) -> list[str]:
    """A line for each row that is not as it was."""
    before, after = parsed(held), parsed(made)
    lines = [f"{kernel} on {gpu}: its row is there, and no such kernel" for kernel, gpu in before.keys() - after.keys()]
    for (kernel, gpu), row in after.items():
        old = before.get((kernel, gpu))
        changed = [f"{column} {old.get(column, 'none')} -> {value}" for column, value in row.items()
                   if old.get(column) != value] if old else ["it has no row"]
        if changed:
            lines.append(f"{kernel} on {gpu}: {', '.join(changed)}")
    return sorted(lines) or ["the rows are the same, and the file is not"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with what is there")
    arguments = parser.parse_args()
    made, held = text(everything()), TABLE.read_text() if TABLE.exists() else ""
    if not arguments.check:
        if made != held:
            put(TABLE, made.encode())
    elif made != held:
        sys.exit("\n".join(["kernels/sass.txt: not what ptxas makes of kernels/ptx", *differences(held, made),
                            "made anew by: python optimized/sass.py"]))


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        sys.exit(str(problem))
