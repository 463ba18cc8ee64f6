"""The files of a run. Whatever is written replaces the old in one move: a crash leaves one or the other, whole.

config.yaml  environment.json  metrics.jsonl  evaluations.jsonl  run.lock
images/eval-00020.png          images/eval-00020/cases.json 00.png ...   images/reference-00.png ...
checkpoints/step-00020/        adapter/
"""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from tqdm import tqdm

from customized_grpo.checkpoints import (
    DAMAGED,
    FINAL,
    FOLDER,
    INTERIM,
    Position,
    checkpoints_of,
    newest_whole,
    read_state,
    remove_older,
    save_checkpoint,
    set_aside,
    update_of,
    write_state,
)
from customized_grpo.config import CONFIG, RunConfig
from customized_grpo.durable import SAVING, remove_leftovers, replacing, sync, sync_tree, write_text
from customized_grpo.environment import environment
from customized_grpo.fields import NonNegative, Pixels, Positive, Steps, Tokens
from customized_grpo.pictures import Shown, case, sheet
from customized_grpo.policies.base import Policy
from customized_grpo.run_access import RunDirectoryError, check_access, take_lock, writable
from customized_grpo.trackers import Trackers

SAMPLING = "sampling.json"
CASES = "cases.json"
LOGS = ("metrics.jsonl", "evaluations.jsonl")
Row = dict[str, Any]  # of a log
REFERENCE_SIDE = 512  # pixels, at most, of the references that are kept beside the pictures


class SavingError(RuntimeError):
    """Something could not be written while a run was going on; the message says what, why and how to go on."""


@dataclass(frozen=True)
class SamplingSettings:
    """What an adapter was trained with and must be used with; written beside it."""

    num_steps: Steps
    shift: Positive | Literal["checkpoint"]
    guidance: NonNegative
    height: Pixels
    width: Pixels
    max_sequence_length: Tokens

    @classmethod
    def read(cls, adapter: Path) -> SamplingSettings | None:
        """The settings beside an adapter; None where there are none (an adapter from elsewhere)."""
        file = adapter / SAMPLING
        if not file.is_file():
            return None
        try:
            return TypeAdapter(cls).validate_json(file.read_bytes())
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            raise ValueError(f"{file} is not what training writes ({wrong}); copy it again, or remove it") from None


