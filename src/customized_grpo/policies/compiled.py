"""`model.compile`: the transformer's blocks as compiled code.

Only the blocks, which are many and alike, so that one compilation serves all of a kind; and with any batch size, so
that the last, smaller batch needs none of its own. Names of weights stay: a block is compiled in place.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterable

import torch
from torch import nn
from torch._inductor import config as inductor

from customized_grpo.errors import UsageError


def compile_blocks(blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Let each block compile itself at its first pass. Raises UsageError if no compiler for the device is here."""
    if problem := _missing_compiler(device):
        raise UsageError(f"model.compile=true needs {problem}; set model.compile=false")
    for block in blocks:
        block.compile(dynamic=True)


def _missing_compiler(device: torch.device) -> str | None:
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton, which this torch comes without"
    compilers = [name for name in inductor.cpp.cxx if name]
    if not any(shutil.which(name) for name in compilers):
        return f"a C++ compiler, and none of {', '.join(compilers)} is here"
    return None
