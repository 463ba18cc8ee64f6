"""TensorBoard, Weights & Biases and Trackio, through Accelerate's common interface: figures, and pictures.

All work offline: TensorBoard writes into the run, Weights & Biases into the run until `wandb sync`, Trackio into its
own folder. Each is an extra: `pip install customized-grpo[tensorboard]`, `[wandb]`, `[trackio]`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from customized_grpo.errors import UsageError, first_line

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker


class Trackers:
    """The trackers of one run; each gets the same figures, with the update as the step. Raises UsageError."""

    def __init__(self, names: tuple[str, ...], run: Path, config: Mapping[str, Any]):
        self.check(names)
        self.trackers: list[Any] = [_start(name, run) for name in names]
        # TensorBoard does not accept None
        settings = {name: "null" if value is None else value for name, value in flatten(config)}
        for tracker in self.trackers:
            tracker.store_init_configuration(settings)

    @staticmethod
    def check(names: tuple[str, ...]) -> None:
        """Raises UsageError if a tracker is not installed."""
        for name in names:
            if find_spec(name) is None:
                raise UsageError(
                    f'tracking: {name} is not installed; pip install "customized-grpo[{name}]", or leave it out'
                )

    def log(self, part: str, row: Mapping[str, Any]) -> None:
        """Send a row's finite numbers as "part/name"; everything else stays in the run's own files only."""
        figures = {f"{part}/{name}": value for name, value in flatten(row) if _is_finite_number(value)}
        for tracker in self.trackers:
            tracker.log(figures, step=row["update"])

    def show(self, name: str, picture: Image.Image, update: int) -> None:
        """Send a picture, with the update as the step."""
        for tracker in self.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({name: np.asarray(picture)[None]}, step=update, dataformats="NHWC")
            elif tracker.name == "wandb":
                tracker.log_images({name: [picture]}, step=update)
            else:
                trackio: Any = import_module("trackio")
                tracker.log({name: trackio.Image(picture)}, step=update)

    def rewind(self, update: int) -> None:
        """Tell TensorBoard that everything after an update is void: it is computed, and logged, again.

        The others cannot forget. There every start of a run is a run of its own.
        """
        for tracker in self.trackers:
            if tracker.name == "tensorboard":
                events: Any = import_module("tensorboard.compat.proto.event_pb2")
                restart = events.Event(session_log=events.SessionLog(status=events.SessionLog.START))
                tracker.tracker.file_writer.add_event(restart, step=update + 1)

    def finish(self) -> None:
        """Let every tracker write what it still holds."""
        for tracker in self.trackers:
            tracker.finish()


def _start(name: str, run: Path) -> GeneralTracker:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    settings: dict[str, Any] = {
        "tensorboard": {"logging_dir": run},
        "wandb": {"dir": str(run), "name": run.name},
        "trackio": {"name": run.name},
    }[name]
    if name == "wandb":
        os.environ.setdefault("WANDB_MODE", "offline")
    PartialState()  # Accelerate's trackers read the process index from it
    project = "tensorboard" if name == "tensorboard" else "customized-grpo"
    try:
        tracker = LOGGER_TYPE_TO_CLASS[name](project, **settings)
        tracker.start()
    except Exception as error:  # each library has its own types, for a missing login or an unreachable server
        raise UsageError(f"tracking: {name} cannot start: {first_line(error)}; fix this, or leave it out") from error
    return tracker


def flatten(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Entries with nested names joined by dots; lists (of steps, of warnings) are left out."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        elif value is None or isinstance(value, str | bool | int | float):
            yield f"{prefix}{name}", value


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
