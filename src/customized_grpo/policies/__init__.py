"""Model families: one file each behind the protocol `Policy`, chosen by the pipeline class that a checkpoint names.

A new family is one file here, and below its import and its entry in `FAMILIES`. No code outside this folder names one.
"""

from __future__ import annotations

from pathlib import Path

from customized_grpo.critters.weights import resolve
from customized_grpo.files.pretrained import ModelError, check_complete, find_offline, pipeline_class
from customized_grpo.policies.base import Policy
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.sections import Adapter, Model

# How the name of a checkpoint's pipeline class begins -> the policy that runs it.
FAMILIES: dict[str, type[Policy]] = {"FluxKontext": FluxKontextPolicy}


def load_policy(model: Model, device: str, *, shard: bool = False) -> Policy:
    """The generator of the section `model`, without an adapter.

    shard  leave the transformer on the CPU: the policy cannot be used until its method `shard` is called

    Raises ModelError if the checkpoint does not exist, is incomplete, or belongs to no family, and UsageError for
    settings that the model cannot take.
    """
    return find_family(model).load(resolve(model.path, "generator"), model, device, shard=shard)


def find_family(model: Model) -> type[Policy]:
    """The policy class that runs a checkpoint; loads no weights. Raises ModelError like `load_policy`."""
    path: str | Path = resolve(model.path, "generator")
    pipeline = pipeline_class(path)
    family = next((policy for prefix, policy in FAMILIES.items() if pipeline.startswith(prefix)), None)
    if family is None:
        supported = ", ".join(f"{prefix}Pipeline" for prefix in FAMILIES)
        raise ModelError(f"{model.path} is a {pipeline}, which is not supported; supported: {supported}")
    check_complete(path)
    return family


def adapter_size(model: Model, adapter: Adapter) -> int | None:
    """How many weights the adapter of these sections has; uses no network and loads no weights.

    None if the model is on the hub, and what describes it is not in the cache. Raises ModelError like `load_policy`,
    and UsageError for a picture size or targets that the model cannot take.
    """
    path = resolve(model.path, "generator")
    if find_offline(path, "model_index.json") is None:
        return None
    return find_family(model).adapter_size(path, model, adapter)
