"""Trackers get the numbers of every row, offline; TensorBoard's files are read back by TensorBoard."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from customized_grpo.run.trackers import Trackers, flatten
from customized_grpo.training.trainer import Trainer


def test_tensorboard_holds_every_number_of_the_runs_own_files(make_trainer: Callable[..., Trainer], tmp_path: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    make_trainer("updates=2", "evaluation.every=1", "tracking=[tensorboard]").train()
    run = tmp_path / "run"
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for part, file in (("train", "metrics.jsonl"), ("held_out", "evaluations.jsonl")):
        rows = [json.loads(line) for line in (run / file).read_text().splitlines()]
        for name, value in flatten(rows[-1]):
            found = events.Scalars(f"{part}/{name}")
            assert [event.step for event in found] == [row["update"] for row in rows]
            assert found[-1].value == pytest.approx(value, rel=1e-6)
    assert {"train/reward_identity", "train/seconds.rollout", "held_out/joint_success"} <= {*events.Tags()["scalars"]}


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_other_trackers_take_a_run_offline(
    name: str, make_trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """They are extras: skipped where they are not installed."""
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is imported
    make_trainer("updates=2", f"tracking=[{name}]").train()
    written = [path for path in tmp_path.rglob("*") if path.suffix in (".wandb", ".db")]
    assert written
    assert all(path.stat().st_size > 0 for path in written)


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_made(
    make_trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("customized_grpo.run.trackers.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r'wandb is not installed; pip install "customized-grpo\[wandb\]"'):
        make_trainer("tracking=[wandb]")
    assert not (tmp_path / "run").exists()


def test_what_is_no_finite_number_stays_in_the_runs_own_files():
    class Recorder:
        def log(self, figures: dict[str, float], step: int) -> None:
            self.figures, self.step = figures, step

    trackers, recorder = Trackers((), Path(), {}), Recorder()
    trackers.trackers.append(recorder)  # pyright: ignore[reportArgumentType]
    row = {"update": 3, "a": 1.5, "b": float("nan"), "c": None, "d": "text", "e": {"f": 2}, "steps": [{"g": 1}]}
    trackers.log("train", row)
    assert recorder.figures == {"train/update": 3, "train/a": 1.5, "train/e.f": 2}
    assert recorder.step == 3
