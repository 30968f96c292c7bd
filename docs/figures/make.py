#!/usr/bin/env python3
"""Draws the figures of docs/model.md, the same bytes each time: `python3 docs/figures/make.py`."""

import math
import re
from pathlib import Path

# class: fill and stroke in light, fill and stroke in dark
COLOURS = {
    "card": ("#f6f8fa", "#d0d7de", "#151b23", "#3d444d"),
    "latent": ("#1a7f37", "none", "#3fb950", "none"),
    "box": ("#ffffff", "#818b98", "#0d1117", "#656c76"),  # a tensor
    "weight": ("#ddf4ff", "#0969da", "#12263f", "#4493f8"),  # a matrix, or what comes out of it
    "cache": ("#dafbe1", "#1a7f37", "#12301c", "#3fb950"),  # what is cached
    "choice": ("#f3e8ff", "#8250df", "#2b1d45", "#ab7df8"),  # a discrete choice
    "chosen": ("#8250df", "none", "#ab7df8", "none"),
    "grey": ("#d1d9e0", "none", "#3d444d", "none"),
    "text": ("#1f2328", "none", "#f0f6fc", "none"),
    "muted": ("#59636e", "none", "#9198a1", "none"),
    "line": ("none", "#59636e", "none", "#9198a1"),
    "curve": ("none", "#0969da", "none", "#4493f8"),
    "dot": ("#0969da", "none", "#4493f8", "none"),
    "other": ("none", "#bc4c00", "none", "#f0883e"),
}
SANS = '-apple-system,"Segoe UI","Noto Sans",Helvetica,Arial,sans-serif'
MONO = 'ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace'
LIGHT, DARK = ("".join(f".{k}{{fill:{c[i]};stroke:{c[i + 1]}}}" for k, c in COLOURS.items()) for i in (0, 2))
STYLE = f"""text{{font:13px {SANS}}} .mono{{font:12px {MONO}}} .small{{font-size:11.5px}} .bold{{font-weight:600}}
.thick{{stroke-width:2.5}} .dash{{stroke-dasharray:5 4;stroke-width:1.5}} .faint{{opacity:.45}}
{LIGHT}\n@media (prefers-color-scheme:dark){{{DARK}}}"""


class Svg:
    def __init__(self, width, height, title):
        size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n<title>{title}</title><style>{STYLE}</style>',
            '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            'markerUnits="userSpaceOnUse" orient="auto"><path class="muted" d="M0 0 8 4 0 8z"/></marker></defs>',
        ]
        self.rect(0.5, 0.5, width - 1, height - 1, "card", 8)

    def rect(self, x, y, w, h, cls="box", r=5):
        self.parts.append(f'<rect class="{cls}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{r}"/>')

    def text(self, x, y, text, cls="text", anchor="middle"):
        text = re.sub(r"\^(\w+)", r'<tspan dy="-4" font-size="9">\1</tspan>', text.replace("<", "&lt;"))
        self.parts.append(f'<text class="{cls}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{text}</text>')

    def note(self, x, y, *lines, cls="muted small", step=16):
        for k, line in enumerate(lines):
            self.text(x, y + step * k, line, cls, "start")

    def box(self, x, y, w, h, cls, *lines):
        """Lines in the middle: names, but what begins with a bracket or a space is a shape or a remark."""
        self.rect(x, y, w, h, cls)
        for k, line in enumerate(lines):
            kind = "muted small" if line[0] in "[ " else "text mono"
            self.text(x + w / 2, y + h / 2 + 4.5 + 16 * (k - (len(lines) - 1) / 2), line.strip(), kind)

    def line(self, *points, cls="line", arrow=True):
        end = ' marker-end="url(#a)"' if arrow else ""
        self.parts.append(f'<polyline class="{cls}" points="{" ".join(f"{x:g},{y:g}" for x, y in points)}"{end}/>')

    def down(self, *arrows):
        [self.line((x, y), (x, to)) for x, y, to in arrows]

    def right(self, *arrows):
        [self.line((x, y), (to, y)) for x, to, y in arrows]

    def save(self, name):
        Path(__file__).with_name(name).write_text("\n".join(self.parts) + "\n</svg>\n", encoding="utf-8")


