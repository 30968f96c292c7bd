"""The implementations that are judged, and what each is asked."""

import dataclasses
import json
import pathlib
import re
import subprocess

HERE = pathlib.Path(__file__).parent

PLAIN_CASES = """v2 v2-lite v2-5 tight-groups many-groups mscale-differs mscale-lone one-shared-expert first-k-dense-0 all-dense
    all-experts one-expert-per-token bias-lite epsilon-inner-norms gelu-tanh relu rope-default rope-linear rope-dynamic
    yarn-betas yarn-attention-factor checkpoint-tied checkpoint-sharded small-variance odd-dims one-token trained-tiny-greedy
    trained-tiny-grouped""".split()
"""Cases that say something with token ids alone: what is given of masks and positions is left out."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to run an implementation."""

    label: str
    options: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("f32", "bf16")


@dataclasses.dataclass(frozen=True)
class Implementation:
    """`program` is what `--with` names: the Python that has the package, or the adapter itself."""

    id: str
    title: str
    adapter: str
    package: str | None
    exposes: str
    settings: tuple[Setting, ...]
    plain: bool = True
    """It takes token ids and nothing else."""
    last_position: bool = False
    """It gives the logits of the last position only."""
    coarse: bool = False
    """It computes in 16 bits in places, even if it is asked for f32."""

    def version(self, program: str) -> str:
        """Of the package that will run."""
        if self.package is None:  # a crate: its adapter pins the version
            return re.search(r'candle-transformers = "=(.*)"', (HERE / "candle/Cargo.toml").read_text())[1]
        code = f"import importlib.metadata as m; print(m.version('{self.package}'))"
        return subprocess.run([program, "-c", code], check=True, capture_output=True, text=True).stdout.strip()

    def command(self, program: str) -> list[str]:
        """What answers lines of arguments, see fork_server.py; an adapter that is a program runs once for each line."""
        return [program] if self.package is None else [program, str(HERE / "fork_server.py"), str(HERE / self.adapter)]

    def options(self, setting: Setting, version: str, case: dict) -> list[str]:
        """The adapter's options for a case."""
        options = list(setting.options)
        if version.startswith("4.") and "--experts" in options:  # experts are plain modules there
            at = options.index("--experts")
            del options[at : at + 2]
        chunks = case["options"].get("chunks")
        return options + (["--chunks", ",".join(map(str, chunks))] if chunks else [])

    def takes(self, case: dict) -> bool:
        """Whether the case is put to it. Cases of an older dialect are no question to anybody."""
        return case["dialect"] == "hf" and (case["name"] in PLAIN_CASES if self.plain else True)


IMPLEMENTATIONS = (
    Implementation(
        id="transformers",
        title="Hugging Face Transformers",
        adapter="transformers_adapter.py",
        package="transformers",
        exposes="every stage that forward hooks see",
        settings=(
            Setting("eager attention and experts", ("--attention", "eager", "--experts", "eager")),
            Setting("as it comes: sdpa, from 5.0 on grouped_mm"),
        ),
        plain=False,
    ),
    Implementation(
        id="candle",
        title="candle-transformers",
        adapter="candle",
        package=None,
        exposes="logits, one prefix at a time",
        settings=(Setting("CPU, no MKL", dtypes=("f32",)),),
    ),
    Implementation(
        id="llama.cpp",
        title="llama.cpp (llama-cpp-python)",
        adapter="llama_cpp_adapter.py",
        package="llama-cpp-python",
        exposes="logits of all positions",
        settings=(Setting("CPU, weights and cache in f32", dtypes=("f32",)),),
    ),
    Implementation(
        id="mistral.rs",
        title="mistral.rs",
        adapter="mistralrs_adapter.py",
        package="mistralrs",
        exposes="log-probabilities of the last position",
        settings=(
            Setting("CPU, the checkpoint as it is", dtypes=("f32",)),
            Setting("CPU, value heads widened with zeros", ("--pad-values",), dtypes=("f32",)),
        ),
        last_position=True,
        coarse=True,
    ),
)


def read_cases(golden: pathlib.Path) -> list[dict]:
    """All golden cases, by name."""
    return [json.loads(path.read_text()) for path in sorted(golden.glob("*/case.json"))]
