"""From the adapters' samples to the measurements, tables and plots of a results file."""

import statistics

Rounds = list[dict]
"""For each round: (model, entry's name) -> Answer. An entry's name is "PEER DTYPE"."""


def public(arguments: list[str]) -> list[str]:
    """The command line with the last part of each path: where this machine keeps things is nobody's business."""

    def last(text: str) -> str:
        name, equals, path = text.rpartition("=")
        return f"{name}{equals}{path.rstrip('/').rsplit('/', 1)[-1]}"

    return [last(argument) for argument in arguments]


def versions(rounds: Rounds) -> dict[str, str]:
    """What ran, and how it was set."""
    out = {}
    for answers in rounds:
        for (_, entry), answer in answers.items():
            if "version" in answer.facts:
                out[entry] = f"{answer.facts['version']}; {answer.facts.get('settings', '')}"
    return out


def rate(samples: list[tuple[float, int]]) -> float:
    """Tokens per second, at the median of the times."""
    return samples[0][1] / statistics.median(seconds for seconds, _ in samples)


def samples_of(rounds: Rounds, model: str, entry: str, job: str) -> list[list[tuple[float, int]]]:
    """Those of each round that has some."""
    answers = [answers.get((model, entry)) for answers in rounds]
    return [answer.samples[job] for answer in answers if answer and job in answer.samples]


def rates(rounds: Rounds, model: str, entry: str, job: str) -> list[float]:
    """One for each round that has it."""
    return [rate(samples) for samples in samples_of(rounds, model, entry, job)]


def ratios(rounds: Rounds, model: str, entry: str, job: str) -> list[float]:
    """dsv2's speed over the peer's, within each round that has both."""
    one_round = [(rates([r], model, "dsv2 f32", job), rates([r], model, entry, job)) for r in rounds]
    return [ours[0] / theirs[0] for ours, theirs in one_round if ours and theirs]


def facts(rounds: Rounds, model: str, entry: str, name: str) -> list:
    answers = [answers.get((model, entry)) for answers in rounds]
    return [answer.facts[name] for answer in answers if answer and answer.facts.get(name) is not None]


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


def entries_of(rounds: Rounds, model: str) -> list[str]:
    """dsv2 first, then by name; every one that gave at least one number."""
    found = {entry for answers in rounds for (of, entry), answer in answers.items() if of == model and answer.samples}
    return sorted(found, key=lambda entry: (not entry.startswith("dsv2"), entry.lower()))


def jobs_of(rounds: Rounds, model: str) -> list[str]:
    found = {
        job: None for answers in rounds for (of, _), answer in answers.items() if of == model for job in answer.samples
    }
    prefill = [job for job in found if job.startswith("prefill") and job.endswith("batch=1")]
    decode = [job for job in found if job.startswith("decode") and job.endswith("batch=1")]
    batched = [job for job in found if not job.endswith("batch=1")]

    def context(job: str) -> int:
        return int(job.split("context=")[1].split("/")[0])

    return sorted(prefill, key=context) + sorted(decode, key=context) + sorted(batched)


def measurements(rounds: Rounds, model: str) -> list[dict]:
    out = []
    for entry in entries_of(rounds, model):
        peer, dtype = entry.rsplit(" ", 1)
        for job in jobs_of(rounds, model):
            values = rates(rounds, model, entry, job)
            if len(values) == 1:  # one round: the spread is that of its samples
                values = [tokens / seconds for seconds, tokens in samples_of(rounds, model, entry, job)[0]]
            if values:
                out.append(measurement(f"{model}/{dtype}/{job}/{peer}", "tokens/s", "more", values))
            if peer != "dsv2" and (over := ratios(rounds, model, entry, job)):
                out.append(measurement(f"{model}/{dtype}/{job}/dsv2-over-{peer}", "", "more", over))
        for name, unit in (("load_seconds", "s"), ("peak_bytes", "B"), ("cache_bytes_per_token", "B")):
            if values := facts(rounds, model, entry, name):
                exact = name.startswith("cache") and peer != "llama.cpp"  # its log rounds
                better = "neither" if name == "load_seconds" else "less"  # loading is the page cache's
                out.append(measurement(f"{model}/{dtype}/{name}/{peer}", unit, better, values, exact))
    return out


def spread(values: list[float]) -> str:
    """The median, and the least and the largest if there are several."""
    if not values:
        return "–"
    middle = f"{statistics.median(values):.2f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f} to {max(values):.2f})"