def layer():
    s = Svg(900, 948, "A decoder layer of DeepSeek-V2, with the name and shape of each stage")
    s.line((866, 20), (866, 900), cls="line thick")
    for y in (513, 739):
        s.rect(856, y - 10, 20, 20, "box", 10)
        s.text(866, y + 5, "+")
    s.text(846, 33, "model.embed_tokens, or model.layers.{i-1} [B,S,D]", "text mono", "end")
    s.box(16, 50, 220, 46, "box", "model.rotary_emb.cos, .sin", "[1 or B,S,r/2] for what is rotated")
    s.box(340, 50, 220, 46, "box", "input_layernorm", "[B,S,D]")
    s.right((866, 560, 73))
    s.rect(16, 124, 820, 432, "card", 8)
    s.text(826, 144, "model.layers.{i}.self_attn.", "muted mono", "end")
    s.line((400, 96), (400, 110), (135, 110), (135, 156))
    s.down((470, 96, 156), (135, 200, 222), (135, 266, 288), (405, 200, 222), (580, 200, 222), (405, 266, 288))
    s.down((580, 266, 288), (160, 332, 376), (580, 348, 376), (62, 332, 490), (125, 420, 490), (570, 420, 490))
    for k, name in enumerate(("q_a_proj", "q_a_layernorm", "q_b_proj")):
        s.box(40, 156 + 66 * k, 190, 44, "box" if k == 1 else "weight", name, "[B,S,H(n+r)]" if k == 2 else "[B,S,q]")
    s.note(240, 232, "V2-Lite:", "one q_proj", "for all three")
    s.box(340, 156, 320, 44, "weight", "kv_a_proj_with_mqa", "[B,S,c+r]")
    s.box(340, 222, 140, 44, "box", "k_pe", "[B,1,S,r] rotated")
    s.box(500, 222, 160, 44, "box", "kv_a_layernorm", "[B,S,c]")
    s.box(324, 288, 156, 60, "cache", "past_key_values.{i}", ".k_pe", "[B,T,r]")
    s.box(500, 288, 160, 60, "cache", "past_key_values.{i}", ".compressed_kv", "[B,T,c]")
    s.box(90, 376, 140, 44, "box", "q_pe", "[B,H,S,r] rotated")
    s.box(500, 376, 160, 44, "weight", "kv_b_proj", "[B,T,H(n+v)]")
    s.note(674, 383, "Expanded form only.", "Absorbed form: attention", "reads compressed_kv, and", "kv_b_proj is no stage.")
    s.line((520, 420), (520, 456), (186, 456), (186, 490))
    s.line((405, 348), (405, 456), arrow=False)
    [s.note(*a) for a in ((68, 450, "q_nope"), (430, 450, "k_nope"), (412, 372, "k_pe"), (577, 460, "v"))]
    s.box(40, 490, 170, 46, "box", "attn_scores", "[B,H,S,T] scaled, masked")
    s.box(246, 490, 170, 46, "box", "attn_weights", "[B,H,S,T] softmax")
    s.box(452, 490, 170, 46, "box", "attn_output", "[B,S,H v]")
    s.box(652, 490, 170, 46, "weight", "o_proj", "[B,S,D]")
    s.right((210, 246, 513), (416, 452, 513), (622, 652, 513), (822, 856, 513))
    s.box(330, 582, 240, 46, "box", "post_attention_layernorm", "[B,S,D]")
    s.right((866, 570, 605))
    s.rect(16, 656, 820, 216, "card", 8)
    s.text(826, 676, "model.layers.{i}.mlp.", "muted mono", "end")
    s.line((450, 628), (450, 642), (28, 642), (28, 821), (40, 821))
    s.line((450, 642), (535, 642), (535, 688))
    s.down((130, 642, 688), (335, 732, 746))
    s.right((220, 250, 710), (420, 450, 710), (420, 450, 768), (620, 652, 739), (822, 856, 739))
    s.box(40, 688, 180, 44, "weight", "gate.router_logits", "[B S,E]")
    s.box(250, 688, 170, 44, "choice", "gate.topk_indices", "[B S,k]")
    s.box(250, 746, 170, 44, "box", "gate.topk_weights", "[B S,k]")
    s.box(450, 688, 170, 102, "weight", "experts", "[B S,D]", " sum of weight · expert")
    s.box(40, 800, 380, 42, "weight", "shared_experts", "[B,S,D]")
    s.box(652, 716, 170, 46, "box", "mlp", "[B,S,D]")
    s.line((420, 821), (737, 821), (737, 762))
    s.note(40, 862, "Dense layers (i < first_k_dense_replace): gate_proj and up_proj [B,S,I], down_proj [B,S,D] instead.")
    s.text(846, 906, "model.layers.{i} [B,S,D]", "text mono", "end")
    s.text(846, 930, "after the last layer: model.norm, lm_head, loss", "muted small", "end")
    for x, cls, words in ((24, "weight", "out of a matrix"), (160, "cache", "cached"), (244, "choice", "discrete choice")):
        s.rect(x, 920, 14, 12, cls, 3)
        s.note(x + 20, 930, words)
    s.save("layer.svg")


