"""Hugging Face Transformers, loaded from a checkpoint folder."""

import inspect
import json
import pathlib
import warnings

warnings.simplefilter("ignore")
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import DeepseekV2ForCausalLM, DeepseekV2ForSequenceClassification  # noqa: E402

ARCHITECTURES = {model.__name__: model for model in (DeepseekV2ForCausalLM, DeepseekV2ForSequenceClassification)}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
CACHE = next(n for n in ("cache", "past_key_values") if n in inspect.signature(DeepseekV2ForCausalLM.forward).parameters)
"""What argument and output are called: `cache` from 5.24 on."""


def load(folder: pathlib.Path, dtype: str, **settings: str | None) -> torch.nn.Module:
    """The model as `from_pretrained` makes it; a weight that no file holds would be random, so that is refused."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    settings = {name: value for name, value in settings.items() if value}
    model, info = ARCHITECTURES[architecture].from_pretrained(
        folder, dtype=DTYPES[dtype], local_files_only=True, output_loading_info=True, **settings
    )
    if info["missing_keys"]:
        raise ValueError(f"leaves weights unset: {sorted(info['missing_keys'])[0]}")
    return model.eval()
