"""What a run resumes from in addition to its adapter: optimiser, random state and position, without a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from customized_grpo.errors import InputError
from customized_grpo.files.adapter_places import TENSORS
from customized_grpo.run.checkpoints import STATE

RANDOM = "random"  # name of torch's random state among the tensors
STEP_KERNELS = ("foreach", "fused")  # how a step is computed: depends on the device, which may change on resuming
STATE_KEYS = ("update", "optimizer_steps", "groups", "others")


class Position(NamedTuple):
    """Where training is: what is saved with a checkpoint beside adapter, optimiser and random state."""

    update: int = 0
    optimizer_steps: int = 0
    running: Mapping[str, Any] = MappingProxyType({})  # what the shaping remembers of earlier updates, as JSON
    batches: Mapping[str, Any] = MappingProxyType({})  # images per pass, if memory ran out, as JSON


class CheckpointError(InputError, ValueError):
    """An intact checkpoint that this version cannot resume from."""


def write_state(folder: Path, position: Position, optimizer: torch.optim.Optimizer) -> None:
    """Save optimiser, random state and position: tensors in one file, everything else in the other."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {RANDOM: torch.get_rng_state()}
    others: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        # A null marks the place of each tensor, so that reading restores the order.
        others[str(index)] = {name: None if isinstance(v, Tensor) else v for name, v in values.items()}
        tensors |= {f"{index}.{name}": v.contiguous() for name, v in values.items() if isinstance(v, Tensor)}
    save_file(tensors, folder / TENSORS)
    where = {**position._asdict(), "running": dict(position.running), "batches": dict(position.batches)}
    about = {**where, "groups": state["param_groups"], "others": others}
    (folder / STATE).write_text(json.dumps(about) + "\n", encoding="utf-8")


def read_state(checkpoint: Path, optimizer: torch.optim.Optimizer) -> Position:
    """Restore what `write_state` saved; returns the position. The checkpoint is intact (`find_damage`).

    Raises CheckpointError if another version wrote it, ValueError if the optimiser has other parameter groups.
    """
    about = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    missing = [key for key in STATE_KEYS if key not in about]
    if missing:
        raise CheckpointError(
            f"{checkpoint} was written by another version of this program: {STATE} has no {missing[0]!r}; resume with "
            "that version, or remove the checkpoint"
        )
    tensors = load_file(checkpoint / TENSORS)
    torch.set_rng_state(tensors.pop(RANDOM))
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in about["others"].items()}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state[int(index)][name] = value.clone()  # not mapped from the file, which will be removed
    # AdamW's betas are a tuple, which JSON does not have.
    groups = [
        {
            name: tuple(value) if isinstance(value, list) and name != "params" else value
            for name, value in group.items()
        }
        | {name: own[name] for name in STEP_KERNELS if name in own}
        for group, own in zip(about["groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    later = (about.get(name, {}) for name in ("running", "batches"))  # older versions had none
    return Position(about["update"], about["optimizer_steps"], *later)
