"""What every adapter does: reads arguments, feeds sessions, prints a JSON line for each sample. See README.md."""

import argparse
import json
import pathlib
import re
import sys
import time
from collections.abc import Callable
from typing import Protocol

WARM_UP = 256
"""Tokens that are fed before anything is timed: enough to touch every page of the weights."""

MASK = (1 << 64) - 1


class Model(Protocol):
    """A peer with its weights loaded."""

    vocab_size: int

    def begin(self, batch: int, length: int) -> None:
        """An empty cache for `batch` sequences of at most `length` tokens."""

    def feed(self, ids: list[list[int]]) -> None:
        """Takes the next tokens of every sequence, and returns when the logits after the last are there."""

    def next_tokens(self) -> list[int]:
        """The most likely next token of every sequence."""

    def cache_bytes_per_token(self) -> tuple[float, str]:
        """What the current cache holds for one token of one sequence, and where that number is from."""


def token(sequence: int, place: int, vocab_size: int) -> int:
    """SplitMix64 of (sequence, place): the same in every adapter, and different for every sequence."""
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


def serve(
    description: str, load: Callable[[argparse.Namespace], tuple[Model, dict[str, str]]], **options: dict
) -> None:
    """The main function of an adapter. `load` returns the model, and the facts `version` and `settings`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("sessions", type=session, nargs="+", metavar="BATCH:CONTEXT+STEPS,...")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    for name, settings in options.items():
        parser.add_argument(f"--{name}", **settings)
    args = parser.parse_args()
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
        sys.exit(" ".join(f"{type(error).__name__}: {error}".split()))
