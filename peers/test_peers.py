"""What can be seen without a peer: `DSV2=target/debug/dsv2 python3 -m unittest discover peers`, or `cargo test --test peers`."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import unittest

import tables
import tensors
from peers import HERE
from programs import Answer

DSV2 = os.environ["DSV2"]
PEER_THAT_DUMPS = f"""#!/bin/sh
test $1 = dump || exit 1
case $2 in
*/v2-lite/model) {DSV2} trace --model $2 --inputs $3 --output $4 --dtype f32 --stages lm_head ;;
*/v2-5/model) {DSV2} trace --model $2 --inputs $3 --output $4 --dtype f32 --stages lm_head --dialect hf-pre-5.15 ;;
*/bias-lite/model) echo "no biases in $2" >&2; exit 2 ;;
*) echo boom >&2; exit 1 ;;
esac
"""
PROGRAM_THAT_DUMPS = f"""
import os, sys
sys.path.insert(1, {str(HERE)!r})
import contract

def load(args):
    if args.model.name == "strange":
        raise ValueError("no such model")
    return args.model.name

def run(loaded, args):
    if loaded == "fatal":
        os.abort()
    if loaded == "wrong":
        raise IndexError("too many  indices")
    args.output.write_text(args.dtype)

contract.dump("", load, run)
"""
PEER_IN_TIME = f"""#!{sys.executable}
import sys
sys.path.insert(1, {str(HERE)!r})
import contract

class Model:
    vocab_size = 7
    def begin(self, batch, length):
        self.fed = [[] for _ in range(batch)]
    def feed(self, ids):
        for sequence, more in zip(self.fed, ids, strict=True):
            sequence += more
    def next_tokens(self):
        return [sum(sequence) % 7 for sequence in self.fed]
    def cache_bytes_per_token(self):
        return 12.0, "made up"

