"""Starts the programs of peers, as README.md's contracts say, and reads what they print."""

import dataclasses
import json
import os
import subprocess

from peers import HERE, Peer

MODULES = [str(HERE), str(HERE.parent / "golden/hooks"), *filter(None, [os.environ.get("PYTHONPATH")])]
ENVIRONMENT = {"RUST_LOG": "off", "TQDM_DISABLE": "1"} | os.environ | {"PYTHONPATH": os.pathsep.join(MODULES)}
"""Of all programs: those in Python find contract.py, and libraries are quiet."""


class Dumps:
    """The dump program of a peer. One in Python is started once and forks for each run, one in Rust is started each time."""

    def __init__(self, peer: Peer, program: str):
        self.command = peer.command(program, "dump")
        self.server = None
        if peer.folder:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self.server = subprocess.Popen(self.command, text=True, env=ENVIRONMENT, **pipes)

    def make(self, arguments: list[str]) -> tuple[int, str]:
        """The exit status, and the last line printed."""
        if self.server is None:
            done = subprocess.run([*self.command, *arguments], capture_output=True, text=True)
            return done.returncode, last_line(done.stderr)
        try:
            print(json.dumps(arguments), file=self.server.stdin, flush=True)
            answer = json.loads(self.server.stdout.readline())
        except (BrokenPipeError, ValueError):
            raise RuntimeError(f"{self.command[-1]} does not start: run it by hand to see why") from None
        return answer["status"], answer["message"]

    def close(self) -> None:
        if self.server is not None:
            self.server.communicate()


@dataclasses.dataclass
class Answer:
    """What one run of a speed program printed."""

    samples: dict[str, list[tuple[float, int]]]
    """(seconds, tokens) of each job."""
    facts: dict[str, object]
    failure: str | None


def ask(command: list[str], threads: int, limit: float) -> Answer:
    """Runs a program for at most `limit` seconds. What it printed before it failed counts."""
    environment = ENVIRONMENT | dict.fromkeys(("RAYON_NUM_THREADS", "OMP_NUM_THREADS"), str(threads))
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=limit)
        output, error, status = done.stdout, done.stderr, done.returncode
    except subprocess.TimeoutExpired as late:
        output, error, status = (late.stdout or b"").decode(errors="replace"), f"not done after {limit:.0f} s", 1
    except OSError as missing:
        output, error, status = "", f"does not start: {missing.strerror}", 1
    answer = Answer({}, {}, None)
    if status:
        answer.failure = last_line(error) or f"ended with status {status}"
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


def last_line(text: str) -> str:
    """That is not empty."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
