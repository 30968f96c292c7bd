"""`python -m dsv2` is the program `dsv2`."""

import sys

from dsv2 import RequestError, run


def main() -> None:
    try:
        text, status = run(*sys.argv[1:])
    except RequestError as error:
        print(f"dsv2: {error}", file=sys.stderr)
        sys.exit(2)
    print(text.rstrip("\n"))
    sys.exit(status)


if __name__ == "__main__":
    main()
