"""The peers: what each can be asked, and how its programs are started."""

import argparse
import dataclasses
import pathlib
import re
import subprocess
from collections.abc import Callable, Iterable

HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to run a peer that is judged."""

    label: str
    options: tuple[str, ...] = ()
    """Of its dump program."""
    dtypes: tuple[str, ...] = ("f32", "bf16")


@dataclasses.dataclass(frozen=True)
class Peer:
    """One implementation. The program that `--with` names is the Python that has the package, or the peer itself."""

    id: str
    title: str
    folder: str | None = None
    """Where its programs are, in Python: dump.py, speed.py, convert.py. None: a program takes the place of all."""
    package: str | None = None

    settings: tuple[Setting, ...] = ()
    """In which it is judged."""
    ids_only: bool = True
    """It takes token ids, and no masks or positions."""
    last_position: bool = False
    """It gives the logits of the last position only."""
    coarse: bool = False
    """It computes in 16 bits in places, even if it is asked for f32."""

    memory: dict[str, float] = dataclasses.field(default_factory=dict)
    """In which types it is timed, and the memory that its weights were seen to take, in sizes of a bf16 checkpoint."""
    devices: tuple[str, ...] = ("cpu",)
    slow: dict[str, str] = dataclasses.field(default_factory=dict)
    """Types in which it is only asked for a short context and a few steps, and why."""
    converts: bool = False
    """It runs a file of its own format, which convert.py makes."""

    def version(self, program: str) -> str:
        """Of the package that will run."""
        if self.package is None:  # a crate that pins its version
            return re.search(r'candle-transformers = "=(.*)"', (HERE / "candle/Cargo.toml").read_text())[1]
        code = f"import importlib.metadata as m; print(m.version('{self.package}'))"
        return subprocess.run([program, "-c", code], check=True, capture_output=True, text=True).stdout.strip()

    def command(self, program: str, part: str) -> list[str]:
        """Starts `part`: "dump", "speed" or "convert"."""
        if self.id == "dsv2":  # an example of the reference, which is only timed
            return [program, "--json"]
        return [program, str(HERE / self.folder / f"{part}.py") if self.folder else part]


PEERS = {
    peer.id: peer
    for peer in (
        Peer("dsv2", "dsv2's reference", memory={"f32": 1.1}),
        Peer(
            "transformers",
            "Hugging Face Transformers",
            folder="transformers",
            package="transformers",
            settings=(
                Setting("eager attention and experts", ("--attention", "eager", "--experts", "eager")),
                Setting("as it comes: sdpa, from 5.0 on grouped_mm"),
            ),
            ids_only=False,
            memory={"f32": 3.6, "bf16": 1.6},
            devices=("cpu", "cuda"),
        ),
        Peer(
            "candle",
            "candle-transformers",
            settings=(Setting("CPU, no MKL", dtypes=("f32",)),),
            memory={"f32": 2.6, "bf16": 1.6},
            slow={"bf16": "decodes 1.5 tokens/s of the V2-Lite width"},
        ),
        Peer(
            "llama.cpp",
            "llama.cpp (llama-cpp-python)",
            folder="llama_cpp",
            package="llama-cpp-python",
            settings=(Setting("CPU, weights and cache in f32", dtypes=("f32",)),),
            memory={"f32": 2.1, "bf16": 1.1},
            converts=True,
        ),
        Peer(
            "mistral.rs",
            "mistral.rs",
            folder="mistralrs",
            package="mistralrs",
            settings=(
                Setting("CPU, the checkpoint as it is", dtypes=("f32",)),
                Setting("CPU, value heads widened with zeros", ("--pad-values",), dtypes=("f32",)),
            ),
            last_position=True,
            coarse=True,
        ),
    )
}
JUDGED = [peer for peer in PEERS.values() if peer.settings]
TIMED = [peer for peer in PEERS.values() if peer.memory]


def add_programs(parser: argparse.ArgumentParser, peers: Iterable[Peer], **more) -> None:
    """The option `--with ID=PROGRAM`, which may be given several times: a list of (peer, program)."""
    known = ", ".join(peer.id for peer in peers)
    more |= {"type": program(peers), "metavar": "ID=PROGRAM", "help": f"a program or a Python, for: {known}"}
    parser.add_argument("--with", dest="programs", action="append", default=[], **more)


def program(peers: Iterable[Peer]) -> Callable[[str], tuple[Peer, str]]:
    """Reads ID=PROGRAM, for one of these peers."""
    known = {peer.id: peer for peer in peers}

    def read(text: str) -> tuple[Peer, str]:
        name, _, path = text.partition("=")
        if name not in known or not path:
            raise argparse.ArgumentTypeError(f"expected ID=PROGRAM with an ID of {', '.join(known)}, found {text!r}")
        return known[name], path

    return read
