#!/usr/bin/env python3
"""Compiles CUDA C++ to PTX with one pinned NVRTC, without a GPU, a driver or a CUDA toolkit.

    pip install nvidia-cuda-nvrtc-cu12==12.4.127        Python 3.11 or later
    python optimized/nvrtc.py                           all that is made of kernels/: PTX, mutants, resources.txt
    python optimized/nvrtc.py --check                   compares instead; exits with 1 and names each difference
    python optimized/nvrtc.py [--check] FILE.cu ...     only the PTX of these; outside of kernels/ it lies beside them
    python optimized/nvrtc.py --resources [FILE.cu ...] shows what ptxas says of registers, spills and shared memory

PTX of NVRTC 12.4 is version 8.4, which drivers from 550 on accept.

A mutant is a kernel that one edit of its source makes wrong; kernels/mutants.toml lists them. Its PTX holds one kernel
that the edit changes and no others, so that it can be put in its place. All are in one archive, kernels/mutants.tar.xz:
they are nearly the same text many times, 4 MB that become 0.2. To compile all of them takes minutes, so kernels/mutants.sum
has a hash of each with all that it was made of: where that is as it was, it is taken as it lies in the archive.

    python optimized/nvrtc.py --anew                    compiles all mutants, whatever mutants.sum says; also with --check
"""

import argparse
import hashlib
import io
import json
import lzma
import re
import sys
import tarfile
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from os.path import relpath
from pathlib import Path

from compiler import COUNTED, OPTIONS, TARGET, VERSION, Compiler, Problem, with_headers

HERE = Path(__file__).resolve().parent
KERNELS = HERE / "kernels"
PTX, MUTANTS, SUMS = KERNELS / "ptx", KERNELS / "mutants.tar.xz", KERNELS / "mutants.sum"
# What is compiled by its name only, and compared with `--check`: the emulator's tests, the ceilings of the benchmarks.
ELSEWHERE = [HERE.parent / "emulator" / "tests" / "ptx", HERE.parent / "benches" / "criterion" / "kernels"]

# How often a file is compiled at most, see `settle`.
RUNS = 16
INCLUDE = re.compile(r'(?m)^\s*#\s*include "([^"]+)"')
ENTRY = re.compile(r"(?ms)^(?:\.visible )?\.entry (\w+)\(.*?^\}\n")
COLUMNS = ["kernel", *(f"registers {gpu}" for gpu in COUNTED), "spill bytes", "stack bytes", "static shared bytes"]


def settle(path: Path, make: Callable[[], str]) -> str:
    """What `make` makes for a file.

    NVRTC 12.4 is not quite deterministic: of the loads of one local array it makes vectors in most runs, and in some it
    does not. So a text counts if it is in the file already, or if two runs agree on it.
    """
    seen = set()
    for _ in range(RUNS):
        made = make()
        if made in seen or made == held(path):
            break
        seen.add(made)
    return made


