"""One file of an engine, imported without the engine.

What is on the list of files is the wheel's own. Every other module of the package is a stand-in whose names all mean "no": a
question (`is_hip()`, `envs.X.get()`) is answered with something false, a decorator gives back what it decorates. Values that a
kernel needs to know are given by name.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import sys
import types
from collections.abc import Mapping
from typing import Any

from wheels import WHEELS, Unfit, folder


class No:
    """The answer to every question to an engine that is not there."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and not kwargs and inspect.isfunction(args[0]) else self

    def __getattr__(self, name: str) -> "No":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __or__(self, other: Any) -> "No":
        return self

    __ror__ = __or__

    def __enter__(self) -> "No":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __bool__(self) -> bool:
        return False

    def __int__(self) -> int:
        return 0

    __index__ = __int__


class StandIn(types.ModuleType):
    """A module of an engine that is not there."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return No()


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of one package: the wheel's where they are on the list, stand-ins for the rest."""

    def __init__(self, wheel: str, package: str, own: tuple[str, ...], values: Mapping[str, Mapping[str, Any]]):
        self.root, self.package, self.own, self.values = folder(wheel), package, own, values

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] != self.package:
            return None
        if name in self.own:
            file = self.root / (name.replace(".", "/") + ".py")
            return importlib.util.spec_from_file_location(name, file) if file.is_file() else None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        module = StandIn(spec.name)
        module.__dict__.update(self.values.get(spec.name, {}))
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class Engine:
    """A package of which some modules can be imported. Its finder is put in place with the first of them."""

    def __init__(self, wheel: str, package: str, own: tuple[str, ...], values: Mapping[str, Mapping[str, Any]] | None = None):
        self.wheel, self.version = wheel, WHEELS[wheel].version
        self.package, self.own, self.values = package, own, values or {}
        self.finder: Finder | None = None

    def module(self, name: str) -> types.ModuleType:
        """A module of the wheel's own. Raises Unfit where it is not as it was when the adapters were written."""
        if self.finder is None:
            self.finder = Finder(self.wheel, self.package, self.own, self.values)
            for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == self.package]:
                del sys.modules[loaded]
            sys.meta_path.insert(0, self.finder)
        try:
            return importlib.import_module(f"{self.package}.{name}")
        except (ImportError, AttributeError) as error:
            raise Unfit(f"{self.wheel} {self.version} does not fit its adapter: {error}") from None

    def function(self, module: str, name: str) -> Any:
        """A function of such a module."""
        try:
            return getattr(self.module(module), name)
        except AttributeError:
            raise Unfit(f"{self.wheel} {self.version} does not fit its adapter: {self.package}.{module} has no {name}") from None