class RunDirectory:
    """One run's folder. A new run needs a new one, a resumed run an old one; it is one process's until `close`.

    Raises RunDirectoryError where it cannot be used so, before anything in it changes.
    """

    def __init__(
        self, path: Path, config_text: str, settings: SamplingSettings, *, resume: bool, tracking: tuple[str, ...] = ()
    ):
        self.path, self.config_text, self.settings = path, config_text, settings
        self.notices = self.check(path, config_text, resume=resume)  # what is another than before, one sentence each
        with writable(path):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = take_lock(path)
            write_text(path / CONFIG, config_text)  # first: from here on there is something to resume
            write_text(path / "environment.json", json.dumps(environment(), indent=2) + "\n")
            (path / FOLDER).mkdir(exist_ok=True)
            (path / "images").mkdir(exist_ok=True)
        self.trackers = Trackers(tracking, path, yaml.safe_load(config_text))

    @staticmethod
    def check(path: Path, config_text: str, *, resume: bool) -> list[str]:
        """What has changed since the run was last started, one line each; nothing is written.

        Raises RunDirectoryError unless a run with this configuration can start, or resume, in this folder.
        """
        return check_access(path, config_text, resume=resume)

    @property
    def how_to_resume(self) -> str:
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
                with replacing(images / f"{name}.png") as aside:
                    sheet(cards, columns=4).save(aside, format="PNG")
                sync_tree(images / name)
                sync(images / f"{name}.png")
                sync(images)

    def logs(self) -> tuple[list[Row], list[Row]]:
        """The rows of metrics.jsonl and evaluations.jsonl so far."""
        return read_logs(self.path)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        line = json.dumps(_as_json(row), allow_nan=False) + "\n"
        with self._writing(name), (self.path / name).open("a", encoding="utf-8") as file:
            file.write(line)

    # --- saving and going on -----------------------------------------------------------------------------------------

    def checkpoint(
        self,
        position: Position,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        config: RunConfig,
    ) -> None:
        """Adapter, optimiser, random state and position (updates, optimiser steps); `keep_last` checkpoints stay.

        What is saved between those of `save_every` goes when the next one is there: a run that was stopped leaves the
        same checkpoints as one that was not. Raises SavingError, with the older ones as they were.
        """
        interim = position[0] % config.save_every != 0

        def write(folder: Path) -> None:
            self._save_adapter(policy, folder)
            write_state(folder, position, optimizer)
            if interim:
                (folder / INTERIM).touch()

        with self._writing(f"the checkpoint of update {position[0]}"):
            for log in LOGS:  # a checkpoint without the rows before it could not be gone on from
                if (self.path / log).exists():
                    sync(self.path / log)
            save_checkpoint(self.path, position[0], write, config.keep_last)

    def restore(self, policy: Policy, optimizer: torch.optim.Optimizer, config: RunConfig) -> Position:
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
                remove_older(found, config.keep_last)
        return go_on_from(found, policy, optimizer, config.seed)

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
                set_aside(path)
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
        """Write the final adapter to adapter/ and close the trackers. Raises SavingError."""
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
        self.trackers.finish()

    def pause(self, update: int) -> str:
        """Close the trackers of a run that is asked to stop; returns how to go on, in words."""
        self.trackers.finish()
        return f"stopped after update {update}; go on with: {self.how_to_resume}"

    def close(self) -> None:
        """Let others use the folder; for a run that ended, however it did."""
        self._lock.release()

    def _save_adapter(self, policy: Policy, folder: Path) -> None:
        policy.save_adapter(folder)
        write_text(folder / CONFIG, self.config_text)
        write_text(folder / SAMPLING, json.dumps(asdict(self.settings), indent=2) + "\n")

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or str(error)
            saved = checkpoints_of(self.path)
            last = f"{saved[-1].name} is the last checkpoint" if saved else "there is no checkpoint yet"
            raise SavingError(
                f"could not write {what} in {self.path}: {reason}; {last}. Mend that, then: {self.how_to_resume}"
            ) from error


def go_on_from(checkpoint: Path | None, policy: Policy, optimizer: torch.optim.Optimizer, seed: int) -> Position:
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


def read_logs(run: Path) -> tuple[list[Row], list[Row]]:
    """The rows of a run's metrics.jsonl and evaluations.jsonl."""
    metrics, evaluations = (read_log(run / name) for name in LOGS)
    return metrics, evaluations


def read_log(file: Path) -> list[Row]:
    """The rows of a JSONL file; none where there is no file, and not the one that is just being written."""
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows += [json.loads(line)] if line.endswith("\n") else []
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number}: not JSON: {error.msg}; restore it, or remove the line") from None
    return rows


def keep_reference(reference: Image.Image, file: Path) -> None:
    """Save a reference for people to look at, made smaller where it is a photograph."""
    small = reference.copy()
    small.thumbnail((REFERENCE_SIDE, REFERENCE_SIDE))
    with replacing(file) as aside:
        small.save(aside, format="PNG")


def keep_cases(images: Path, name: str, shown: Sequence[Shown]) -> None:
    """Write the cases' pictures to `images`/`name`/, their references, once for all names, to `images` itself.

    `images`/`name`/cases.json lists them: sample, subject, prompt, scores (null: could not be scored), and the two
    files relative to `images`.
    """
    (images / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for number, each in enumerate(shown):
        reference, picture = f"reference-{number:02d}.png", f"{name}/{number:02d}.png"
        if not (images / reference).exists():
            keep_reference(each.reference, images / reference)
        each.picture.save(images / picture)
        about = {"sample": each.sample, "subject": each.subject, "prompt": each.prompt}
        rows.append(_as_json({**about, "reference": reference, "picture": picture, "scores": each.scores}))
    write_text(images / name / CASES, json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _as_json(value: Any) -> Any:
    """JSON has no NaN and no infinity: a figure that does not exist is null."""
    if isinstance(value, Mapping):
        return {key: _as_json(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_as_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
