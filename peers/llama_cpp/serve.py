"""llama.cpp's own server, to be asked by `dsv2 check-text`.

    pip install xllamacpp
    python serve.py MODEL.gguf PORT f32|bf16

MODEL.gguf is what convert.py makes of a folder with a tokenizer (--pre). The package is llama.cpp with its server, built; the
server is as it comes, but for the cache in f32: no flash attention, which computes in f16. It ends with this program.
"""

import argparse
import threading

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("port", type=int)
    parser.add_argument("dtype", choices=["f32", "bf16"])
    args = parser.parse_args()
    settings = xllamacpp.CommonParams()
    settings.model.path = args.model
    settings.hostnames, settings.port = ["127.0.0.1"], args.port
    settings.n_parallel, settings.n_ctx, settings.n_gpu_layers = 4, 4096, 0
    settings.use_jinja = True
    if args.dtype == "f32":
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(settings)
    print(f"serves at {server.listening_address}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
