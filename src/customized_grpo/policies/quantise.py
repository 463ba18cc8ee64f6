"""Frozen weights in 8 bits: torchao, weight only. The adapter on top stays float32."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from customized_grpo.errors import UsageError

Kind = Literal["int8", "fp8"]
LARGE = 10**9  # weights of a text encoder that is worth it


def quantise(module: nn.Module, kind: Kind, inside: Sequence[str], device: torch.device) -> None:
    """Quantise the linear layers of a module in place, one after another on `device`, and leave them there.

    inside  names of the submodules whose layers are quantised; what is outside is small, and the result reads it last

    Raises UsageError if torchao is not installed.
    """
    config, apply = _torchao(kind)
    names = tuple(f"{name}." for name in inside)
    apply(module, config, lambda layer, name: isinstance(layer, nn.Linear) and name.startswith(names), device=device)


def is_large(module: nn.Module) -> bool:
    """Whether a text encoder is so large that quantising it matters."""
    return sum(weight.numel() for weight in module.parameters()) >= LARGE


def _torchao(kind: Kind) -> tuple[Any, Callable[..., None]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kernels for cards that are not there
            from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise UsageError(
            f"model.quantise={kind} needs torchao; install customized-grpo[quantise], or set model.quantise=null"
        ) from None
    return (Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig()), quantize_
