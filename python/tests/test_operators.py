"""Contracts of operators: right callables pass every workload, wrong ones fail, and what is at fault is said in one line."""

import dataclasses
import math

import numpy as np
import pytest

import dsv2
from dsv2 import _tensors, operators

pytest.importorskip("safetensors", reason="not installed: safetensors")
HAVE_TORCH = _tensors.default_device() != "numpy"
if HAVE_TORCH:
    from torch import empty as empty_of_its_own
else:
    from numpy import empty as empty_of_its_own


def in_fp32(array) -> np.ndarray:
    return np.asarray(array.float() if HAVE_TORCH else array, np.float32)


def like(array, values):
    """Values in the type and library of an array."""
    if HAVE_TORCH:
        import torch

        return torch.from_numpy(np.ascontiguousarray(values)).to(array.dtype)
    return values.astype(array.dtype)


def rmsnorm(hidden_states, weight):
    x = in_fp32(hidden_states)
    return like(hidden_states, x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(1e-6)) * in_fp32(weight))


def decode(q_nope, q_pe, ckv_cache, kpe_cache, kv_indptr, kv_indices, sm_scale, kv_last_page_len=None):
    output = np.zeros(q_nope.shape, np.float32)
    lse = np.full(q_nope.shape[:2], -np.inf, np.float32)
    size = ckv_cache.shape[1]
    for sequence in range(len(kv_indptr) - 1):
        begin, end = int(kv_indptr[sequence]), int(kv_indptr[sequence + 1])
        if begin == end:
            continue
        last = size if kv_last_page_len is None else int(kv_last_page_len[sequence])
        pages = np.asarray(kv_indices[begin:end])
        keys, k_pe = (
            in_fp32(cache[pages]).reshape(len(pages) * size, -1)[: (len(pages) - 1) * size + last] for cache in (ckv_cache, kpe_cache)
        )
        scores = (in_fp32(q_nope[sequence]) @ keys.T + in_fp32(q_pe[sequence]) @ k_pe.T) * np.float32(sm_scale)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        total = weights.sum(-1, keepdims=True)
        output[sequence] = weights / total @ keys
        lse[sequence] = ((scores.max(-1) + np.log(total[:, 0])) / math.log(2)).astype(np.float32)
    return like(q_nope, output), lse


test_rmsnorm = dsv2.operator("rmsnorm")(rmsnorm)
test_decode = dsv2.operator("mla_paged_decode")(decode)


def given(name, workload):
    try:
        return operators.inputs(name, workload)
    except ImportError as missing:
        pytest.skip(str(missing))


def fails(name, workload, kernel):
    with pytest.raises(AssertionError) as caught:
        operators.try_kernel(name, workload, kernel, given(name, workload))
    return str(caught.value)


def test_a_wrong_kernel_is_told_which_output_and_by_how_much():
    no_weight = fails("rmsnorm", "odd sizes", lambda hidden_states, weight: rmsnorm(hidden_states, weight * 0 + 1))
    assert "rmsnorm, workload 'odd sizes' (rmsnorm_h131): fail" in no_weight and "l2 " in no_weight

    fp32 = fails("rmsnorm", "squares beyond fp16", lambda hidden_states, weight: in_fp32(rmsnorm(hidden_states, weight)))
    assert "output is of type float32, expected float16" in fp32
    assert "did not return lse" in fails("mla_paged_decode", "odd sizes", lambda **inputs: decode(**inputs)[0])

    def natural(**inputs):  # a natural logarithm where one to base 2 is asked for
        output, lse = decode(**inputs)
        return output, lse * np.float32(math.log(2))

    said = fails("mla_paged_decode", "odd sizes", natural)
    assert "output: pass" in said and "lse: over-budget" in said


def test_garbage_that_reaches_the_output_is_found():
    def whole_pages(kv_last_page_len=None, **inputs):
        return decode(**inputs)

    assert "non-finite" in fails("mla_paged_decode", "odd sizes", whole_pages)


def test_a_changed_input_and_other_bits_the_second_time_fail():
    def changes(hidden_states, weight):
        result = rmsnorm(hidden_states, weight)
        weight[0] = 2
        return result

    assert "changed its inputs weight" in fails("rmsnorm", "odd sizes", changes)
    calls, buffer = iter([1e-7, 0]), []

    def other(hidden_states, weight):
        result = rmsnorm(hidden_states, weight) * (1 + np.float32(next(calls)))
        buffer[:] = buffer or [result]
        buffer[0][:] = result
        return buffer[0]

    assert "other bits of output" in fails("rmsnorm", "odd sizes", other)


