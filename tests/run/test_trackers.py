"""Trackers get the numbers of every row and the picture sheets, offline, and are closed however the run ends."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from PIL import Image

from customized_grpo.errors import UsageError
from customized_grpo.run.directory import RunDirectory
from customized_grpo.run.trackers import Trackers, flatten
from customized_grpo.training.trainer import Trainer
from runs import SMALL


def test_tensorboard_reads_back_every_number_in_the_logs(make_trainer: Callable[..., Trainer], tmp_path: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    make_trainer(*SMALL, "updates=2", "evaluation.every=1", "tracking=[tensorboard]").train()
    run = tmp_path / "run"
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for part, file in (("train", "metrics.jsonl"), ("held_out", "evaluations.jsonl")):
        rows = [json.loads(line) for line in (run / file).read_text().splitlines()]
        for name, value in flatten(rows[-1]):
            scalars = events.Scalars(f"{part}/{name}")
            assert [event.step for event in scalars] == [row["update"] for row in rows]
            assert scalars[-1].value == pytest.approx(value, rel=1e-6)
    assert {"train/reward_identity", "train/seconds.rollout", "held_out/joint_success"} <= {*events.Tags()["scalars"]}


def test_tensorboard_reads_back_every_sheet_once_though_the_run_was_killed(
    make_trainer: Callable[..., Trainer], tmp_path: Path
):
    """It dies in update 4 and goes on from the checkpoint of update 2: update 3 is computed, and logged, twice."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = (*SMALL, "updates=4", "save_every=2", "evaluation.every=1", "tracking=[tensorboard]")
    trainer = make_trainer(*settings)
    step = trainer.step

    def die() -> dict[str, Any]:
        if trainer.update == 3:
            raise RuntimeError("killed")
        return step()

    trainer.step = die
    with pytest.raises(RuntimeError, match="killed"):
        trainer.train()
    make_trainer(*settings, resume=True).train()
    run = tmp_path / "run"
    keep_all = {accumulator.IMAGES: 0, accumulator.SCALARS: 0}
    events = accumulator.EventAccumulator(str(run / "tensorboard"), size_guidance=keep_all)
    events.Reload()
    sheets = events.Images("held_out/pictures")
    assert [sheet.step for sheet in sheets] == [0, 1, 2, 3, 4]
    for sheet in sheets:
        with Image.open(BytesIO(sheet.encoded_image_string)) as read, Image.open(_sheet(run, sheet.step)) as kept:
            assert np.array_equal(np.asarray(read), np.asarray(kept))
    assert [event.step for event in events.Scalars("train/reward_identity")] == [1, 2, 3, 4]


def _sheet(run: Path, update: int) -> Path:
    return run / "images" / f"eval-{update:05d}.png"


@pytest.mark.parametrize("fails", [False, True], ids=["finished", "failed"])
def test_trackers_are_closed_once_however_the_run_ends(
    fails: bool, make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """The first update is logged, the second one fails: its row is in TensorBoard's file, which is closed."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    trainer = make_trainer(*SMALL, "updates=2", "tracking=[tensorboard]")
    directory, step = trainer.directory, trainer.step
    assert isinstance(directory, RunDirectory)
    tensorboard: Any = directory.trackers.trackers[0]
    finished = []
    finish = directory.trackers.finish
    monkeypatch.setattr(directory.trackers, "finish", lambda: finished.append(finish()))

    def fail_later() -> dict[str, Any]:
        if fails and trainer.update == 1:
            raise RuntimeError("the second update fails")
        return step()

    monkeypatch.setattr(trainer, "step", fail_later)
    with pytest.raises(RuntimeError, match="second update") if fails else nullcontext():
        trainer.train()
    assert len(finished) == 1
    assert tensorboard.tracker.file_writer is None  # closed
    events = [e for f in (tmp_path / "run").rglob("events.out.*") for e in loader.EventFileLoader(str(f)).Load()]
    assert {e.step for e in events if e.summary.value} - {0} == ({1} if fails else {1, 2})


def test_a_tracker_that_cannot_start_is_named(make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch):
    """The folder is unlocked again: the run can start without the tracker."""

    class Unreachable:
        def __init__(self, *_: object, **__: object):
            raise ConnectionError("no route to host")

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "tensorboard", Unreachable)
    with pytest.raises(UsageError, match="tracking: tensorboard cannot start: no route to host; fix this, or leave"):
        make_trainer(*SMALL, "tracking=[tensorboard]")
    make_trainer(*SMALL, resume=True)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_other_trackers_record_a_run_offline(
    name: str, make_trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """They are optional extras. Their folders hold the sheets of the run's evaluations."""
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is imported
    make_trainer(*SMALL, "updates=2", "evaluation.every=1", f"tracking=[{name}]").train()
    written = [path for path in tmp_path.rglob("*") if path.suffix in (".wandb", ".db")]
    assert written
    assert all(path.stat().st_size > 0 for path in written)
    pictures = [path for path in tmp_path.rglob("*.png") if "media" in path.parts]
    sheets = [_sheet(tmp_path / "run", update) for update in range(3)]
    assert sorted(map(_pixels, pictures)) == sorted(map(_pixels, sheets))


def _pixels(file: Path) -> bytes:
    with Image.open(file) as picture:
        return picture.convert("RGB").tobytes()


def test_a_missing_tracker_is_named_before_anything_is_written(
    make_trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("customized_grpo.run.trackers.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r'wandb is not installed; pip install "customized-grpo\[wandb\]"'):
        make_trainer("tracking=[wandb]")
    assert not (tmp_path / "run").exists()


def test_trackers_get_finite_numbers_only():
    class Recorder:
        def log(self, figures: dict[str, float], step: int) -> None:
            self.figures, self.step = figures, step

    own, recorder = Trackers((), Path(), {}), Recorder()
    own.trackers.append(recorder)  # pyright: ignore[reportArgumentType]
    row = {"update": 3, "a": 1.5, "b": float("nan"), "c": None, "d": "text", "e": {"f": 2}, "steps": [{"g": 1}]}
    own.log("train", row)
    assert recorder.figures == {"train/update": 3, "train/a": 1.5, "train/e.f": 2}
    assert recorder.step == 3
