"""One pinned NVRTC, called from Python: CUDA C++ to PTX, and what ptxas says of its registers."""

import ctypes
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterable
from pathlib import Path

VERSION = "12.4.127"
OPTIONS = ["--std=c++17", "-lineinfo", "-default-device"]
# What the PTX is for; and the GPUs whose registers are counted: the oldest that is supported, and Hopper.
TARGET, COUNTED = "compute_80", ("sm_80", "sm_90")


class Problem(Exception):
    """What is wrong with a source, in one line or in NVRTC's own words."""


def with_headers(source: Path) -> dict[str, str]:
    """A source and the headers beside it, by name. NVRTC gets all of them in memory, so that an edit needs no file."""
    return {path.name: path.read_text() for path in [source, *sorted(source.parent.glob("*.cuh"))]}


class Compiler:
    """NVRTC. It may be called from several threads."""

    def __init__(self) -> None:
        try:
            found = importlib.metadata.version("nvidia-cuda-nvrtc-cu12")
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        if found != VERSION:
            sys.exit(f"NVRTC: expected the package nvidia-cuda-nvrtc-cu12=={VERSION}, found {found}")
        package = importlib.util.find_spec("nvidia.cuda_nvrtc")
        folder = Path(next(iter(package.submodule_search_locations))) / "lib"
        # Its builtins first: they are not found otherwise.
        for builtins in folder.glob("libnvrtc-builtins.so*"):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        self.nvrtc = ctypes.CDLL(str(next(folder.glob("libnvrtc.so*"))))

    def text(self, what: str, program: ctypes.c_void_p) -> str:
        """The PTX or the log of a program; both end in NUL, which no reader wants."""
        size = ctypes.c_size_t()
        getattr(self.nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(self.nvrtc, f"nvrtcGet{what}")(program, buffer)
        return buffer.value.decode()

    def run(self, name: str, texts: dict[str, str], options: list[str]) -> tuple[str, str]:
        """The PTX and the log of the file `name`, whose headers are the other texts."""
        headers = {header: text for header, text in texts.items() if header != name}
        program, options = ctypes.c_void_p(), [*OPTIONS, *options]
        self.nvrtc.nvrtcCreateProgram(
            ctypes.byref(program), texts[name].encode(), name.encode(),
            len(headers), strings(headers.values()), strings(headers),
        )
        status = self.nvrtc.nvrtcCompileProgram(program, len(options), strings(options))
        log = self.text("ProgramLog", program)
        ptx = "" if status else self.text("PTX", program)
        self.nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
        if status:
            raise Problem(f"{name} does not compile:\n{log.strip()}")
        return tidy(ptx), log

    def ptx(self, name: str, texts: dict[str, str]) -> str:
        """The PTX of the file `name`, whose headers are the other texts."""
        return self.run(name, texts, [f"--gpu-architecture={TARGET}"])[0]

    def resources(self, source: Path) -> list[dict]:
        """What ptxas says of each kernel of a file. A spill, also in a function that is not inlined, is a problem."""
        rows, spilled = {}, []
        for gpu in COUNTED:
            _, log = self.run(source.name, with_headers(source), [f"--gpu-architecture={gpu}", "--ptxas-options=-v"])
            for function, properties in re.findall(r"Function properties for (\w+)\n(.*(?:\n.*: Used .*)?)", log):
                def number(what: str) -> int:
                    found = re.search(what, properties)
                    return int(found[1]) if found else 0

                spill = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
                if spill:
                    spilled.append(f"{function} spills {spill} bytes on {gpu}")
                # Functions that kernels call have no such line: their registers are the kernels'.
                if "Used" in properties:
                    row = rows.setdefault(function, {"kernel": function, "spill bytes": 0, "stack bytes": 0})
                    row[f"registers {gpu}"] = number(r"Used (\d+) registers")
                    row["spill bytes"] += spill
                    row["stack bytes"] = max(row["stack bytes"], number(r"(\d+) bytes stack frame"))
                    row["static shared bytes"] = number(r"(\d+) bytes smem")
        if spilled:
            raise Problem(f"{source.name}: {', '.join(spilled)}")
        return list(rows.values())


def tidy(ptx: str) -> str:
    """PTX without what depends on the place and on what was compiled before, so that it is the same everywhere."""
    ptx = re.sub(r'(?m)^(\s*\.file\s+\d+\s+)"[^"]*?([^"/]+)"', r'\1"\2"', ptx)
    ptx = re.sub(r"(?m)^(\s*[{}]) // callseq \d+.*$", r"\1", ptx)
    # Where a line was inlined is left out, with the strings it needs: two fifths of the text, and no reader wants it.
    ptx = re.sub(r"(?m)^(\s*\.loc\s+\d+ \d+ \d+), function_name.*$", r"\1", ptx)
    return re.sub(r"(?ms)^\s*\.section\s+\.debug_str\s*\{.*?^\s*\}\n?", "", ptx)


def strings(texts: Iterable[str]) -> ctypes.Array:
    """Texts as a C array of C strings."""
    encoded = [text.encode() for text in texts]
    return (ctypes.c_char_p * len(encoded))(*encoded)
