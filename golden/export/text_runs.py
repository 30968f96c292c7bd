"""Greedy runs of the embedded model by Transformers, for tests/text: which tokens come out, in batches and alone.

    python golden/export/text_runs.py [--model text/model] [--output golden/text/runs.json]

Each run is made with both caches, which must agree; a run whose best two tokens are nearer than MARGIN at any step is refused,
since rounding could turn it.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, DeepseekV2ForCausalLM

MARGIN = 1e-3
COMPLETIONS = ["DeepSeek-V2 is", "The router", "A stage is a named tensor", "Attention"]
QUESTIONS = ["What is MLA?", "hello", "How many experts do you have?", "thanks"]

# options of `generate`, and whether the prompts are completed or answered
RUNS = [
    ("completion", COMPLETIONS[:1], "completion", {"max_new_tokens": 40}),
    ("answer", QUESTIONS[:1], "chat", {"max_new_tokens": 60}),
    ("one-token", COMPLETIONS[1:2], "completion", {"max_new_tokens": 1}),
    ("batch-left-pads", COMPLETIONS, "completion", {"max_new_tokens": 32}),
    ("batch-end-tokens", QUESTIONS, "chat", {"max_new_tokens": 80}),
    ("batch-of-equal-prompts", [QUESTIONS[1]] * 3, "chat", {"max_new_tokens": 30}),
    ("max-length", COMPLETIONS, "completion", {"max_length": 20}),
    ("max-new-tokens-over-max-length", COMPLETIONS[:2], "completion", {"max_new_tokens": 24, "max_length": 12}),
    ("min-new-tokens", QUESTIONS, "chat", {"max_new_tokens": 40, "min_new_tokens": 25}),
    ("repetition-penalty", COMPLETIONS, "completion", {"max_new_tokens": 32, "repetition_penalty": 2.5}),
    ("repetition-penalty-answers", QUESTIONS, "chat", {"max_new_tokens": 60, "repetition_penalty": 1.1}),
    ("two-end-tokens", QUESTIONS, "chat", {"max_new_tokens": 60, "eos_token_id": "full stop"}),
]


def inputs(tokenizer, prompts, kind):
    texts = prompts
    if kind == "chat":
        texts = [tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False,
                                               add_generation_prompt=True) for prompt in prompts]
    encoded = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=kind == "completion")
    return texts, encoded["input_ids"], encoded["attention_mask"]


def run(model, tokenizer, name, prompts, kind, options):
    texts, ids, mask = inputs(tokenizer, prompts, kind)
    options = dict(options)
    if options.get("eos_token_id") == "full stop":
        options["eos_token_id"] = [model.generation_config.eos_token_id, tokenizer.convert_tokens_to_ids(".")]
    made = {}
    for cache in ("dynamic", "static"):
        output = model.generate(ids, attention_mask=mask, do_sample=False, temperature=None, top_p=None,
                                cache_implementation=cache, disable_compile=True, return_dict_in_generate=True,
                                output_scores=True, **options)
        ended = torch.zeros(len(ids), dtype=torch.bool)
        ends = torch.tensor(options.get("eos_token_id", model.generation_config.eos_token_id)).reshape(-1)
        new = output.sequences[:, ids.shape[1]:]
        for step, scores in enumerate(output.scores):
            best = scores.topk(2).values
            margin = (best[:, 0] - best[:, 1])[~ended]
            assert len(margin) == 0 or margin.min() > MARGIN, f"{name}: a near tie at step {step}: {margin.min()}"
            ended |= torch.isin(new[:, step], ends)
        made[cache] = new.tolist()
    assert made["dynamic"] == made["static"], name
    return {"name": name, "kind": kind, "prompts": prompts, "texts": texts, "options": options, "input_ids": ids.tolist(),
            "attention_mask": mask.tolist(), "new_tokens": made["dynamic"],
            "new_texts": tokenizer.batch_decode(made["dynamic"], skip_special_tokens=True)}


def main():
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=root / "text/model")
    parser.add_argument("--output", type=Path, default=root / "golden/text/runs.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    model = DeepseekV2ForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    runs = [run(model, tokenizer, *described) for described in RUNS]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join("  " + json.dumps(run, ensure_ascii=False) for run in runs)
    made_by = json.dumps(f"Transformers {transformers.__version__}, f32")
    arguments.output.write_text(f'{{"made_by": {made_by}, "runs": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