class Attempts:
    """Work on several threads that goes on after a problem, so that all problems are told at once."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def map(self, work, items) -> list:
        """The result of each item, or None where there was a problem."""
        def attempt(item):
            try:
                return work(item)
            except Problem as problem:
                self.problems.append(str(problem))

        with ThreadPoolExecutor() as pool:
            return list(pool.map(attempt, items))

    def end(self) -> None:
        """Nothing is written or compared if there was a problem."""
        if self.problems:
            sys.exit("\n".join(sorted(self.problems)))


@cache
def unpacked() -> dict[Path, str]:
    """The PTX of the archive of mutants, each as if the archive were a folder."""
    if not MUTANTS.exists():
        return {}
    with tarfile.open(MUTANTS) as archive:
        return {MUTANTS / member.name: archive.extractfile(member).read().decode() for member in archive}


def packed(texts: dict[Path, str]) -> bytes:
    """The archive of mutants: the same texts are the same bytes, for nothing is said of times and owners."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, text in sorted(texts.items()):
            member = tarfile.TarInfo(path.name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return lzma.compress(plain.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def place(source: Path) -> Path:
    """Where the PTX of a source is."""
    folder = PTX if source.resolve().parent == KERNELS else source.parent
    return folder / f"{source.stem}.ptx"


def mutant_place(mutant: dict[str, str]) -> Path:
    """Where the PTX of a mutant is, see `unpacked`."""
    return MUTANTS / f"{mutant['name']}.ptx"


def compiled(compiler: Compiler, attempts: Attempts, sources: list[Path]) -> dict[Path, str]:
    """The PTX of sources, by its place."""
    def make(source: Path) -> str:
        return settle(place(source), lambda: compiler.ptx(source.name, with_headers(source)))

    texts = attempts.map(make, sources)
    return {place(source): text for source, text in zip(sources, texts) if text is not None}


def table(compiler: Compiler, attempts: Attempts, sources: list[Path]) -> str:
    """The resources of all kernels as text, sorted by name."""
    rows = [row for found in attempts.map(compiler.resources, sources) for row in found or []]
    rows.sort(key=lambda row: row["kernel"])
    for first, second in zip(rows, rows[1:]):
        if first["kernel"] == second["kernel"]:
            attempts.problems.append(f"the kernel {first['kernel']} is in two modules")
    return aligned([COLUMNS, *([str(row[column]) for column in COLUMNS] for row in rows)])


def aligned(cells: list[list[str]]) -> str:
    """Lines of cells as a table; the first cell of each is a name."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "".join(
        " | ".join(cell.rjust(width) if column else cell.ljust(width)
                   for column, (cell, width) in enumerate(zip(line, widths))) + "\n"
        for line in cells
    )


def read_mutants() -> list[dict[str, str]]:
    """The rows of kernels/mutants.toml, which explains them."""
    path = KERNELS / "mutants.toml"
    try:
        mutants = tomllib.loads(path.read_text()).get("mutant", [])
    except tomllib.TOMLDecodeError as error:
        raise Problem(f"mutants.toml: {error}") from None
    names = [mutant.get("name") for mutant in mutants]
    for mutant, name in zip(mutants, names):
        if {*mutant, "file", "kernel"} != {"name", "module", "what", "from", "to", "file", "kernel"}:
            raise Problem(f"mutants.toml: {name}: expected name, module, what, from, to and perhaps file and kernel, "
                          f"found {', '.join(mutant)}")
        if not all(isinstance(value, str) for value in mutant.values()):
            raise Problem(f"mutants.toml: {name}: expected strings, found {mutant}")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or names.count(name) > 1:
            raise Problem(f"mutants.toml: {name}: expected a name in snake_case that no other mutant has")
    return mutants


def module_of(mutant: dict[str, str]) -> Path:
    """The source that a mutant is an edit of, or of whose headers."""
    source = KERNELS / f"{mutant['module']}.cu"
    if not source.exists():
        raise Problem(f"expected a module of kernels/, found {mutant['module']}")
    return source


def mutate(compiler: Compiler, originals: dict[Path, str], mutant: dict[str, str]) -> str:
    """The PTX of a mutant: that of its module with the edit, with one of the kernels that the edit changes."""
    source = module_of(mutant)
    original = originals.get(place(source))
    if original is None:
        raise Problem(f"its module {mutant['module']} does not compile")
    texts, file = with_headers(source), mutant.get("file", source.name)
    if file not in texts:
        raise Problem(f"expected a file among {', '.join(texts)}, found {file}")
    if (count := texts[file].count(mutant["from"])) != 1:
        raise Problem(f"expected its `from` once in {file}, found it {count} times")
    texts[file] = texts[file].replace(mutant["from"], mutant["to"])
    ptx = compiler.ptx(source.name, texts)
    before = {entry[1]: without_places(entry[0]) for entry in ENTRY.finditer(original)}
    changed = {entry[1] for entry in ENTRY.finditer(ptx) if without_places(entry[0]) != before.get(entry[1])}
    if not changed:
        # Perhaps the edit is in a table or in a function that is not inlined: then it may concern any kernel.
        if without_places(ENTRY.sub("", ptx)) == without_places(ENTRY.sub("", original)):
            raise Problem("dead: the PTX is the same with its edit and without")
        changed = set(before)
    lengths = {entry[1]: len(entry[0]) for entry in ENTRY.finditer(ptx) if entry[1] in changed}
    # The budgets of fp32 are the tightest, and the shortest of its kernels says as much as all of them.
    kernel = mutant.get("kernel", min(lengths, key=lambda name: (not name.endswith("_f32"), lengths[name], name)))
    if kernel not in changed:
        raise Problem(f"expected a kernel that its edit changes ({', '.join(sorted(changed))}), found {kernel}")
    return without_places(ENTRY.sub(lambda entry: entry[0] if entry[1] == kernel else "", ptx))


def summed(mutant: dict[str, str], ptx: str) -> str:
    """A line of mutants.sum: a hash of the PTX of a mutant and of all that it is made of and by."""
    source = module_of(mutant)
    texts, included, names = with_headers(source), {}, [source.name]
    while names:
        name = names.pop()
        if name in texts and name not in included:
            included[name] = texts[name]
            names += INCLUDE.findall(texts[name])
    made_by = [VERSION, OPTIONS, TARGET, *((HERE / name).read_text() for name in ("nvrtc.py", "compiler.py"))]
    whole = json.dumps([made_by, sorted(included.items()), sorted(mutant.items()), ptx])
    return f"{hashlib.sha256(whole.encode()).hexdigest()}  {mutant['name']}"


def without_places(ptx: str) -> str:
    """PTX without comments and source lines: an edit moves them in what it does not concern, here and in mutants."""
    return re.sub(r"(?m)^\s*(\.loc\s.*|//.*)?\n", "", ptx)


def everything(compiler: Compiler, attempts: Attempts, anew: bool) -> dict[Path, str]:
    """All that is made of kernels/, by its place."""
    sums = set(SUMS.read_text().splitlines()) if SUMS.exists() and not anew else set()

    def make(mutant: dict[str, str]) -> str:
        try:
            there = held(mutant_place(mutant))
            if there is not None and summed(mutant, there) in sums:
                return there
            return settle(mutant_place(mutant), lambda: mutate(compiler, originals, mutant))
        except Problem as problem:
            raise Problem(f"mutants.toml: {mutant['name']}: {problem}") from None

    sources, mutants = sorted(KERNELS.glob("*.cu")), read_mutants()
    originals = compiled(compiler, attempts, sources)
    edited = [(mutant, text) for mutant, text in zip(mutants, attempts.map(make, mutants)) if text is not None]
    return {
        **originals,
        **{mutant_place(mutant): text for mutant, text in edited},
        SUMS: "".join(f"{summed(mutant, text)}\n" for mutant, text in edited),
        KERNELS / "resources.txt": table(compiler, attempts, sources),
    }


def left_over(folders: list[Path], made: dict[Path, str]) -> list[Path]:
    """PTX whose source is gone."""
    there = [path for folder in folders for path in sorted(folder.glob("*.ptx"))]
    return [path for path in [*there, *unpacked()] if path not in made]


def held(path: Path) -> str | None:
    """The text of a file or of a member of the archive, if it is there."""
    if path.parent == MUTANTS:
        return unpacked().get(path)
    return path.read_text() if path.exists() else None


def put(path: Path, content: bytes) -> None:
    """Writes a file, beside its place first, so that nobody reads half of one."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_bytes(content)
    beside.rename(path)
    print(f"written: {relpath(path)}")


def write(made: dict[Path, str], gone: list[Path]) -> None:
    """Writes what has changed."""
    mutants = {path: text for path, text in made.items() if path.parent == MUTANTS}
    for path, text in made.items():
        if path not in mutants and held(path) != text:
            put(path, text.encode())
    if (mutants or gone) and mutants != unpacked():
        put(MUTANTS, packed(mutants))
    for path in gone:
        if path.parent != MUTANTS:
            path.unlink()
            print(f"removed: {relpath(path)}")


def check(made: dict[Path, str], gone: list[Path]) -> None:
    """Names each difference, and ends with 1 if there is one."""
    lines = [f"{relpath(path)}: not what its source compiles to" for path, text in made.items() if held(path) != text]
    lines += [f"{relpath(path)}: its source is gone" for path in gone]
    if lines:
        sys.exit("\n".join([*lines, "made anew by: python optimized/nvrtc.py (FILE.cu, outside of kernels/)"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with what is there")
    parser.add_argument("--anew", action="store_true", help="compile also the mutants that mutants.sum says are as they were")
    parser.add_argument("--resources", action="store_true", help="show registers, spills and shared memory")
    parser.add_argument("sources", nargs="*", type=Path, metavar="FILE.cu")
    arguments = parser.parse_args()
    compiler, attempts, gone = Compiler(), Attempts(), []
    if arguments.resources:
        shown = table(compiler, attempts, arguments.sources or sorted(KERNELS.glob("*.cu")))
        attempts.end()
        print(shown, end="")
        return
    if arguments.sources:
        made = compiled(compiler, attempts, arguments.sources)
    else:
        made, folders = everything(compiler, attempts, arguments.anew), [PTX]
        if arguments.check:
            elsewhere = [source for folder in ELSEWHERE for source in sorted(folder.glob("*.cu"))]
            made |= compiled(compiler, attempts, elsewhere)
            folders += ELSEWHERE
        gone = left_over(folders, made)
    attempts.end()
    (check if arguments.check else write)(made, gone)


if __name__ == "__main__":
    try:
        main()
    except Problem as problem:
        sys.exit(str(problem))
