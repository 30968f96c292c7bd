"""safetensors files without a library: each tensor's type, shape and bytes, bfloat16 included."""

import json
import pathlib
import struct

Tensor = tuple[str, list[int], bytes]


def read(path: pathlib.Path) -> dict[str, Tensor]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)
    return {name: (at["dtype"], at["shape"], body[slice(*at["data_offsets"])]) for name, at in header.items()}


def write(path: pathlib.Path, tensors: dict[str, Tensor]) -> None:
    header, body = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
