"""Model families: one file each behind the protocol `Policy`, chosen by the pipeline class that a checkpoint names.

A new family is one file here, and its entry in `FAMILIES` below. No code outside this folder names one. Other packages
register theirs by an entry point (`files/plugins.py`): its name is that of the pipeline class, or of `model.family`.
"""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from customized_grpo.critters.weights import resolve
from customized_grpo.errors import UsageError
from customized_grpo.files import plugins
from customized_grpo.files.pretrained import ModelError, check_complete, pipeline_class
from customized_grpo.policies.adapter_file import read_adapter
from customized_grpo.policies.architectures import configuration
from customized_grpo.policies.networks import ARCHITECTURES
from customized_grpo.sections import Adapter, Model

if TYPE_CHECKING:  # they import torch
    from customized_grpo.policies.base import Policy
    from customized_grpo.policies.lora_tensors import LoraTensors

# What a checkpoint's pipeline class is called -> the policy that runs it, imported when it is needed.
FAMILIES: dict[str, str] = {
    "FluxKontextPipeline": "customized_grpo.policies.flux_kontext:FluxKontextPolicy",
    "Flux2KleinPipeline": "customized_grpo.policies.flux2_klein:Flux2KleinPolicy",
    "QwenImageEditPlusPipeline": "customized_grpo.policies.qwen_image_edit:QwenImageEditPolicy",
}
# Families whose checkpoints say something else: model.family -> what they say, and the policy.
BY_NAME: dict[str, tuple[str, str]] = {"uno": ("FluxPipeline", "customized_grpo.policies.uno:UnoPolicy")}


def load_policy(model: Model, device: str, *, shard: bool = False) -> Policy:
    """The generator of the section `model`, without an adapter.

    shard  leave the transformer on the CPU: the policy cannot be used until its method `shard` is called

    Raises ModelError if the checkpoint does not exist, is incomplete, or belongs to no family, and UsageError for
    settings that the model cannot take.
    """
    return find_family(model).load(resolve(model.path, "generator"), model, device, shard=shard)


def find_family(model: Model) -> type[Policy]:
    """The policy class that runs a checkpoint; loads no weights. Raises ModelError like `load_policy`."""
    path = resolve(model.path, "generator")
    pipeline = pipeline_class(path)
    check_family(model, path, pipeline)
    return _family(model.family or pipeline)


def check_family(model: Model, path: str | Path, pipeline: str) -> None:
    """Raises ModelError unless there is a family for this pipeline's class, and the checkpoint is complete."""
    name = model.family or pipeline
    plugins.refuse_doubles(plugins.FAMILIES, name, [*FAMILIES, *BY_NAME])
    if name in plugins.names(plugins.FAMILIES):
        check_complete(path)
        return
    expected, policy = (pipeline, FAMILIES.get(pipeline)) if model.family is None else BY_NAME[model.family]
    if pipeline != expected:
        raise ModelError(f"{model.path} is a {pipeline}, and model.family={model.family} needs a {expected}")
    if policy is None:
        hint = next((f"; set model.family={name}" for name, (own, _) in BY_NAME.items() if own == pipeline), "")
        named = (f"{own} with model.family={name}" for name, (own, _) in BY_NAME.items())
        supported = ", ".join([*FAMILIES, *named, *plugins.names(plugins.FAMILIES)])
        raise ModelError(f"{model.path} is a {pipeline}, which is not supported{hint}; supported: {supported}")
    check_complete(path)


def _family(name: str) -> type[Policy]:
    """The policy class of a family, by the name of its pipeline's class or its own."""
    from customized_grpo.policies.base import Policy

    if name not in plugins.names(plugins.FAMILIES):
        return resolve_name(BY_NAME[name][1] if name in BY_NAME else FAMILIES[name])
    methods = [each for each in vars(Policy) if not each.startswith("_") and callable(getattr(Policy, each))]

    def is_policy(loaded: Any) -> bool:
        return isinstance(loaded, type) and all(callable(getattr(loaded, each, None)) for each in methods)

    return plugins.load(plugins.FAMILIES, name, is_policy, f"a class with {', '.join(methods)}")


def adapter_size(model: Model, adapter: Adapter) -> int | None:
    """How many weights the adapter of these sections has; uses no network and loads no weights.

    None if the model is on the hub, and what describes it is not in the cache. Raises ModelError like `load_policy`,
    and UsageError for a picture size or targets that the model cannot take.
    """
    path = resolve(model.path, "generator")
    if model.base_adapter is not None:
        read_adapter(Path(model.base_adapter))  # its absence is known even if the model is not here
    name = _planned_name(model, path)
    if name is None:
        return None
    quick = ARCHITECTURES.get(name) if model.base_adapter is None else None  # imports neither torch nor diffusers
    return (quick or _family(name)).adapter_size(path, model, adapter)


def planned_family(model: Model) -> type[Policy] | None:
    """As `find_family`, without the network: None for a checkpoint whose configurations are not known here."""
    name = _planned_name(model, resolve(model.path, "generator"))
    return None if name is None else _family(name)


def _planned_name(model: Model, path: str | Path) -> str | None:
    """The family's name, without the network: None for a checkpoint whose configurations are not known here."""
    index = configuration(path)
    if index is None:
        return None
    pipeline = str(index.get("_class_name"))
    check_family(model, path, pipeline)
    return model.family or pipeline


def adapter_tensors(file: Path, model: Model | None) -> LoraTensors:
    """The tensors of an adapter under diffusers' names; uses no network and loads no weights.

    file   that of the adapter, or a folder with `ADAPTER_FILE`
    model  what it was trained for. It is needed unless diffusers has written the file: other programs have other names

    Raises ModelError if the adapter is damaged or does not fit the model, and UsageError if there is no model, or its
    configuration is not known here.
    """
    from customized_grpo.policies.adapter_layers import layers_of, named_layers
    from customized_grpo.policies.diffusers_policy import DiffusersPolicy

    adapter = read_adapter(file)
    if layers := named_layers(adapter):
        return layers_of(adapter, layers, lambda _: {})
    if model is None:
        raise UsageError(f"{adapter.place} has another program's names of layers; name the model with --model")
    family, path = planned_family(model), resolve(model.path, "generator")
    transformer = configuration(path, "transformer")
    if family is None or transformer is None:
        download = f"hf download {model.path} model_index.json transformer/config.json"
        raise UsageError(f"the configuration of {model.path} is not on this machine; get it with: {download}")
    if not issubclass(family, DiffusersPolicy):
        raise UsageError(
            f"{model.path}: adapters of {family.__name__} are no LoRA of diffusers, and cannot be exported"
        )
    return family.lora_tensors(transformer, adapter)
