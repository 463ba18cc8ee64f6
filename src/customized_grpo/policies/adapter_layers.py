"""What an adapter's file holds for each layer of a model, under whatever names its trainer has chosen.

Nothing in a file is left out in silence: each tensor belongs to a layer of the model, or the adapter is refused in a
line that names it. Only a part that changes nothing, because it is all zero, may belong to no layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from customized_grpo.files.pretrained import ModelError
from customized_grpo.policies.adapter_file import TRANSFORMER, Adapter
from customized_grpo.policies.lora_tensors import (
    BIAS,
    DOWN,
    MAGNITUDE,
    SAID_BY_TENSORS,
    UP,
    LoraTensors,
    rank_of,
    split,
)

Translate = Callable[[dict[str, Tensor]], dict[str, Tensor]]

# "<stem>.lora_A.weight" of peft and diffusers, perhaps with the name of peft's adapter before "weight"; "lora_down" of
# kohya's scripts and ComfyUI; "down" of XLabs.
_PART = re.compile(
    r"(?P<stem>.+?)\.(?P<part>lora_A|lora_B|(?:lora_linear_layer\.|lora[._])?(?:down|up)|lora_magnitude_vector)"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?:\.(?P<kind>weight|bias))?"
)
_ALPHA = ".alpha"
_ADDED = re.compile(r".+\.diff(_b)?")  # added to a weight or bias as it is, so nothing if it is zero
# In front of a layer's name: what wraps it, with dots; and what stands for it, with underscores instead of dots.
_WRAPPERS = ("base_model.model.", TRANSFORMER, "diffusion_model.", "model.", "module.", "_orig_mod.")
_FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")
# The layers of FLUX as its authors and ComfyUI name them; diffusers divides some of them.
_ORIGINAL = re.compile(
    r"(double_blocks|single_blocks|img_in|txt_in|time_in|vector_in|guidance_in|final_layer)([._].*)?"
)
# Layers of FLUX.2 that diffusers knows only by ComfyUI's names with dots, and not by kohya's.
_MODULATION = re.compile(
    r"(double_stream_modulation_img|double_stream_modulation_txt|single_stream_modulation)[._]lin"
)
_TEXT_ENCODER = re.compile(r"text_encoder|lora_te|te[12]?\.|(base_model\.model\.)?text_model\.")

# Fields of peft's LoraConfig. Any other one that is set changes what the tensors mean.
_SCALES = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
_HARMLESS = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"),
    *("megatron_core", "qalora_group_size", "eva_config", "runtime_config"),
}
_ADDING_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")  # other starts also change the model's weights


@dataclass
class _Stem:
    """The tensors with one name in front: those of a layer, or of several that diffusers will divide them among."""

    name: str
    parts: dict[str, str] = field(default_factory=dict)  # part -> its name in the file
    alpha: float | None = None


def layers_of(adapter: Adapter, layers: Mapping[str, nn.Linear], translate: Translate) -> LoraTensors:
    """The adapter's tensors under the names that diffusers gives them.

    layers     the model's linear layers by name
    translate  renames tensors of one pair that are named after the original model's layers

    Raises ModelError, with the name of the tensor, unless every tensor of the file belongs to a layer, in its shape,
    and means what it would mean in peft.
    """
    stems = _stems(adapter)
    _read_config(adapter, stems)
    state: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    unknown = []
    for stem in stems.values():
        named = _named(adapter, stem, layers, translate)
        if not named:
            unknown.append(stem)
            continue
        if twice := sorted(state.keys() & named.keys()):
            raise adapter.unusable(f"{next(iter(stem.parts.values()))} is a second {twice[0]}")
        state |= named
        alphas |= dict(_alphas(adapter, stem, named))
    if not state:
        first = f"only weights such as {next(iter(adapter.tensors))}" if adapter.tensors else "nothing"
        raise adapter.misfit(f"it holds {first}, and none for the transformer")
    for stem in unknown:
        if not _changes_nothing(adapter, stem):
            raise _no_layer(adapter, stem)
    for problem in _misfits(state, layers):
        raise adapter.misfit(problem)
    return LoraTensors(state, alphas)


def linear_layers(module: nn.Module) -> dict[str, nn.Linear]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}


def named_layers(adapter: Adapter) -> dict[str, nn.Linear] | None:
    """The layers that a file of diffusers names, in the sizes of its tensors, without weights.

    None for a file that diffusers has not written: only the model tells which of its layers are meant.
    """
    if not adapter.by_diffusers:
        return None
    pairs = {name: stem.parts for name, stem in _stems(adapter).items() if {DOWN, UP} <= stem.parts.keys()}
    sizes = {name: [adapter.tensors[parts[part]].shape for part in (DOWN, UP)] for name, parts in pairs.items()}
    return {
        name.removeprefix(TRANSFORMER): nn.Linear(down[-1], up[0], bias=False, device="meta")
        for name, (down, up) in sizes.items()
        if name.startswith(TRANSFORMER) and len(down) == len(up) == 2
    }


# --- the file's names ------------------------------------------------------------------------------------------------


def _stems(adapter: Adapter) -> dict[str, _Stem]:
    """The tensors by stem. Raises ModelError for one that is no part of a LoRA."""
    stems: dict[str, _Stem] = {}
    alphas = {}
    for key, tensor in adapter.tensors.items():
        if key.endswith(_ALPHA):
            alphas[key] = tensor
        elif part := _PART.fullmatch(key):
            stem = stems.setdefault(part["stem"], _Stem(part["stem"]))
            kind = _canonical(part["part"], part["kind"])
            if kind is None:
                raise adapter.unusable(f"{key} is no part of a LoRA")
            if kind in stem.parts:
                raise adapter.unusable(f"{stem.parts[kind]} and {key} are the same part")
            stem.parts[kind] = key
        elif not (_ADDED.fullmatch(key) and not tensor.any()):
            raise adapter.unusable(
                f"it holds {key}, and only lora_A and lora_B with alpha, bias and lora_magnitude_vector are read"
            )
    for key, tensor in alphas.items():
        stem = stems.get(key.removesuffix(_ALPHA))
        if stem is None or tensor.numel() != 1:
            problem = "belongs to no pair of lora_A and lora_B" if stem is None else "is not one number"
            raise adapter.unusable(f"{key} {problem}")
        stem.alpha = tensor.item()
    return stems


def _canonical(part: str, kind: str | None) -> str | None:
    """A part of a pair as diffusers names it; None if there is no such part."""
    if part == MAGNITUDE:
        return None if kind == "bias" else MAGNITUDE
    side = "lora_A" if part == "lora_A" or part.endswith("down") else "lora_B"
    named = f"{side}.{kind or 'weight'}"
    return named if named in (DOWN, UP, BIAS) else None


def _incomplete(name: str, parts: Iterable[str]) -> str:
    return f"{name} has {min(parts).removesuffix('.weight')} only; lora_A and lora_B go together"


def _changes_nothing(adapter: Adapter, stem: _Stem) -> bool:
    """Whether a pair has a side that is all zero: trainers write such pairs for layers that they left out."""
    return stem.parts.keys() == {DOWN, UP} and not all(adapter.tensors[key].any() for key in stem.parts.values())


def _named(adapter: Adapter, stem: _Stem, layers: Mapping[str, nn.Module], translate: Translate) -> dict[str, Tensor]:
    """The tensors of a stem under diffusers' names; empty if no layer is meant."""
    tensors = {part: adapter.tensors[key] for part, key in stem.parts.items()}
    name = _unwrapped(stem.name)
    flat = next((name.removeprefix(each) for each in _FLAT if name.startswith(each)), None)
    if flat is not None:
        name = next((layer for layer in layers if layer.replace(".", "_") == flat), flat)
    if name in layers:
        return {f"{TRANSFORMER}{name}.{part}": tensor for part, tensor in tensors.items()}
    modulation = _MODULATION.fullmatch(name)
    if not (modulation or _ORIGINAL.fullmatch(name)):
        return {}
    if not {DOWN, UP} <= stem.parts.keys():
        raise adapter.misfit(_incomplete(stem.name, stem.parts))
    if extra := sorted(stem.parts.keys() - {DOWN, UP}):
        raise adapter.unusable(f"{stem.parts[extra[0]]} cannot be divided among diffusers' layers")
    # Each pair alone: among others diffusers overlooks some names, and drops their tensors.
    sides = ("down", "up") if ".processor." in name else ("lora_down", "lora_up")
    if modulation:
        name, sides = f"diffusion_model.{modulation[1]}.lin", ("lora_A", "lora_B")
    elif ".processor." not in name:
        name = f"lora_unet_{name.replace('.', '_')}"
    pair = {f"{name}.{side}.weight": tensors[part] for side, part in zip(sides, (DOWN, UP), strict=True)}
    # diffusers forgets the prefix of a few layers outside of the blocks.
    named = {f"{TRANSFORMER}{key.removeprefix(TRANSFORMER)}": tensor for key, tensor in translate(pair).items()}
    return named if all(split(key)[0] in layers for key in named) else {}


