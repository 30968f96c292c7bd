"""Runs a Python adapter many times without importing its libraries again.

    python fork_server.py ADAPTER.py        one run for each line of stdin: a JSON list of the adapter's arguments

Answers each line with one of JSON: `status`, the exit status (negative: the signal that ended it), and `message`, the last
line that the run printed. Every run is a process of its own, so that one that dies takes nothing along.
"""

import importlib.util
import json
import os
import signal
import sys
import tempfile
import traceback

LIMIT_S = 300


def child(adapter, arguments: list[str], log) -> int:
    """The adapter's main function in this process; what it prints goes to `log`."""
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    signal.alarm(LIMIT_S)
    sys.argv[1:] = arguments
    try:
        adapter.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def main() -> None:
    spec = importlib.util.spec_from_file_location("adapter", sys.argv[1])
    adapter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(adapter)
    for line in sys.stdin:
        with tempfile.TemporaryFile() as log:
            process = os.fork()
            if process == 0:
                os._exit(child(adapter, json.loads(line), log))
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            log.seek(0)
            printed = [text.strip() for text in log.read().decode(errors="replace").splitlines() if text.strip()]
        message = printed[-1] if printed else ""
        if status < 0:
            message = f"{signal.Signals(-status).name} {message}".strip()
        print(json.dumps({"status": status, "message": message}), flush=True)


if __name__ == "__main__":
    main()
