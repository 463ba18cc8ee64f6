"""Model families: one file each behind the protocol `Policy`, chosen by the pipeline class that a checkpoint names.

A new family is one file here, and its entry in `FAMILIES` below. No code outside this folder names one. Other packages
register theirs by an entry point (`files/plugins.py`): its name is that of the pipeline class, or of `model.family`.
"""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from customized_grpo.critters.weights import resolve
from customized_grpo.errors import UsageError
from customized_grpo.files import plugins
from customized_grpo.files.pretrained import ModelError, check_complete, pipeline_class
from customized_grpo.policies.adapter_file import read_adapter
from customized_grpo.policies.adapter_layers import layers_of, named_layers
from customized_grpo.policies.architectures import configuration
from customized_grpo.policies.base import Policy
from customized_grpo.policies.lora_tensors import LoraTensors
from customized_grpo.sections import Adapter, Model

# What a checkpoint's pipeline class is called -> the policy that runs it, imported when it is needed.
FAMILIES: dict[str, str] = {
    "FluxKontextPipeline": "customized_grpo.policies.flux_kontext:FluxKontextPolicy",
    "Flux2KleinPipeline": "customized_grpo.policies.flux2_klein:Flux2KleinPolicy",
    "QwenImageEditPlusPipeline": "customized_grpo.policies.qwen_image_edit:QwenImageEditPolicy",
}
# Families whose checkpoints say something else: model.family -> what they say, and the policy.
BY_NAME: dict[str, tuple[str, str]] = {"uno": ("FluxPipeline", "customized_grpo.policies.uno:UnoPolicy")}


# What a family must have, in the words of the message to its author: the methods of `Policy`.
_METHODS = tuple(name for name in vars(Policy) if not name.startswith("_") and callable(getattr(Policy, name)))


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
    return _family(model, path, pipeline_class(path))


def _family(model: Model, path: str | Path, pipeline: str) -> type[Policy]:
    name = model.family or pipeline
    plugins.refuse_doubles(plugins.FAMILIES, name, [*FAMILIES, *BY_NAME])
    if name in plugins.names(plugins.FAMILIES):
        check_complete(path)
        return plugins.load(plugins.FAMILIES, name, _is_policy, f"a class with {', '.join(_METHODS)}")
    expected, policy = (pipeline, FAMILIES.get(pipeline)) if model.family is None else BY_NAME[model.family]
    if pipeline != expected:
        raise ModelError(f"{model.path} is a {pipeline}, and model.family={model.family} needs a {expected}")
    if policy is None:
        hint = next((f"; set model.family={name}" for name, (own, _) in BY_NAME.items() if own == pipeline), "")
        named = (f"{own} with model.family={name}" for name, (own, _) in BY_NAME.items())
        supported = ", ".join([*FAMILIES, *named, *plugins.names(plugins.FAMILIES)])
        raise ModelError(f"{model.path} is a {pipeline}, which is not supported{hint}; supported: {supported}")
    check_complete(path)
    return resolve_name(policy)


def _is_policy(loaded: Any) -> bool:
    return isinstance(loaded, type) and all(callable(getattr(loaded, name, None)) for name in _METHODS)


def adapter_size(model: Model, adapter: Adapter) -> int | None:
    """How many weights the adapter of these sections has; uses no network and loads no weights.

    None if the model is on the hub, and what describes it is not in the cache. Raises ModelError like `load_policy`,
    and UsageError for a picture size or targets that the model cannot take.
    """
    path = resolve(model.path, "generator")
    if model.base_adapter is not None:
        read_adapter(Path(model.base_adapter))  # its absence is known even if the model is not here
    family = planned_family(model)
    return None if family is None else family.adapter_size(path, model, adapter)


def planned_family(model: Model) -> type[Policy] | None:
    """As `find_family`, without the network: None for a checkpoint whose configurations are not known here."""
    path = resolve(model.path, "generator")
    index = configuration(path)
    return None if index is None else _family(model, path, str(index.get("_class_name")))


def lora_tensors(file: Path, model: Model | None) -> LoraTensors:
    """The tensors of an adapter under diffusers' names; uses no network and loads no weights.

    file   that of the adapter, or a folder with `ADAPTER_FILE`
    model  what it was trained for. It is needed unless diffusers has written the file: other programs have other names

    Raises ModelError if the adapter is damaged or does not fit the model, and UsageError if there is no model, or its
    configuration is not known here.
    """
    adapter = read_adapter(file)
    if layers := named_layers(adapter):
        return layers_of(adapter, layers, lambda _: {})
    if model is None:
        raise UsageError(f"{adapter.place} has another program's names of layers; name the model with --model")
    from customized_grpo.policies.diffusers_policy import DiffusersPolicy

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
