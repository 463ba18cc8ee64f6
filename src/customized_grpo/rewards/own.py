"""A reward of the user's own, by dotted path ("my_package.scores:sharpness") or by file ("scores.py:sharpness")."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from queue import Empty, Queue
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

from customized_grpo.data import Sample
from customized_grpo.errors import UsageError
from customized_grpo.rewards import Reward
from customized_grpo.rewards.scoring import RewardError


class Limited:
    """A reward that is given up when it has not answered after `timeout` seconds.

    It works in a thread that does not keep the program alive: nothing can end a function that hangs. Raises
    RewardError then, and where the reward raises something, with the place. Whatever else one asks of it (`remote`,
    `last_error`, ...) is the reward's.
    """

    def __init__(self, name: str, reward: Reward, timeout: float, device: torch.device):
        self.name, self.reward, self.timeout, self.device = name, reward, timeout, device

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reward, name)

    def __call__(self, images: Tensor, samples: Sequence[Sample]) -> Tensor:
        answers: Queue[Tensor | BaseException] = Queue()

        def work() -> None:
            try:
                with torch.no_grad(), self._current_device():  # both are a thread's own
                    answers.put(self.reward(images, samples))
            except BaseException as error:  # raised again where it was asked for
                answers.put(error)

        threading.Thread(target=work, name=f"reward {self.name}", daemon=True).start()
        try:
            answer = answers.get(timeout=self.timeout)
        except Empty:
            raise RewardError(
                f"reward {self.name!r} has not answered for {self.timeout:g} seconds; see where it hangs, or give it "
                "more with timeout"
            ) from None
        if isinstance(answer, torch.OutOfMemoryError | RewardError):
            raise answer  # the first is answered with smaller batches, the second says itself what is wrong
        if isinstance(answer, BaseException):
            place = traceback.extract_tb(answer.__traceback__)[-1]
            raise RewardError(
                f"reward {self.name!r} raised {type(answer).__name__}: {answer} "
                f"({place.filename}, line {place.lineno})"
            ) from answer
        return answer

    def _current_device(self) -> AbstractContextManager[Any]:
        """What "cuda" without a number means inside: the GPU of this process, not the first one."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()


def load_function(name: str, options: Mapping[str, Any], device: torch.device, timeout: float = 600.0) -> Reward:
    """The function `name`; a class is made once, from `options` by keyword and `device` where it takes one.

    timeout  seconds after which a call is given up

    Raises ValueError where the module, the file or the function is not there, or the options are not the class's;
    what the module itself raises is its own.
    """
    where, _, attribute = name.rpartition(":")
    module = _from_file(Path(where)) if where.endswith(".py") else _by_name(where, name)
    found = getattr(module, attribute, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        shown = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
        raise UsageError(f"reward {name!r}: {where} has no function {attribute!r}; it has {shown or 'nothing'}")
    if isinstance(found, type):
        made = found(**_arguments(found, name, options, device))
        if not callable(made):
            raise UsageError(f"reward {name!r}: {attribute} has no __call__(self, images, samples)")
        return Limited(name, cast("Reward", made), timeout, device)
    if options:
        raise UsageError(f"reward {name!r}: a function takes no options ({', '.join(options)}); make it a class")
    return Limited(name, cast("Reward", found), timeout, device)


def _arguments(kind: type, name: str, options: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """What the class is made from: the options, and the device where its signature has one."""
    signature = inspect.signature(kind)
    given = ({"device": device} if "device" in signature.parameters else {}) | dict(options)
    try:
        signature.bind(**given)
    except TypeError as error:
        raise UsageError(f"reward {name!r}: options: {error}; the class takes {signature}") from None
    return given


def _from_file(path: Path) -> ModuleType:
    path = path.expanduser()
    if not path.is_file():
        raise UsageError(f"reward {str(path)!r}: no such file; the path starts from {Path.cwd()}")
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
        raise UsageError(
            f"reward {name!r}: there is no module {where!r}; write package.module:function or path/to/file.py:function"
        ) from None
