"""Stages out of a model, for `dsv2.check`: `torch`, `mlx`, `paddle` and `jax` each have `record`.

    from dsv2.hooks.torch import record

    with torch.no_grad(), record(model) as dump:
        out = model(input_ids=ids)
    dump.write("mine.safetensors", past_key_values=out.past_key_values, logits=out.logits)
    print(dump.skipped)             # {stage: why it is not in the file}

Each needs its framework and safetensors, and is also a file to be copied: golden/hooks/ in the repository.
"""
