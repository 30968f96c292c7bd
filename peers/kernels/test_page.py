"""docs/kernels.md has what page.py makes of results.json, and no row is wrong for a reason that is not a finding."""

import json
import re
import subprocess
import sys

import page
from findings import FINDINGS

SAID = "AssertionError: rmsnorm, workload 'DeepSeek-V2' (rmsnorm_h5120): fail"


def test_the_page_is_what_the_rows_make_it():
    assert page.rendered() in page.PAGE.read_text(), "run: python peers/kernels/page.py"


def test_every_row_that_is_wrong_has_its_finding():
    for row in json.loads(page.RESULTS.read_text())["rows"]:
        if row["verdict"] != "not run":
            assert row["verdict"] == "pass" and not row["races"] or row["finding"] in FINDINGS, row


def test_every_finding_has_a_reproduction():
    for finding in FINDINGS.values():
        assert (page.HERE / "findings" / finding.reproduce).is_file()


def test_the_authors_example_is_red_and_then_green(tmp_path):
    [source] = re.findall(r"^## Your own kernel, in Triton$.*?```python\n(.*?)```", page.PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert source.count("\n") <= 20
    for text, failed, passed in ((source, 3, 8), (source.replace("/ BLOCK +", "/ columns +"), 0, 11)):
        (tmp_path / "test_mine.py").write_text(text)
        done = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider"], cwd=tmp_path, capture_output=True, text=True)
        assert re.search(rf"{failed} failed, {passed} passed" if failed else rf"{passed} passed", done.stdout), done.stdout
        assert failed == 0 or SAID in done.stdout and SAID in page.PAGE.read_text()
