"""Runs Hugging Face Transformers on a checkpoint folder and writes every stage that forward hooks see.

    python transformers_adapter.py MODEL INPUTS OUTPUT f32|bf16 [--attention sdpa] [--experts grouped_mm] [--chunks 7,1,1]

Exit status 2: Transformers takes no such model. 1: it took it, and stopped with an error. One line on stderr says what.
"""

import argparse
import json
import pathlib
import sys
import warnings

warnings.simplefilter("ignore")
import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import DeepseekV2ForCausalLM, DeepseekV2ForSequenceClassification  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "golden/hooks"))
from dsv2_hooks import record  # noqa: E402

ARCHITECTURES = {model.__name__: model for model in (DeepseekV2ForCausalLM, DeepseekV2ForSequenceClassification)}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def load(folder: str, dtype: torch.dtype, attention: str | None, experts: str | None):
    """The model as `from_pretrained` makes it; a weight that no file holds would be random, so that is refused."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    architecture = json.loads(pathlib.Path(folder, "config.json").read_text())["architectures"][0]
    settings = {"attn_implementation": attention, "experts_implementation": experts}
    settings = {name: value for name, value in settings.items() if value}
    model, info = ARCHITECTURES[architecture].from_pretrained(
        folder, dtype=dtype, local_files_only=True, output_loading_info=True, **settings
    )
    if info["missing_keys"]:
        raise ValueError(f"leaves weights unset: {sorted(info['missing_keys'])[0]}")
    return model.eval()


def typed(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Floating-point inputs in the model's type. float32's minimum would be minus infinity in bfloat16."""
    if not tensor.is_floating_point():
        return tensor
    forbidden = tensor <= torch.finfo(torch.float32).min / 2
    return tensor.to(dtype).masked_fill(forbidden, torch.finfo(dtype).min) if name == "attention_mask" else tensor.to(dtype)


def run(model, inputs: dict[str, torch.Tensor], chunks: list[int] | None):
    """Feeds the inputs, in pieces through one cache if there are `chunks`. Returns the dump and the last output."""
    cached = {} if chunks is None else {"past_key_values": transformers.DynamicCache(config=model.config)}
    length = inputs.get("input_ids", inputs.get("inputs_embeds")).shape[1]
    start, out = 0, None
    with torch.no_grad(), record(model) as dump:
        for size in chunks or [length]:
            piece = dict(inputs)
            for name in inputs.keys() & {"input_ids", "inputs_embeds", "position_ids"}:
                piece[name] = inputs[name][:, start : start + size]
            if inputs.get("attention_mask", torch.empty(0)).dim() == 2:  # it always covers the past as well
                piece["attention_mask"] = inputs["attention_mask"][:, : start + size]
            if piece.get("logits_to_keep", torch.empty(1)).dim() == 0:
                piece["logits_to_keep"] = int(piece["logits_to_keep"])
            out = model(**piece, **cached)
            start += size
    return dump, out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "inputs", "output"):
        parser.add_argument(name)
    parser.add_argument("dtype", choices=DTYPES)
    parser.add_argument("--attention", help="attn_implementation [default: Transformers' own choice]")
    parser.add_argument("--experts", help="experts_implementation [default: Transformers' own choice]")
    parser.add_argument("--chunks", type=lambda text: [int(n) for n in text.split(",")])
    args = parser.parse_args()
    dtype, status = DTYPES[args.dtype], 2
    try:
        model = load(args.model, dtype, args.attention, args.experts)
        inputs = {name: typed(name, tensor, dtype) for name, tensor in load_file(args.inputs).items()}
        status = 1
        dump, out = run(model, inputs, args.chunks)
    except Exception as error:  # whatever it is, it is Transformers' answer
        print(" ".join(f"{type(error).__name__}: {error}".split()), file=sys.stderr)
        sys.exit(status)
    last = {"pooled_logits": out.logits} if hasattr(model, "score") else {"logits": out.logits}
    dump.write(args.output, past_key_values=out.past_key_values, loss=out.loss, **last)


if __name__ == "__main__":
    main()
