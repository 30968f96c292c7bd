"""What Triton says of a kernel or its arguments, in one line with the place: Triton's own exceptions have many lines, or name
functions that nobody wrote.
"""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import triton
from triton.compiler.errors import CompilationError
from triton.language.core import constexpr
from triton.runtime.errors import OutOfResources
from triton.runtime.jit import JITCallable

from dsv2 import _dsv2
from dsv2._dsv2 import LaunchError

PACKAGES = tuple(f"{Path(file).parent}/" for file in (triton.__file__, __file__))


class CompileError(_dsv2.Error, CompilationError):
    """A kernel does not compile: which line of it, and why. It is Triton's CompilationError as well, for those who catch that."""

    def __init__(self, text: str, error: CompilationError):
        Exception.__init__(self, text)
        self.src, self.node, self.error_message, self.message = error.src, error.node, error.error_message, text

    def __str__(self) -> str:
        return str(self.args[0])


class ResourceError(_dsv2.Error, OutOfResources):
    """A kernel needs more than a block of the target has. It is Triton's OutOfResources as well, for those who catch that."""

    def __init__(self, text: str, error: OutOfResources):
        Exception.__init__(self, text)
        self.required, self.limit, self.name = error.required, error.limit, error.name

    def __str__(self) -> str:
        return str(self.args[0])


def in_one_line(run: Callable[..., Any]) -> Callable[..., Any]:
    """In place of `JITFunction.run`."""

    @functools.wraps(run)
    def run_said(function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        name = function.fn.__name__
        try:
            return run(function, *args, grid=grid if warmup else _grid(name, grid), warmup=warmup, **kwargs)
        except _dsv2.Error:
            raise
        except CompilationError as error:
            raise CompileError(_of_kernel(function, error), error) from error
        except OutOfResources as error:
            raise ResourceError(f"kernel {name} at {_caller()}: {error}", error) from error
        except Exception as error:
            if not _triton_s(error):
                raise
            raise LaunchError(f"launch of {name} at {_caller()}: {_of_arguments(function, error, args, kwargs)}") from error

    return run_said


def _grid(name: str, grid: Any) -> Any:
    """A grid that has one to three sizes, or makes them of a kernel's arguments."""
    if callable(grid):
        return lambda meta: _grid(name, grid(meta))
    if not isinstance(grid, Sequence) or not 1 <= len(grid) <= 3:
        raise LaunchError(f"launch of {name} at {_caller()}: grid: expected a tuple of one to three numbers, found {grid!r}")
    return grid


def _triton_s(error: Exception) -> bool:
    """Whether Triton raised it, and not what it called: a grid, a hook."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    # What binds arguments is made of text.
    return frame.f_code.co_filename.startswith((PACKAGES[0], "<string>"))


def _caller() -> str:
    """The line that launches."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith((*PACKAGES, "<string>")):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _of_kernel(function: JITCallable, error: CompilationError) -> str:
    """The line at fault: the innermost that is not of Triton's own library. (Triton takes its own frames out of the traceback.)"""
    chain = [found for found in _causes(error) if isinstance(found, CompilationError)]
    said = next((found.error_message for found in reversed(chain) if found.error_message), "it does not compile")
    places = [place for found in chain if (place := _place(function, found)) is not None]
    own = [place for place in places if not place[0].startswith(PACKAGES[0])] or places
    where = f" at {own[-1][0]}:{own[-1][1]}: `{own[-1][2]}`" if own else ""
    return f"kernel {function.fn.__name__}{where}: {' '.join(str(said).split())}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _place(function: JITCallable, error: CompilationError) -> tuple[str, int, str] | None:
    """File, line and text, if the error is of this function or of one that it knows by name."""
    line, seen, ahead = getattr(error.node, "lineno", None), set(), [function]
    while line is not None and ahead:
        known = ahead.pop()
        if known.src == error.src:
            return known.file_name, known.def_file_line_number + line - 1, known.src.splitlines()[line - 1].strip()
        seen.add(id(known))
        ahead += [value for value in known.get_capture_scope().values() if isinstance(value, JITCallable) and id(value) not in seen]
    return None


def _of_arguments(function: JITCallable, error: Exception, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """What is wrong with the arguments, by name where Triton only says the type."""
    said = str(error.args[0] if error.args else error).replace("dynamic_func()", function.fn.__name__)
    try:
        names = function.signature.parameters
        bound = function.signature.bind(*args, **{name: value for name, value in kwargs.items() if name in names}).arguments
    except TypeError:
        return said
    constants = {parameter.name for parameter in function.params if parameter.is_constexpr}
    for name, value in bound.items():
        if name in constants or isinstance(value, constexpr):
            continue
        if said == f"failed to specialize argument of type: {type(value).__name__}":
            return f"argument {name}: expected a tensor, wrap(array) of NumPy or a number, found {type(value).__name__}"
        if isinstance(error, KeyError) and said == str(getattr(value, "dtype", None)).removeprefix("torch."):
            return f"argument {name}: Triton has no numbers of type {said}"
        if isinstance(error, OverflowError) and isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
            return f"argument {name}: expected a number of 64 bits, found {value}"
    return f"{said} ({type(error).__name__})"
