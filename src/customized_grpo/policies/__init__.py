"""Model families: one file each behind the protocol `Policy`, chosen by what a checkpoint says it is.

A new family is one file and one line of `FAMILIES`. Nothing outside this folder names a family.
"""

from __future__ import annotations

from pathlib import Path

from customized_grpo.critters.weights import resolve
from customized_grpo.files.pretrained import ModelError, check_complete, pipeline_class
from customized_grpo.policies.base import Policy
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.sections import Model

# What a checkpoint's pipeline class starts with -> the policy that runs it.
FAMILIES: dict[str, type[Policy]] = {"FluxKontext": FluxKontextPolicy}


def load_policy(model: Model, device: str, *, shard: bool = False) -> Policy:
    """The generator of the section `model`, without an adapter.

    shard  leave the transformer on the CPU: the policy cannot be used before its method `shard` is called

    Raises ModelError if there is no such checkpoint, if it is incomplete, or if no family runs it.
    """
    return find_family(model).load(resolve(model.path, "generator"), model, device, shard=shard)


def find_family(model: Model) -> type[Policy]:
    """The policy class that runs a checkpoint; nothing is loaded. Raises ModelError like `load_policy`."""
    path: str | Path = resolve(model.path, "generator")
    found = pipeline_class(path)
    family = next((policy for prefix, policy in FAMILIES.items() if found.startswith(prefix)), None)
    if family is None:
        supported = ", ".join(f"{prefix}Pipeline" for prefix in FAMILIES)
        raise ModelError(f"{model.path} is a {found}, which is not supported; supported: {supported}")
    check_complete(path)
    return family
