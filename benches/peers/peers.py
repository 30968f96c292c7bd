"""The peers: how each is started, in which types, and how much memory it needs."""

import dataclasses
import json
import os
import pathlib
import subprocess

HERE = pathlib.Path(__file__).parent

SHORT = 8
"""Steps where more would take too long: long contexts, and peers that are marked `slow`."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """`memory`: for each type, the memory that its weights were seen to take, in sizes of a bf16 checkpoint."""

    id: str
    adapter: str | None
    """The Python file that its Python runs; None: the program is the adapter itself."""
    memory: dict[str, float]
    devices: tuple[str, ...] = ("cpu",)
    slow: dict[str, str] = dataclasses.field(default_factory=dict)
    """Types in which it is only asked for a short context and a few steps, and why."""


PEERS = {
    peer.id: peer
    for peer in (
        Peer("dsv2", None, {"f32": 1.1}),
        Peer("transformers", "transformers_peer.py", {"f32": 3.6, "bf16": 1.6}, devices=("cpu", "cuda")),
        Peer("candle", None, {"f32": 2.6, "bf16": 1.6}, slow={"bf16": "decodes 1.5 tokens/s of the V2-Lite width"}),
        Peer("llama.cpp", "llama_cpp_peer.py", {"f32": 2.1, "bf16": 1.1}),
    )
}


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

    def command(self, model: pathlib.Path, gguf: pathlib.Path, threads: int, device: str) -> list[str]:
        """Without the sessions."""
        command = [self.program, *([str(HERE / self.peer.adapter)] if self.peer.adapter else []), str(model)]
        command += ["--threads", str(threads)]
        if self.peer.id == "dsv2":
            return [*command, "--json"]  # it computes in f32, whatever the checkpoint's type
        command += ["--dtype", self.dtype]
        if self.peer.id == "llama.cpp":
            command += ["--gguf", str(gguf)]
        return command + (["--device", device] if device != "cpu" else [])


@dataclasses.dataclass
class Answer:
    """What one run of an adapter printed."""

    samples: dict[str, list[tuple[float, int]]]
    """(seconds, tokens) of each job."""
    facts: dict[str, object]
    failure: str | None


def ask(command: list[str], threads: int, limit: float) -> Answer:
    """Runs an adapter. What it printed before it failed counts."""
    environment = os.environ | dict.fromkeys(("RAYON_NUM_THREADS", "OMP_NUM_THREADS"), str(threads))
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=limit)
        output, error, status = done.stdout, done.stderr, done.returncode
    except subprocess.TimeoutExpired as late:
        output, error, status = (late.stdout or b"").decode(errors="replace"), f"not done after {limit:.0f} s", 1
    except OSError as missing:
        output, error, status = "", f"does not start: {missing.strerror}", 1
    answer = Answer({}, {}, None)
    if status:
        lines = [line for line in error.splitlines() if line.strip()]
        answer.failure = lines[-1].strip() if lines else f"ended with status {status}"
        for path in filter(os.path.isabs, command):  # a report does not tell where things are kept
            answer.failure = answer.failure.replace(path, os.path.basename(path))
    for text in output.splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # a library's chatter
        if "job" in line:
            answer.samples.setdefault(line["job"], []).append((line["seconds"], line["tokens"]))
        elif "fact" in line:
            answer.facts[line["fact"]] = line["value"]
            if "source" in line:
                answer.facts[line["fact"] + " source"] = line["source"]
    return answer
