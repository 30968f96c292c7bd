"""Times dsv2's reference and its peers on the same checkpoints, in turns, and writes a results file.

    python peers/measure.py --model NAME=DIR --with ID=PROGRAM [--with ...] --output peers.json [--quick]

README.md says what a peer needs, and how it is measured.
"""

import argparse
import dataclasses
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator

import machine
import report
import tables
from peers import TIMED, Peer, add_programs
from programs import Answer, ask

SHORT = 8
"""Steps where more would take too long: long contexts, and peers that are slow."""
BATCH = 8
"""Sequences, at the shortest context. Their prompts take as long as a long one, hence --batch-rounds."""
LIBRARIES = 2.5e9
"""Bytes that a peer may hold for anything but weights."""
LIMIT = 1800.0
"""Seconds after which a program is stopped."""


def model(text: str) -> tuple[str, pathlib.Path]:
    name, _, folder = text.partition("=")
    if not (name and pathlib.Path(folder, "config.json").is_file()):
        raise argparse.ArgumentTypeError(f"expected NAME=DIR with config.json in DIR, found {text!r}")
    return name, pathlib.Path(folder)


def rising(text: str) -> list[int]:
    try:
        contexts = [int(n) for n in text.split(",")]
    except ValueError:
        contexts = []
    apart = all(b - a > 40 for a, b in zip([0, *contexts], contexts, strict=False))
    if not (contexts and apart):  # the tokens of a decode measurement lie between two contexts
        raise argparse.ArgumentTypeError(f"expected numbers, each more than 40 above the one before (0), found {text!r}")
    return contexts


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=model, action="append", required=True, metavar="NAME=DIR", help="a checkpoint folder")
    add_programs(parser, TIMED, required=True)
    add("--dtypes", nargs="+", choices=["f32", "bf16"], default=["f32", "bf16"], help="[default: both]")
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=3, help="[default: 3]")
    add("--batch-rounds", type=int, default=1, help="in how many of them batches take part [default: 1]")
    add("--contexts", type=rising, default=[512, 4096], help="[default: 512,4096]")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--work", type=pathlib.Path, metavar="DIR", help="where converted models are kept [default: nowhere]")
    add("--output", type=pathlib.Path, required=True)
    add("--quick", action="store_true", help="the smallest of the models, one round")
    return parser.parse_args()


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def size(folder: pathlib.Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One peer in one type."""

    peer: Peer
    dtype: str
    program: str

    @property
    def name(self) -> str:
        return f"{self.peer.id} {self.dtype}"

    def sessions(self, contexts: list[int], batch: int | None) -> list[str]:
        """What it is asked for: all contexts with one sequence, then, if told so, the shortest with a batch."""
        if self.dtype in self.peer.slow:
            return [f"1:{contexts[0]}+{SHORT}"]
        stops = ",".join(f"{context}+{32 if context <= 1024 else SHORT}" for context in contexts)
        return [f"1:{stops}", *([f"{batch}:{contexts[0]}+16"] if batch else [])]


class Bench:
    """One run: who takes part, what came of it, and what did not."""

    def __init__(self, args: argparse.Namespace, work: pathlib.Path) -> None:
        self.args, self.work = args, work
        self.models = dict(args.model)
        if args.quick:
            self.models = dict([min(args.model, key=lambda model: size(model[1]))])
        self.rounds: list[dict[tuple[str, str], Answer]] = []
        """For each round: (model, entry's name) -> its answer."""
        self.not_run: dict[str, str] = {}
        self.report = report.Run("peers/measure.py", args.threads, args.quick)
        self.entries = []
        programs = {peer.id: program for peer, program in args.programs}
        for peer in TIMED:
            for dtype in ["f32"] if peer.id == "dsv2" else args.dtypes:  # dsv2's f32 is compared with both
                entry = Entry(peer, dtype, programs.get(peer.id, ""))
                if not entry.program:
                    self.not_run[entry.name] = "no --with names its program"
                elif args.device not in peer.devices:
                    self.not_run[entry.name] = f"its program does not run on {args.device}"
                else:
                    self.entries.append(entry)
                    if reason := peer.slow.get(dtype):
                        self.not_run[f"{entry.name}, longer contexts and batches"] = reason

    def converted(self, model: str, entry: Entry) -> pathlib.Path:
        return self.work / f"{model}-{entry.dtype}.gguf"

    def prepare(self) -> None:
        """Makes the files of peers that have a format of their own."""
        for model, folder in self.models.items():
            for entry in (entry for entry in self.entries if entry.peer.converts):
                target = self.converted(model, entry)
                if target.exists() and target.stat().st_mtime > (folder / "config.json").stat().st_mtime:
                    continue
                progress(f"{model}: converting for {entry.name}")
                command = [*entry.peer.command(entry.program, "convert"), str(folder), str(target), entry.dtype]
                if reason := ask(command, self.args.threads, LIMIT).failure:
                    self.not_run[f"{model}: {entry.name}"] = reason

    def turn(self, model: str, entry: Entry, batch: int | None) -> Answer | None:
        """One entry on one model."""
        peer, folder = entry.peer, self.models[model]
        needed = size(folder) * peer.memory[entry.dtype] + LIBRARIES
        if self.args.device == "cpu" and needed > (free := machine.memory("MemAvailable")):
            self.not_run[f"{model}: {entry.name}"] = f"needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"
            return None
        command = [*peer.command(entry.program, "speed"), str(folder), "--threads", str(self.args.threads)]
        if peer.id != "dsv2":  # it computes in f32, whatever the checkpoint's type
            command += ["--dtype", entry.dtype]
        if peer.converts:
            command += ["--converted", str(self.converted(model, entry))]
        if self.args.device != "cpu":
            command += ["--device", self.args.device]
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
            self.report.control.sample()
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
            self.report.control.sample()
            yield

    def write(self) -> None:
        """What there is."""
        versions = tables.versions(self.rounds) | {"rustc": machine.output_of("rustc", "--version")}
        not_run = [{"what": what, "why": why} for what, why in self.not_run.items()]
        content = tables.render(self.rounds, list(self.models), self.args.dtypes)
        run = self.report.write(self.args.output, versions, not_run, content)
        count = len(run["measurements"])
        progress(f"{self.args.output}: {count} measurements, noise {run['noise']:.2f}, {run['seconds']:.0f} s")


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or pathlib.Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        bench = Bench(args, work)
        bench.prepare()
        for _ in bench.run():  # a run that is cut short keeps the rounds that it has
            bench.write()


if __name__ == "__main__":
    main()
