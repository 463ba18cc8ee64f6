"""The files of a run. Each is replaced in one step, so a crash leaves the old version or the new one.

config.yaml  samples.json  calibration.yaml  environment.json  metrics.jsonl  evaluations.jsonl  run.lock
images/eval-00020.png          images/eval-00020/cases.json 00.png ...   images/reference-00.png ...
checkpoints/step-00020/        adapter/        adapter-ema/        best/step-00020/
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError

from customized_grpo.config import CONFIG, RunConfig, dump_config, load_config
from customized_grpo.files.adapter_places import BEST, FINAL, FOLDER, bests_of, checkpoints_of, update_of
from customized_grpo.files.durable import (
    SAVING,
    SavingError,
    append_text,
    reason_of,
    remove_folder,
    remove_leftovers,
    sync,
    sync_tree,
    write_text,
)
from customized_grpo.files.notices import print_line
from customized_grpo.files.paths import as_argument
from customized_grpo.files.pictures import Shown, draw_card, draw_sheet, save_png
from customized_grpo.policies.base import Policy
from customized_grpo.policies.shadow import Shadow
from customized_grpo.run.access import RunDirectoryError, check_access, take_lock, writable
from customized_grpo.run.cases import keep_cases
from customized_grpo.run.checkpoints import (
    DAMAGED,
    EMA,
    INTERIM,
    Best,
    mark_damaged,
    newest_intact,
    remove_older,
    save_checkpoint,
)
from customized_grpo.run.environment import ENVIRONMENT, changed_plugins, environment
from customized_grpo.run.logs import LOGS, LogRow, as_json, read_logs, rewind_log
from customized_grpo.run.own_samples import OwnSamples
from customized_grpo.run.sampling_settings import SAMPLING, SamplingSettings
from customized_grpo.run.state import Position, read_state, write_state
from customized_grpo.run.trackers import Trackers

Shadows = Mapping[str, Shadow]  # copies of the adapter that follow it, by their folder in a checkpoint


class RunDirectory:
    """The folder of one run: a new folder for a new run, an existing one for a resumed run. Locked until `close`.

    own_samples  of a run whose data lies in files; kept in the folder, and beside each adapter
    files        texts by name that are kept in the same places
    describe     called with the folder of each final adapter, to write more about it there
    notices      settings that changed since the last start, one line each

    Raises RunDirectoryError if the folder cannot be used, before anything in it changes.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        resume: bool,
        own_samples: OwnSamples | None = None,
        files: Mapping[str, str] = MappingProxyType({}),
        describe: Callable[[Path], None] | None = None,
    ):
        self.config, self.own_samples, self.files, self.describe = config, own_samples, files, describe
        self.references_kept = False  # whether images/reference-*.png are those of this start
        self.path = path = Path(config.output)
        self.on_update: Callable[[Mapping[str, Any]], None] | None = None  # called with each row of an update
        self.notices = [*check_access(config, resume=resume), *changed_plugins(path)]
        with writable(path):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = take_lock(path)
            try:
                self._set_aside_shorter()
                write_text(path / CONFIG, dump_config(config))  # first: with it, the run can be resumed
                self._keep_beside(path)
                write_text(path / ENVIRONMENT, json.dumps(environment(), indent=2) + "\n")
                (path / FOLDER).mkdir(exist_ok=True)
                (path / "images").mkdir(exist_ok=True)
                self.trackers = Trackers(config.tracking, path, config.model_dump(mode="json"))
            except BaseException:
                self._lock.release()
                raise

    def _set_aside_shorter(self) -> None:
        """Rename the final adapters of a run that is made longer: until it ends, it has none."""
        for name in (FINAL, f"{FINAL}-{EMA}"):
            finished = self.path / name
            if not (finished / CONFIG).is_file():
                continue
            update = load_config(str(finished)).updates
            if update < self.config.updates:
                target = self.path / f"{name}-step-{update:05d}"
                if target.exists():
                    remove_folder(target)
                finished.replace(target)
                sync(self.path)
                self.notices.append(f"the adapter of update {update} is now in {target.name}")

    @property
    def resume_command(self) -> str:
        """The command that resumes this run."""
        return f"customized-grpo train {as_argument(self.path)} --resume"

    def log(self, row: Mapping[str, Any]) -> None:
        """Append to metrics.jsonl, pass the figures to the trackers and print the row's warnings.

        Raises SavingError.
        """
        for warning in row.get("warnings", ()):
            print_line(f"warning, update {warning['update']}: {warning['kind']}: {warning['message']}")
        self._append("metrics.jsonl", row)
        self._track("train", row)
        if self.on_update is not None:
            self.on_update(row)

    def log_evaluation(self, row: Mapping[str, Any], shown: Sequence[Shown]) -> None:
        """Append to evaluations.jsonl and save the shown cases, one by one and on a sheet, which trackers get too.

        Raises SavingError.
        """
        self._append("evaluations.jsonl", row)
        self._track("held_out", row)
        if shown:
            images, name = self.path / "images", f"eval-{row['update']:05d}"
            cards = [
                draw_card([case.reference, case.picture], case.prompt, ["reference", "generated"]) for case in shown
            ]
            with self._writing(f"the pictures of {name}"):
                keep_cases(images, name, shown, replace_references=not self.references_kept)
                self.references_kept = True
                sheet = draw_sheet(cards, columns=4)
                save_png(sheet, images / f"{name}.png")
                sync_tree(images / name)
                sync(images / f"{name}.png")
                sync(images)
            with self._writing("the trackers' files"):
                self.trackers.show("held_out/pictures", sheet, row["update"])

    def logs(self) -> tuple[list[LogRow], list[LogRow]]:
        """The rows of metrics.jsonl and evaluations.jsonl so far. Raises UsageError if a log is damaged."""
        return read_logs(self.path)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        line = json.dumps(as_json(row), allow_nan=False) + "\n"
        with self._writing(name):
            append_text(self.path / name, line)

    def _track(self, part: str, row: Mapping[str, Any]) -> None:
        with self._writing("the trackers' files"):
            self.trackers.log(part, row)

    # --- saving and resuming -----------------------------------------------------------------------------------------

    def checkpoint(
        self, position: Position, policy: Policy, optimizer: torch.optim.Optimizer, shadows: Shadows
    ) -> None:
        """Save adapter, shadows, optimiser, random state and position; keep `keep_last` checkpoints.

        A checkpoint between two multiples of `save_every` is removed once the next one is saved, so a stopped run
        leaves the same checkpoints as an uninterrupted one. Raises SavingError; the older checkpoints are then kept.
        """
        interim = position.update % self.config.save_every != 0

        def write(folder: Path) -> None:
            self._save_adapter(policy, folder)
            for name, shadow in shadows.items():
                with shadow.in_place():
                    self._save_adapter(policy, folder / name)
            write_state(folder, position, optimizer)
            if interim:
                (folder / INTERIM).touch()

        with self._writing(f"the checkpoint of update {position.update}"):
            for log in LOGS:  # a run cannot resume from a checkpoint without the rows before it
                if (self.path / log).exists():
                    sync(self.path / log)
            save_checkpoint(self.path, position.update, write, self.config.keep_last)
            for older in bests_of(self.path)[:-1]:  # only now: a run that resumes before this point still needs it
                remove_folder(older)

    def restore(self, policy: Policy, optimizer: torch.optim.Optimizer, shadows: Shadows) -> Position:
        """Load the newest intact checkpoint into policy, shadows, optimiser and torch's random state.

        Returns its position.

        Without checkpoints: the first one, and the random state follows from the run's seed. Also removes everything
        written after that checkpoint, because those updates run again, and whatever a crash left behind. Raises
        RunDirectoryError if there are checkpoints but all of them are damaged.
        """
        with self._writing("the run's state"):
            checkpoint = self._newest_intact()
            remove_leftovers(self.path)
            update = -1 if checkpoint is None else update_of(checkpoint)
            self._rewind(update)
            self.trackers.rewind(update)
            if checkpoint is not None:
                remove_older(checkpoint, self.config.keep_last)
        return restore_checkpoint(checkpoint, policy, optimizer, self.config.seed, shadows)

    def _newest_intact(self) -> Path | None:
        """The checkpoint to resume from. Damaged ones after it are reported and renamed."""
        intact, damaged = newest_intact(self.path)
        if not damaged:
            return intact
        problems = "; ".join(f"{path.name} is damaged: {problem}" for path, problem in damaged.items())
        if intact is None:
            raise RunDirectoryError(
                f"every checkpoint in {self.path} is damaged ({problems}); restore one from a copy, or remove the "
                f"folder {self.path / FOLDER} to start again from the first update"
            )
        print_line(f"note: {problems}; resuming from {intact.name}; damaged checkpoints were renamed to *{DAMAGED}")
        for path in damaged:
            mark_damaged(path)
        return intact

    def _rewind(self, update: int) -> None:
        """Remove rows and pictures of later updates; -1 also removes those of the evaluation before the first one."""
        for name in LOGS:
            rewind_log(self.path / name, update)
        images = self.path / "images"
        if update < 0:  # any setting may have changed, so the held-out cases may be different ones
            for reference in images.glob("reference-*.png"):
                reference.unlink()
        for pictures in images.glob("eval-*"):
            if re.fullmatch(r"eval-\d+", pictures.stem) and int(pictures.stem.removeprefix("eval-")) > update:
                shutil.rmtree(pictures) if pictures.is_dir() else pictures.unlink()
        for best in bests_of(self.path):
            if update_of(best) > update:
                remove_folder(best)

    def save_best(self, about: Best, policy: Policy) -> None:
        """Save the adapter of the best evaluation so far in best/. Raises SavingError."""
        target = self.path / BEST / f"step-{about.update:05d}"
        temporary = target.with_suffix(SAVING)
        with self._writing("the best adapter"):
            shutil.rmtree(temporary, ignore_errors=True)
            self._save_adapter(policy, temporary)
            write_text(temporary / f"{BEST}.json", json.dumps(about._asdict()) + "\n")
            sync_tree(temporary)
            if target.exists():
                remove_folder(target)
            temporary.replace(target)
            sync(target.parent)

    def finish(self, policy: Policy, shadows: Shadows) -> None:
        """Save the final adapter in adapter/, and its moving average in adapter-ema/. Raises SavingError."""
        self._save_final(policy, FINAL)
        if EMA in shadows:
            with shadows[EMA].in_place():
                self._save_final(policy, f"{FINAL}-{EMA}")

    def _save_final(self, policy: Policy, name: str) -> None:
        target, temporary = self.path / name, self.path / f"{name}{SAVING}"
        with self._writing("the final adapter"):
            shutil.rmtree(temporary, ignore_errors=True)
            self._save_adapter(policy, temporary)
            sync_tree(temporary)
            if target.exists():  # of a shorter run; replaced file by file, so that there always is an adapter
                weights_last = sorted(temporary.iterdir(), key=lambda file: file.suffix == ".safetensors")
                for file in weights_last:
                    file.replace(target / file.name)
                temporary.rmdir()
            else:
                temporary.replace(target)
            sync(target)
            sync(self.path)
        if self.describe is not None:
            with self._writing("the card of the final adapter"):
                self.describe(target)

    def pause(self, update: int) -> str:
        """The message of a run that was asked to stop: how to resume it."""
        return f"stopped after update {update}; resume with: {self.resume_command}"

    def close(self) -> None:
        """Close the trackers and unlock the folder, whether the run finished, stopped or failed."""
        try:
            self.trackers.finish()
        finally:
            self._lock.release()

    def _save_adapter(self, policy: Policy, folder: Path) -> None:
        policy.save_adapter(folder)
        write_text(folder / CONFIG, dump_config(self.config))
        self._keep_beside(folder)
        write_text(folder / SAMPLING, json.dumps(asdict(SamplingSettings.of(self.config)), indent=2) + "\n")

    def _keep_beside(self, folder: Path) -> None:
        if self.own_samples is not None:
            self.own_samples.write(folder)
        for name, text in self.files.items():
            write_text(folder / name, text)

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """Raises SavingError, with the way to continue, if the block cannot write."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            reason, saved = reason_of(error), checkpoints_of(self.path)
            last = f"{saved[-1].name} is the last checkpoint" if saved else "there is no checkpoint yet"
            raise SavingError(
                f"could not write {what} in {self.path}: {reason}; {last}. Fix this, then run: {self.resume_command}",
                reason,
            ) from error


def restore_checkpoint(
    checkpoint: Path | None, policy: Policy, optimizer: torch.optim.Optimizer, seed: int, shadows: Shadows
) -> Position:
    """Load a checkpoint into policy, shadows, optimiser and torch's random state; returns its position.

    Without one it is the first position, and the random state follows from `seed`.
    """
    if checkpoint is None:
        torch.manual_seed(seed)  # nothing in this package draws from it, but a user's own reward may
        return Position()
    for name, shadow in shadows.items():
        shadow.load(checkpoint / name)
    policy.load_adapter(checkpoint)
    return read_state(checkpoint, optimizer)
