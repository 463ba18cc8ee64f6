"""An adapter's file, looked at before it is put on a model: safetensors, finite, and made for these very layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from customized_grpo.files.pretrained import ModelError

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
TRANSFORMER = "transformer."  # begins the names of its layers in a pipeline's adapter
_SIDE = re.compile(r"transformer\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")


def read_adapter(directory: Path) -> dict[str, Tensor]:
    """The tensors of an adapter's folder as they are in its file, on the CPU.

    Raises ModelError if there is no file, if it is cut short, or if numbers in it are not finite.
    """
    file = Path(directory) / ADAPTER_FILE
    if not file.is_file():
        raise ModelError(f"no adapter in {directory}: {ADAPTER_FILE} is missing; name the folder that holds it")
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ModelError(f"{file} cannot be read ({error}); take a whole copy, or an older checkpoint") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ModelError(f"{file}: {name} holds NaN or infinities; take an adapter of before that happened")
    return tensors


def check_same(directory: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises ModelError unless an adapter has the layers and the rank of the one that it takes the place of."""
    problems = [f"it has no {name}" for name in sorted(expected.keys() - tensors.keys())]
    problems += [f"it holds {name}, which is nothing here" for name in sorted(tensors.keys() - expected.keys())]
    problems += [
        f"{name} is {list(tensors[name].shape)}, and {list(expected[name].shape)} here"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name].shape
    ]
    _refuse(directory, problems, "name the adapter's own adapter.rank, adapter.targets and model")


def check_fits(directory: Path, tensors: Mapping[str, Tensor], module: nn.Module) -> None:
    """Raises ModelError unless the tensors, named as diffusers names an adapter's, are of layers that `module` has."""
    _refuse(directory, list(_misfits(tensors, module)), "name the model that it was trained on")


def _refuse(directory: Path, problems: Sequence[str], remedy: str) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ModelError(f"the adapter in {directory} does not fit this model: {problems[0]}{more}; {remedy}")


def _misfits(tensors: Mapping[str, Tensor], module: nn.Module) -> Iterator[str]:
    # Text encoders, and the alphas of older adapters, are diffusers' business.
    sides = {name: _SIDE.fullmatch(name) for name in tensors}
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, side in sides.items():
        if side:
            pairs.setdefault(side["layer"], {})[side["side"]] = tensors[name]
    if not pairs:
        yield f"it changes none of its layers, but {next(iter(tensors), 'nothing')}"
    layers = dict(module.named_modules())
    for layer, pair in pairs.items():
        found = layers.get(layer)
        if not isinstance(found, nn.Linear):
            yield f"it changes {layer}, which is no layer here"
            continue
        if pair.keys() != {"A", "B"}:
            yield f"of {layer} it holds only lora_{next(iter(pair))}"
            continue
        down, up = (list(pair[side].shape) for side in "AB")
        if (down, up) != ([down[0], found.in_features], [found.out_features, down[0]]):
            yield f"{layer} is {found.in_features} -> {found.out_features} here; lora_A is {down}, lora_B {up}"
