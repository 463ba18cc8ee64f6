"""Checkpoints: a folder each, with a checksum of every file, so that a damaged one is found before it is used.

checkpoints/step-00020/   the adapter as the policy writes it, config.yaml, sampling.json
                          optimizer.safetensors   tensors of the optimiser, and torch's random state
                          state.json              position, and what else the optimiser holds
                          interim                 only where it goes once the next one is there
                          manifest.json           file -> SHA-256; written last

Nothing in it is unpickled: a checkpoint from elsewhere can hold wrong numbers, but no program.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from customized_grpo.files.durable import SAVING, digest, remove_folder, sync, sync_tree, write_text
from customized_grpo.files.pretrained import PICKLES, ModelError
from customized_grpo.policies.adapter_file import ADAPTER_FILE

FOLDER, FINAL = "checkpoints", "adapter"  # in a run's folder: what it goes on from, and what it leaves
MANIFEST, TENSORS, STATE = "manifest.json", "optimizer.safetensors", "state.json"
INTERIM = "interim"  # an empty file in what was saved only because the run was asked to stop, or ended
DAMAGED = ".damaged"  # ending of checkpoints that were found damaged
RANDOM = "random"  # torch's random state among the tensors
STEP_KERNELS = ("foreach", "fused")  # how a step is computed: as suits the device that goes on, not the one that wrote

Position = tuple[int, int]  # updates, optimiser steps


def checkpoints_of(run: Path) -> list[Path]:
    """A run's checkpoints, oldest first; each was whole when it was written."""
    found = (path for path in (run / FOLDER).glob("step-*") if re.fullmatch(r"step-\d+", path.name))
    return sorted(found, key=update_of)


def update_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def save_checkpoint(run: Path, update: int, write: Callable[[Path], None], keep_last: int | None) -> None:
    """Let `write` fill a new checkpoint; once that is whole and on disk, remove interim ones and all but `keep_last`.

    Whatever goes wrong, the checkpoints that were there stay.
    """
    target = run / FOLDER / f"step-{update:05d}"
    aside = target.with_suffix(SAVING)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        write(aside)
        files = (path for path in sorted(aside.rglob("*")) if path.is_file())
        sums = {path.relative_to(aside).as_posix(): digest(path) for path in files}
        write_text(aside / MANIFEST, json.dumps(sums, indent=1) + "\n")
        sync_tree(aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # on a full disk it would be in the way
        raise
    if target.exists():
        remove_folder(target)  # of an earlier attempt at the same update, beyond where this one began
    aside.replace(target)
    sync(target.parent)
    remove_older(target, keep_last)


def remove_older(checkpoint: Path, keep_last: int | None) -> None:
    """Of those before a whole checkpoint remove interim ones, and what is too many for `keep_last` with it."""
    update = update_of(checkpoint)
    older = [path for path in checkpoints_of(checkpoint.parents[1]) if update_of(path) < update]
    interim = [path for path in older if (path / INTERIM).exists()]
    regular = [path for path in older if path not in interim]
    surplus = [] if keep_last is None else regular[: max(len(regular) + 1 - keep_last, 0)]  # the new one counts
    for old in (*interim, *surplus):
        remove_folder(old)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None where every file is what was written."""
    file = checkpoint / MANIFEST
    if not file.is_file():
        return f"{MANIFEST} is missing"
    try:
        sums = json.loads(file.read_bytes())
    except ValueError:
        sums = None
    if not isinstance(sums, dict):
        return f"{MANIFEST} cannot be read"
    missing = sorted({TENSORS, STATE} - sums.keys())
    if missing:
        return f"{MANIFEST} lacks {missing[0]}"
    for name, expected in sums.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if digest(checkpoint / name) != expected:
            return f"{name} is not what was written"
    return None


def newest_whole(run: Path) -> tuple[Path | None, dict[Path, str]]:
    """The last checkpoint that is whole, None where there is none, and what is wrong with those after it."""
    damaged: dict[Path, str] = {}
    for checkpoint in reversed(checkpoints_of(run)):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint, damaged
        damaged[checkpoint] = problem
    return None, damaged


def mark_damaged(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint, so that nothing takes it for one; returns its new path."""
    aside = checkpoint.with_suffix(DAMAGED)
    shutil.rmtree(aside, ignore_errors=True)
    return checkpoint.replace(aside)


def find_adapter(folder: Path) -> Path:
    """The folder that holds the adapter's file: of a run its final adapter, else `folder` itself.

    Raises ModelError where there is none; of a run that has not ended it names a checkpoint.
    """
    folder = Path(folder)
    if (folder / FINAL / ADAPTER_FILE).is_file():
        return folder / FINAL
    if (folder / ADAPTER_FILE).is_file():
        return folder
    pickles = [path.name for path in sorted(folder.glob("*")) if path.suffix in PICKLES]
    also = f"; {pickles[0]} is a pickle, which is never read: it could run any program" if pickles else ""
    saved = checkpoints_of(folder)
    other = f"the run has not ended; name a checkpoint, {saved[-1]}" if saved else "name the folder that holds it"
    raise ModelError(f"no adapter in {folder}: {ADAPTER_FILE} is missing{also}; {other}")


# --- what a run goes on with, beside its adapter ---------------------------------------------------------------------


def write_state(folder: Path, position: Position, optimizer: torch.optim.Optimizer) -> None:
    """Optimiser, random state and position: tensors into one file, everything else into another."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {RANDOM: torch.get_rng_state()}
    others: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        # A null holds the place of a tensor: what comes back is in the same order.
        others[str(index)] = {name: None if isinstance(v, Tensor) else v for name, v in values.items()}
        tensors |= {f"{index}.{name}": v.contiguous() for name, v in values.items() if isinstance(v, Tensor)}
    save_file(tensors, folder / TENSORS)
    update, optimizer_steps = position
    about = {"update": update, "optimizer_steps": optimizer_steps, "groups": state["param_groups"], "others": others}
    (folder / STATE).write_text(json.dumps(about) + "\n", encoding="utf-8")


def read_state(folder: Path, optimizer: torch.optim.Optimizer) -> Position:
    """Put back what `write_state` wrote; returns the position. Raises ValueError where the optimiser is another."""
    about = json.loads((folder / STATE).read_text(encoding="utf-8"))
    tensors = load_file(folder / TENSORS)
    torch.set_rng_state(tensors.pop(RANDOM))
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in about["others"].items()}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state[int(index)][name] = value.clone()  # else it would lie in the file, which is removed one day
    # JSON has no tuples, and AdamW's betas are one.
    groups = [
        {
            name: tuple(value) if isinstance(value, list) and name != "params" else value
            for name, value in group.items()
        }
        | {name: own[name] for name in STEP_KERNELS if name in own}
        for group, own in zip(about["groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return about["update"], about["optimizer_steps"]
