"""The machine that this runs on, and how steady it is."""

import datetime
import pathlib
import platform
import re
import statistics
import subprocess
import time

ROOT = pathlib.Path(__file__).parents[1]


def output_of(*command: str) -> str:
    """Of a program in the repository; nothing, if there is no such program or it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def commit() -> str:
    """The checked-out commit, with + if something differs from it."""
    return (output_of("git", "rev-parse", "--short=12", "HEAD") or "unknown") + (
        "+" if output_of("git", "status", "--porcelain") else ""
    )


def memory(key: str) -> float:
    """A line of /proc/meminfo, in bytes."""
    return int(re.search(rf"{key}:\s*(\d+) kB", pathlib.Path("/proc/meminfo").read_text())[1]) * 1024


def describe(threads: int) -> dict:
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    gpu = output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or None
    name = cpu[1] if cpu else platform.processor()
    return {"cpu": name, "threads": threads, "memory_gb": round(memory("MemTotal") / 1e9, 1), "gpu": gpu}


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class Control:
    """Two loads that are always the same, for the core and for the memory: how much their times differ is noise."""

    def __init__(self) -> None:
        self.block = bytearray(128 << 20)
        self.seconds: dict[str, list[float]] = {"core": [], "memory": []}

    def compute(self) -> None:
        total = 0
        for i in range(2_000_000):
            total += i * i

    def copy(self) -> None:
        for _ in range(4):
            bytes(self.block)

    def sample(self) -> None:
        """Times both: the median of three."""
        for name, load in (("core", self.compute), ("memory", self.copy)):
            times = []
            for _ in range(3):
                start = time.perf_counter()
                load()
                times.append(time.perf_counter() - start)
            self.seconds[name].append(statistics.median(times))

    def noise(self) -> float:
        """The wider of the two relative spreads."""
        return max((max(times) - min(times)) / statistics.median(times) for times in self.seconds.values())
