"""`pytest peers/kernels`: every adapter on every workload. With `--record` the rows go to results.json, and from it into
docs/kernels.md; what was not run keeps its rows.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def pytest_addoption(parser):
    parser.addoption("--record", action="store_true", help="write results.json and docs/kernels.md")


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "ignore::UserWarning")


def pytest_sessionfinish(session):
    if not session.config.getoption("--record"):
        return
    import judged
    import page

    page.record(judged.ROWS)
