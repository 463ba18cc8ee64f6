"""Frozen weights in 8 or 4 bits: torchao's weight-only int8 and fp8, bitsandbytes' nf4. Adapters stay float32."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn

from customized_grpo.errors import UsageError
from customized_grpo.policies.libraries import Kind, needed

LARGE = 10**9  # weights of a text encoder that is worth it
# nf4 (QLoRA, arXiv 2305.14314): half a byte, one byte of scale for 64 weights, and 4 bytes for 256 of these scales.
NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
READ_BY_T5 = "wo"  # its code converts to the type of this layer's weight, which in 4 bits is an integer's


def quantise(module: nn.Module, kind: Kind, inside: Sequence[str], device: torch.device) -> None:
    """Quantise the linear layers of a module in place, one after another on `device`, and leave them there.

    inside  names of the submodules whose layers are quantised; what is outside is small, and the result reads it last

    Raises UsageError if the library for it is not installed.
    """
    if kind == "nf4":
        _to_nf4(module, inside, device)
        return
    config, apply = _torchao(kind)
    names = {name for name, _ in _layers(module, kind, inside)}
    apply(module, config, lambda _, name: name in names, device=device)


def is_large(module: nn.Module) -> bool:
    """Whether a text encoder is so large that quantising it matters."""
    return sum(weight.numel() for weight in module.parameters()) >= LARGE


def bytes_saved(module: nn.Module, kind: Kind, inside: Sequence[str]) -> int:
    """The bytes that `quantise` would take off a module, which may be on the meta device."""
    shapes = Counter(
        (layer.in_features, layer.out_features, layer.weight.dtype) for _, layer in _layers(module, kind, inside)
    )
    return sum(count * _saved_by_layer(kind, *shape) for shape, count in shapes.items())


@cache
def _saved_by_layer(kind: Kind, inputs: int, outputs: int, dtype: torch.dtype) -> int:
    before = inputs * outputs * dtype.itemsize
    if kind == "nf4":
        return round(before - NF4_BYTES * inputs * outputs)
    layer = nn.Linear(inputs, outputs, bias=False, device="meta", dtype=dtype)
    quantise(nn.ModuleDict({"a": nn.ModuleList([layer])}), kind, ["a"], torch.device("meta"))
    weight: Any = layer.weight
    names, _ = weight.__tensor_flatten__()  # it consists of several tensors now
    return before - sum(getattr(weight, name).nbytes for name in names)


def _layers(module: nn.Module, kind: Kind, inside: Sequence[str]) -> Iterator[tuple[str, nn.Linear]]:
    """The layers that are quantised, by name."""
    names = tuple(f"{name}." for name in inside)
    for name, layer in module.named_modules():
        read_by_t5 = kind == "nf4" and name.rpartition(".")[2] == READ_BY_T5
        if isinstance(layer, nn.Linear) and name.startswith(names) and not read_by_t5:
            yield name, layer


def _to_nf4(module: nn.Module, inside: Sequence[str], device: torch.device) -> None:
    four_bits: Any = _bitsandbytes()
    for name, layer in list(_layers(module, "nf4", inside)):
        biased, dtype = layer.bias is not None, layer.weight.dtype
        new = four_bits.Linear4bit(
            layer.in_features, layer.out_features, bias=biased, compute_dtype=dtype, quant_type="nf4", device="meta"
        )
        new.weight = four_bits.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        new.bias = layer.bias
        parent, _, own = name.rpartition(".")
        new.train()  # in eval mode its CPU kernel has no gradient; nothing else depends on the mode
        setattr(module.get_submodule(parent), own, new.to(device))  # moving it is what quantises it


def _torchao(kind: Kind) -> tuple[Any, Callable[..., None]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about kernels for cards that are not there
            from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise _missing(kind) from None
    return (Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig()), quantize_


def _bitsandbytes() -> Any:
    try:
        from bitsandbytes import nn as four_bits
    except ImportError:
        raise _missing("nf4") from None
    return four_bits


def _missing(kind: Kind) -> UsageError:
    return UsageError(f"{needed(kind)}, or set model.quantise=null")
