#!/usr/bin/env bash
# Builds the wheel and runs its tests against it, from a venv of its own in target/. What is built for Rust already is taken as
# it is: run it behind `cargo build --release -p dsv2`, and what is compiled here is pyo3 and the package.
# Without PyTorch, as most of a clean clone: what needs it is skipped, and said.
set -euo pipefail
cd "$(dirname "$0")"

venv=$PWD/../target/python
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check \
    maturin pytest numpy safetensors triton==3.9.0 nvidia-cuda-nvrtc nvidia-cuda-runtime
rm -rf ../target/wheels
"$venv/bin/maturin" build --release --locked --quiet --interpreter "$venv/bin/python" --out ../target/wheels
"$venv/bin/pip" install --quiet --disable-pip-version-check --force-reinstall --no-deps ../target/wheels/dsv2-*.whl
"$venv/bin/pytest" --quiet -p no:cacheprovider
