"""The user's own rewards, by dotted path ("my_package.scores:sharpness") or by file ("scores.py:sharpness")."""

from __future__ import annotations

import importlib
import inspect
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path
from queue import Empty, Queue
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

from customized_grpo.data import Sample
from customized_grpo.errors import UsageError
from customized_grpo.files.own_modules import import_file
from customized_grpo.files.user_code import OwnCodeError, described, remedy, user_code
from customized_grpo.rewards.base import Reward
from customized_grpo.rewards.scoring import RewardError


class TimeLimited:
    """A reward that is given up if it has not answered within `timeout` seconds.

    It gets copies of images and samples, which it may change: other rewards and the saved pictures have the same ones.
    It runs in a thread that does not keep the program alive, because a hanging function cannot be stopped. Raises
    RewardError if time runs out or if the reward raises an exception, and OwnCodeError if an import fails. All other
    attributes (`remote`, `last_error`, ...) are the reward's.
    """

    def __init__(self, name: str, reward: Reward, timeout: float, device: torch.device):
        self.name, self.reward, self.timeout, self.device = name, reward, timeout, device

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reward, name)

    def __call__(self, images: Tensor, samples: Sequence[Sample]) -> Tensor:
        answers: Queue[Tensor | BaseException] = Queue()

        def work() -> None:
            try:
                own = deepcopy(list(samples))  # pictures in memory and extra fields belong to all rewards
                with torch.no_grad(), self._current_device():  # both apply to one thread only
                    answers.put(self.reward(images.clone(), own))
            except BaseException as error:  # raised again in the caller's thread
                answers.put(error)

        threading.Thread(target=work, name=f"reward {self.name}", daemon=True).start()
        try:
            answer = answers.get(timeout=self.timeout)
        except Empty:
            raise RewardError(
                f"reward {self.name!r} has not answered for {self.timeout:g} seconds; find out where it hangs, or "
                "raise its timeout"
            ) from None
        if isinstance(answer, torch.OutOfMemoryError | RewardError):
            raise answer  # out of memory is answered with smaller batches, a RewardError explains itself
        if isinstance(answer, ImportError | SyntaxError):
            raise OwnCodeError(f"reward {self.name!r} raised {described(answer)}; {remedy(answer)}") from answer
        if isinstance(answer, BaseException):
            raise RewardError(f"reward {self.name!r} raised {described(answer)}") from answer
        return answer

    def _current_device(self) -> AbstractContextManager[Any]:
        """Makes "cuda" without a number mean this process's GPU instead of the first one."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()


def load_function(name: str, options: Mapping[str, Any], device: torch.device, timeout: float = 600.0) -> Reward:
    """The function `name`, or an instance of the class `name`, made from `options` and, if it takes one, `device`.

    timeout  seconds that a call may take

    Raises UsageError if the module, file or function does not exist or does not take the options, and OwnCodeError if
    the code raises an exception while it is imported or made.
    """
    function = find_function(name)
    if isinstance(function, type):
        function = _instance(function, name, options, device)
    elif options:
        raise UsageError(f"reward {name!r}: a function takes no options ({', '.join(options)}); make it a class")
    return TimeLimited(name, cast("Reward", function), timeout, device)


def find_function(name: str) -> Callable[..., Any]:
    """The function or class `name`, from a module that is imported for it. Raises UsageError or OwnCodeError."""
    location, _, attribute = name.rpartition(":")
    module = _module_from_file(name, location) if location.endswith(".py") else _module_by_name(name, location)
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        listed = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
        raise UsageError(f"reward {name!r}: {location} has no function {attribute!r}; it has {listed or 'none'}")
    return function


def _instance(kind: type, name: str, options: Mapping[str, Any], device: torch.device) -> Callable[..., Any]:
    try:
        signature = inspect.signature(kind)
        arguments = ({"device": device} if "device" in signature.parameters else {}) | dict(options)
    except ValueError:
        raise UsageError(f"reward {name!r}: the arguments of a built-in class are unknown; write your own") from None
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise UsageError(f"reward {name!r}: options: {error}; the class takes {signature}") from None
    with user_code(f"reward {name!r} cannot be made"):
        instance = kind(**arguments)
    if not callable(instance):
        raise UsageError(f"reward {name!r}: {kind.__name__} has no __call__(self, images, samples)")
    return instance


def _module_from_file(name: str, location: str) -> ModuleType:
    # os.path, because pathlib raises for a name that is too long or a folder that is not readable.
    path = Path(location)
    if not os.path.isfile(path):  # noqa: PTH113
        raise UsageError(f"reward {name!r}: no file {path}; relative paths start from {Path.cwd()}")
    with user_code(f"reward {name!r}: {path} cannot be imported"):
        return import_file(path)


def _module_by_name(name: str, location: str) -> ModuleType:
    missing = (
        f"reward {name!r}: there is no module {location!r}; write package.module:function or path/to/file.py:function"
    )
    if not all(location.split(".")):
        raise UsageError(missing)
    try:
        with user_code(f"reward {name!r}: {location} cannot be imported"):
            return importlib.import_module(location)
    except OwnCodeError as error:
        cause = error.__cause__
        # The module itself is missing, not something that it imports.
        if isinstance(cause, ModuleNotFoundError) and cause.name and f"{location}.".startswith(f"{cause.name}."):
            raise UsageError(missing) from None
        raise
