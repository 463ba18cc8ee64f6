"""Runs in real processes that are killed, stopped or started twice: resumed, they equal an uninterrupted run."""

import os
import random
import re
import shlex
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from customized_grpo.config import load_config
from customized_grpo.run.access import RunDirectoryError, check_access
from customized_grpo.runtime.stopping import StopRequest
from customized_grpo.training.trainer import Trainer
from forked import start_training, train
from program import TINY
from runs import SMALL, rows_of

TRAIN = (TINY, "device=cpu", *SMALL, "groups.size=2", "optimizer.warmup=3", "objective.updates_per_rollout=2")
RUN = (*TRAIN, "updates=5", "save_every=2", "keep_last=2", "evaluation.every=2")


def contents(run: Path) -> dict[str, Any]:
    """Every file of a run, except for times, paths and the lock."""
    files: dict[str, Any] = {}
    for path in run.rglob("*"):
        name = path.relative_to(run).as_posix()
        if path.is_file() and path.name not in ("config.yaml", "manifest.json", "environment.json", "run.lock"):
            # The order of the metadata in a safetensors file varies.
            files[name] = tensors_of(path) if path.suffix == ".safetensors" else path.read_bytes()
    return files | {"metrics.jsonl": rows_of(run)}


def tensors_of(file: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}


def assert_same(run: Path, whole: Path) -> None:
    """Bit for bit: logs, pictures, adapter, and the optimiser and position of every checkpoint."""
    files, expected = contents(run), contents(whole)
    assert files.keys() == expected.keys()
    assert [name for name in files if files[name] != expected[name]] == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five updates."""
    folder = tmp_path_factory.mktemp("whole")
    assert train([*RUN, f"output={folder / 'run'}"], folder / "log") == 0, (folder / "log").read_text()
    return folder / "run"


# --- killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moment", "at", "left"),
    [
        ("rollout", 4, ["step-00002"]),  # of the fourth update
        ("update", 7, ["step-00002"]),  # after the first optimiser step of the fourth update
        ("saving", 2, ["step-00002", "step-00004.saving"]),
    ],
)
def test_a_killed_run_resumes_and_equals_an_uninterrupted_one(
    moment: str, at: int, left: list[str], whole: Path, tmp_path: Path
):
    arguments = [*RUN, f"output={tmp_path / 'run'}"]
    assert train(arguments, tmp_path / "log", moment, at) == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == left
    assert train([*arguments, "--resume"], tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert_same(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "at"), [("pictures", 1), ("saved", 1), ("finishing", 1), ("rollout", 1)])
def test_a_run_killed_at_other_moments_resumes_too(moment: str, at: int, whole: Path, tmp_path: Path):
    arguments = [*RUN, f"output={tmp_path / 'run'}"]
    assert train(arguments, tmp_path / "log", moment, at) == -signal.SIGKILL
    assert train([*arguments, "--resume"], tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert_same(tmp_path / "run", whole)


@pytest.mark.slow
def test_eight_kills_at_random_moments_change_nothing(tmp_path: Path):
    """Killed from outside; every fourth time as soon as a checkpoint is being saved."""
    many = [*TRAIN, "updates=24", "save_every=1", "evaluation.every=3"]
    whole, run, rng = tmp_path / "whole", tmp_path / "run", random.Random(0)
    log = tmp_path / "log"
    assert train([*many, f"output={whole}"], log) == 0, log.read_text()
    written = [(whole / name).stat().st_mtime for name in ("environment.json", "metrics.jsonl")]
    update = (written[1] - written[0]) / 24  # seconds, with saving
    kills: list[str] = []
    while len(kills) < 8:
        resume = ["--resume"] if (run / "config.yaml").is_file() else []
        began = (run / "environment.json").stat().st_mtime_ns if resume else 0
        process = start_training([*many, f"output={run}", *resume], log)

        def training(began: int = began) -> bool:
            file = run / "environment.json"
            return file.is_file() and file.stat().st_mtime_ns != began

        _wait(training, process, log)
        if len(kills) % 4 == 3:
            _wait(lambda: any((run / "checkpoints").glob("*.saving")), process, log)
        else:
            time.sleep(rng.uniform(0, 2 * update))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"it finished after {len(kills)} kills; give it more updates"
        kills.append(",".join(sorted(path.name[5:] for path in (run / "checkpoints").glob("step-*"))))
    print("after each kill:", *kills)
    assert train([*many, f"output={run}", "--resume"], log) == 0, log.read_text()
    assert_same(run, whole)


def _wait(until: Callable[[], bool], process: BaseProcess, log: Path, seconds: float = 120) -> None:
    """Check every millisecond; fail if the process has ended or the time is up."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, log.read_text()
        assert process.exitcode is None, log.read_text()
        time.sleep(0.001)


