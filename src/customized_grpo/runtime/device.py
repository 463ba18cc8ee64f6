"""The device that a run computes on."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import TYPE_CHECKING

from customized_grpo.errors import UsageError

if TYPE_CHECKING:
    import torch

SUPPORTED = ("cpu", "cuda", "mps")  # "meta" holds no numbers; others are untested
_NO_CUDA = "device {}: torch {} finds no CUDA device; use device=cpu"


def usable_device(name: str) -> torch.device:
    """The device called `name`. Raises UsageError, before anything is loaded, if this machine does not have it."""
    device = named_device(name)
    if problem := missing_here(device):
        raise UsageError(problem)
    return device


def named_device(name: str) -> torch.device:
    """The device called `name`, whether or not this machine has it. Raises UsageError for a name that means none."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"no device is named {name!r}; use cpu, cuda or cuda:1") from None
    if device.type not in SUPPORTED:
        raise UsageError(f"device {name} is not supported; use cpu, cuda or cuda:1")
    return device


def problem_here(name: str) -> str | None:
    """Why this machine cannot use the device called `name`; None if it can. Raises UsageError as `named_device` does.

    Imports torch only if the answer depends on it: that takes seconds.
    """
    build = version("torch")
    if name == "cpu":
        return None
    if build.endswith("+cpu") and re.fullmatch(r"cuda(:\d+)?", name):
        return _NO_CUDA.format(name, build)
    return missing_here(named_device(name))


def missing_here(device: torch.device) -> str | None:
    """Why this machine cannot use a device; None if it can."""
    import torch

    if device.type == "mps" and not torch.backends.mps.is_available():
        return f"device {device}: torch {torch.__version__} finds no Apple GPU; use device=cpu"
    if device.type == "cuda" and not torch.cuda.is_available():
        return _NO_CUDA.format(device, torch.__version__)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        return f"device {device}: the last CUDA device is cuda:{last}; use device=cuda:{last}"
    return None
