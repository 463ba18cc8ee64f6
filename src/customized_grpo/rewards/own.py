"""The user's own rewards, by dotted path ("my_package.scores:sharpness") or by file ("scores.py:sharpness")."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from queue import Empty, Queue
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

from customized_grpo.data import Sample
from customized_grpo.errors import InputError, RunError, UsageError
from customized_grpo.files import PACKAGE
from customized_grpo.rewards import Reward
from customized_grpo.rewards.own_modules import as_written, import_file
from customized_grpo.rewards.scoring import RewardError

_LIBRARIES = tuple({sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")})
_MACHINERY = (str(PACKAGE), importlib.__file__, "<frozen ")  # what calls the user's code


class OwnCodeError(InputError, RuntimeError):
    """The user's own code cannot be imported, or raised an exception while its class was made."""


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
            raise OwnCodeError(f"reward {self.name!r} raised {_described(answer)}; {_remedy(answer)}") from answer
        if isinstance(answer, BaseException):
            raise RewardError(f"reward {self.name!r} raised {_described(answer)}") from answer
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
    with _user_code(f"reward {name!r} cannot be made"):
        instance = kind(**arguments)
    if not callable(instance):
        raise UsageError(f"reward {name!r}: {kind.__name__} has no __call__(self, images, samples)")
    return instance


def _module_from_file(name: str, location: str) -> ModuleType:
    # os.path, because pathlib raises for a name that is too long or a folder that is not readable.
    path = Path(location)
    if not os.path.isfile(path):  # noqa: PTH113
        raise UsageError(f"reward {name!r}: no file {path}; relative paths start from {Path.cwd()}")
    with _user_code(f"reward {name!r}: {path} cannot be imported"):
        return import_file(path)


def _module_by_name(name: str, location: str) -> ModuleType:
    missing = (
        f"reward {name!r}: there is no module {location!r}; write package.module:function or path/to/file.py:function"
    )
    if not all(location.split(".")):
        raise UsageError(missing)
    try:
        with _user_code(f"reward {name!r}: {location} cannot be imported"):
            return importlib.import_module(location)
    except OwnCodeError as error:
        cause = error.__cause__
        # The module itself is missing, not something that it imports.
        if isinstance(cause, ModuleNotFoundError) and cause.name and f"{location}.".startswith(f"{cause.name}."):
            raise UsageError(missing) from None
        raise


@contextmanager
def _user_code(failure: str) -> Iterator[None]:
    """Around a block that runs the user's code: its exceptions become OwnCodeError, with file and line."""
    try:
        yield
    except (InputError, RunError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise OwnCodeError(f"{failure}: {_described(error)}; {_remedy(error)}") from error


def _remedy(error: BaseException) -> str:
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return f"install {missing} or correct the code" if missing not in {"", *sys.modules} else "correct the code"


def _described(error: BaseException) -> str:
    """An exception of the user's code in one line: type, message, file and line."""
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    text = f"{type(error).__name__}: {as_written(message)}" if message else type(error).__name__
    return " ".join(f"{text} {_place(error)}".split())


def _place(error: BaseException) -> str:
    """The deepest line of the user's code that led to an exception, or of any code; "" if there is none."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return f"({error.filename}, line {error.lineno or 1})"
    frames = [each for each in traceback.extract_tb(error.__traceback__) if not each.filename.startswith(_MACHINERY)]
    own = [each for each in frames if not each.filename.startswith(_LIBRARIES)]
    return next((f"({each.filename}, line {each.lineno})" for each in reversed(own or frames)), "")