# --- asked to stop ---------------------------------------------------------------------------------------------------


def lines(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_sigterm_saves_the_update_and_prints_how_to_resume(whole: Path, tmp_path: Path):
    """Even before `save_every`. While the run is active, no other process may write to its folder."""
    run = tmp_path / "run"
    process = start_training([*RUN, f"output={run}"], tmp_path / "log")
    _wait(lambda: lines(run / "evaluations.jsonl") == 1, process, tmp_path / "log")
    config = load_config(str(run))
    with pytest.raises(RunDirectoryError, match=r"is in use: a run is writing there; stop that run, or choose"):
        check_access(config, resume=True)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    output = (tmp_path / "log").read_text()
    assert process.exitcode == 128 + signal.SIGTERM, output
    assert "SIGTERM: stopping once this update is saved; interrupt again to stop at once" in output
    stopped = re.search(r"SIGTERM: stopped after update (\d); resume with: customized-grpo train (.*)", output)
    assert stopped is not None
    assert (run / "checkpoints" / f"step-0000{stopped[1]}").is_dir() or stopped[1] == "0"
    assert lines(run / "metrics.jsonl") == int(stopped[1]) < 5
    assert not (run / "adapter").exists()
    assert train(shlex.split(stopped[2]), tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert_same(run, whole)


def test_sigint_has_an_exit_code_of_its_own(tmp_path: Path):
    run = tmp_path / "run"
    process = start_training([*RUN, f"output={run}", "updates=500"], tmp_path / "log")
    _wait(lambda: lines(run / "metrics.jsonl") == 1, process, tmp_path / "log")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 128 + signal.SIGINT, (tmp_path / "log").read_text()
    assert "resume with: customized-grpo train" in (tmp_path / "log").read_text()


@pytest.fixture
def interruptible():
    """SIGINT as in a terminal; it is ignored if the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_the_first_signal_is_recorded_and_a_sigint_after_it_interrupts():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest() as stop:
        assert not stop.requested
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    with pytest.raises(SystemExit) as left:
        stop.exit("bye")
    assert left.value.code == 143


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_signals_are_not_recorded():
    requested = []

    def enter() -> None:
        with StopRequest() as stop:
            requested.append(stop.requested)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert requested == [False]


def test_a_signal_after_the_last_update_lets_the_run_finish(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    trainer = make_trainer(*SMALL)
    step = trainer.step

    def signalled() -> dict[str, Any]:
        signal.raise_signal(signal.SIGTERM)
        return step()

    monkeypatch.setattr(trainer, "step", signalled)
    trainer.train()
    assert (tmp_path / "run" / "adapter").is_dir()


def test_a_signal_before_the_first_update_saves_nothing_and_the_run_starts_over(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    settings = (*SMALL, "evaluation.every=1")
    trainer = make_trainer(*settings)
    evaluate = trainer._evaluate

    def signalled() -> None:
        evaluate()
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(trainer, "_evaluate", signalled)
    with pytest.raises(SystemExit) as left:
        trainer.train()
    assert left.value.code == 143
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    torch.manual_seed(0)
    make_trainer(*settings, resume=True).train()
    assert lines(tmp_path / "run" / "evaluations.jsonl") == 2
