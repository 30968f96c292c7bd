"""Writes the seed corpora (fuzz/corpus/<target>/): those of earlier runs, and what golden/hostile and a few golden cases hold.

    python seeds.py
"""

import tarfile
from pathlib import Path

FUZZ = Path(__file__).resolve().parent
GOLDEN = FUZZ.parent / "golden"
HOSTILE = GOLDEN / "hostile"
SMALL = 20_000


def write(target, name, content):
    folder = FUZZ / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def without_length_prefix(file):
    """What the targets turn back into a file: the header, a NUL, the tensors."""
    length = int.from_bytes(file[:8], "little")
    return file[8 : 8 + length] + b"\0" + file[8 + length :]


def fits(file):
    return len(file) >= 8 and int.from_bytes(file[:8], "little") <= len(file) - 8 and len(file) < SMALL


def as_checkpoint(folder):
    """config.json, a NUL, the index, a NUL, the last shard."""
    index = folder / "model.safetensors.index.json"
    shards = sorted(folder.glob("*.safetensors"))
    shard = shards[-1].read_bytes() if shards and shards[-1].is_file() else b""
    config = (folder / "config.json").read_bytes()
    text = index.read_bytes() if index.exists() else b""
    return b"\0".join([config, text, without_length_prefix(shard) if fits(shard) else b""])


with tarfile.open(FUZZ / "corpora.tar.xz") as kept:
    kept.extractall(FUZZ / "corpus", filter="data")

for path in HOSTILE.glob("config/*.json"):
    write("config", path.stem, path.read_bytes())
    write("checkpoint", f"config-{path.stem}", path.read_bytes())
for path in HOSTILE.glob("*/config.json"):
    write("config", "good", path.read_bytes())
for path in HOSTILE.glob("safetensors/*.safetensors"):
    write("safetensors", path.stem, path.read_bytes())
for path in [*HOSTILE.glob("inputs/*.safetensors"), *HOSTILE.glob("dump/*.safetensors")]:
    file = path.read_bytes()
    write("safetensors", path.stem, without_length_prefix(file))
    write("dump", f"{path.parent.name}-{path.stem}", b"\1" + without_length_prefix(file))
for path in HOSTILE.glob("safetensors/*.safetensors"):
    write("dump", f"file-{path.stem}", b"\0" + path.read_bytes())
for path in [*HOSTILE.glob("archive/*.[np][pt]*"), *GOLDEN.glob("files/*.[np][pt]*")]:
    if path.stat().st_size < SMALL:
        write("archive", path.name, path.read_bytes())
for folder in [HOSTILE / "good", *HOSTILE.glob("checkpoint/*/")]:
    write("checkpoint", folder.name, as_checkpoint(folder))
for path in GOLDEN.glob("cases/*/inputs.safetensors"):
    file = path.read_bytes()
    if fits(file):
        write("dump", f"case-{path.parent.name}", b"\1" + without_length_prefix(file))
write("case", "one-token", (GOLDEN / "cases/one-token/case.json").read_bytes())
write("waivers", "good", b"""[[waiver]]
implementation = "cuda"
case = "rope-*"
reason = "not there yet"
link = "https://example.org/7"
expires = 2027-01-31
""")
RESULTS = (FUZZ / "hostile-files/src/place.rs").read_text()
write("results", "good", RESULTS.split('RESULTS: &str = r#"')[1].split('"#;')[0].encode())
# What files in good order are made from: any bytes.
for first in (2, 3):
    for seed in range(20):
        stream = bytes((first * 31 + seed * 97 + i * i * (seed + 1)) % 256 for i in range(400))
        write("dump", f"made-{first}-{seed}", bytes([first]) + stream)
for seed in range(40):
    write("explain", f"made-{seed}", bytes((seed * 89 + i * 151 + i * i * (seed + 3)) % 256 for i in range(120)))