def test_a_row_that_has_other_bits_alone_fails_if_it_must_not(monkeypatch):
    rows = {"rmsnorm": {"axis": "batch_size"}, "mla_paged_decode": {"axis": "batch_size", "offsets": {"kv_indptr": "num_kv_indices"}}}
    contract = operators.contract
    monkeypatch.setattr(operators, "contract", lambda name: dataclasses.replace(contract(name), rows=rows[name]))
    inputs = given("rmsnorm", "odd sizes")

    def by_batch(hidden_states, weight):
        x = in_fp32(hidden_states)
        wide = np.float64 if len(x) > 1 else np.float32
        mean = (x * x).mean(-1, keepdims=True, dtype=wide)
        return like(hidden_states, (x / np.sqrt(mean + 1e-6) * in_fp32(weight)).astype(np.float32))

    def alone(kernel, **options):
        return operators.try_kernel("rmsnorm", "odd sizes", kernel, inputs, **options)

    assert alone(rmsnorm, batch_invariant=True)["verdict"] == "pass"
    assert alone(by_batch)["verdict"] == "pass"
    with pytest.raises(AssertionError, match=r"row \d alone has other bits of output than among others"):
        alone(by_batch, batch_invariant=True)

    def at_once(other):
        """Right among others, and something else alone."""
        return lambda hidden_states, weight: (rmsnorm if len(hidden_states) > 1 else other)(hidden_states, weight)

    def changes(hidden_states, weight):
        result = rmsnorm(hidden_states, weight)
        weight[0] = 2
        return result

    for wrong, line in [
        (lambda *_: None, r"for row 0 alone the kernel did not return output"),
        (changes, r"for row 0 alone the kernel changed its inputs weight"),
        (lambda *given: in_fp32(rmsnorm(*given)).astype(float), r"row 0 alone has output of float64 \[1x131\], among others of \w+ \[1x131\]"),
        (lambda *given: rmsnorm(*given)[0], r"row 0 alone has output of \w+ \[131\], among others of \w+ \[1x131\]"),
    ]:
        with pytest.raises(AssertionError, match=line):
            alone(at_once(wrong), batch_invariant=True)

    sequences = given("mla_paged_decode", "pages of 64")
    assert operators.try_kernel("mla_paged_decode", "pages of 64", decode, sequences, batch_invariant=True)["verdict"] == "pass"


def test_what_nobody_wrote_fails_whatever_is_in_it():
    inputs = given("rmsnorm", "odd sizes")
    right = rmsnorm(**inputs)

    def empty(x):
        if not HAVE_TORCH:
            return np.empty_like(x)
        import torch

        return torch.empty_like(x)

    def leaves_a_row(hidden_states, weight):
        output = empty(hidden_states)
        output[:-1] = right[:-1]
        return output

    with pytest.raises(AssertionError, match=r"nobody wrote 131 of the elements of output \[7x131\]"):
        operators.try_kernel("rmsnorm", "odd sizes", leaves_a_row, inputs, repeats=1)

    def writes_all(hidden_states, weight):
        output = empty(hidden_states)
        output[:] = right
        return output

    assert operators.try_kernel("rmsnorm", "odd sizes", writes_all, inputs)["verdict"] == "pass"

    def leaves_a_row_of_its_own(hidden_states, weight):
        output = empty_of_its_own(hidden_states.shape, dtype=hidden_states.dtype)
        output[:-1] = right[:-1]
        return output

    before = empty_of_its_own
    with pytest.raises(AssertionError, match="nobody wrote 131 of the elements"):
        operators.try_kernel("rmsnorm", "odd sizes", leaves_a_row_of_its_own, inputs, repeats=1)
    assert empty_of_its_own is before


def test_a_shape_with_an_axis_too_many_fails():
    assert "output has the shape [1x7x131], expected [batch_size, hidden_size]" in fails(
        "rmsnorm", "odd sizes", lambda hidden_states, weight: rmsnorm(hidden_states, weight)[None]
    )


def test_parameters_by_position_are_given_in_order():
    def by_position(hidden_states, weight, scale=1, /):
        return rmsnorm(hidden_states, weight)

    assert operators.try_kernel("rmsnorm", "odd sizes", by_position, given("rmsnorm", "odd sizes"))["verdict"] == "pass"


