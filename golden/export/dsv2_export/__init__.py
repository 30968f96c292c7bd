"""Builds and re-checks the golden cases of the DeepSeek-V2 conformance suite with Hugging Face Transformers.

The folder `golden/cases/` is the product: language-neutral data (see `golden/RUNNER.md`). This package is the only
code that writes it, and nothing outside Python ever needs to run it.
"""
