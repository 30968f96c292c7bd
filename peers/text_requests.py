"""Requests of many kinds to an OpenAI-compatible server, a line of JSON for each: what a right engine answers must pass.

    python peers/text_requests.py --seed 1 200 > requests.jsonl
    dsv2 check-text --endpoint http://127.0.0.1:8000 --requests requests.jsonl --dtype bf16

Prompts, conversations and settings are drawn by the seed. It needs nothing but Python.
"""

import argparse
import json
import random
import sys

PROMPTS = [
    "The router", "A shared expert is", "The cache holds", "na\u00efve \u25c7 text: \u4f60\u597d", "1 + 1 = 2, 12 * 12 =",
    "The model reads\nand writes tokens", "def attention(q, k, v):", "Once upon a time", "a token is a token is a",
    '{"key": [1, 2,', "<b>bold</b> and", "MLA", "  spaces   between", "x", "tokens tokens tokens",
]
QUESTIONS = [
    "What is a token?", "What is MLA?", "hello", "Why is the cache small?", "  What is attention? ", "1+1?", "\u4f60\u597d",
    "Who are you?", "Write a list:\n- a\n- b",
]
SYSTEM = ["You answer in one sentence.", "You are a small model.", "Be brief."]


def messages(draw):
    system = [{"role": "system", "content": draw.choice(SYSTEM)}] if draw.random() < 0.4 else []
    earlier = [
        {"role": "user", "content": draw.choice(QUESTIONS)},
        {"role": "assistant", "content": draw.choice(PROMPTS)},
    ] if draw.random() < 0.3 else []
    return [*system, *earlier, {"role": "user", "content": draw.choice(QUESTIONS)}]


def settings(draw, seed):
    """Each setting now and then, so that they meet."""
    some = {"max_tokens": draw.choice([8, 16, 24, 40, 64]), "temperature": draw.choice([0, 0, 0.4, 1.0, 1.0, 2.0, 3.0])}
    drawn = [("top_p", 0.3, [0.5, 0.7, 0.9]), ("top_k", 0.3, [2, 3, 10, 40]), ("min_p", 0.2, [0.05, 0.3])]
    others = [
        ("repetition_penalty", 0.2, [1.1, 1.3]), ("ignore_eos", 0.15, [True]), ("stop", 0.15, [" a ", "e o", ".", "\n"]),
        ("min_tokens", 0.1, [5]), ("logit_bias", 0.1, [{"300": 4.0}]),
    ]
    if some["temperature"]:
        some["seed"] = seed
        others = drawn + others
    return some | {name: draw.choice(values) for name, often, values in others if draw.random() < often}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("number", type=int)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    for i in range(args.number):
        asked = {"messages": messages(draw)} if draw.random() < 0.45 else {"prompt": draw.choice(PROMPTS)}
        json.dump(asked | settings(draw, i), sys.stdout)
        print()


if __name__ == "__main__":
    main()
