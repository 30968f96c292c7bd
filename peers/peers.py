"""The peers of peers.toml, and how their programs are started."""

import argparse
import dataclasses
import pathlib
import re
import subprocess
import tomllib

HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Peer:
    """One implementation. The program that `--with` names is the Python that has the package, or the peer itself."""

    id: str
    title: str
    folder: str = ""
    package: str = ""
    settings: tuple[dict, ...] = ()
    ids_only: bool = True
    last_position: bool = False
    coarse: bool = False
    memory: dict[str, float] = dataclasses.field(default_factory=dict)
    slow: dict[str, str] = dataclasses.field(default_factory=dict)
    devices: tuple[str, ...] = ("cpu",)
    converts: bool = False

    def version(self, program: str) -> str:
        """Of the package that will run."""
        if not self.package:
            return re.search(r'candle-transformers = "=(.*)"', (HERE / "candle/Cargo.toml").read_text())[1]
        code = f"import importlib.metadata as m; print(m.version('{self.package}'))"
        return subprocess.run([program, "-c", code], check=True, capture_output=True, text=True).stdout.strip()

    def command(self, program: str, part: str) -> list[str]:
        """Starts `part`: "dump", "speed" or "convert"."""
        if self.id == "dsv2":  # an example of the reference, which is only timed
            return [program, "--json"]
        return [program, str(HERE / self.folder / f"{part}.py") if self.folder else part]


PEERS = [Peer(id=id_, **fields) for id_, fields in tomllib.loads((HERE / "peers.toml").read_text()).items()]
JUDGED = [peer for peer in PEERS if peer.settings]
TIMED = [peer for peer in PEERS if peer.memory]


def add_programs(parser: argparse.ArgumentParser, peers: list[Peer], required: bool) -> None:
    """The option `--with ID=PROGRAM`, which may be given several times: a list of (peer, program)."""
    known = {peer.id: peer for peer in peers}
    ids = ", ".join(known)

    def read(text: str) -> tuple[Peer, str]:
        name, _, program = text.partition("=")
        if name not in known or not program:
            raise argparse.ArgumentTypeError(f"expected ID=PROGRAM with an ID of {ids}, found {text!r}")
        return known[name], program

    what = {"type": read, "metavar": "ID=PROGRAM", "help": f"a program or a Python, for: {ids}", "required": required}
    parser.add_argument("--with", dest="programs", action="append", default=[], **what)
