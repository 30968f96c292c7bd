"""Trains the model that is embedded in the program, and writes its folder.

    python text/train/train.py [--steps N] [--at COMMIT] [--output DIR]

Needs torch, transformers and tokenizers. One thread and a fixed seed: on one machine the same bytes each time.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

from conversations import conversation, subjects
from corpus import texts

HERE = Path(__file__).resolve().parent
TRAINED_AT = "67dde43"
SEED = 2405
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
VOCABULARY = 1024

# DeepSeek-V2's structure in small: low-rank queries, groups of experts, one dense layer, YaRN
CONFIG = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 256,
    "kv_lora_rank": 64,
    "max_position_embeddings": 1024,
    "mlp_bias": False,
    "moe_intermediate_size": 32,
    "n_group": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 64,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 4, "mscale": 0.707, "mscale_all_dim": 0.707,
                     "original_max_position_embeddings": 256, "type": "yarn"},
    "rope_theta": 10000,
    "routed_scaling_factor": 2.0,
    "scoring_func": "softmax",
    "tie_word_embeddings": False,
    "topk_group": 2,
    "topk_method": "group_limited_greedy",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "v_head_dim": 32,
    "vocab_size": VOCABULARY,
}

CHAT_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- 'User: ' + message['content'] + '\\n\\n' }}
    {%- elif message['role'] == 'assistant' %}
        {{- 'Assistant: ' + message['content'] + eos_token }}
    {%- elif message['role'] == 'system' %}
        {{- message['content'] + '\\n\\n' }}
    {%- else %}
        {{- raise_exception('a message is by system, user or assistant, not by ' + message['role']) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant:' }}
{%- endif %}"""


def as_text(messages):
    """What the template makes of messages, without its begin of sentence."""
    text = ""
    for message in messages:
        if message["role"] == "user":
            text += f"User: {message['content']}\n\n"
        elif message["role"] == "assistant":
            text += f"Assistant: {message['content']}{EOS}"
        else:
            text += f"{message['content']}\n\n"
    return text


def train_tokenizer(pages, talks):
    """Byte pairs; digits one by one; two special tokens, written as DeepSeek writes them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, normalized=False, special=True) for text in (BOS, EOS)]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(pages + talks, trainer)
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0)])])
    assert tokenizer.get_vocab_size() == VOCABULARY and tokenizer.token_to_id(EOS) == 1
    return tokenizer


class Rows:
    """Rows of tokens to learn from: half of them conversations, the others pages of prose."""

    def __init__(self, tokenizer, pages, draw):
        def encode(text):
            return tokenizer.encode(text, add_special_tokens=False).ids

        self.encode, self.draw, self.known = encode, draw, subjects()
        self.pages = [encode(page) for page in pages]
        # what is known is said as prose too, so that a text goes on with it
        self.answers = [encode(answer) for _, answer in self.known]

    def row(self, length):
        tokens = []
        talk = self.draw.random() < 0.6
        while len(tokens) < length:
            tokens.append(0)
            if talk:
                tokens += self.encode(as_text(conversation(self.draw, self.known)))
            elif self.draw.random() < 0.25:
                tokens += self.draw.choice(self.answers) + [1]
            else:
                tokens += self.draw.choice(self.pages) + [1]
        return tokens[:length]

    def batch(self, tokens):
        length = self.draw.choice([128, 256, 256, 512])
        return torch.tensor([self.row(length) for _ in range(tokens // length)])


def balance_loss(router_logits, config):
    """Experts that are used more often should be given lower scores (paper, equations 23 to 25)."""
    total = 0.0
    for logits in router_logits:
        scores = logits.softmax(-1)
        chosen = torch.zeros_like(scores).scatter_(1, scores.topk(config.num_experts_per_tok).indices, 1.0)
        used = chosen.mean(0) * config.n_routed_experts / config.num_experts_per_tok
        total = total + (used * scores.mean(0)).sum()
    return total / len(router_logits)


def learning_rate(step, steps):
    """A rise over 50 steps, then half a cosine."""
    return 4e-3 * min((step + 1) / 50, 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.005)


def train(model, rows, steps, tokens):
    config = model.config
    router_logits = []
    for layer in model.model.layers[config.first_k_dense_replace:]:
        layer.mlp.gate.register_forward_hook(lambda _module, _inputs, output: router_logits.append(output[0]))
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
                                  betas=(0.9, 0.98))
    start = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        router_logits.clear()
        ids = rows.batch(tokens)
        logits = model(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        balance = balance_loss(router_logits, config)
        optimizer.zero_grad()
        (loss + 0.01 * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"{step} loss {loss.item():.3f} balance {balance.item():.3f} {time.monotonic() - start:.0f} s", flush=True)


def write(model, tokenizer, folder):
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    files = {
        "config.json": CONFIG,
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "do_sample": True,
                                   "temperature": 0.3, "top_p": 0.95},
        "tokenizer_config.json": {"add_bos_token": True, "add_eos_token": False, "bos_token": BOS, "eos_token": EOS,
                                  "pad_token": EOS, "model_max_length": CONFIG["max_position_embeddings"],
                                  "tokenizer_class": "PreTrainedTokenizerFast"},
    }
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a step")
    parser.add_argument("--at", default=TRAINED_AT, metavar="COMMIT", help="take the texts of this commit")
    parser.add_argument("--output", type=Path, default=HERE.parent / "model", metavar="DIR")
    arguments = parser.parse_args()

    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    draw = random.Random(SEED)
    pages = texts(arguments.at)
    talks = [as_text(conversation(draw, subjects())) for _ in range(1000)]
    tokenizer = train_tokenizer(pages, talks)
    model = DeepseekV2ForCausalLM(DeepseekV2Config(**CONFIG)).train()
    print(f"{sum(parameter.numel() for parameter in model.parameters())} parameters, {len(pages)} pages", flush=True)
    train(model, Rows(tokenizer, pages, draw), arguments.steps, arguments.tokens)
    write(model.eval(), tokenizer, arguments.output)


if __name__ == "__main__":
    main()
