"""Which layers of a transformer get a LoRA, by their names alone: no torch, so that a dry run is quick.

As in peft, a target is the full name of a layer, or the end of it after a dot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from customized_grpo.errors import UsageError
from customized_grpo.sections import Adapter

# Linear layers by name, with their numbers of inputs and outputs.
Sizes = Mapping[str, tuple[int, int]]

FUSED = (("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj"))  # one layer each in FLUX's own code
OTHER_TARGETS = "name linear layers such as to_q, or set null for the usual ones"


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


def adapter_size(settings: Adapter, layers: Layers, linear: Sizes) -> int:
    """The number of weights of a new LoRA on a transformer with these linear layers.

    Raises UsageError for targets that match no layer, or that divide q, k and v which share.
    """
    targets = targets_of(settings.targets, layers, linear, containers(linear))
    adapted = [name for name in linear if _ends_with(name, targets)]
    weights = settings.rank * sum(sum(linear[name]) for name in adapted)
    if settings.share_qkv:
        for shared in shared_layers(linear, adapted):
            inputs, _ = linear[shared[0]]
            weights -= settings.rank * inputs * (len(shared) - 1)
    return weights


def targets_of(
    targets: str | Sequence[str] | None, layers: Layers, linear: Collection[str], others: Collection[str]
) -> list[str]:
    """The names of the layers to adapt. Raises UsageError for one that matches no layer that can be adapted.

    targets  a named set, or names; None: all
        "attention"             q, k, v and output projections of the attention
        "attention_and_output"  these, and the projections of blocks that fuse attention and feed-forward: in FLUX.1
                                the layers of UNO's LoRA
        "all"                   these, the feed-forward layers, and the last layer if it is named as they are
    linear   full names of the transformer's linear layers
    others   full names of its other modules
    """
    names: list[str]
    if not isinstance(targets, str | None):
        names = list(targets)
    elif targets == "attention":
        names = list(layers.attention)
    elif targets == "attention_and_output":
        inside = (name for name in linear if _ends_with(name, layers.output))
        names = [*layers.attention, *(name for name in inside if name.startswith(layers.blocks))]
    else:
        names = [*layers.attention, *layers.feed_forward]
        for end in layers.output:  # by its end, unless that also names what is not linear
            ambiguous = any(_ends_with(name, [end]) for name in others)
            names += [name for name in linear if _ends_with(name, [end])] if ambiguous else [end]
    _check_targets(names, linear, others)  # peft would overlook one that matches nothing next to one that matches
    return names


def containers(linear: Iterable[str]) -> set[str]:
    """The modules that hold these layers, by their full names."""
    return {name[:dot] for name in linear for dot, letter in enumerate(name) if letter == "."}


def shared_layers(modules: Iterable[str], adapted: Collection[str]) -> list[list[str]]:
    """The full names of the layers whose LoRA has one A, for each such A: q, k and v of each attention.

    modules  full names of all layers
    adapted  full names of those with a LoRA

    Raises UsageError if only a part of q, k and v has one, or if there is nothing to share.
    """
    shared = []
    for attention, parts in fused_layers(modules):
        chosen = [part for part in parts if f"{attention}.{part}" in adapted]
        if 0 < len(chosen) < len(parts):
            raise UsageError(
                f"adapter.share_qkv: {attention} has an adapter on {', '.join(chosen)} only, of {', '.join(parts)}; "
                "name all of them in adapter.targets, or set adapter.share_qkv=false"
            )
        if chosen:
            shared.append([f"{attention}.{part}" for part in parts])
    if not shared:
        raise UsageError(
            "adapter.share_qkv: no layer of adapter.targets is q, k or v; add them, or set adapter.share_qkv=false"
        )
    return shared


def fused_layers(modules: Iterable[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each attention's full name, and the names in it of layers that are one in FLUX's own code."""
    known = dict.fromkeys(modules)
    for name in known:
        attention, _, part = name.rpartition(".")
        for parts in FUSED:
            if part == parts[0] and all(f"{attention}.{other}" in known for other in parts):
                yield attention, parts


def _ends_with(name: str, ends: Iterable[str]) -> bool:
    return f".{name}".endswith(tuple(f".{end}" for end in ends))


def _check_targets(targets: Sequence[str], linear: Iterable[str], others: Iterable[str]) -> None:
    """Raises UsageError unless each target names linear layers, and nothing else."""
    if not targets:
        raise UsageError(f"adapter.targets is empty; {OTHER_TARGETS}")
    for target in targets:
        other = next((name for name in others if _ends_with(name, [target])), None)
        if other is not None:
            raise UsageError(f"adapter.targets: {target!r} matches {other}, which is no linear layer; {OTHER_TARGETS}")
        if not any(_ends_with(name, [target]) for name in linear):
            raise UsageError(f"adapter.targets: {target!r} matches no linear layer of this model; {OTHER_TARGETS}")