def mla():
    s = Svg(900, 706, "MLA in its expanded and its absorbed form: W^UK and W^UV change sides")
    for left, absorbed in ((12, False), (456, True)):
        box = lambda x, *rest: s.box(left + x, *rest)
        down = lambda *arrows: s.down(*((left + x, y, to) for x, y, to in arrows))
        s.rect(left, 12, 432, 640, "card", 8)
        title = "Absorbed: all heads attend to the latents" if absorbed else "Expanded: keys and values for every head"
        s.text(left + 216, 38, title, "text bold")
        box(16, 56, 88, 46, "box", "q_nope", "[S,H,n]")
        box(114, 56, 76, 46, "box", "q_pe", "[S,H,r]")
        box(200, 56, 70, 46, "cache", "k_pe", "[T,r]")
        box(280, 56, 136, 46, "cache", "compressed_kv", "[T,c]")
        down((152, 102, 292), (235, 102, 292), (180, 340, 372), (180, 416, 446))
        if absorbed:
            box(16, 136, 88, 46, "weight", "W^UK", "[H,n,c]")
            box(16, 214, 88, 46, "box", "q_latent", "[S,H,c]")
            box(16, 522, 400, 46, "weight", "W^UV", "[H,v,c]")
            down((60, 102, 136), (60, 182, 214), (60, 260, 292), (312, 102, 292), (382, 102, 446))
            down((216, 492, 522), (216, 568, 598))
            scores, read = "q_latent · compressed_kv + q_pe · k_pe", "weights · compressed_kv: [S,H,c]"
            cost, pair = "S·H·c(n+v) + pairs·H(2c+r)", 1088
        else:
            for x, side, name in ((280, "n", "k_nope"), (352, "v", "v")):
                box(x, 136, 64, 46, "weight", "W^UK" if side == "n" else "W^UV", f"[H,{side},c]")
                box(x, 214, 64, 46, "box", name, f"[T,H,{side}]")
                down((x + 32, 102, 136), (x + 32, 182, 214))
            down((60, 102, 292), (312, 260, 292), (384, 260, 446), (216, 492, 598))
            scores, read = "q_nope · k_nope + q_pe · k_pe", "weights · v"
            cost, pair = "T·H·c(n+v) + pairs·H(n+r+v)", 320
        box(16, 292, 328, 48, "box", "attn_scores", f" {scores}")
        box(16, 372, 328, 44, "box", "attn_weights", " softmax over the T keys: [H,S,T]")
        box(16, 446, 400, 46, "box", " sum over the T keys", f" {read}")
        box(16, 598, 400, 46, "box", "attn_output", " [S,H,v], the same in both forms; then o_proj")
        s.text(left + 216, 672, cost, "text mono")
        s.text(left + 216, 692, f"multiply-adds; {pair} for each query-key pair and head", "muted small")
    s.save("mla.svg")


