"""What every program of a peer in Python does with its arguments, its answers and its errors. README.md has the contracts."""

import argparse
import json
import os
import pathlib
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, Protocol

DUMP_LIMIT_S = 300
"""After so many seconds a dump is given up."""
WARM_UP = 256
"""Tokens that are fed before anything is timed: enough to touch every page of the weights."""
MASK = (1 << 64) - 1


class Model(Protocol):
    """A peer with its weights loaded, to be timed."""

    vocab_size: int

    def begin(self, batch: int, length: int) -> None:
        """An empty cache for `batch` sequences of at most `length` tokens."""

    def feed(self, ids: list[list[int]]) -> None:
        """Takes the next tokens of every sequence, and returns when the logits after the last are there."""

    def next_tokens(self) -> list[int]:
        """The most likely next token of every sequence."""

    def cache_bytes_per_token(self) -> tuple[float, str]:
        """What the current cache holds for one token of one sequence, and where that number is from."""


def parser(description: str, positional: dict[str, Any], options: dict[str, dict]) -> argparse.ArgumentParser:
    """For arguments without a dash, whose types are given, and for options."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind in positional.items():
        parser.add_argument(name, type=kind)
    for name, settings in options.items():
        parser.add_argument(name, **settings)
    return parser


def one_line(error: BaseException) -> str:
    """An error without the backtrace that Rust libraries put behind it."""
    return " ".join(re.split(r"\s+0: <", f"{type(error).__name__}: {error}")[0].split())


Load = Callable[[argparse.Namespace], Any]
Run = Callable[[Any, argparse.Namespace], None]


def dump(description: str, load: Load, run: Run, options: dict[str, dict] | None = None) -> None:
    """The main function of a dump program: `load` makes the model or refuses it, `run` computes and writes the dump.

    Without arguments it runs once for each line of stdin, a JSON list of arguments, and answers with a line of JSON: the
    `status` (negative: the signal that ended it), and as `message` the last line printed. Each run is a fork of its own:
    libraries are loaded once, and a run that dies takes nothing along.
    """
    path = pathlib.Path
    options = {"dtype": {"choices": ["f32", "bf16", "f16"]}, **(options or {})}
    reader = parser(description, {"model": path, "inputs": path, "output": path}, options)
    if len(sys.argv) > 1:
        sys.exit(attempt(load, run, reader.parse_args()))
    for line in sys.stdin:
        with tempfile.TemporaryFile() as log:
            process = os.fork()
            if process == 0:
                for stream in (1, 2):
                    os.dup2(log.fileno(), stream)
                signal.alarm(DUMP_LIMIT_S)
                status = attempt(load, run, reader.parse_args(json.loads(line)))
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)  # what the parent has loaded is not the child's to tear down
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            log.seek(0)
            printed = [text.strip() for text in log.read().decode(errors="replace").splitlines() if text.strip()]
        message = printed[-1] if printed else ""
        if status < 0:
            message = f"{signal.Signals(-status).name} {message}".strip()
        print(json.dumps({"status": status, "message": message}), flush=True)


def attempt(load: Load, run: Run, args: argparse.Namespace) -> int:
    """The exit status: 2 if the model is refused, 1 if it was taken and something went wrong then."""
    status = 2
    try:
        loaded = load(args)
        status = 1
        run(loaded, args)
    except BaseException as error:  # a Rust panic is no Exception; whatever it is, it is the peer's answer
        print(one_line(error), file=sys.stderr)
        return status
    return 0


def token(sequence: int, place: int, vocab_size: int) -> int:
    """SplitMix64 of (sequence, place): the same in every peer, and different for every sequence."""
    z = ((sequence << 32 | place) + 0x9E3779B97F4A7C15) & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return (z ^ z >> 31) % vocab_size


def session(text: str) -> tuple[int, list[tuple[int, int]]]:
    """`BATCH:CONTEXT+STEPS,CONTEXT+STEPS,...` -> (batch, [(context, steps), ...])."""
    if not re.fullmatch(r"\d+:\d+\+\d+(,\d+\+\d+)*", text):
        raise argparse.ArgumentTypeError(f"expected BATCH:CONTEXT+STEPS,..., found {text!r}")
    batch, stops = text.split(":")
    return int(batch), [tuple(map(int, stop.split("+"))) for stop in stops.split(",")]


def say(**line) -> None:
    print(json.dumps(line), flush=True)


def run_session(model: Model, batch: int, stops: list[tuple[int, int]]) -> None:
    """Takes the sequences from stop to stop; at each, times single tokens."""

    def feed(begin: int, end: int) -> float:
        ids = [[token(b, place, model.vocab_size) for place in range(begin, end)] for b in range(batch)]
        start = time.perf_counter()
        model.feed(ids)
        return time.perf_counter() - start

    model.begin(batch, stops[-1][0] + stops[-1][1] + 1)
    fed, seconds, tokens = 0, 0.0, 0
    for context, steps in stops:
        job = f"context={context}/batch={batch}"
        seconds += feed(fed, context)
        tokens += batch * (context - fed)
        say(job=f"prefill/{job}", seconds=seconds, tokens=tokens)
        say(fact=f"next/{job}", value=model.next_tokens())
        feed(context, context + 1)  # the first single token may set something up
        fed = context + 1 + steps
        for place in range(context + 1, fed):
            say(job=f"decode/{job}", seconds=feed(place, place + 1), tokens=batch)


def peak_bytes() -> int | None:
    """The most memory that this process has held, mapped pages included (Linux only)."""
    status = pathlib.Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else None


def speed(
    description: str,
    load: Callable[[argparse.Namespace], tuple[Model, dict[str, str]]],
    options: dict[str, dict] | None = None,
) -> None:
    """The main function of a speed program. `load` returns the model, and the facts `version` and `settings`."""
    options = {
        "--dtype": {"choices": ["f32", "bf16"], "default": "f32"},
        "--threads": {"type": int, "default": 2},
        "--device": {"choices": ["cpu", "cuda"], "default": "cpu"},
        **(options or {}),
        "sessions": {"type": session, "nargs": "+", "metavar": "BATCH:CONTEXT+STEPS,..."},
    }
    args = parser(description, {"model": pathlib.Path}, options).parse_args()
    try:
        start = time.perf_counter()
        model, facts = load(args)
        say(fact="load_seconds", value=time.perf_counter() - start)
        for name, value in facts.items():
            say(fact=name, value=value)
        model.begin(1, WARM_UP + 1)
        model.feed([[token(0, place, model.vocab_size) for place in range(WARM_UP)]])
        model.feed([[token(0, WARM_UP, model.vocab_size)]])
        value, source = model.cache_bytes_per_token()
        say(fact="cache_bytes_per_token", value=value, source=source)
        for batch, stops in args.sessions:
            run_session(model, batch, stops)
        say(fact="peak_bytes", value=peak_bytes())
    except Exception as error:  # whatever it is, it is the peer's answer
        sys.exit(one_line(error))
