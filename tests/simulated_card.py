"""A graphics card in software: `insert()` gives torch a device `card`, whose tensors live in this machine's memory.

As on a real card, its tensors do not meet those of the CPU, numpy cannot read them, and generators of the CPU draw no
numbers on it. As on Apple's, our own code must not ask it for float64. It can be inserted once in a process, and
cannot be removed, so tests use it in processes of their own (forked.py).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.library import Library, fallthrough_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

from customized_grpo.runtime import device

OURS = Path(device.__file__).parents[1]
LIBRARIES: list[Library] = []  # torch forgets what is registered when they are collected
MOVING = ("aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put_", "aten::_index_put_impl_")
CREATING = (torch.tensor, torch.as_tensor, torch.arange, torch.linspace)  # torch makes them without dispatching
HALVED = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "conv2d", "scaled_dot_product_attention")


def insert() -> None:
    """Make the device `card` known to torch and to this package."""
    backend_registration._setup_privateuseone_for_python_backend("card", backend_module=_Module())
    everywhere, aten = Library("_", "IMPL"), Library("aten", "IMPL")
    everywhere.fallback(lambda op, *args, **kwargs: _run(op, args, kwargs), "PrivateUse1")
    everywhere.fallback(fallthrough_kernel, "AutocastPrivateUse1")
    for name in HALVED:
        aten.impl(name, _in_half_precision(getattr(torch.ops.aten, name).default), "AutocastPrivateUse1")
    LIBRARIES.extend((everywhere, aten))
    _Creating().__enter__()
    _teach_safetensors()
    device.SUPPORTED = (*device.SUPPORTED, "card")


class OnCard(Tensor):
    """A tensor of the device `card`; `held` has its numbers."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @staticmethod
    def __new__(cls, held: Tensor) -> OnCard:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return Tensor._make_wrapper_subclass(cls, held.size(), device=torch.device("card", 0), **layout)  # pyright: ignore

    def __init__(self, held: Tensor):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"OnCard({self.held})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)

    def tolist(self) -> Any:
        return self.held.tolist()

    @property
    def data(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.detach()

    @data.setter
    def data(self, value: OnCard) -> None:
        Tensor.data.__set__(self, value)  # pyright: ignore[reportAttributeAccessIssue]
        self.held = value.held


def _run(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    _refuse_what_a_card_refuses(op, args, kwargs)
    target = kwargs.get("device")
    leaves = target is not None and torch.device(target).type != "card"
    args_held, kwargs_held = tree_map_only(OnCard, lambda tensor: tensor.held, (args, kwargs))
    if target is not None and not leaves:
        kwargs_held["device"] = torch.device("cpu")
    out = op(*args_held, **kwargs_held)
    if leaves:
        return out
    if any(tensor.dtype == torch.float64 for tensor in _tensors(out)) and _asked_by_us():
        raise TypeError(f"{op}: the card has no float64")
    return return_and_correct_aliasing(op, args, kwargs, tree_map_only(Tensor, OnCard, out))


def _refuse_what_a_card_refuses(op: Any, args: Any, kwargs: dict[str, Any]) -> None:
    name, tensors = op._schema.name, _tensors((args, kwargs))
    if any(isinstance(tensor, OnCard) for tensor in tensors) and name not in MOVING:
        for tensor in tensors:
            if tensor.dim() and not isinstance(tensor, OnCard):
                raise RuntimeError(f"{name}: all tensors must be on one device, found card and {tensor.device}")
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != "card":
        raise RuntimeError(f"{name}: a generator of {generator.device} draws nothing on card")


def _tensors(content: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(content) if isinstance(leaf, Tensor)]


def _asked_by_us() -> bool:
    """Whether the innermost code outside of torch is this package's: diffusers itself asks what a device has."""
    frame = sys._getframe(1)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if "torch" not in file.parts and file != Path(__file__):
            return file.is_relative_to(OURS)
        frame = frame.f_back
    return False


def _in_half_precision(op: Any) -> Any:
    """What autocast does on other devices: floating inputs become half ones."""

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(torch.get_autocast_dtype("card")) if tensor.is_floating_point() else tensor

    def call(*args: Any, **kwargs: Any) -> Any:
        autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)  # pyright: ignore[reportAttributeAccessIssue]
        with torch._C._ExcludeDispatchKeyGuard(autocast):
            return op(*tree_map_only(Tensor, cast, args), **tree_map_only(Tensor, cast, kwargs))

    return call


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class _Creating(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        target = kwargs.get("device")
        if func in CREATING and target is not None and torch.device(target).type == "card":
            return func(*args, **{**kwargs, "device": "cpu"}).to("card")
        return func(*args, **kwargs)


def _teach_safetensors() -> None:
    """It looks for tensors that share memory, by addresses that a tensor of the card does not have."""

    def of_held(original: Any) -> Any:
        return lambda tensor: original(getattr(tensor, "held", tensor))

    for name in ("storage_ptr", "storage_size", "_end_ptr"):
        setattr(safetensors.torch, name, of_held(getattr(safetensors.torch, name)))
