"""Writes the files of this folder: the same few tensors in every format and type that `dsv2` reads.

    python make.py          # torch 2.13 or later, numpy, safetensors, ml_dtypes if there is one

`truth.safetensors` holds each of them once more, as F64, I64 or BOOL; of a complex one both parts, as `.re` and `.im`.
"""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
EIGHT_BITS = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]

codes = torch.arange(256, dtype=torch.uint8)
tensors = {
    "bool": torch.tensor([[True, False, True]]),
    "uint8": torch.tensor([0, 7, 255], dtype=torch.uint8),
    "uint16": torch.tensor([0, 7, 65535], dtype=torch.uint16),
    "uint32": torch.tensor([0, 7, 4294967295], dtype=torch.uint32),
    "uint64": torch.tensor([0, 7, 2**63 - 1], dtype=torch.uint64),
    "int8": torch.tensor([[-128], [127]], dtype=torch.int8),
    "int16": torch.tensor([-(2**15), 2**15 - 1], dtype=torch.int16),
    "int32": torch.tensor([-(2**31), 2**31 - 1], dtype=torch.int32),
    "int64": torch.tensor(-100),
    "float16": torch.tensor([[0.1, -65504.0], [6e-8, float("inf")]], dtype=torch.float16),
    "bfloat16": torch.tensor([[0.1, -3e38], [1e-40, float("-inf")]], dtype=torch.bfloat16),
    "float32": torch.tensor([0.1, -3e38, 1e-45, float("nan")]),
    "float64": torch.tensor([0.1, 1e-300], dtype=torch.float64),
    "complex64": torch.tensor([[0.5 + 2j, -1.0 - 0.25j]]),
    "empty": torch.zeros(2, 0),
    **{name: codes.clone().view(getattr(torch, name)) for name in EIGHT_BITS},
}


def truth(name, tensor):
    if tensor.dtype == torch.bool:
        return {name: tensor}
    if tensor.is_complex():
        return {f"{name}.re": tensor.real.double().contiguous(), f"{name}.im": tensor.imag.double().contiguous()}
    return {name: tensor.double() if tensor.is_floating_point() else tensor.long()}


save_file({key: value for name, tensor in tensors.items() for key, value in truth(name, tensor).items()},
          HERE / "truth.safetensors")
save_file(tensors, HERE / "types.safetensors")
torch.save(tensors, HERE / "types.pt")
# The instructions of a newer pickle.
torch.save(tensors, HERE / "protocol-5.pt", pickle_protocol=5)

# One storage for all: views, in any order of axes; a parameter; a state_dict, which has attributes.
whole = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
module = torch.nn.Linear(2, 2, bias=False)
module.weight.data = whole[0, :2, :2]
views = OrderedDict(
    whole=whole,
    transposed=whole.permute(2, 0, 1),
    part=whole[1, :, 1::2],
    expanded=whole[0, 0, :1].expand(3, 4),
    nested={"list": [whole[1], (whole[0, 0],)], 7: torch.tensor(7), "note": "no tensor", "none": None, "number": 0.5},
    state=module.state_dict(),
    parameter=torch.nn.Parameter(whole[:, 0]),
)
torch.save(views, HERE / "views.pt")
flat = {name: views[name] for name in ["whole", "transposed", "part", "expanded"]}
flat |= {"nested.list.0": whole[1], "nested.list.1.0": whole[0, 0], "nested.7": torch.tensor(7)}
flat |= {"state.weight": whole[0, :2, :2], "parameter": whole[:, 0]}
save_file({key: value.contiguous().clone() for name, tensor in flat.items() for key, value in truth(name, tensor).items()},
          HERE / "views-truth.safetensors")
torch.save(whole, HERE / "alone.pt")

arrays = {name: tensor.numpy() for name, tensor in tensors.items() if name not in EIGHT_BITS + ["bfloat16"]}
arrays["bfloat16"] = tensors["bfloat16"].view(torch.int16).numpy().view("V2")  # as ml_dtypes' bfloat16 is saved
np.savez(HERE / "types.npz", **arrays)
np.savez_compressed(HERE / "compressed.npz", **arrays)
np.savez(HERE / "turned.npz", **{name: np.array(array.astype(array.dtype.newbyteorder(">")), order="F")
                                 for name, array in arrays.items()})
np.save(HERE / "float32.npy", arrays["float32"])

# The good model's inputs and dump (../hostile/good), to be given to the program.
GOOD = HERE.parent / "hostile" / "good"
inputs, dump = load_file(GOOD / "inputs.safetensors"), load_file(GOOD / "dump.safetensors")
torch.save(inputs, HERE / "inputs.pt")
np.savez_compressed(HERE / "inputs.npz", **{name: tensor.numpy().astype(np.uint16) for name, tensor in inputs.items()})
torch.save({"run": 1, **dump}, HERE / "dump.pt")
np.savez(HERE / "dump.npz", **{name: tensor.view(torch.int16).numpy().view("V2") for name, tensor in dump.items()})
strange = {"scales": torch.zeros(2, dtype=torch.float8_e8m0fnu), "positions": torch.tensor([1], dtype=torch.uint32),
           "freqs": torch.zeros(2, dtype=torch.complex64)}
save_file({**dump, **strange}, HERE / "dump-with-strangers.safetensors")
