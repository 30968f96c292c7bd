"""From what the peers answered to the measurements, tables and plots of a results file."""

import statistics
from typing import NamedTuple

from programs import Answer
from report import measurement

NOTES = [
    "Tokens per second: the median of the rounds, each the median of its steps; of a batch, of all sequences.",
    "dsv2 / peer: dsv2's speed over the peer's in a round, median and range of all; above 1, dsv2 leads.",
    "dsv2 is the reference, which computes in f32 on the checkpoint's bf16 weights, in both tables.",
]
OURS = "dsv2 f32"


class Job(NamedTuple):
    """What was timed; in the order of tables: one sequence before several, prefill before decoding, then by context."""

    batch: int
    decodes: bool
    context: int

    @classmethod
    def parse(cls, text: str) -> "Job":
        kind, context, batch = text.split("/")
        return cls(int(batch.removeprefix("batch=")), kind == "decode", int(context.removeprefix("context=")))

    def __str__(self) -> str:
        return f"{'decode' if self.decodes else 'prefill'}/context={self.context}/batch={self.batch}"

    def heading(self) -> str:
        title = f"decode at {self.context}" if self.decodes else f"prefill {self.context}"
        return title if self.batch == 1 else f"{title}, {self.batch} sequences"


class Answers:
    """All about one model: in each round, what each entry ("PEER DTYPE") answered."""

    def __init__(self, model: str, rounds: list[dict[tuple[str, str], Answer]]) -> None:
        self.model = model
        self.rounds = [{entry: answer for (of, entry), answer in each.items() if of == model} for each in rounds]
        answers = [(entry, answer) for each in self.rounds for entry, answer in each.items() if answer.samples]
        self.entries = sorted({entry for entry, _ in answers}, key=lambda entry: (entry != OURS, entry.lower()))
        self.jobs = sorted({Job.parse(job) for _, answer in answers for job in answer.samples})

    def of(self, entry: str) -> list[Answer]:
        """One for each round in which it took part."""
        return [each[entry] for each in self.rounds if entry in each]

    def of_type(self, dtype: str) -> list[str]:
        """The entries to be compared in a type; dsv2 is among them, in f32."""
        return [entry for entry in self.entries if entry == OURS or entry.endswith(f" {dtype}")]

    def rates(self, entry: str, job: Job) -> list[float]:
        """Tokens per second in each round that has the job, at the median of the times."""
        return [rate for each in self.rounds if (rate := rate_in(each, entry, job))]

    def ratios(self, entry: str, job: Job) -> list[float]:
        """dsv2's speed over the peer's, within each round that has both."""
        pairs = [(rate_in(each, OURS, job), rate_in(each, entry, job)) for each in self.rounds]
        return [ours / theirs for ours, theirs in pairs if ours and theirs]

    def facts(self, entry: str, name: str) -> list:
        return [answer.facts[name] for answer in self.of(entry) if answer.facts.get(name) is not None]

    def measurements(self) -> list[dict]:
        out = []
        for entry in self.entries:
            peer, dtype = entry.rsplit(" ", 1)
            for job in self.jobs:
                values = self.rates(entry, job)
                if len(values) == 1:  # one round: the spread is that of its samples
                    samples = next(answer.samples[str(job)] for answer in self.of(entry) if str(job) in answer.samples)
                    values = [tokens / seconds for seconds, tokens in samples]
                if values:
                    out.append(measurement(f"{self.model}/{dtype}/{job}/{peer}", "tokens/s", "more", values))
                if entry != OURS and (over := self.ratios(entry, job)):
                    out.append(measurement(f"{self.model}/{dtype}/{job}/dsv2-over-{peer}", "", "more", over))
            for name, unit in (("load_seconds", "s"), ("peak_bytes", "B"), ("cache_bytes_per_token", "B")):
                if values := self.facts(entry, name):
                    exact = name.startswith("cache") and peer != "llama.cpp"  # its log rounds
                    better = "neither" if name == "load_seconds" else "less"  # loading is the page cache's
                    out.append(measurement(f"{self.model}/{dtype}/{name}/{peer}", unit, better, values, exact))
        return out

    def agreement(self, entry: str) -> str:
        """How many of the most likely next tokens after the prompts are those that dsv2 finds."""
        ours, theirs = self.rounds[0].get(OURS), self.rounds[0].get(entry)
        if not (ours and theirs):
            return "–"
        names = [name for name in ours.facts if name.startswith("next/") and name in theirs.facts]
        pairs = [pair for name in names for pair in zip(ours.facts[name], theirs.facts[name], strict=True)]
        return f"{sum(a == b for a, b in pairs)} of {len(pairs)}"

    def speed_table(self, dtype: str) -> dict:
        single = [job for job in self.jobs if job.batch == 1]
        contexts = [job.context for job in single]
        ends = {min(contexts), max(contexts)}
        jobs = [job for job in single if job.context in ends] + [j for j in self.jobs if j.batch > 1 and j.decodes]
        rows = []
        for entry in self.of_type(dtype):
            row = [entry]
            for job in jobs:
                values = self.rates(entry, job)
                row.append(rounded(statistics.median(values)) if values else "–")
                row.append("1" if entry == OURS else spread(self.ratios(entry, job)))
            rows.append(row)
        columns = ["", *(column for job in jobs for column in (job.heading(), "dsv2 / peer"))]
        return table(f"{self.model}, {dtype}: tokens per second", columns, rows, NOTES)

    def memory_table(self) -> dict:
        rows, sources = [], []
        for entry in self.entries:
            load, peak, cache, source = (
                self.facts(entry, name)
                for name in ("load_seconds", "peak_bytes", "cache_bytes_per_token", "cache_bytes_per_token source")
            )
            held = f"{max(peak) / 1e9:.2f}" if peak else "–"
            one = f"{cache[0]:.0f}" if cache else "–"
            rows.append([entry, f"{min(load):.2f}" if load else "–", held, one, self.agreement(entry)])
            sources += [f"{entry}: {text}" for text in source[:1]]
        columns = ["", "load, s", "peak memory, GB", "cache, bytes per token", "next tokens as dsv2's"]
        notes = [
            "Load: the shortest; it says more of the page cache than of the program. Peak: mapped files count.",
            "Next tokens: how many of the most likely tokens after the prompts are those that dsv2 finds.",
            "Cache, where its size is from: " + "; ".join(sources) + ".",
        ]
        return table(f"{self.model}: loading, memory, cache", columns, rows, notes)

    def decode_plot(self, dtype: str) -> dict:
        """Tokens per second against context, a line for each entry."""
        series = []
        for entry in self.of_type(dtype):
            jobs = [job for job in self.jobs if job.decodes and job.batch == 1 and self.rates(entry, job)]
            points = [[job.context, statistics.median(self.rates(entry, job))] for job in jobs]
            if points:
                series.append({"name": entry, "points": points})
        return {
            "section": "peers",
            "title": f"Decoding with {self.model}, {dtype}",
            "file": f"peers-decode-{self.model}-{dtype}",
            "x": {"label": "tokens in the cache", "log": True},
            "y": {"label": "tokens per second", "log": True},
            "series": series,
        }