def _no_layer(adapter: Adapter, stem: _Stem) -> ModelError:
    if _TEXT_ENCODER.match(stem.name):
        problem = f"{stem.name} is a text encoder's, and only the transformer is adapted here"
        return adapter.misfit(problem, "save the transformer's part alone, or train it without the text encoder")
    return adapter.misfit(f"{stem.name} is not a linear layer of it")


def _misfits(state: Mapping[str, Tensor], layers: Mapping[str, nn.Linear]) -> Iterator[str]:
    """Layers with parts missing, or of other shapes."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        layer, part = split(key)
        parts.setdefault(layer, {})[part] = tensor
    everywhere = {part for each in parts.values() for part in each}
    for name, own in parts.items():
        layer = layers[name]
        if not {DOWN, UP} <= own.keys():
            yield _incomplete(name, own)
            continue
        if missing := sorted(everywhere - own.keys()):
            yield f"{name} has no {missing[0]}, which other layers have"
            continue
        down, up = list(own[DOWN].shape), list(own[UP].shape)
        rank = down[0] if down else 0
        if (down, up) != ([rank, layer.in_features], [layer.out_features, rank]) or not rank:
            yield f"{name} is {layer.in_features} -> {layer.out_features}, but lora_A is {down} and lora_B {up}"
        for part in (BIAS, MAGNITUDE):
            if part in own and list(own[part].shape) != [layer.out_features]:
                yield f"{name} is {layer.in_features} -> {layer.out_features}, but {part} is {list(own[part].shape)}"


# --- how strongly each pair acts: alpha / rank -----------------------------------------------------------------------


def _read_config(adapter: Adapter, stems: Mapping[str, _Stem]) -> None:
    """Give each stem its alpha by the LoraConfig in or beside the file. Raises ModelError for unsupported fields."""
    for where, config in adapter.configs.items():
        for name, value in config.items():
            if _changes_meaning(name, value):
                raise adapter.unusable(f"{where} sets {name} to {value!r}, which is not supported")
        for name, part in SAID_BY_TENSORS.items():
            has = any(part in stem.parts for stem in stems.values())
            if bool(config.get(name, has)) != has:
                holds = f"{'a' if has else 'no'} {part}"
                raise adapter.unusable(f"{where} sets {name} to {config[name]}, but the file holds {holds}")
        for stem in stems.values():
            if DOWN not in stem.parts:
                continue
            alpha = _alpha_by_config(adapter, where, config, stem)
            if stem.alpha not in (None, alpha):
                raise adapter.unusable(f"alpha of {stem.name} is {alpha:g} in {where}, and {stem.alpha:g} elsewhere")
            stem.alpha = alpha


def _changes_meaning(name: str, value: Any) -> bool:
    """Whether a field of LoraConfig makes something else of the tensors than a plain LoRA."""
    if name == "peft_type":
        return value not in (None, "LORA")
    if name == "init_lora_weights":
        return value not in _ADDING_STARTS
    if name == "bias":
        return value not in (None, "none")
    return bool(value) and name not in {*_SCALES, *SAID_BY_TENSORS, *_HARMLESS}


def _alpha_by_config(adapter: Adapter, where: str, config: Mapping[str, Any], stem: _Stem) -> float:
    """The alpha that, divided by the rank of the stem's tensors, gives peft's scale."""
    rank, name = rank_of(adapter.tensors[stem.parts[DOWN]]), _unwrapped(stem.name)
    found = {}
    for field_name, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        by_layer: Any = config.get(pattern) or {}
        try:
            value = by_layer.get(get_pattern_key(list(by_layer.keys()), name), config.get(field_name))
        except (AttributeError, re.error):
            raise adapter.unusable(f"{where}: {pattern} is {by_layer!r}, not numbers by layer") from None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise adapter.unusable(f"{where}: {field_name} is {value!r}, not a number")
        found[field_name] = value
    if found["r"] != rank:
        raise adapter.unusable(f"{stem.name} has rank {rank}, but {where} says {found['r']}")
    return found["lora_alpha"] * (math.sqrt(rank) if config.get("use_rslora") else 1)


def _alphas(adapter: Adapter, stem: _Stem, named: Mapping[str, Tensor]) -> Iterator[tuple[str, float]]:
    """The alpha of each layer of a stem. diffusers may give a layer a part of the rank; the scale stays."""
    rank = rank_of(adapter.tensors[stem.parts[DOWN]]) if DOWN in stem.parts else 0
    for key, tensor in named.items():
        layer, part = split(key)
        if part == DOWN:
            own = rank_of(tensor)
            yield layer, own if stem.alpha is None else stem.alpha if own == rank else stem.alpha * own / rank


def _unwrapped(name: str) -> str:
    while wrapper := next((each for each in _WRAPPERS if name.startswith(each)), None):
        name = name.removeprefix(wrapper)
    return name