def test_what_does_not_count_may_be_left_unwritten():
    inputs = given("moe_align_block_size", "odd sizes")

    def align(topk_ids, num_experts, block_size):
        chosen = np.asarray(topk_ids).ravel()
        blocks, experts = [], []
        for expert in range(num_experts):
            own = np.flatnonzero(chosen == expert).tolist()
            own += [len(chosen)] * (-len(own) % block_size)
            blocks, experts = blocks + own, experts + [expert] * (len(own) // block_size)
        if HAVE_TORCH:
            import torch

            ids, owners = torch.empty(len(blocks) + 7, dtype=torch.int32), torch.empty(len(experts) + 2, dtype=torch.int32)
            counted = torch.tensor([len(blocks)], dtype=torch.int32)
            ids[: len(blocks)], owners[: len(experts)] = torch.tensor(blocks), torch.tensor(experts)
        else:
            ids, owners = np.empty(len(blocks) + 7, np.int32), np.empty(len(experts) + 2, np.int32)
            counted = np.array([len(blocks)], np.int32)
            ids[: len(blocks)], owners[: len(experts)] = blocks, experts
        return ids, owners, counted

    assert operators.try_kernel("moe_align_block_size", "odd sizes", align, inputs)["verdict"] == "pass"

    def one_too_many(**inputs):
        ids, owners, counted = align(**inputs)
        return ids, owners, counted + int(inputs["block_size"])

    assert "fail" in fails("moe_align_block_size", "odd sizes", one_too_many)


def test_what_is_written_in_place_need_not_be_returned():
    def append(kv_a, weight, cos, sin, slot_mapping, ckv_cache, kpe_cache):
        width, size = ckv_cache.shape[2], ckv_cache.shape[1]
        latent, key = rmsnorm(kv_a[:, :width], weight), in_fp32(kv_a[:, width:])
        turned = np.empty_like(key)
        turned[:, 0::2] = key[:, 0::2] * in_fp32(cos) - key[:, 1::2] * in_fp32(sin)
        turned[:, 1::2] = key[:, 0::2] * in_fp32(sin) + key[:, 1::2] * in_fp32(cos)
        for token, slot in enumerate(int(slot) for slot in slot_mapping):
            if slot >= 0:
                ckv_cache[slot // size, slot % size] = latent[token]
                kpe_cache[slot // size, slot % size] = like(kpe_cache, turned[token])

    report = operators.try_kernel("mla_cache_append", "odd sizes", append, given("mla_cache_append", "odd sizes"))
    assert [output["disposition"] for output in report["outputs"]] == ["pass", "pass"]


def test_requests_at_fault_are_one_line():
    def tried(kernel, inputs=None, **options):
        return operators.try_kernel("rmsnorm", "odd sizes", kernel, given("rmsnorm", "odd sizes") if inputs is None else inputs, **options)

    only = {"outputs": ["output"]}
    assert operators.try_kernel(
        "mla_paged_decode", "odd sizes", lambda **inputs: decode(**inputs)[0], given("mla_paged_decode", "odd sizes"), **only
    )
    for request, line in [
        (lambda: dsv2.operator("rmsnorm", outputs=["lse"]), "outputs of rmsnorm: expected some of output, found lse"),
        (lambda: dsv2.operator("mla"), "operator 'mla': expected one of rmsnorm, "),
        (lambda: dsv2.operator("rmsnorm", workloads=["no such"]), "workload 'no such' of rmsnorm: expected one of "),
        (
            lambda: operators.try_kernel("rmsnorm", "odd sizes", lambda x: x, given("rmsnorm", "odd sizes")),
            "expected parameters hidden_states, weight",
        ),
        (
            lambda: operators.try_kernel("rmsnorm", "odd sizes", lambda **_: (1, 2), given("rmsnorm", "odd sizes")),
            "expected at most 1 outputs",
        ),
        (lambda: tried(int), "int, a kernel of rmsnorm: "),
        (lambda: tried(lambda hidden_states, weight, more, /: 1), "a kernel of rmsnorm: "),
        (lambda: tried(lambda **_: {"output": 1.5}), "output output of rmsnorm: expected an array or a tensor, found float"),
        (lambda: tried(lambda **given: {"output": rmsnorm(**given), "time": "1 ms"}), "output time of rmsnorm: expected an array"),
        (lambda: tried(rmsnorm, {}), "inputs of rmsnorm: expected those that operators.inputs makes, of hidden_states, weight; found none"),
        (lambda: tried(rmsnorm, {"x": 1}), "of hidden_states, weight; found x"),
        (lambda: tried(rmsnorm, {"hidden_states": np.zeros((1, 1))}), "rmsnorm, a kernel of rmsnorm: "),
        (lambda: tried(rmsnorm, report=lambda: None), "report of rmsnorm: "),
    ]:
        with pytest.raises(dsv2.RequestError) as caught:
            request()
        assert line in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_wrong_inside_of_a_kernel_is_told_as_it_is():
    def wrong(hidden_states, weight):
        return 1 + "1"

    with pytest.raises(TypeError, match="unsupported operand"):
        operators.try_kernel("rmsnorm", "odd sizes", wrong, given("rmsnorm", "odd sizes"))


@pytest.mark.skipif(not HAVE_TORCH, reason="not installed: torch")
def test_tensors_without_numbers_in_a_row_are_one_line():
    import torch

    for found, line in [
        (torch.empty(7, 131, device="meta"), "found a tensor on meta, which has none"),
        (torch.eye(7).to_sparse(), "expected layout torch.strided, found layout torch.sparse_coo"),
        (torch.quantize_per_tensor(torch.eye(7), 0.1, 0, torch.qint8), "found a quantized tensor"),
    ]:
        for request in [
            lambda found=found: operators.try_kernel("rmsnorm", "odd sizes", lambda **_: found, given("rmsnorm", "odd sizes")),
            lambda found=found: operators.check("rmsnorm", "odd sizes", {"output": found}),
            lambda found=found: operators.try_kernel("rmsnorm", "odd sizes", rmsnorm, {"hidden_states": found}),
            lambda found=found: dsv2.check("model", {"input_ids": found}, {"lm_head": found}),
        ]:
            with pytest.raises(dsv2.RequestError) as caught:
                request()
            assert line in str(caught.value) and "\n" not in str(caught.value)
