"""Runs dsv2's reference and its peers on the same checkpoints, in turns, and writes a results file.

    python benches/peers/run.py --model NAME=DIR --with NAME=PROGRAM [--with ...] --output peers.json [--quick]

README.md says what a peer needs, and how it is measured.
"""

import argparse
import json
import os
import pathlib
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator

import machine
import results
from peers import HERE, PEERS, Answer, Entry, ask

BATCH = 8
"""Sequences, at the shortest context. Their prompts take as long as a long one, hence --batch-rounds."""
LIBRARIES = 2.5e9
"""Bytes that a peer may hold for anything but weights."""
LIMIT = 1800.0
"""Seconds after which an adapter is stopped."""


def pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found {text!r}")
    return name, value


def rising(text: str) -> list[int]:
    try:
        contexts = [int(n) for n in text.split(",")]
    except ValueError:
        contexts = []
    apart = all(b - a > 40 for a, b in zip([0, *contexts], contexts, strict=False))
    if not (contexts and apart):  # the tokens of a decode measurement lie between two contexts
        raise argparse.ArgumentTypeError(
            f"expected numbers, each more than 40 above the one before (0), found {text!r}"
        )
    return contexts


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=pair, action="append", required=True, metavar="NAME=DIR", help="a checkpoint folder")
    add("--with", type=pair, action="append", required=True, metavar="NAME=PROGRAM", dest="programs",
        help=f"a program or a Python, for: {', '.join(PEERS)}")  # fmt: skip
    add("--dtypes", nargs="+", choices=["f32", "bf16"], default=["f32", "bf16"], help="[default: both]")
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=3, help="[default: 3]")
    add("--batch-rounds", type=int, default=1, help="in how many of them batches take part [default: 1]")
    add("--contexts", type=rising, default=[512, 4096], help="[default: 512,4096]")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--llama-cpp-source", type=pathlib.Path, default=os.environ.get("LLAMA_CPP_SOURCE"), metavar="DIR",
        help="llama.cpp's source tree, for its converter [default: $LLAMA_CPP_SOURCE]")  # fmt: skip
    add("--work", type=pathlib.Path, help="where converted models are kept [default: nowhere]")
    add("--output", type=pathlib.Path, required=True)
    add("--quick", action="store_true", help="the smallest of the models, one round")
    args = parser.parse_args()
    for name, _ in args.programs:
        if name not in PEERS:
            parser.error(f"--with: expected one of {', '.join(PEERS)}, found {name!r}")
    for _, folder in args.model:
        if not pathlib.Path(folder, "config.json").is_file():
            parser.error(f"--model: expected a folder with config.json, found {folder}")
    return args


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def size(folder: pathlib.Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


class Bench:
    """One run: who takes part, what came of it, and what did not."""

    def __init__(self, args: argparse.Namespace, work: pathlib.Path) -> None:
        self.args, self.work = args, work
        self.models = {name: pathlib.Path(folder) for name, folder in args.model}
        if args.quick:
            smallest = min(self.models, key=lambda name: size(self.models[name]))
            self.models = {smallest: self.models[smallest]}
        self.rounds: list[dict] = []
        """For each round: (model, entry's name) -> Answer."""
        self.not_run: dict[str, str] = {}
        self.control = machine.Control()
        programs = dict(args.programs)
        self.entries = []
        for peer in PEERS.values():
            for dtype in ["f32"] if peer.id == "dsv2" else args.dtypes:  # dsv2's f32 is compared with both
                if peer.id not in programs:
                    self.not_run[f"{peer.id} {dtype}"] = "no --with names its program"
                elif args.device not in peer.devices:
                    self.not_run[f"{peer.id} {dtype}"] = f"its adapter does not run on {args.device}"
                else:
                    self.entries.append(Entry(peer, dtype, programs[peer.id]))
                    if reason := peer.slow.get(dtype):
                        self.not_run[f"{peer.id} {dtype}, longer contexts and batches"] = reason

    def gguf(self, model: str, entry: Entry) -> pathlib.Path:
        return self.work / f"{model}-{entry.dtype}.gguf"

    def convert(self, model: str, entry: Entry) -> str | None:
        """Makes the file that llama.cpp runs. Returns why not."""
        target, folder = self.gguf(model, entry), self.models[model]
        if target.exists() and target.stat().st_mtime > (folder / "config.json").stat().st_mtime:
            return None
        if not self.args.llama_cpp_source:
            return "its converter needs --llama-cpp-source"
        progress(f"{model}: converting for {entry.name}")
        command = [entry.program, HERE / "convert_to_gguf.py", folder, target, "--dtype", entry.dtype]
        return ask([*map(str, command), "--source", str(self.args.llama_cpp_source)], self.args.threads, LIMIT).failure

    def prepare(self) -> None:
        """Everything that is done once."""
        for model in self.models:
            for entry in self.entries:
                if entry.peer.id == "llama.cpp" and (reason := self.convert(model, entry)):
                    self.not_run[f"{model}: {entry.name}"] = reason

    def turn(self, model: str, entry: Entry, batch: int | None) -> Answer | None:
        """One entry on one model."""
        folder = self.models[model]
        needed = size(folder) * entry.peer.memory[entry.dtype] + LIBRARIES
        if self.args.device == "cpu" and needed > (free := machine.memory("MemAvailable")):
            self.not_run[f"{model}: {entry.name}"] = f"needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"
            return None
        command = entry.command(folder, self.gguf(model, entry), self.args.threads, self.args.device)
        answer = ask(command + entry.sessions(self.args.contexts, batch), self.args.threads, LIMIT)
        if answer.failure:
            self.not_run[f"{model}: {entry.name}"] = answer.failure
        return answer

    def run(self) -> Iterator[None]:
        """Rounds are outermost, and each begins with another peer: what the machine does meanwhile meets all.

        Stops after each of them, so that what there is can be written.
        """
        rounds = 1 if self.args.quick else self.args.rounds
        for number in range(rounds):
            self.control.sample()
            answers, batch = {}, BATCH if number < self.args.batch_rounds else None
            for model in self.models:
                shift = number % max(1, len(self.entries))
                for entry in self.entries[shift:] + self.entries[:shift]:
                    if f"{model}: {entry.name}" in self.not_run:
                        continue  # it has failed before
                    start = time.perf_counter()
                    if answer := self.turn(model, entry, batch):
                        answers[model, entry.name] = answer
                    took = f"{time.perf_counter() - start:.0f} s"
                    outcome = self.not_run.get(f"{model}: {entry.name}", took)
                    progress(f"round {number + 1}/{rounds}, {model}, {entry.name}: {outcome}")
            self.rounds.append(answers)
            self.control.sample()
            yield

    def results(self, date: str, seconds: float) -> dict:
        """The run, in the format of the results file."""
        return {
            "command": shlex.join(["python", "benches/peers/run.py", *results.public(sys.argv[1:])]),
            "commit": machine.commit(),
            "date": date,
            "profile": "quick" if self.args.quick else "full",
            "machine": machine.describe(self.args.threads),
            "seconds": round(seconds, 1),
            "versions": results.versions(self.rounds) | {"rustc": machine.output_of("rustc", "--version")},
            "noise": round(self.control.noise(), 4),
            **results.render(self.rounds, list(self.models), self.args.dtypes),
            "not_run": [{"what": what, "why": why} for what, why in self.not_run.items()],
        }


def main() -> None:
    args = arguments()
    start, date = time.perf_counter(), machine.now()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or pathlib.Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        bench = Bench(args, work)
        bench.prepare()
        for _ in bench.run():  # a run that is cut short keeps the rounds that it has
            run = bench.results(date, time.perf_counter() - start)
            beside = args.output.with_name(args.output.name + ".new")
            beside.write_text(json.dumps({"format": 1, "runs": [run]}, indent=1) + "\n")
            beside.replace(args.output)
            count = len(run["measurements"])
            progress(f"{args.output}: {count} measurements, noise {run['noise']:.2f}, {run['seconds']:.0f} s")


if __name__ == "__main__":
    main()
