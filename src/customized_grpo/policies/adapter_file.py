"""An adapter's file and targets, checked before they reach a model: safetensors, finite, and made for its layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from customized_grpo.errors import UsageError
from customized_grpo.files.pretrained import ModelError

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
TRANSFORMER = "transformer."  # prefix of its layers' names in a pipeline's adapter
OTHER_TARGETS = "name linear layers such as to_q, or set null for the usual ones"
_SIDE = re.compile(r"transformer\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")


def check_targets(targets: Sequence[str], module: nn.Module) -> None:
    """Raises UsageError unless each target names linear layers of `module`, and nothing else.

    As in peft, a target is the full name of a layer, or the end of it after a dot.
    """
    if not targets:
        raise UsageError(f"adapter.targets is empty; {OTHER_TARGETS}")
    layers = {name: layer for name, layer in module.named_modules() if name}
    for target in targets:
        kinds = {type(layer) for name, layer in layers.items() if f".{name}".endswith(f".{target}")}
        other = next((kind.__name__ for kind in kinds if not issubclass(kind, nn.Linear)), None)
        if not kinds or other:
            problem = f"matches {other}, which cannot be adapted" if other else "matches no layer of this model"
            raise UsageError(f"adapter.targets: {target!r} {problem}; {OTHER_TARGETS}")


def read_adapter(directory: Path) -> dict[str, Tensor]:
    """The tensors in the file of an adapter's folder, on the CPU.

    Raises ModelError if the file is missing, unreadable or incomplete, or holds numbers that are not finite.
    """
    file = Path(directory) / ADAPTER_FILE
    if not file.is_file():
        raise ModelError(f"no adapter in {directory}: {ADAPTER_FILE} is missing; name the folder that holds it")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} cannot be read ({error}); copy it again, or use an older checkpoint") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.float().isfinite().all():  # float8 has no isfinite
            raise ModelError(f"{file}: {name} holds NaN or infinities; use an adapter saved before that happened")
    return tensors


def check_same(directory: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises ModelError unless `tensors` have the names and shapes of the adapter that they are loaded into."""
    problems = [f"{name} is missing" for name in sorted(expected.keys() - tensors.keys())]
    problems += [f"{name} is not part of this adapter" for name in sorted(tensors.keys() - expected.keys())]
    problems += [
        f"{name} is {list(tensors[name].shape)}, expected {list(expected[name].shape)}"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name].shape
    ]
    _refuse(directory, problems, "set adapter.rank, adapter.targets and model as they were when it was trained")


def check_fits(directory: Path, tensors: Mapping[str, Tensor], module: nn.Module) -> None:
    """Raises ModelError unless the tensors, named as in diffusers' adapters, belong to layers of `module`."""
    _refuse(directory, list(_misfits(tensors, module)), "name the model that it was trained on")


@contextmanager
def translating(directory: Path) -> Iterator[None]:
    """Turns what diffusers raises for an adapter in a format that it does not know into ModelError."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ModelError(
            f"diffusers cannot read the adapter in {directory} ({type(error).__name__}: {error}); save it again "
            "in diffusers' format"
        ) from error


def _refuse(directory: Path, problems: Sequence[str], remedy: str) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ModelError(f"the adapter in {directory} does not fit this model: {problems[0]}{more}; {remedy}")


def _misfits(tensors: Mapping[str, Tensor], module: nn.Module) -> Iterator[str]:
    # Weights for text encoders, and the alphas of older adapters, are left to diffusers.
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _SIDE.fullmatch(name):
            pairs.setdefault(match["layer"], {})[match["side"]] = tensor
    if not pairs:
        first = f"only weights such as {next(iter(tensors))}" if tensors else "nothing"
        yield f"it holds {first}, and none for the transformer"
    layers = dict(module.named_modules())
    for name, pair in pairs.items():
        layer = layers.get(name)
        if not isinstance(layer, nn.Linear):
            yield f"{name} is not a linear layer of it"
            continue
        if pair.keys() != {"A", "B"}:
            yield f"{name} has lora_{next(iter(pair))} only; lora_A and lora_B go together"
            continue
        down, up = (list(pair[side].shape) for side in "AB")
        rank = down[0] if down else 0
        if (down, up) != ([rank, layer.in_features], [layer.out_features, rank]):
            yield f"{name} is {layer.in_features} -> {layer.out_features}, but lora_A is {down} and lora_B {up}"
