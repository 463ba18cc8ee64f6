"""Running a model without numbers: what a forward or backward pass computes and how much memory it needs.

Tensors are PyTorch's fake tensors, which have shapes, types and a device but no content. So the real code of a family
runs, its attention, autocast and checkpointing included, and a model of any size takes as long as its Python.
The device is the CPU: CUDA's autocast keeps some more values in float32, and its kernels need some space of their own.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

_PLAIN = (Tensor, FakeTensor, nn.Parameter)


@dataclass(frozen=True)
class Pass:
    """What a call costs.

    flops   floating-point operations of matrix products, convolutions and attention; a multiplication and an addition
            are two
    memory  bytes at the peak beyond what was there before
    """

    flops: float
    memory: float

    def __add__(self, other: Pass) -> Pass:
        return Pass(self.flops + other.flops, self.memory + other.memory)

    def __sub__(self, other: Pass) -> Pass:
        return self + -1 * other

    def __rmul__(self, factor: float) -> Pass:
        return Pass(factor * self.flops, factor * self.memory)


def measure(call: Callable[[], Any], before: Iterable[Tensor]) -> Pass:
    """The cost of a call on fake tensors.

    before  what is in memory already: weights and inputs
    """
    with _Counter(before) as counter:
        call()
    return Pass(counter.flops, counter.peak)


@contextmanager
def simulation(modules: Iterable[nn.Module]) -> Iterator[Callable[[Tensor], Tensor]]:
    """A block in which tensors have no content; gives what makes such ones of tensors on the meta device.

    The weights of the modules, which are on the meta device, are replaced for good.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):  # constants of modules
        known: dict[int, Tensor] = {}
        for module in modules:
            for part in module.modules():
                held: tuple[Any, ...] = (part._parameters, part._buffers, vars(part))
                for tensors in held:
                    for name, tensor in [*tensors.items()]:
                        if isinstance(tensor, Tensor):
                            tensors[name] = _fake(tensor, known)
        yield lambda tensor: _fake(tensor, known)


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Every parameter and buffer once."""
    yield from module.parameters()
    yield from module.buffers()


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory that tensors occupy; what they share counts once."""
    return sum(_storages(tensors).values())


def _fake(tensor: Tensor, known: dict[int, Tensor]) -> Tensor:
    """A fake tensor on the CPU in the place of one on the meta device; the same one for the same tensor."""
    if id(tensor) not in known:
        if is_traceable_wrapper_subclass(tensor):  # quantised weights, which consist of several tensors
            names, context = tensor.__tensor_flatten__()
            inner = {name: _fake(getattr(tensor, name), known) for name in names}
            new = type(tensor).__tensor_unflatten__(inner, context, tensor.shape, tensor.stride())
        else:
            new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
        known[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
    return known[id(tensor)]


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """The bytes of each piece of memory under tensors."""
    sizes: dict[int, int] = {}
    for tensor in tensors:
        if is_traceable_wrapper_subclass(tensor):
            names, _ = tensor.__tensor_flatten__()
            sizes |= _storages(getattr(tensor, name) for name in names)
        else:
            storage = tensor.untyped_storage()
            sizes[storage._cdata] = storage.nbytes()
    return sizes


class _Counter(TorchDispatchMode):
    """Counts operations, and follows the memory of all tensors that they make, from the first to the last reference.

    PyTorch's own `FlopCounterMode` keeps tensors alive that checkpointing frees, so only its formulas are used.
    """

    def __init__(self, before: Iterable[Tensor]):
        super().__init__()
        self.before = _storages(before)
        self.living: dict[int, int] = {}
        self.now = self.peak = self.flops = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind not in _PLAIN for kind in types):
            return NotImplemented  # first let a quantised weight say which operations it consists of
        result = function(*args, **(kwargs or {}))
        formula = _FORMULAS.get(function._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.before or key in self.living:
            return
        self.living[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self.living.pop(key, 0)


def _forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop(query, key, value)


def _backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop(gradient, query, key, value)


_FORMULAS = {
    **flop_registry,  # of attention it has CUDA's kernels only
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}
