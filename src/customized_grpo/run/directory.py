"""The files of a run. Whatever is written replaces the old in one move: a crash leaves one or the other, whole.

config.yaml  environment.json  metrics.jsonl  evaluations.jsonl  run.lock
images/eval-00020.png          images/eval-00020/cases.json 00.png ...   images/reference-00.png ...
checkpoints/step-00020/        adapter/
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tqdm import tqdm

from customized_grpo.config import CONFIG, RunConfig, dump_config
from customized_grpo.files.durable import (
    SAVING,
    SavingError,
    append_text,
    remove_leftovers,
    sync,
    sync_tree,
    write_text,
)
from customized_grpo.files.pictures import Shown, case, save_png, sheet
from customized_grpo.policies.base import Policy
from customized_grpo.run.access import RunDirectoryError, check_access, take_lock, writable
from customized_grpo.run.cases import keep_cases
from customized_grpo.run.checkpoints import (
    DAMAGED,
    FINAL,
    FOLDER,
    INTERIM,
    Position,
    checkpoints_of,
    mark_damaged,
    newest_whole,
    read_state,
    remove_older,
    save_checkpoint,
    update_of,
    write_state,
)
from customized_grpo.run.environment import environment
from customized_grpo.run.logs import LOGS, LogRow, as_json, read_log, read_logs
from customized_grpo.run.sampling_settings import SAMPLING, SamplingSettings
from customized_grpo.run.trackers import Trackers


class RunDirectory:
    """One run's folder. A new run needs a new one, a resumed run an old one; it is one process's until `close`.

    Raises RunDirectoryError where it cannot be used so, before anything in it changes.
    """

    def __init__(self, config: RunConfig, *, resume: bool):
        self.config = config
        self.path = path = Path(config.output)
        self.notices = check_access(config, resume=resume)  # settings that changed since the last start, one line each
        with writable(path):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = take_lock(path)
            write_text(path / CONFIG, dump_config(config))  # first: from here on there is something to resume
            write_text(path / "environment.json", json.dumps(environment(), indent=2) + "\n")
            (path / FOLDER).mkdir(exist_ok=True)
            (path / "images").mkdir(exist_ok=True)
        self.trackers = Trackers(config.tracking, path, config.model_dump(mode="json"))

    @property
    def resume_command(self) -> str:
        """The command that goes on with this run."""
        return f"customized-grpo train {shlex.quote(str(self.path))} --resume"

    def log(self, row: Mapping[str, Any]) -> None:
        """Append to metrics.jsonl, and tell the trackers; say the row's warnings."""
        for warning in row.get("warnings", ()):
            say(f"warning, update {warning['update']}: {warning['kind']}: {warning['message']}")
        self._append("metrics.jsonl", row)
        self.trackers.log("train", row)

    def log_evaluation(self, row: Mapping[str, Any], shown: Sequence[Shown]) -> None:
        """Append to evaluations.jsonl and keep the shown cases, each by itself and all on one sheet."""
        self._append("evaluations.jsonl", row)
        self.trackers.log("held_out", row)
        if shown:
            images, name = self.path / "images", f"eval-{row['update']:05d}"
            titles = ["reference", "generated"]
            cards = [case([each.reference, each.picture], each.prompt, titles) for each in shown]
            with self._writing(f"the pictures of {name}"):
                keep_cases(images, name, shown)
                save_png(sheet(cards, columns=4), images / f"{name}.png")
                sync_tree(images / name)
                sync(images / f"{name}.png")
                sync(images)

    def logs(self) -> tuple[list[LogRow], list[LogRow]]:
        """The rows of metrics.jsonl and evaluations.jsonl so far."""
        return read_logs(self.path)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        line = json.dumps(as_json(row), allow_nan=False) + "\n"
        with self._writing(name):
            append_text(self.path / name, line)

    # --- saving and going on -----------------------------------------------------------------------------------------

    def checkpoint(self, position: Position, policy: Policy, optimizer: torch.optim.Optimizer) -> None:
        """Adapter, optimiser, random state and position (updates, optimiser steps); `keep_last` checkpoints stay.

        What is saved between those of `save_every` goes when the next one is there: a run that was stopped leaves the
        same checkpoints as one that was not. Raises SavingError, with the older ones as they were.
        """
        interim = position[0] % self.config.save_every != 0

        def write(folder: Path) -> None:
            self._save_adapter(policy, folder)
            write_state(folder, position, optimizer)
            if interim:
                (folder / INTERIM).touch()

        with self._writing(f"the checkpoint of update {position[0]}"):
            for log in LOGS:  # a checkpoint without the rows before it could not be gone on from
                if (self.path / log).exists():
                    sync(self.path / log)
            save_checkpoint(self.path, position[0], write, self.config.keep_last)

    def restore(self, policy: Policy, optimizer: torch.optim.Optimizer) -> Position:
        """Put the newest whole checkpoint into policy and optimiser, and its random state into torch.

        Returns its position; where there is none (0, 0), with the random state of the run's seed. What was written
        after that checkpoint is taken away: those updates run again; and what a crash kept from being removed. Raises
        RunDirectoryError where there are checkpoints and all of them are damaged.
        """
        found = self._newest_whole()
        with self._writing("the logs"):
            remove_leftovers(self.path)
            self._rewind(-1 if found is None else update_of(found))
            if found is not None:
                remove_older(found, self.config.keep_last)
        return restore_checkpoint(found, policy, optimizer, self.config.seed)

    def _newest_whole(self) -> Path | None:
        """The checkpoint to go on from; damaged ones after it are said and renamed."""
        found, damaged = newest_whole(self.path)
        wrong = "; ".join(f"{path.name} is damaged: {problem}" for path, problem in damaged.items())
        if damaged and found is None:
            raise RunDirectoryError(
                f"no checkpoint in {self.path} is whole ({wrong}); put back a copy of one, or remove the folder "
                f"{self.path / FOLDER} to go on from the first update"
            )
        if damaged and found is not None:
            say(f"note: {wrong}; going on from {found.name}, and the damaged ones end in {DAMAGED} now")
            for path in damaged:
                mark_damaged(path)
        return found

    def _rewind(self, update: int) -> None:
        """Take away rows and pictures of later updates; -1: of all, and of the evaluation before the first one."""
        for name in LOGS:
            file = self.path / name
            if file.exists():
                lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
                # strict=False: the last line may be one that was just being written.
                rows = [line for line, row in zip(lines, read_log(file), strict=False) if row["update"] <= update]
                if rows != lines:
                    write_text(file, "".join(rows))
        if update < 0:  # other settings are allowed then, perhaps with other held-out cases
            for reference in (self.path / "images").glob("reference-*.png"):
                reference.unlink()
        for pictures in (self.path / "images").glob("eval-*"):
            if re.fullmatch(r"eval-\d+", pictures.stem) and int(pictures.stem.removeprefix("eval-")) > update:
                shutil.rmtree(pictures) if pictures.is_dir() else pictures.unlink()

    def finish(self, policy: Policy) -> None:
        """Write the final adapter to adapter/. Raises SavingError."""
        target, aside = self.path / FINAL, self.path / f"{FINAL}{SAVING}"
        with self._writing("the final adapter"):
            shutil.rmtree(aside, ignore_errors=True)
            self._save_adapter(policy, aside)
            sync_tree(aside)
            if target.exists():  # of a run that is longer now: file by file, so that there is an adapter all along
                for file in sorted(aside.iterdir(), key=lambda file: file.suffix == ".safetensors"):  # weights last
                    file.replace(target / file.name)
                aside.rmdir()
            else:
                aside.replace(target)
            sync(target)
            sync(self.path)

    def pause(self, update: int) -> str:
        """The line that tells how to continue a run that was asked to stop."""
        return f"stopped after update {update}; go on with: {self.resume_command}"

    def close(self) -> None:
        """Close the trackers and release the folder, whether the run finished, stopped or failed."""
        try:
            self.trackers.finish()
        finally:
            self._lock.release()

    def _save_adapter(self, policy: Policy, folder: Path) -> None:
        policy.save_adapter(folder)
        write_text(folder / CONFIG, dump_config(self.config))
        write_text(folder / SAMPLING, json.dumps(asdict(SamplingSettings.of(self.config)), indent=2) + "\n")

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
            saved = checkpoints_of(self.path)
            last = f"{saved[-1].name} is the last checkpoint" if saved else "there is no checkpoint yet"
            raise SavingError(
                f"could not write {what} in {self.path}: {reason}; {last}. Fix this, then run: {self.resume_command}",
                reason,
            ) from error


def restore_checkpoint(
    checkpoint: Path | None, policy: Policy, optimizer: torch.optim.Optimizer, seed: int
) -> Position:
    """Put a checkpoint into policy, optimiser and torch's random state; returns its position.

    Without one that is (0, 0), with the random state of `seed`.
    """
    if checkpoint is None:
        torch.manual_seed(seed)  # nothing here draws from it, but somebody's own reward may
        return 0, 0
    policy.load_adapter(checkpoint)
    return read_state(checkpoint, optimizer)


def say(line: str) -> None:
    """A line for whoever watches, above the progress bar."""
    tqdm.write(line, file=sys.stderr)
