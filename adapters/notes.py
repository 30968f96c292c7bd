"""The prose of CONFORMANCE.md."""

INTRO = """# What implementations of DeepSeek-V2 make of the golden cases

Every row comes from a run: `adapters/run.py` gives a golden case to the implementation as a Hugging Face folder, and
`dsv2 check` judges the tensors that come back against the float64 reference on the same inputs. How to repeat it, and
what each adapter does, is in [adapters/README.md](adapters/README.md); all rows are in
[adapters/results.json](adapters/results.json).

* **pass**: every tensor that was compared is within its budget, a small multiple of the error of a plain
  implementation in the same type. The errors shown are those of the last tensor.
* **FAIL**: it ran, and the named stage is the first that is over its budget. *Local* error: against the reference on
  the implementation's own inputs of that stage. *Propagated*: against the reference's own run. The *cause* is measured
  too: it is the change of the reference that makes it reproduce the implementation's tensors.
* **CRASHED**: it accepted the model and the inputs, then stopped with an error.
* **NOT SUPPORTED**: it declined the model or the inputs before computing.
* **NOT RUN**: it was not installed where this was made.

Errors are relative, in the L2 norm; a row may be over its budget by another measure (its worst token or element).
The cases are small on purpose, and set where rules differ. A failure on one of them says that a rule is another one,
not that a published checkpoint is affected; where published checkpoints are concerned, the notes say so. Corrections
are welcome: the commands repeat every row.
"""

NOTES = {
    "transformers": """Hooks see no rotated queries and no attention scores, which are no module's output
([golden/hooks](golden/hooks/README.md)). `grouped_mm` is PyTorch's kernel for all experts at once; it wants rows of a
multiple of 16 bytes, which all published checkpoints have, and the odd widths of many golden cases have not.
Before 5.15 the softmax scale lacks mscale² (transformers#47435), which concerns every published V2 checkpoint. 5.0 to
5.12 stop in group-limited routing, which the 236B models use. 4.57 does not know `rope_parameters`, the layout of
config.json that Transformers writes since 5.0; neither it nor 5.3 knows logits for positions chosen row by row.""",
    "candle": """candle returns the logits of the last position, so the adapter runs every prefix of the sequence; masks
and positions are not arguments of its forward function. Group-limited routing is what the 236B models use; V2-Lite
routes greedily. `mlp_bias`, `attention_factor` and `truncate` are additions of Transformers that no published V2
checkpoint uses. In bf16 nothing is judged: from logits alone, an expert that is chosen otherwise by a near tie cannot be
told from an error.""",
    "llama.cpp": """The checkpoint goes through llama.cpp's own converter. The tiny models have no tokenizer, so the
vocabulary is written as "none"; and `q_lora_rank: null` is written as 0, without which llama.cpp goes by the number of
layers. Weights and cache are f32 and flash attention is off, so that nothing but the rules is compared. Group-limited
routing is what the 236B models use; V2-Lite routes greedily.""",
    "mistral.rs": """Only log-probabilities of the next token are to be had. They are the logits up to a constant for
each row; the adapter shifts them to the mean of Transformers' logits, then `dsv2 check` judges them. On a CPU, the
attention takes value heads as wide as key heads only, which no published V2 checkpoint has. The second setting runs a
checkpoint of the same function that has: the value heads are widened with zeros.""",
}
