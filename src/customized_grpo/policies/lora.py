"""A LoRA on a transformer, and how q, k and v share one of its matrices.

FLUX's own code computes q, k and v in one fused layer, so a LoRA on it (UNO's, the authors') reads all three through
one matrix A. diffusers divides the layer in three; with `share_qkv` their three A are one parameter again.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from customized_grpo.policies.adapter_file import Adapter
from customized_grpo.policies.adapter_layers import linear_layers
from customized_grpo.policies.layers import Layers, fused_layers, shared_layers, targets_of

ADAPTER = "default"  # peft's name of it


def add_lora(
    module: nn.Module,
    layers: Layers,
    rank: int,
    alpha: float,
    targets: str | Sequence[str] | None,
    *,
    seed: int = 0,
    share_qkv: bool = False,
) -> None:
    """Add a new LoRA in float32, which changes nothing yet: A is Gaussian, B zero.

    share_qkv  one A for q, k and v of each attention; without it, three

    Raises UsageError for targets that match no layer, or that divide q, k and v which share.
    """
    linear = linear_layers(module)
    others = [name for name in _names(module) if name and name not in linear]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType] (declared as int, but only divided by r)
        target_modules=targets_of(targets, layers, linear, others),
        init_lora_weights="gaussian",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TorchaoLoraLinear was instantiated")  # cannot be merged, and is never
        torch.manual_seed(seed)
        module.add_adapter(config, adapter_name=ADAPTER)  # pyright: ignore[reportCallIssue] (a mixin of diffusers)
    if share_qkv:
        _share(module)
    cast_training_params(module, torch.float32)


def _share(module: nn.Module) -> None:
    """Make the A of each fused layer's parts one parameter. Raises UsageError if there is nothing to share."""
    for names in shared_layers(_names(module), _adapted(module)):
        first, *others = [_matrix(module, name) for name in names]
        for other in others:
            other.weight = first.weight


def shared_matrices(module: nn.Module) -> Iterator[list[str]]:
    """The names of the layers whose LoRA has one A, for each such A."""
    adapted = set(_adapted(module))
    for attention, parts in fused_layers(_names(module)):
        names = [f"{attention}.{part}" for part in parts]
        if adapted.issuperset(names) and len({id(_matrix(module, name).weight) for name in names}) == 1:
            yield names


def _names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_modules()]


def _adapted(module: nn.Module) -> list[str]:
    return [name for name, layer in module.named_modules() if isinstance(layer, LoraLayer)]


def _matrix(module: nn.Module, name: str) -> nn.Linear:
    """A of a layer with a LoRA."""
    return module.get_submodule(name).lora_A[ADAPTER]  # pyright: ignore[reportIndexIssue, reportReturnType, reportArgumentType] (a LoraLayer)


def check_shared(adapter: Adapter, state: Mapping[str, Tensor], module: nn.Module) -> None:
    """Raises ModelError unless an adapter's file holds equal copies of each A that is one parameter in `module`."""
    for layers in shared_matrices(module):
        first, *others = [state[f"{layer}.lora_A.weight"] for layer in layers]
        if not all(torch.equal(first, other) for other in others):
            raise adapter.misfit(
                f"lora_A of {', '.join(layer.rpartition('.')[2] for layer in layers)} in "
                f"{layers[0].rpartition('.')[0]} differ, and adapter.share_qkv needs one for all three",
                "set adapter.share_qkv as it was when it was trained",
            )
