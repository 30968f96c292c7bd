"""docs/kernels.md has what page.py makes of results.json, and no row is wrong for a reason that is not a finding."""

import json

import page
from findings import FINDINGS


def test_the_page_is_what_the_rows_make_it():
    assert page.rendered() in page.PAGE.read_text(), "run: python peers/kernels/page.py"


def test_every_row_that_is_wrong_has_its_finding():
    for row in json.loads(page.RESULTS.read_text())["rows"]:
        if row["verdict"] != "not run":
            assert row["verdict"] == "pass" and not row["races"] or row["finding"] in FINDINGS, row


def test_every_finding_has_a_reproduction():
    for finding in FINDINGS.values():
        assert (page.HERE / "findings" / finding.reproduce).is_file()