def speed(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def heading(job: str) -> str:
    kind, context, batch = job.split("/")
    at = context.removeprefix("context=")
    title = f"prefill {at}" if kind == "prefill" else f"decode at {at}"
    return title if batch == "batch=1" else f"{title}, {batch.removeprefix('batch=')} sequences"


def agreement(rounds: Rounds, model: str, entry: str) -> str:
    """How many of the most likely next tokens after the prompts are those that dsv2 finds."""
    first = rounds[0]
    ours, theirs = first.get((model, "dsv2 f32")), first.get((model, entry))
    if not (ours and theirs):
        return "–"
    names = [name for name in ours.facts if name.startswith("next/") and name in theirs.facts]
    pairs = [pair for name in names for pair in zip(ours.facts[name], theirs.facts[name], strict=True)]
    return f"{sum(a == b for a, b in pairs)} of {len(pairs)}"


def speed_table(rounds: Rounds, model: str, dtype: str) -> dict:
    """Of one model and type; dsv2 stands in each, in f32."""
    entries = [e for e in entries_of(rounds, model) if e.endswith(f" {dtype}") or e.startswith("dsv2 ")]
    jobs = jobs_of(rounds, model)
    kept = [job for job in jobs if job.endswith("batch=1")]
    contexts = [job for job in kept if job.startswith("prefill")]
    ends = {contexts[0], contexts[-1]} | {job.replace("prefill", "decode") for job in (contexts[0], contexts[-1])}
    jobs = [job for job in kept if job in ends] + [job for job in jobs if job not in kept and job.startswith("decode")]
    rows = []
    for entry in entries:
        row = [entry]
        for job in jobs:
            values = rates(rounds, model, entry, job)
            row.append(speed(statistics.median(values)) if values else "–")
            row.append("1" if entry.startswith("dsv2") else spread(ratios(rounds, model, entry, job)))
        rows.append(row)
    return {
        "section": "peers",
        "title": f"{model}, {dtype}: tokens per second",
        "columns": ["", *(column for job in jobs for column in (heading(job), "dsv2 / peer"))],
        "rows": rows,
        "notes": [
            "Tokens per second: the median of the rounds, each the median of its steps; of a batch, of all sequences.",
            "dsv2 / peer: dsv2's speed over the peer's in a round, median and range of all; above 1, dsv2 leads.",
            "dsv2 is the reference, which computes in f32 on the checkpoint's bf16 weights, in both tables.",
        ],
    }


def memory_table(rounds: Rounds, model: str) -> dict:
    rows, sources = [], []
    for entry in entries_of(rounds, model):
        load, peak, cache = (
            facts(rounds, model, entry, name) for name in ("load_seconds", "peak_bytes", "cache_bytes_per_token")
        )
        rows.append(
            [
                entry,
                f"{min(load):.2f}" if load else "–",
                f"{max(peak) / 1e9:.2f}" if peak else "–",
                f"{cache[0]:.0f}" if cache else "–",
                agreement(rounds, model, entry),
            ]
        )
        for source in facts(rounds, model, entry, "cache_bytes_per_token source")[:1]:
            sources.append(f"{entry}: {source}")
    return {
        "section": "peers",
        "title": f"{model}: loading, memory, cache",
        "columns": ["", "load, s", "peak memory, GB", "cache, bytes per token", "next tokens as dsv2's"],
        "rows": rows,
        "notes": [
            "Load: the shortest; it says more of the page cache than of the program. Peak: mapped files count.",
            "Next tokens: how many of the most likely tokens after the prompts are those that dsv2 finds.",
            "Cache, where its size is from: " + "; ".join(sources) + ".",
        ],
    }


def decode_plot(rounds: Rounds, model: str, dtype: str) -> dict:
    """Tokens per second against context, a line for each peer."""
    series = []
    for entry in entries_of(rounds, model):
        if not (entry.endswith(f" {dtype}") or entry.startswith("dsv2 ")):
            continue
        points = []
        for job in jobs_of(rounds, model):
            if job.startswith("decode") and job.endswith("batch=1") and (values := rates(rounds, model, entry, job)):
                points.append([int(job.split("/")[1].removeprefix("context=")), statistics.median(values)])
        if points:
            series.append({"name": entry, "points": points})
    return {
        "section": "peers",
        "title": f"Decoding with {model}, {dtype}",
        "file": f"peers-decode-{model}-{dtype}",
        "x": {"label": "tokens in the cache", "log": True},
        "y": {"label": "tokens per second", "log": True},
        "series": series,
    }


def render(rounds: Rounds, models: list[str], dtypes: list[str]) -> dict:
    """`measurements`, `tables` and `plots` of a run."""
    models = [model for model in models if jobs_of(rounds, model)]
    tables, plots = [], []
    for model in models:
        for dtype in dtypes:
            tables.append(speed_table(rounds, model, dtype))
            plots.append(decode_plot(rounds, model, dtype))
        tables.append(memory_table(rounds, model))
    return {
        "measurements": [m for model in models for m in measurements(rounds, model)],
        "tables": tables,
        "plots": plots,
    }
