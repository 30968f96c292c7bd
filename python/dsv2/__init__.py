"""Is this implementation DeepSeek-V2? And: CUDA and Triton kernels, run and checked on the CPU.

* `dsv2.emulator`: PTX, launched with arrays of NumPy or PyTorch, every access checked.
* `dsv2.triton`: a driver, so that `kernel[grid](...)` of Triton runs there.
* `dsv2.cuda`: CUDA C++ to PTX, by nvcc or NVRTC from PyPI.
* `dsv2.operator`: a kernel of one operator, called on every workload of its contract and judged.
* `dsv2.check`: a dump of a model's tensors, judged stage by stage.
* `dsv2.hooks`: how to make such a dump in PyTorch, MLX, PaddlePaddle and JAX.
"""

from dsv2._dsv2 import Error, InternalError, KernelFault, LaunchError, PtxError, RequestError
from dsv2._dsv2 import version as __version__
from dsv2._judge import Report, Stage, check, run
from dsv2.operators import operator

__all__ = [
    "Error",
    "InternalError",
    "KernelFault",
    "LaunchError",
    "PtxError",
    "Report",
    "RequestError",
    "Stage",
    "__version__",
    "check",
    "operator",
    "run",
]
