"""The files of a run. Whatever is written replaces the old in one move: a crash leaves one or the other, whole.

config.yaml  environment.json  metrics.jsonl  evaluations.jsonl
images/eval-00020.png          images/eval-00020/cases.json 00.png ...   images/reference-00.png ...
checkpoints/step-00020/        adapter/
"""

from __future__ import annotations

import json
import math
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from customized_grpo.config import CONFIG
from customized_grpo.pictures import Shown, case, sheet
from customized_grpo.policies.base import Policy
from customized_grpo.trackers import Trackers

STATE = "state.pt"
SAMPLING = "sampling.json"
CASES = "cases.json"
REFERENCE_SIDE = 512  # pixels, at most, of the references that are kept beside the pictures
PACKAGES = ("customized-grpo", "torch", "diffusers", "transformers", "peft", "numpy")


class RunDirectoryError(ValueError):
    """A run directory that cannot be used as asked; the message names the ways out."""


@dataclass(frozen=True)
class SamplingSettings:
    """What an adapter was trained with and must be used with; written beside it."""

    num_steps: int
    shift: float | str
    guidance: float
    height: int
    width: int
    max_sequence_length: int

    @classmethod
    def read(cls, adapter: Path) -> SamplingSettings | None:
        """The settings beside an adapter; None where there are none (an adapter from elsewhere)."""
        file = adapter / SAMPLING
        return cls(**json.loads(file.read_text())) if file.is_file() else None


class RunDirectory:
    """One run's folder. A new run needs a new one, a resumed run an old one."""

    def __init__(
        self, path: Path, config_text: str, settings: SamplingSettings, *, resume: bool, tracking: tuple[str, ...] = ()
    ):
        self.path, self.config_text, self.settings = path, config_text, settings
        self.check(path, resume=resume)
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        (path / "images").mkdir(exist_ok=True)
        write_text(path / CONFIG, config_text)
        write_text(path / "environment.json", json.dumps(environment(), indent=2) + "\n")
        self.trackers = Trackers(tracking, path, yaml.safe_load(config_text))

    @staticmethod
    def check(path: Path, *, resume: bool) -> None:
        """RunDirectoryError unless a run can start, or resume, in this folder."""
        if resume and not (path / CONFIG).is_file():
            raise RunDirectoryError(f"nothing to resume: {path} holds no run; leave out --resume to start one")
        if not resume and path.exists() and any(path.iterdir()):
            raise RunDirectoryError(
                f"{path} exists; continue that run with --resume, or choose another folder with output=..."
            )

    def log(self, row: Mapping[str, Any]) -> None:
        """Append to metrics.jsonl, and tell the trackers."""
        self._append("metrics.jsonl", row)
        self.trackers.log("train", row)

    def log_evaluation(self, row: Mapping[str, Any], shown: Sequence[Shown]) -> None:
        """Append to evaluations.jsonl and keep the shown cases, each by itself and all on one sheet."""
        self._append("evaluations.jsonl", row)
        self.trackers.log("held_out", row)
        if shown:
            images, name = self.path / "images", f"eval-{row['update']:05d}"
            keep_cases(images, name, shown)
            titles = ["reference", "generated"]
            cards = [case([each.reference, each.picture], each.prompt, titles) for each in shown]
            sheet(cards, columns=4).save(images / f"{name}.png")

    def logs(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The rows of metrics.jsonl and evaluations.jsonl so far."""
        metrics, evaluations = (read_log(self.path / name) for name in ("metrics.jsonl", "evaluations.jsonl"))
        return metrics, evaluations

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(_as_json(row), allow_nan=False) + "\n")

    def checkpoint(self, position: tuple[int, int], policy: Policy, optimizer: torch.optim.Optimizer) -> None:
        """Adapter, optimiser, random state and position (updates, optimiser steps), saved aside and renamed."""
        update, optimizer_steps = position
        target = self.path / "checkpoints" / f"step-{update:05d}"
        aside = target.with_suffix(".saving")
        shutil.rmtree(aside, ignore_errors=True)
        self._save_adapter(policy, aside)
        state = {
            "update": update,
            "optimizer_steps": optimizer_steps,
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }
        torch.save(state, aside / STATE)
        shutil.rmtree(target, ignore_errors=True)
        aside.replace(target)

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        whole = (p for p in (self.path / "checkpoints").glob("step-*") if p.suffix != ".saving")
        return sorted(whole, key=lambda path: int(path.name.removeprefix("step-")))

    def restore(self, policy: Policy, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
        """Put the newest checkpoint into policy and optimiser; returns its position, (0, 0) where there is none.

        Rows written after that checkpoint are taken out of the logs: those updates run again.
        """
        found = self.checkpoints()
        update = optimizer_steps = 0
        if found:
            policy.load_adapter(found[-1])
            state = torch.load(found[-1] / STATE, weights_only=True)
            optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["rng"])
            update, optimizer_steps = state["update"], state["optimizer_steps"]
        for name, kept in (("metrics.jsonl", update), ("evaluations.jsonl", update if found else -1)):
            file = self.path / name
            if file.exists():
                lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
                rows = [line for line in lines if line.endswith("\n") and json.loads(line)["update"] <= kept]
                write_text(file, "".join(rows))
        return update, optimizer_steps

    def finish(self, policy: Policy) -> None:
        """Write the final adapter to adapter/ and close the trackers."""
        target, aside = self.path / "adapter", self.path / "adapter.saving"
        shutil.rmtree(aside, ignore_errors=True)
        self._save_adapter(policy, aside)
        shutil.rmtree(target, ignore_errors=True)
        aside.replace(target)
        self.trackers.finish()

    def _save_adapter(self, policy: Policy, folder: Path) -> None:
        policy.save_adapter(folder)
        write_text(folder / CONFIG, self.config_text)
        write_text(folder / SAMPLING, json.dumps(asdict(self.settings), indent=2) + "\n")


def read_log(file: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; none where there is no file."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def keep_reference(reference: Image.Image, file: Path) -> None:
    """Save a reference for people to look at, made smaller where it is a photograph."""
    small = reference.copy()
    small.thumbnail((REFERENCE_SIDE, REFERENCE_SIDE))
    small.save(file)


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


def write_text(path: Path, text: str) -> None:
    """Write beside and rename."""
    aside = path.with_name(path.name + ".saving")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def environment() -> dict[str, Any]:
    """Versions and hardware of this process, and the command that started it."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: version(name) for name in PACKAGES},
        "command": sys.argv,
    }
