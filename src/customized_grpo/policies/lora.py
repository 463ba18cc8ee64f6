"""Which layers of a transformer get a LoRA, and how q, k and v share one of its matrices.

FLUX's own code computes q, k and v in one fused layer, so a LoRA on it (UNO's, the authors') reads all three through
one matrix A. diffusers divides the layer in three; with `share_qkv` their three A are one parameter again.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from customized_grpo.errors import UsageError
from customized_grpo.policies.adapter_file import Adapter, check_targets
from customized_grpo.sections import Adapter as AdapterSettings

ADAPTER = "default"  # peft's name of it
FUSED = (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"))  # one layer each in FLUX's own code


@dataclass(frozen=True)
class Layers:
    """The linear layers of a transformer that can be adapted, by the ends of their names after a dot.

    blocks        its lists of blocks
    attention     q, k, v and output projections of the attention, in both streams
    output        projections of blocks that fuse attention and feed-forward
    feed_forward  the feed-forward layers
    """

    blocks: tuple[str, ...]
    attention: tuple[str, ...]
    output: tuple[str, ...]
    feed_forward: tuple[str, ...]


def targets_of(targets: str | Sequence[str] | None, layers: Layers, module: nn.Module) -> list[str]:
    """The names of the layers to adapt. Raises UsageError for one that matches no layer that can be adapted.

    targets  a named set, or names; None: all
        "attention"             q, k, v and output projections of the attention
        "attention_and_output"  these, and the projections of blocks that fuse attention and feed-forward: in FLUX.1
                                the layers of UNO's LoRA
        "all"                   these, the feed-forward layers, and the last layer if it is named as they are
    """
    names: list[str]
    if not isinstance(targets, str | None):
        names = list(targets)
    elif targets == "attention":
        names = list(layers.attention)
    elif targets == "attention_and_output":
        inside = _linear(module, layers.output)
        names = [*layers.attention, *(name for name in inside if name.startswith(layers.blocks))]
    else:
        names = [*layers.attention, *layers.feed_forward, *_ends(module, layers.output)]
    check_targets(names, module)  # peft would overlook one that matches nothing next to one that matches
    return names


def _linear(module: nn.Module, ends: Sequence[str]) -> list[str]:
    """The full names of linear layers that end so."""
    return [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and f".{name}".endswith(tuple(f".{end}" for end in ends))
    ]


def _ends(module: nn.Module, ends: Sequence[str]) -> list[str]:
    """The ends that match only linear layers as they are; full names in the place of others."""
    names = []
    for end in ends:
        matched = [name for name, _ in module.named_modules() if f".{name}".endswith(f".{end}")]
        linear = _linear(module, [end])
        names += [end] if matched == linear else linear
    return names


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
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType] (declared as int, but only divided by r)
        target_modules=targets_of(targets, layers, module),
        init_lora_weights="gaussian",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TorchaoLoraLinear was instantiated")  # cannot be merged, and is never
        torch.manual_seed(seed)
        module.add_adapter(config, adapter_name=ADAPTER)  # pyright: ignore[reportCallIssue] (a mixin of diffusers)
    if share_qkv:
        _share(module)
    cast_training_params(module, torch.float32)


def lora_size(module: nn.Module, settings: AdapterSettings, layers: Layers) -> int:
    """The number of weights that `add_lora` would add to a transformer on the meta device; adds the adapter there.

    Raises UsageError as `add_lora` does.
    """
    with torch.device("meta"):
        add_lora(module, layers, settings.rank, settings.alpha, settings.targets, share_qkv=settings.share_qkv)
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad)


def _share(module: nn.Module) -> None:
    """Make the A of each fused layer's parts one parameter. Raises UsageError if there is nothing to share."""
    groups = list(_fused_layers(module))
    for name, layers in groups:
        with_lora = [part for part, layer in layers.items() if isinstance(layer, LoraLayer)]
        if 0 < len(with_lora) < len(layers):
            raise UsageError(
                f"adapter.share_qkv: {name} has an adapter on {', '.join(with_lora)} only, of {', '.join(layers)}; "
                "name all of them in adapter.targets, or set adapter.share_qkv=false"
            )
        matrices = [layer.lora_A[ADAPTER] for layer in layers.values() if isinstance(layer, LoraLayer)]
        for other in matrices[1:]:
            other.weight = matrices[0].weight
    if not any(shared_matrices(module)):
        raise UsageError(
            "adapter.share_qkv: no layer of adapter.targets is q, k or v; add them, or set adapter.share_qkv=false"
        )


def _fused_layers(module: nn.Module) -> Iterator[tuple[str, dict[str, nn.Module]]]:
    """Each attention's name, and its layers that are one in FLUX's own code, by name."""
    for name, attention in module.named_modules():
        for parts in FUSED:
            layers = {part: layer for part in parts if (layer := getattr(attention, part, None)) is not None}
            if len(layers) == len(parts):
                yield name, layers


def shared_matrices(module: nn.Module) -> Iterator[list[str]]:
    """The names of the layers whose LoRA has one A, for each such A."""
    for name, layers in _fused_layers(module):
        weights = [layer.lora_A[ADAPTER].weight for layer in layers.values() if isinstance(layer, LoraLayer)]
        if len(weights) == len(layers) and all(weight is weights[0] for weight in weights):
            yield [f"{name}.{part}" for part in layers]


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
