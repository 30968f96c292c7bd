"""Many clients for a while: nothing is lost, every answer is that of the same request alone, memory stays flat.

    cargo build --release -p dsv2-serve
    python3 serve/tests/load.py [SECONDS] [CLIENTS]

Needs nothing but Python, and Linux (/proc).
"""

import http.client
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

PROGRAM = Path(__file__).resolve().parent.parent.parent / "target/release/dsv2-serve"
PROMPTS = ["DeepSeek-V2 is", "What is MLA?", "The cache holds a latent of each token. " * 20, "User: hello\n\nAssistant:"]


def requests():
    """Of every kind: greedy and drawn, short and long, with and without logarithms."""
    for number in range(24):
        yield {
            "model": "dsv2-embedded",
            "prompt": PROMPTS[number % 4],
            "max_tokens": 4 + 3 * (number % 6),
            "temperature": [0, 0.8][number % 2],
            "seed": number,
            "logprobs": [None, 2, 0][number % 3],
            "echo": number % 5 == 0,
            "return_token_ids": True,
        }


def post(connection, body):
    data = json.dumps(body).encode()
    connection.request("POST", "/v1/completions", data, {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def whole(connection, body):
    status, data = post(connection, body)
    return status, json.loads(data).get("choices")


def joined(connection, body):
    """The text of an answer in parts."""
    status, data = post(connection, {**body, "stream": True})
    if status != 200:
        return status, None
    events = [line.removeprefix("data: ") for line in data.decode().splitlines() if line]
    assert events[-1] == "[DONE]", events[-1]
    choices = [json.loads(event)["choices"][0] for event in events[:-1]]
    return status, "".join(choice["text"] for choice in choices)


def resident(process):
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def main(seconds=180, clients=200):
    process = subprocess.Popen([PROGRAM, "--port", "0", "--queue", "128"], stdout=subprocess.PIPE, text=True)
    address = process.stdout.readline().split("//")[1].strip()
    alone = http.client.HTTPConnection(address, timeout=120)
    expected = [(body, whole(alone, body)[1]) for body in requests()]
    alone.close()
    counts, wrong, latencies = Counter(), [], []
    end = time.monotonic() + seconds

    def client(number):
        drawn = random.Random(number)
        connection = http.client.HTTPConnection(address, timeout=120)
        while time.monotonic() < end:
            body, choices = drawn.choice(expected)
            kind = drawn.random()
            begun = time.monotonic()
            try:
                if kind < 0.05:
                    # one that leaves
                    leaving = http.client.HTTPConnection(address, timeout=120)
                    data = json.dumps({**body, "max_tokens": 500}).encode()
                    leaving.request("POST", "/v1/completions", data)
                    time.sleep(drawn.random() / 2)
                    leaving.close()
                    counts["left"] += 1
                    continue
                if kind < 0.4:
                    status, found = joined(connection, body)
                    right = choices[0]["text"]
                else:
                    (status, found), right = whole(connection, body), choices
            except (OSError, http.client.HTTPException, AssertionError) as error:
                wrong.append(f"{type(error).__name__}: {error}")
                connection.close()
                continue
            if status == 429:
                counts["told to come again"] += 1
                time.sleep(1 + drawn.random())
            elif status != 200 or found != right:
                wrong.append(f"{status}: {found} for {right}")
            else:
                counts["right"] += 1
                latencies.append(time.monotonic() - begun)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    begun, memory = time.monotonic(), []
    while any(thread.is_alive() for thread in threads):
        time.sleep(5)
        memory.append(resident(process))
        print(f"{time.monotonic() - begun:5.0f} s  {memory[-1]:6.1f} MB  {dict(counts)}  wrong: {len(wrong)}", flush=True)
    deadline = time.monotonic() + 30
    while True:
        connection = http.client.HTTPConnection(address, timeout=120)
        connection.request("GET", "/health")
        health = json.loads(connection.getresponse().read())
        connection.close()
        if health["running"] + health["waiting"] == 0 or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    process.terminate()
    status = process.wait(60)
    latencies.sort()
    half = len(memory) // 2
    print(f"{clients} clients, {seconds} s: {counts['right']} right answers, {len(wrong)} wrong or lost, "
          f"{counts['told to come again']} times 429, {counts['left']} left; afterwards {health}; ended with {status}")
    print(f"seconds for an answer: median {latencies[len(latencies) // 2]:.2f}, 99 % {latencies[len(latencies) * 99 // 100]:.2f}")
    print(f"memory (VmRSS): most of the first half {max(memory[:half]):.1f} MB, of the second {max(memory[half:]):.1f} MB")
    for line in wrong[:5]:
        print(line[:500])
    flat = max(memory[half:]) < 1.1 * max(memory[:half])
    idle = health["running"] + health["waiting"] == 0
    return 0 if not wrong and counts["right"] and flat and idle and status == 0 else 1


if __name__ == "__main__":
    sys.exit(main(*(int(argument) for argument in sys.argv[1:])))