def rate_in(answers: dict[str, Answer], entry: str, job: Job) -> float | None:
    """Tokens per second in one round, if the job was done in it."""
    samples = answers[entry].samples.get(str(job)) if entry in answers else None
    return samples[0][1] / statistics.median(seconds for seconds, _ in samples) if samples else None


def rounded(speed: float) -> str:
    return f"{speed:.0f}" if speed >= 100 else f"{speed:.1f}"


def spread(values: list[float]) -> str:
    """The median, and the least and the largest if there are several."""
    if not values:
        return "–"
    middle = f"{statistics.median(values):.2f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f} to {max(values):.2f})"


def table(title: str, columns: list[str], rows: list[list[str]], notes: list[str]) -> dict:
    return {"section": "peers", "title": title, "columns": columns, "rows": rows, "notes": notes}


def render(rounds: list[dict[tuple[str, str], Answer]], models: list[str], dtypes: list[str]) -> dict:
    """`measurements`, `tables` and `plots` of a run."""
    found = [answers for answers in (Answers(model, rounds) for model in models) if answers.jobs]
    tables = [[*(each.speed_table(dtype) for dtype in dtypes), each.memory_table()] for each in found]
    return {
        "measurements": [one for each in found for one in each.measurements()],
        "tables": [one for each in tables for one in each],
        "plots": [each.decode_plot(dtype) for each in found for dtype in dtypes],
    }


def versions(rounds: list[dict[tuple[str, str], Answer]]) -> dict[str, str]:
    """What ran, and how it was set."""
    answers = [(entry, answer.facts) for each in rounds for (_, entry), answer in each.items()]
    return {entry: f"{facts['version']}; {facts.get('settings', '')}" for entry, facts in answers if "version" in facts}
