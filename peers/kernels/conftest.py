"""`pytest peers/kernels`: every adapter on every workload. With `--record` the rows go to results.json, and from it into
docs/kernels.md; what was not run keeps its rows. With `--findings` what is wrong fails, also where it is a finding.
"""

import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


def pytest_addoption(parser):
    parser.addoption("--findings", action="store_true", help="fail over what is wrong, also where it is known to be")
    parser.addoption("--record", action="store_true", help="write results.json and docs/kernels.md")


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "ignore::UserWarning")
    import judged

    import page

    judged.KNOWN = not config.getoption("--findings")
    if not config.getoption("--record") and judged.KNOWN:
        judged.RECORDED = page.recorded()


def pytest_sessionfinish(session):
    if not session.config.getoption("--record"):
        return
    import judged
    import page

    page.record(judged.ROWS)