def router():
    scores, factor = [0.30, 0.02, 0.16, 0.15, 0.05, 0.04, 0.20, 0.08], 2
    best = [max(scores[2 * g : 2 * g + 2]) for g in range(4)]
    kept = sorted(sorted(range(4), key=lambda g: -best[g])[:2])
    top = lambda experts: sorted(experts, key=lambda e: -scores[e])[:3]
    chosen, greedy = top(e for e in range(8) if e // 2 in kept), top(range(8))
    s = Svg(900, 416, "Group-limited routing of one token: 8 experts in 4 groups, 2 groups kept, 3 experts chosen")
    s.note(24, 32, "Scores of one token, softmax over 8 experts: n_group 4, topk_group 2, num_experts_per_tok 3", cls="text")
    for g in range(4):
        x = 24 + 216 * g
        s.rect(x, 48, 204, 212, "choice" if g in kept else "card", 8)
        for e in (2 * g, 2 * g + 1):
            left, height = x + 30 + 82 * (e % 2), 420 * scores[e]
            s.rect(left, 208 - height, 62, height, "chosen" if e in chosen else "grey", 2)
            s.text(left + 31, 201 - height, f"{scores[e]:.2f}", "text bold" if e in chosen else "muted")
            s.text(left + 31, 226, f"expert {e}", "text" if e in chosen else "muted")
        s.text(x + 102, 249, f"group {g}: best {best[g]:.2f}, {'kept' if g in kept else 'dropped'}", "muted small")
    join = lambda experts: (", ".join(map(str, experts)), ", ".join(f"{factor * scores[e]:.2f}" for e in experts))
    rows = (
        ("muted", "rule for the groups", "kept groups", "experts", f"weights (routed_scaling_factor {factor})"),
        ("text bold", "V2: the best expert counts", ", ".join(map(str, kept)), *join(chosen)),
        ("text", "greedy (V2-Lite): no groups", "all", *join(greedy)),
        ("text", "V3's: the sum of the two best", "0, 1", "0, 2, 3", "V3 scores and weighs differently"),
    )
    for k, (cls, *row) in enumerate(rows):
        for x, cell in zip((24, 330, 470, 620), row):
            s.note(x, 294 + 30 * k, cell, cls=cls)
        s.line((24, 305 + 30 * k), (876, 305 + 30 * k), cls="line faint", arrow=False)
    s.save("router.svg")


def yarn():
    dim, theta, original, factor, slow, fast = 64, 10000.0, 4096, 40, 1, 32
    pairs = range(dim // 2)
    corr = lambda turns: dim * math.log(original / (2 * math.pi * turns)) / (2 * math.log(theta))
    low, high = math.floor(corr(fast)), math.ceil(corr(slow))
    turns = [original / (2 * math.pi) * theta ** (-2 * i / dim) for i in pairs]
    mix = lambda ramp: 1 - (1 - 1 / factor) * min(max(ramp, 0.0), 1.0)
    code = [mix((i - low) / (high - low)) for i in pairs]
    paper = [mix((fast - turn) / (fast - slow)) for turn in turns]
    s = Svg(900, 450, "YaRN's factor on the frequency of each rotary pair, for V2 and V2-Lite")
    x, y = lambda i: 70 + 25.6 * i, lambda f: 366 - 262 * f
    s.note(24, 32, "Factor on the frequency of rotary pair i: V2 and V2-Lite", cls="text bold")
    s.rect(x(low), y(1.05), x(high) - x(low), y(0) - y(1.05), "grey faint", 0)
    for f in (0, 0.25, 0.5, 0.75, 1):
        s.line((x(0), y(f)), (x(31), y(f)), cls="line faint", arrow=False)
        s.text(60, y(f) + 4, f"{f:g}", "muted small", "end")
    for i in (0, 5, 10, 15, 20, 23, 31):
        s.text(x(i), y(0) + 20, str(i), "muted small")
        s.text(x(i), 84, f"{turns[i]:.0f}" if turns[i] > 10 else f"{turns[i]:.2g}", "muted small")
    s.text(x(15.5), 62, "turns within the original context of 4096 tokens", "muted")
    s.text(x(15.5), y(0) + 42, "i, of r/2 = 32", "muted")
    s.line(*((x(i), y(paper[i])) for i in pairs), cls="other dash", arrow=False)
    s.line(*((x(i), y(code[i])) for i in pairs), cls="curve thick", arrow=False)
    [s.rect(x(i) - 3, y(code[i]) - 3, 6, 6, "dot", 3) for i in pairs]
    s.text(x(5), y(0.9), "kept")
    s.text(x(27), y(0.08), f"divided by {factor}")
    s.note(x(17.2), y(0.62), "the code: linear in i", cls="text bold")
    s.note(x(10.5), y(0.16), "YaRN's paper:", "linear in turns", cls="muted")
    ends = f"low = floor(corr({fast}) = {corr(fast):.2f}) = {low}, high = ceil(corr({slow}) = {corr(slow):.2f}) = {high}"
    s.note(24, 434, f"The ramp: {ends}")
    s.save("yarn.svg")


def kv_cache():
    layers, heads, n, r, v, c = 60, 128, 128, 64, 128, 512
    bars = (
        ("MLA, expanded (Transformers before 5.15)", layers * heads * (n + r + v) * 2),
        (f"MHA, {heads} heads of {n}", layers * heads * (n + v) * 2),
        ("DeepSeek 67B: GQA, 8 groups, 95 layers", 95 * 8 * (n + v) * 2),
        ("GQA, 8 groups", layers * 8 * (n + v) * 2),
        ("MLA", layers * (c + r) * 2),
        ("MQA", layers * (n + v) * 2),
        ("MLA, 6 bits a number", layers * (c + r) * 6 // 8),
    )
    s = Svg(900, 292, "KV-cache bytes per token of DeepSeek-V2 and of other kinds of attention of its size")
    s.note(24, 32, "Cache bytes per token in V2's 60 layers, with MLA and with other attention in its place; bf16", cls="text")
    for k, (name, size) in enumerate(bars):
        y, width, latent = 50 + 33 * k, 480 * size / bars[0][1], k in (4, 6)
        s.text(300, y + 16, name, "text bold" if latent else "text", "end")
        s.rect(310, y, width, 22, "latent" if latent else "grey", 2)
        s.note(318 + width, y + 16, f"{size:,}", cls="text bold" if latent else "muted")
    s.save("kv_cache.svg")


for figure in (layer, mla, router, yarn, kv_cache):
    figure()
