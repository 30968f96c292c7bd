"""What texts of 4 MiB cost that are too long, and how long a small request takes meanwhile.

    cargo build --release -p dsv2-serve
    python3 serve/tests/large.py [FLAGS of dsv2-serve]

Needs nothing but Python, and Linux (/proc).
"""

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

PROGRAM = Path(__file__).resolve().parent.parent.parent / "target/release/dsv2-serve"
# with room for the rest of the body
SIZE = (4 << 20) - 200
TEXTS = {"digits": "1234567890", "words": "word ", "spaces": " ", "letters": "x"}


def ask(address, method, path, body=None):
    """Status, answer and seconds."""
    connection = http.client.HTTPConnection(address, timeout=600)
    begun = time.monotonic()
    connection.request(method, path, body and json.dumps(body))
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read()), time.monotonic() - begun


def processor(process):
    """Seconds."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak(process):
    """MB of memory."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def measure(name, text, flags):
    process = subprocess.Popen([PROGRAM, "--port", "0", *flags], stdout=subprocess.PIPE, text=True)
    address = process.stdout.readline().split("//")[1].strip()
    model = ask(address, "GET", "/v1/models")[1]["data"][0]["id"]
    small, large = ({"model": model, "prompt": prompt, "max_tokens": 1} for prompt in ("hello", text))
    ask(address, "POST", "/v1/completions", small)
    before, answers, latencies = processor(process), [], []
    thread = threading.Thread(target=lambda: answers.append(ask(address, "POST", "/v1/completions", large)))
    thread.start()
    while thread.is_alive():
        latencies.append(ask(address, "POST", "/v1/completions", small)[2])
        time.sleep(0.02)
    status, answer, seconds = answers[0]
    print(
        f"{name}: {status} after {seconds:.2f} s, {processor(process) - before:.2f} s of processor, {peak(process):.0f} MB; "
        f"{len(latencies)} small ones meanwhile, the slowest {max(latencies):.2f} s\n    {answer['error']['message']}",
        flush=True,
    )
    process.terminate()
    return process.wait(60) == 0


def main(flags):
    ended = [measure(name, text * (SIZE // len(text)), flags) for name, text in TEXTS.items()]
    return 0 if all(ended) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
