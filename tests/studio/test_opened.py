"""Which runs the studio shows, their checkpoints, and what it reads again while a run goes on."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from customized_grpo.errors import InputError
from customized_grpo.studio.opened import BUILT_IN, Live, newest_run, open_folders
from customized_grpo.training.trainer import Trainer
from runs import SMALL

SAVED = (*SMALL, "updates=3", "save_every=1", "evaluation.every=3")


@pytest.fixture
def run(make_trainer: Callable[..., Trainer]) -> Path:
    """Three updates, with a checkpoint after each, and evaluations before the first and after the last."""
    trainer = make_trainer(*SAVED, "keep_last=3")
    trainer.train()
    return trainer.directory.path


def test_without_arguments_it_is_the_newest_run_or_else_the_built_in_model(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (opened,), line = open_folders([])
    assert (opened.name, opened.run, opened.checkpoints()) == (BUILT_IN, None, {})
    assert line == "the built-in model without an adapter: no run in ./runs"
    for name in ("older", "newer"):
        shutil.copytree(run, tmp_path / "runs" / name)
    os.utime(tmp_path / "runs/older/metrics.jsonl", (1, 1))
    os.utime(tmp_path / "runs/older/evaluations.jsonl", (1, 1))
    os.utime(tmp_path / "runs/older/environment.json", (1, 1))
    (opened,), line = open_folders([])
    assert opened.run == Path("runs/newer")
    assert line == "runs/newer, the newest run in ./runs"


def test_a_demo_counts_as_its_run(run: Path, tmp_path: Path):
    demo = tmp_path / "runs" / "demo"
    shutil.copytree(run, demo / "run")
    assert newest_run(tmp_path / "runs") == demo / "run"  # a demo that still trains has no summary yet
    (demo / "summary.json").write_text("{}")
    assert newest_run(tmp_path / "runs") == demo
    assert open_folders([demo])[0][0].run == demo / "run"


def test_several_runs_have_different_names(run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "a" / "run")
    opened, line = open_folders([run, tmp_path / "a" / "run", run])
    assert [each.name for each in opened] == [f"{tmp_path.name}/run", "a/run"]
    assert line == f"{tmp_path.name}/run, a/run"


@pytest.mark.parametrize(("files", "complaint"), [((), "is not a run"), (("probe.json",), "is the folder of a probe")])
def test_other_folders_are_refused(files: tuple[str, ...], complaint: str, tmp_path: Path):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=complaint):
        open_folders([tmp_path])


def test_checkpoints_are_listed_by_update_and_the_last_adapter_once(run: Path):
    (opened,), _ = open_folders([run])
    assert opened.checkpoints() == {f"update {n}": run / "checkpoints" / f"step-{n:05d}" for n in (1, 2, 3)}
    shutil.rmtree(run / "checkpoints" / "step-00003")
    assert list(opened.checkpoints().items())[-1] == ("update 3, the last", run / "adapter")
    shutil.copytree(run / "adapter", run / "best" / "step-00002")
    shutil.copytree(run / "adapter", run / "best" / "step-00000")
    assert list(opened.checkpoints()) == ["update 0, the best", "update 1", "update 2", "update 3, the last"]


def test_a_run_that_was_made_longer_has_its_new_end(run: Path):
    (opened,), _ = open_folders([run])
    before = Live().state(opened)
    shutil.rmtree(run / "checkpoints")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("updates: 3", "updates: 10"))
    assert (opened.updates, list(opened.checkpoints())) == (10, ["update 3, the last"])
    assert Live().state(opened)["rows"] != before["rows"]


def test_a_run_is_read_again_when_it_has_something_new(run: Path):
    (opened,), _ = open_folders([run])
    live = Live()
    before, state, content = (run / "metrics.jsonl").read_text(), live.state(opened), live(opened)
    assert content is not None
    assert live(opened) == content
    assert [row["update"] for row in content[0].arms[0].runs[0].updates] == [1, 2, 3]
    with (run / "metrics.jsonl").open("a") as file:
        file.write(before.splitlines(keepends=True)[-1].replace('"update": 3', '"update": 4'))
    assert live.state(opened) != state
    again = live(opened)
    assert again is not None
    assert [row["update"] for row in again[0].arms[0].runs[0].updates] == [1, 2, 3, 4]
    assert again[1] is content[1]  # the pictures are the same ones
    shutil.copytree(run / "images" / "eval-00003", run / "images" / "eval-00004")
    (run / "evaluations.jsonl").write_text(
        (run / "evaluations.jsonl").read_text() + '{"update": 4, "identity_reward": 0.5}\n'
    )
    new = live(opened)
    assert new is not None
    assert new[0].film is not None
    assert new[0].film.updates == [0, 3, 4]
    assert new[1] is not content[1]
