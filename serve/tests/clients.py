"""The server as the `openai` client and lm-eval's `local-completions` see it, held to the reference.

    python3 -m venv target/clients && target/clients/bin/pip install -r serve/tests/requirements.txt
    cargo build --release -p dsv2 -p dsv2-serve
    target/clients/bin/python serve/tests/clients.py

What the reference says comes from `dsv2 generate` (greedy answers) and `dsv2 trace` (logits of whole texts).
"""

import asyncio
import json
import math
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import openai
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PROGRAMS = ROOT / "target/release"
MODEL = ROOT / "text/model"
NAME = "dsv2-embedded"


@contextmanager
def server(*flags):
    """The base URL of a server of the embedded model."""
    command = [PROGRAMS / "dsv2-serve", "--port", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:"), line
        yield line.split()[-1] + "/v1"
    finally:
        process.terminate()
        assert process.wait(60) == 0, "the server did not end well"


def generated(prompt, tokens):
    """What `dsv2 generate` says of a prompt."""
    command = [PROGRAMS / "dsv2", "generate", "--greedy", "--json", "--max-new-tokens", str(tokens), "--prompt", prompt]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def log_softmax(tokens):
    """The reference's, of each token of a text but the first: in f64, of its f32 logits."""
    with tempfile.TemporaryDirectory() as folder:
        inputs, output = Path(folder, "inputs.safetensors"), Path(folder, "trace.safetensors")
        save_file({"input_ids": np.array([tokens], dtype=np.int64)}, inputs)
        command = [PROGRAMS / "dsv2", "trace", "--model", MODEL, "--inputs", inputs, "--output", output]
        subprocess.run([*command, "--stages", "lm_head"], check=True, capture_output=True)
        logits = load_file(output)["lm_head"][0].astype(np.float64)
    most = logits.max(axis=1, keepdims=True)
    logs = logits - most - np.log(np.exp(logits - most).sum(axis=1, keepdims=True))
    following = np.array(tokens[1:])
    return logs[np.arange(len(following)), following], logs[:-1].argmax(axis=1) == following


def refused(error, call, **fields):
    """A call that is to be refused with this error."""
    try:
        call(**fields)
    except error as found:
        return found
    raise AssertionError(f"{fields}: expected {error.__name__}")


def with_openai(url):
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == [NAME]

    expected = generated("DeepSeek-V2 is", 30)
    settings = {"model": NAME, "prompt": "DeepSeek-V2 is", "max_tokens": 30, "temperature": 0}
    answer = client.completions.create(**settings, logprobs=1)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == (expected["text"], expected["finish_reason"])
    assert choice.logprobs.token_logprobs == expected["logprobs"]
    assert answer.usage.prompt_tokens == expected["prompt_tokens"]
    parts = list(client.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].text for part in parts if part.choices) == choice.text
    assert parts[-1].usage == answer.usage

    question = [{"role": "user", "content": "What is MLA?"}]
    settings = {"model": NAME, "messages": question, "temperature": 0}
    answer = client.chat.completions.create(**settings, logprobs=True, top_logprobs=2)
    choice = answer.choices[0]
    fed = "<｜begin▁of▁sentence｜>User: What is MLA?\n\nAssistant:"
    # the tokenizer would begin the text once more
    expected = generated(fed.removeprefix("<｜begin▁of▁sentence｜>"), 256)
    assert (choice.message.content, choice.finish_reason) == (expected["text"], "stop")
    assert [token.logprob for token in choice.logprobs.content] == expected["logprobs"]
    assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
    with client.chat.completions.stream(**settings) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == choice.message.content

    assert refused(openai.BadRequestError, client.completions.create, model=NAME, prompt="a", suffix="b").param == "suffix"
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    assert refused(openai.BadRequestError, client.chat.completions.create, **settings, tools=[tool]).param == "tools"
    missing = refused(openai.NotFoundError, client.completions.create, model="gpt-4", prompt="a")
    assert missing.code == "model_not_found"
    long = refused(openai.BadRequestError, client.completions.create, model=NAME, prompt="word " * 2000)
    assert long.code == "context_length_exceeded"

    async def many():
        client = openai.AsyncOpenAI(base_url=url, api_key="none")
        ask = lambda number: client.completions.create(
            model=NAME, prompt=f"{number}:", max_tokens=16, temperature=1, seed=number
        )
        return await asyncio.gather(*(ask(number % 10) for number in range(40)))

    texts = [answer.choices[0].text for answer in asyncio.run(many())]
    assert all(text == texts[number % 10] for number, text in enumerate(texts)), "a seed is a seed in any company"
    print(f"openai {openai.__version__}: completions, chats, streams, refusals, 40 at a time: right")


def with_a_key():
    os.environ["DSV2_API_KEY"] = "secret"
    with server() as url:
        client = openai.OpenAI(base_url=url, api_key="secret", max_retries=0)
        assert len(client.models.list().data) == 1
        refused(openai.AuthenticationError, client.with_options(api_key="wrong").models.list)
    del os.environ["DSV2_API_KEY"]


def with_lm_eval(url):
    os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HOME"] = tempfile.mkdtemp()
    os.chdir(HERE)
    import lm_eval
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager

    model = LocalCompletionsAPI(
        base_url=f"{url}/completions",
        model=NAME,
        tokenizer=str(MODEL),
        tokenizer_backend="huggingface",
        add_bos_token=True,
        max_length=1024,
        batch_size=4,
    )
    tasks = ["dsv2_questions", "dsv2_answers"]
    manager = TaskManager(include_path=str(HERE / "lm_eval_task"), include_defaults=False)
    results = lm_eval.simple_evaluate(model=model, tasks=tasks, task_manager=manager, log_samples=True, bootstrap_iters=0)

    compared, worst = 0, 0.0
    for sample in results["samples"]["dsv2_questions"]:
        for (context, continuation), ((found, is_greedy),) in zip(sample["arguments"], sample["resps"]):
            before, after = model._encode_pair(context, continuation)
            logs, greedy = log_softmax(before + after)
            expected = logs[-len(after) :].sum()
            worst = max(worst, abs(found - expected))
            # logits are the same f32 numbers; what follows is f64, summed in another order
            assert math.isclose(found, expected, rel_tol=1e-12, abs_tol=1e-12), (context, continuation, found, expected)
            assert is_greedy == bool(greedy[-len(after) :].all()), (context, continuation)
            compared += 1
    answers = results["samples"]["dsv2_answers"]
    for sample in answers:
        ((prompt, _),) = sample["arguments"]
        assert sample["resps"][0][0] == generated(prompt, 24)["text"].split(".")[0], sample["resps"]
    accuracy = results["results"]["dsv2_questions"]["acc,none"]
    print(
        f"lm_eval {lm_eval.__version__}: {compared} loglikelihoods within {worst:.1e} of the reference's, "
        f"{len(answers)} greedy answers the same; accuracy {accuracy}"
    )


def main():
    with server() as url:
        with_openai(url)
        with_lm_eval(url)
    with_a_key()
    return 0


if __name__ == "__main__":
    sys.exit(main())
