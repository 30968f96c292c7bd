"""`python -m dsv2_export build | check | selftest`: see the README beside this package."""

import argparse
import fnmatch
import sys

import transformers

from . import build, selftest
from .cases import CASES, PINS
from .format import CASES as CASES_FOLDER
from .format import read_case


def select(names_and_dialects, pattern: str, ignore_pin: bool, pins: dict[str, tuple[str, ...]]) -> list[str]:
    """The names that match and of whose pinned versions one is installed; says which are left out and why."""
    chosen = []
    for name, dialect in names_and_dialects:
        if not fnmatch.fnmatch(name, pattern):
            continue
        if transformers.__version__ in pins[dialect] or (ignore_pin and dialect == "hf"):
            chosen.append(name)
        else:
            pin = " or ".join(pins[dialect])
            print(f"left out  {name}: needs transformers {pin}, {transformers.__version__} is installed")
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(prog="dsv2_export", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("build", "write cases from their definitions"),
        ("check", "run committed cases again and compare"),
        ("selftest", "derive stages of committed cases from one another"),
    ):
        sub = commands.add_parser(name, help=text)
        sub.add_argument("--case", default="*", metavar="GLOB", help="only cases whose name matches")
        if name == "build":
            sub.add_argument("--retrain", action="store_true", help="train the tiny models again (minutes)")
        if name == "check":
            sub.add_argument("--ignore-pin", action="store_true", help="use whatever Transformers is installed")
    arguments = parser.parse_args()

    if arguments.command == "build":
        names = select([(c.name, c.dialect) for c in CASES], arguments.case, False, {d: pins[:1] for d, pins in PINS.items()})
        for case in CASES:
            if case.name in names:
                build.build(case, retrain=arguments.retrain)
        return 0
    committed = [read_case(folder) for folder in sorted(CASES_FOLDER.iterdir()) if (folder / "case.json").exists()]
    if arguments.command == "selftest":
        chosen = [c for c in committed if fnmatch.fnmatch(c[0]["name"], arguments.case)]
        return 0 if selftest.run_all(chosen) else 1
    names = select([(c[0]["name"], c[0]["dialect"]) for c in committed], arguments.case, arguments.ignore_pin, PINS)
    if not names:
        print("no case to check")
        return 1
    good = [build.check(*c) for c in committed if c[0]["name"] in names]
    print(f"{sum(good)} of {len(good)} cases agree")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
