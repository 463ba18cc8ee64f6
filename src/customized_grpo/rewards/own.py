"""A reward of the user's own, by dotted path ("my_package.scores:sharpness") or by file ("scores.py:sharpness")."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch

    from customized_grpo.rewards import Reward


def load_function(name: str, options: Mapping[str, Any], device: torch.device) -> Reward:
    """The function `name`; a class is made once, from `options` by keyword and `device` where it takes one.

    Raises ValueError where the module, the file or the function is not there, or the options are not the class's;
    what the module itself raises is its own.
    """
    where, _, attribute = name.rpartition(":")
    module = _from_file(Path(where)) if where.endswith(".py") else _by_name(where, name)
    found = getattr(module, attribute, None)
    if not callable(found):
        known = ", ".join(key for key, value in vars(module).items() if callable(value) and key[0] != "_") or "nothing"
        raise ValueError(f"reward {name!r}: {where} has no function {attribute!r}; it has {known}")
    if isinstance(found, type):
        made = found(**_arguments(found, name, options, device))
        if not callable(made):
            raise ValueError(f"reward {name!r}: {attribute} has no __call__(self, images, samples)")
        return cast("Reward", made)
    if options:
        raise ValueError(f"reward {name!r}: a function takes no options ({', '.join(options)}); make it a class")
    return cast("Reward", found)


def _arguments(kind: type, name: str, options: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """What the class is made from: the options, and the device where its signature has one."""
    signature = inspect.signature(kind)
    given = ({"device": device} if "device" in signature.parameters else {}) | dict(options)
    try:
        signature.bind(**given)
    except TypeError as error:
        raise ValueError(f"reward {name!r}: options: {error}; the class takes {signature}") from None
    return given


def _from_file(path: Path) -> ModuleType:
    path = path.expanduser()
    if not path.is_file():
        raise ValueError(f"reward {str(path)!r}: no such file; the path starts from {Path.cwd()}")
    # Under a name of its own: it must not take the place of a package that happens to be called the same.
    name = f"customized_grpo_own_reward_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _by_name(where: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name and not f"{where}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it imports is not
        raise ValueError(
            f"reward {name!r}: there is no module {where!r}; write package.module:function or path/to/file.py:function"
        ) from None