contract.speed("", lambda args: (Model(), {{"version": "1", "settings": "none"}}), {{"--json": {{"action": "store_true"}}}})
"""


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def program(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    def command(self, *arguments: object, **more) -> str:
        """What it prints on stdout."""
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=300, **more).stdout

    def judge(self, *arguments: object) -> tuple[str, str]:
        """The rows and the page, after a run of judge.py."""
        results, page = self.folder / "results.json", self.folder / "page.md"
        self.command(HERE / "judge.py", "--dsv2", DSV2, "--results", results, "--page", page, *arguments)
        return results.read_text(), page.read_text()


class Judging(Case):
    def test_the_page_is_rendered_from_the_rows(self):
        rows = (HERE / "results.json").read_text()
        (self.folder / "results.json").write_text(rows)
        page = (HERE.parent / "docs/implementations.md").read_text()
        self.assertEqual(self.judge(), (rows, page), "to render it again: python peers/judge.py")

    def test_a_peer_gets_its_verdicts(self):
        peer = f"candle={self.program('peer', PEER_THAT_DUMPS)}"
        for case in ("v2-lite", "v2-5", "bias-lite", "one-token"):
            rows, page = self.judge("--with", peer, "--case", case)
        found = {row["case"]: row for row in json.loads(rows)}
        self.assertEqual(found["v2-lite"]["verdict"], "pass")
        self.assertEqual((found["v2-5"]["verdict"], found["v2-5"]["stage"]), ("fail", "lm_head"))
        self.assertIn("mscale", found["v2-5"]["explanation"][0]["what"])
        refused, stopped = found["bias-lite"], found["one-token"]
        self.assertEqual((refused["verdict"], refused["message"]), ("not supported", "no biases in MODEL"))
        self.assertEqual((stopped["verdict"], stopped["message"]), ("crashed", "boom"))
        self.assertIn("| candle-transformers | 0.11.1 | CPU, no MKL | f32 | 1 | 1 | 1 | 1 | 0 |", page)
        self.assertIn("| Hugging Face Transformers | | NOT RUN |", page)

    def test_a_dump_that_crashes_takes_nothing_along(self):
        program = self.program("dump.py", PROGRAM_THAT_DUMPS)
        names = ("strange", "wrong", "fatal", "right")
        lines = [json.dumps([name, "inputs", str(self.folder / name), "f32"]) for name in names]
        answers = map(json.loads, self.command(program, input="\n".join(lines)).splitlines())
        expected = [
            {"status": 2, "message": "ValueError: no such model"},
            {"status": 1, "message": "IndexError: too many indices"},
            {"status": -signal.SIGABRT, "message": "SIGABRT"},
            {"status": 0, "message": ""},
        ]
        self.assertEqual(list(answers), expected)
        self.assertEqual((self.folder / "right").read_text(), "f32")

    def test_tensors_are_copied_with_their_bits(self):
        some = {"a": ("BF16", [1, 3], b"\x80\x3f\xc0\x7f\x01\x00"), "b": ("I64", [], b"\1\0\0\0\0\0\0\0")}
        tensors.write(path := self.folder / "some.safetensors", some)
        self.assertEqual(tensors.read(path), some)


class Timing(Case):
    def test_peers_are_compared_in_turns(self):
        (self.folder / "config.json").write_text("{}")
        output = self.folder / "out.json"
        ours, stops = self.program("ours", PEER_IN_TIME), self.program("stops", "#!/bin/sh\necho no >&2\nexit 1\n")
        self.command(HERE / "measure.py", "--model", f"m={self.folder}", "--output", output, "--rounds", 2, "--dtypes", "f32",
                     "--contexts", "50,100", "--with", f"dsv2={ours}", "--with", f"candle={stops}")  # fmt: skip
        (run,) = json.loads(output.read_text())["runs"]
        found = {one["id"].removeprefix("peers/m/f32/"): one for one in run["measurements"]}
        jobs = [f"{kind}/context={context}/batch=1" for kind in ("prefill", "decode") for context in (50, 100)]
        jobs += [f"{kind}/context=50/batch=8" for kind in ("prefill", "decode")]
        facts = ["load_seconds", "peak_bytes", "cache_bytes_per_token"]
        self.assertEqual(list(found), [f"{name}/dsv2" for name in jobs + facts])
        self.assertEqual(found["decode/context=50/batch=1/dsv2"]["samples"], 2)
        self.assertEqual(found["decode/context=50/batch=8/dsv2"]["samples"], 16, "one round has batches")
        self.assertEqual(run["versions"]["dsv2 f32"], "1; none")
        self.assertIn({"what": "m: candle f32", "why": "no"}, run["not_run"])
        self.assertIn({"what": "llama.cpp f32", "why": "no --with names its program"}, run["not_run"])

    def test_a_ratio_is_taken_within_a_round(self):
        def answer(seconds: float, token: int) -> Answer:
            job = "context=512/batch=1"
            samples = {f"prefill/{job}": [(1.0, 512)], f"decode/{job}": [(seconds, 1)] * 3}
            return Answer(samples, {f"next/{job}": [token]}, None)

        rounds = [
            {("m", "dsv2 f32"): answer(0.1, 4), ("m", "candle f32"): answer(0.2, 4)},
            {("m", "dsv2 f32"): answer(1.0, 4), ("m", "candle f32"): answer(4.0, 5)},
        ]
        content = tables.render(rounds, ["m", "of which nothing ran"], ["f32"])
        (ratio,) = (one for one in content["measurements"] if one["id"].endswith("decode/context=512/batch=1/dsv2-over-candle"))
        self.assertEqual((ratio["low"], ratio["value"], ratio["high"], ratio["samples"]), (2.0, 3.0, 4.0, 2))
        self.assertEqual(content["tables"][0]["rows"][1], ["candle f32", "512", "1.00 (1.00 to 1.00)", "2.6", "3.00 (2.00 to 4.00)"])
        self.assertEqual(content["tables"][1]["rows"][1][-1], "1 of 1")


if __name__ == "__main__":
    unittest.main()
