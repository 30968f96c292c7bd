#!/usr/bin/env bash
# Tests the Python package in a venv of its own, target/python: as a wheel that is built here,
#     python/check.sh
# or with a library that is built already, which costs no more than the tests,
#     cargo build --release -p dsv2 -p dsv2-bench-report -p dsv2-honest-runs -p dsv2-hostile-files -p dsv2-python
#     python/check.sh target/release/lib_dsv2.so
# Without PyTorch, as most of a clean clone: what needs it is skipped, and said.
set -euo pipefail
library=${1:+$(realpath "$1")}
cd "$(dirname "$0")"

venv=$(realpath ..)/target/python
[ -x "$venv/bin/pip" ] || python3 -m venv "$venv"
pip() { "$venv/bin/pip" --quiet --disable-pip-version-check "$@"; }
pip install pytest numpy ml_dtypes safetensors triton==3.9.0 nvidia-cuda-nvrtc nvidia-cuda-runtime
pip uninstall --yes dsv2 2>/dev/null
packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
rm -rf "$packages/dsv2"
if [ -n "$library" ]; then
    cp -rL dsv2 "$packages/dsv2"
    cp "$library" "$packages/dsv2/_dsv2.abi3.so"
else
    pip install maturin
    rm -rf ../target/wheels
    "$venv/bin/maturin" build --release --locked --quiet --interpreter "$venv/bin/python" --out ../target/wheels
    pip install --no-deps ../target/wheels/dsv2-*.whl
fi
"$venv/bin/pytest" --quiet -p no:cacheprovider
