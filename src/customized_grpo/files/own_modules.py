"""The user's reward file as a module, which may import the files beside it, as a script may.

A script finds them because Python puts its folder into `sys.path`. Here that would let a file `utils.py` of the user
replace a module of some library, and two reward files in different folders would share whichever `helper.py` came
first. So every folder is a package of its own, under a name that nobody else uses, and only the code in that folder
looks into it.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

PREFIX = "customized_grpo_own_"


def import_file(file: Path) -> ModuleType:
    """The module of a Python file, executed anew. Raises whatever its code raises."""
    file = Path(os.path.abspath(file))  # noqa: PTH100 - resolve() would leave the folder through a link
    package = PREFIX + hashlib.sha256(os.fsencode(file.parent)).hexdigest()[:12]
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]  # the files may have changed
    importlib.invalidate_caches()
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    folder = ModuleType(package)
    # Beside the file as it is named and, if it is a link, beside the file that is meant.
    folder.__path__ = list(dict.fromkeys(str(each.parent) for each in (file, file.resolve())))
    sys.modules[package] = folder
    name = f"{package}.{file.stem.replace('.', '_')}"
    spec = importlib.util.spec_from_file_location(name, file, loader=_Loader(name, str(file)))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        _Loader(name, str(file)).exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def as_written(text: str) -> str:
    """A message with the names of modules as the user writes them."""
    return re.sub(rf"{PREFIX}\w{{12}}\.", "", text)


class _Finder(MetaPathFinder):
    """Finds the modules of the user's folders, and nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(PREFIX) or path is None:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Gives a module an `import` that also looks into its own folder."""

    def exec_module(self, module: ModuleType) -> None:
        package = module.__name__.partition(".")[0]
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _importer(package)}
        super().exec_module(module)


def _importer(package: str) -> Callable[..., ModuleType]:
    """`__import__` for the code in the folder of this package."""

    def import_(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        top = name.partition(".")[0]
        importing = (globals or {}).get("__name__", "")
        if level or importing == f"{package}.{top}" or not _lies_in_the_folder(package, top):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        try:
            found = builtins.__import__(f"{package}.{name}", globals, locals, fromlist or (), 0)
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.startswith(f"{package}."):
                raise
            missing = as_written(error.name)
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing) from None
        return found if fromlist else sys.modules[f"{package}.{top}"]

    return import_


def _lies_in_the_folder(package: str, name: str) -> bool:
    """Whether a name means a file or folder of the user. What Python or a library has already imported comes first."""
    known = sys.modules.get(package)
    if known is None or name in sys.stdlib_module_names or name in sys.modules:
        return False
    spec = PathFinder.find_spec(f"{package}.{name}", known.__path__)
    if spec is None or spec.origin is not None:
        return spec is not None
    return importlib.util.find_spec(name) is None  # a folder without __init__.py, perhaps of weights
