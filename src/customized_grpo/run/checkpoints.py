"""Checkpoints: one folder each, with a checksum of every file, so that damage is found before a checkpoint is used.

checkpoints/step-00020/   the adapter as the policy writes it, config.yaml, sampling.json
                          ema/                    the same with the moving average of the adapter, if there is one
                          optimizer.safetensors   tensors of the optimiser, and torch's random state
                          state.json              position, and the rest of the optimiser's state
                          interim                 only if the next checkpoint replaces this one
                          manifest.json           file -> SHA-256; written last

No file is a pickle: a checkpoint from elsewhere can hold wrong numbers, but cannot execute anything.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from customized_grpo.files.adapter_places import BEST, FOLDER, TENSORS, bests_of, checkpoints_of, update_of
from customized_grpo.files.durable import SAVING, digest, reason_of, remove_folder, sync, sync_tree, write_text
from customized_grpo.files.json_text import read_json

EMA = "ema"  # in a checkpoint: the moving average of the adapter; after its last update in adapter-ema/
OLD = "old"  # in a checkpoint: the copy of the adapter that samples with `objective.kind: nft`
MANIFEST, STATE = "manifest.json", "state.json"
INTERIM = "interim"  # an empty file in a checkpoint that was saved only because the run was stopped, or ended
DAMAGED = ".damaged"  # ending of checkpoints that were found damaged


class Best(NamedTuple):
    """The best evaluation so far, by the figure that `keep_best` names."""

    update: int
    figure: str
    value: float


def describe_best(run: Path) -> str | None:
    """A line about the best adapter of a run; None if it keeps none. Raises JsonError for a damaged file."""
    if not (folders := bests_of(run)):
        return None
    about = read_json(folders[-1] / f"{BEST}.json", TypeAdapter(Best), "remove the folder")
    return f"best adapter: {folders[-1]} ({about['figure']} {about['value']:.3f}, update {about['update']})"


def save_checkpoint(run: Path, update: int, write: Callable[[Path], None], keep_last: int | None) -> None:
    """Let `write` fill a new checkpoint; once it is on disk, remove interim checkpoints and all but `keep_last`.

    If anything fails, the existing checkpoints stay.
    """
    target = run / FOLDER / f"step-{update:05d}"
    temporary = target.with_suffix(SAVING)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        write(temporary)
        files = (path for path in sorted(temporary.rglob("*")) if path.is_file())
        sums = {path.relative_to(temporary).as_posix(): digest(path) for path in files}
        write_text(temporary / MANIFEST, json.dumps(sums, indent=1) + "\n")
        sync_tree(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # it would take up room on a full disk
        raise
    if target.exists():
        remove_folder(target)  # an earlier attempt at the same update, which this run did not resume from
    temporary.replace(target)
    sync(target.parent)
    remove_older(target, keep_last)


def remove_older(checkpoint: Path, keep_last: int | None) -> None:
    """Of the checkpoints before an intact one, remove the interim ones and as many others as exceed `keep_last`."""
    older = [path for path in checkpoints_of(checkpoint.parents[1]) if update_of(path) < update_of(checkpoint)]
    interim = [path for path in older if (path / INTERIM).exists()]
    regular = [path for path in older if path not in interim]
    surplus = [] if keep_last is None else regular[: max(len(regular) + 1 - keep_last, 0)]
    for path in (*interim, *surplus):
        remove_folder(path)


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None if every file has the checksum that it was written with."""
    try:
        sums: Any = json.loads((checkpoint / MANIFEST).read_bytes())
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, RecursionError):
        sums = None
    if not isinstance(sums, dict):
        return f"{MANIFEST} cannot be read"
    unlisted = (f"{MANIFEST} lacks {name}" for name in sorted({TENSORS, STATE} - sums.keys()))
    damaged = (f"{name} {problem}" for name in sums if (problem := _file_damage(checkpoint / name, sums[name])))
    return next(chain(unlisted, damaged), None)


def _file_damage(file: Path, expected: str) -> str | None:
    try:
        return None if digest(file) == expected else "does not match its checksum"
    except FileNotFoundError:
        return "is missing"
    except (OSError, ValueError) as error:  # unreadable, or a name that no file can have
        return f"cannot be read ({reason_of(error)})"


def newest_intact(run: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest intact checkpoint (None if there is none), and what is wrong with each checkpoint after it."""
    damaged: dict[Path, str] = {}
    for checkpoint in reversed(checkpoints_of(run)):
        problem = find_damage(checkpoint)
        if problem is None:
            return checkpoint, damaged
        damaged[checkpoint] = problem
    return None, damaged


def mark_damaged(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint so that it no longer counts as one; returns the new path."""
    renamed = checkpoint.with_suffix(DAMAGED)
    shutil.rmtree(renamed, ignore_errors=True)
    return checkpoint.replace(renamed)
