"""A finding excuses what it says, and nothing else."""

import judged
import pytest

TF32 = {"output": "over-budget, l2 7.0e-04, 1.666 in place of 1.669", "lse": "over-budget, l2 2.6e-04, 3.97 in place of 3.98"}
RACE = "race on 4 bytes of global memory at 0x10: write at a/topk_topp_triton.py:197 (PTX line 1) by x, and read at a/topk_topp_triton.py:241 (x"
BUFFER = "no barrier around a buffer in global memory"
ELSEWHERE = "_topk_topp_kernel at a/topk_topp_triton.py:878 (PTX line 1, st.global.b32), block (0, 0, 0): 4 bytes are out of bounds"


def hold(finding, verdict="fail", said="wrong", wrong=None, held=("output", "lse"), races=(), unwritten=()):
    judged._hold({"finding": finding, "verdict": verdict}, said, dict(wrong or {}), set(held), list(races), list(unwritten))


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(judged, "KNOWN", True)


def test_what_a_finding_says_is_excused():
    hold("TF32", wrong=TF32)
    hold("TF32", wrong={"output": TF32["output"]}, held={"output"})
    hold(BUFFER, "pass", "", races=[RACE])


@pytest.mark.parametrize(
    "more",
    [
        {"wrong": {**TF32, "lse": "over-budget, l2 1.2e+00, 8.9 in place of 3.98"}},
        {"wrong": {**TF32, "other": TF32["output"]}},
        {"wrong": {"output": TF32["output"]}},
        {"wrong": TF32, "races": [RACE]},
        {"wrong": TF32, "unwritten": ["bytes that nobody wrote"]},
        {"verdict": "fault", "said": ELSEWHERE},
        {"verdict": "fail", "said": "two calls with the same inputs give other bits of output"},
        {"verdict": "pass", "said": ""},
    ],
)
def test_what_it_does_not_say_is_red(more):
    with pytest.raises(pytest.fail.Exception):
        hold("TF32", **more)


@pytest.mark.parametrize(
    "more",
    [
        {"verdict": "fault", "said": ELSEWHERE, "races": [RACE]},
        {"verdict": "pass", "said": "", "races": [RACE, RACE.replace(":241", ":878")]},
        {"verdict": "pass", "said": "", "races": [RACE], "unwritten": [ELSEWHERE]},
    ],
)
def test_a_fault_or_a_race_elsewhere_is_red(more):
    with pytest.raises(pytest.fail.Exception):
        hold(BUFFER, **more)


def test_a_row_without_a_finding_must_be_right():
    hold(None, "pass", "")
    with pytest.raises(pytest.fail.Exception):
        hold(None, wrong=TF32)
    with pytest.raises(pytest.fail.Exception):
        hold(None, "pass", "", races=[RACE])
