"""The results file of a program that measures, in the format of benches/report."""

import json
import pathlib
import shlex
import statistics
import sys
import time

import machine


def measurement(name: str, unit: str, better: str, values: list[float], exact: bool = False) -> dict:
    return {
        "id": f"peers/{name}",
        "unit": unit,
        "better": better,
        "value": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "samples": len(values),
        "exact": exact,
    }


def public(argument: str) -> str:
    """An argument with the last part of its path: where this machine keeps things is nobody's business."""
    name, equals, path = argument.rpartition("=")
    return f"{name}{equals}{path.rstrip('/').rsplit('/', 1)[-1]}"


class Run:
    """What stands at the top of a results file: the command, the machine, and its noise since the run began."""

    def __init__(self, program: str, threads: int, quick: bool) -> None:
        self.start, self.date, self.control = time.perf_counter(), machine.now(), machine.Control()
        self.command = shlex.join(["python", program, *map(public, sys.argv[1:])])
        self.threads, self.profile = threads, "quick" if quick else "full"

    def write(self, output: pathlib.Path, versions: dict[str, str], not_run: list[dict], content: dict) -> dict:
        """`content`: measurements, tables and plots. The file is there as a whole or not at all."""
        run = {
            "command": self.command,
            "commit": machine.commit(),
            "date": self.date,
            "profile": self.profile,
            "machine": machine.describe(self.threads),
            "seconds": round(time.perf_counter() - self.start, 1),
            "versions": versions,
            "noise": round(self.control.noise(), 4),
            **content,
            "not_run": not_run,
        }
        beside = output.with_name(output.name + ".new")
        beside.write_text(json.dumps({"format": 1, "runs": [run]}, indent=1) + "\n")
        beside.replace(output)
        return run
