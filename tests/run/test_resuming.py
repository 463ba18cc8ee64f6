"""Going on with other settings, on a damaged or full disk, in a folder that is not one's own."""

import errno
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo.config import load_config
from customized_grpo.files.durable import SavingError
from customized_grpo.policies.base import Policy
from customized_grpo.run.access import RunDirectoryError
from customized_grpo.run.checkpoints import checkpoints_of, damage
from customized_grpo.run.directory import RunDirectory
from customized_grpo.training.trainer import Trainer

MakeTrainer = Callable[..., Trainer]
SMALL = ("groups.prompts=1", "sampling.num_steps=3", "window.last=1", "window.size=1", "adapter.targets=[to_q, to_v]")


def metrics(trainer: Trainer) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in trainer.directory.logs()[0]]


# --- other settings --------------------------------------------------------------------------------------------------


def test_a_run_goes_on_with_its_own_settings_only(make_trainer: MakeTrainer, tmp_path: Path):
    make_trainer(*SMALL).train()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(RunDirectoryError) as refused:
        make_trainer(*SMALL, "updates=2", "optimizer.lr=1e-5", "seed=3", resume=True)
    assert str(refused.value).splitlines() == [
        f"{tmp_path / 'run'} was trained with other settings so far:",
        "seed: 0 -> 3; go on with seed=0, or start another run with output=...",
        "optimizer.lr: 0.001 -> 1.0e-05; go on with optimizer.lr=0.001, or start another run with output=...",
    ]
    assert {path: path.read_bytes() for path in before} == before


def test_before_anything_is_trained_any_setting_may_change(
    make_trainer: MakeTrainer, adapter_of: Callable[[Policy], Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A run that failed in its first update, for a setting that was wrong, needs no other folder."""
    failing = make_trainer(*SMALL, "evaluation.every=1", "evaluation.grid=3")
    monkeypatch.setattr(failing, "step", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.train()
    images = tmp_path / "run" / "images"
    assert (images / "reference-02.png").exists()
    mended = make_trainer(*SMALL, "evaluation.every=1", "evaluation.grid=1", "seed=3", resume=True)
    assert "resuming with seed: 0 -> 3" in mended.directory.notices
    mended.train()
    fresh = make_trainer(*SMALL, "evaluation.every=1", "evaluation.grid=1", "seed=3", f"output={tmp_path / 'fresh'}")
    fresh.train()
    assert torch.equal(adapter_of(mended.policy), adapter_of(fresh.policy))
    assert metrics(mended) == metrics(fresh)
    assert sorted(path.name for path in images.glob("*.png")) == sorted(
        path.name for path in (tmp_path / "fresh" / "images").glob("*.png")
    )


def test_more_updates_make_the_longer_run(
    make_trainer: MakeTrainer, adapter_of: Callable[[Policy], Tensor], tmp_path: Path
):
    """Also where other settings change with them that decide nothing; the checkpoint of the old end is gone then."""
    settings = (*SMALL, "optimizer.warmup=4", "save_every=2", "evaluation.every=2")
    make_trainer(*settings, "updates=3").train()
    longer = make_trainer(*settings, "updates=5", "keep_last=9", "tracking=[tensorboard]", resume=True)
    assert longer.directory.notices == [
        "resuming with tracking: [] -> [tensorboard]",
        "resuming with updates: 3 -> 5",
        "resuming with keep_last: 3 -> 9",
    ]
    longer.train()
    whole = make_trainer(*settings, "updates=5", f"output={tmp_path / 'whole'}")
    whole.train()
    assert torch.equal(adapter_of(longer.policy), adapter_of(whole.policy))
    assert metrics(longer) == metrics(whole)
    names = [[path.name for path in checkpoints_of(trainer.directory.path)] for trainer in (longer, whole)]
    assert names[0] == names[1] == ["step-00002", "step-00004", "step-00005"]
    assert load_config(str(tmp_path / "run")).updates == 5


def test_fewer_updates_than_are_trained_are_refused(make_trainer: MakeTrainer):
    make_trainer(*SMALL, "updates=2").train()
    with pytest.raises(RunDirectoryError, match="updates: 2 -> 1, but 2 are done; go on with updates=2"):
        make_trainer(*SMALL, "updates=1", resume=True)


def test_a_damaged_line_of_a_log_is_named_when_a_run_goes_on(make_trainer: MakeTrainer, tmp_path: Path):
    make_trainer(*SMALL, "updates=2").train()
    log = tmp_path / "run" / "metrics.jsonl"
    first, second = log.read_text().splitlines(keepends=True)
    log.write_text(first + second[:40] + "\n")
    resumed = make_trainer(*SMALL, "updates=3", resume=True)
    with pytest.raises(ValueError, match=rf"{log}, line 2: not JSON: .*; restore it, or remove the line"):
        resumed.train()
    assert log.read_text() == first + second[:40] + "\n"


def test_a_configuration_that_cannot_be_read_any_more_is_named(make_trainer: MakeTrainer, tmp_path: Path):
    make_trainer(*SMALL).train()
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text() + "flavour: mint\n")
    with pytest.raises(
        RunDirectoryError, match=r"config\.yaml is no configuration of this version:\nflavour: unknown"
    ):
        make_trainer(*SMALL, resume=True)


# --- damage ----------------------------------------------------------------------------------------------------------


def cut_short(checkpoint: Path) -> None:
    file = checkpoint / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(checkpoint: Path) -> None:
    file = checkpoint / "pytorch_lora_weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def lose_a_file(checkpoint: Path) -> None:
    (checkpoint / "state.json").unlink()


@pytest.fixture
def trained(make_trainer: MakeTrainer, adapter_of: Callable[[Policy], Tensor]) -> tuple[Tensor, list[dict[str, Any]]]:
    """Three updates, each saved: the adapter and the rows at the end."""
    trainer = make_trainer(*SMALL, "updates=3", "save_every=1")
    trainer.train()
    return adapter_of(trainer.policy), metrics(trainer)


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (cut_short, "optimizer.safetensors is not what was written"),
        (flip_a_bit, "pytorch_lora_weights.safetensors is not what was written"),
        (lose_a_file, "state.json is missing"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_line(
    harm: Callable[[Path], None],
    problem: str,
    trained: tuple[Tensor, list[dict[str, Any]]],
    make_trainer: MakeTrainer,
    adapter_of: Callable[[Policy], Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    folder = tmp_path / "run" / "checkpoints"
    harm(folder / "step-00003")
    resumed = make_trainer(*SMALL, "updates=3", "save_every=1", resume=True)
    resumed.train()
    assert (
        f"note: step-00003 is damaged: {problem}; going on from step-00002, and the damaged ones end in .damaged now"
        in capsys.readouterr().err.splitlines()
    )
    assert torch.equal(adapter_of(resumed.policy), trained[0])
    assert metrics(resumed) == trained[1]
    assert damage(folder / "step-00003") is None
    assert (folder / "step-00003.damaged").is_dir()


@pytest.mark.usefixtures("trained")
def test_a_run_without_a_whole_checkpoint_does_not_start_over_by_itself(make_trainer: MakeTrainer, tmp_path: Path):
    folder = tmp_path / "run" / "checkpoints"
    for checkpoint in checkpoints_of(tmp_path / "run"):
        flip_a_bit(checkpoint)
    resumed = make_trainer(*SMALL, "updates=3", "save_every=1", resume=True)
    with pytest.raises(
        RunDirectoryError, match=r"no checkpoint in .* is whole \(step-00003 is damaged: .*; step-00002"
    ):
        resumed.train()
    assert len(list(folder.glob("step-0000?"))) == 3
    shutil.rmtree(folder)  # the way out that the message names
    make_trainer(*SMALL, "updates=3", "save_every=1", resume=True).train()
    assert len(checkpoints_of(tmp_path / "run")) == 3


# --- one process at a time -------------------------------------------------------------------------------------------


def test_a_second_run_in_the_folder_of_a_living_one_is_refused(make_trainer: MakeTrainer):
    """Whether it finds the lock before it has loaded a model, or only when it is about to write."""
    first = make_trainer(*SMALL)
    with pytest.raises(RunDirectoryError, match="is in use: a run is writing there; stop that one, or choose another"):
        make_trainer(*SMALL, resume=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("customized_grpo.run.directory.check_access", lambda *_, **__: [])
        with pytest.raises(RunDirectoryError, match="is in use"):
            RunDirectory(first.config, resume=True)
    first.train()
    make_trainer(*SMALL, resume=True)  # a run that has ended is in nobody's way


def test_a_run_that_failed_lets_go_of_its_folder(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch):
    failing = make_trainer(*SMALL)

    def fails() -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(failing, "step", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        failing.train()
    make_trainer(*SMALL, resume=True)


@pytest.mark.parametrize("left", [[], ["run.lock"], ["run.lock", "config.yaml.saving"]])
def test_a_start_that_died_before_it_was_a_run_is_in_nobodys_way(
    left: list[str], make_trainer: MakeTrainer, tmp_path: Path
):
    (tmp_path / "run").mkdir()
    for name in left:
        (tmp_path / "run" / name).touch()
    make_trainer(*SMALL).train()
    assert not (tmp_path / "run" / "config.yaml.saving").exists()


# --- disks -----------------------------------------------------------------------------------------------------------


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    make_trainer: MakeTrainer, adapter_of: Callable[[Policy], Tensor], tmp_path: Path
):
    """The system lets no file grow so large: the adapter is still written, the optimiser is not."""
    settings = (*SMALL, "save_every=1", "keep_last=1")
    make_trainer(*settings, "updates=1").train()
    run = tmp_path / "run"
    size = (run / "checkpoints" / "step-00001" / "pytorch_lora_weights.safetensors").stat().st_size
    failing = make_trainer(*settings, "updates=2", resume=True)
    with files_of_at_most(size + 1000), pytest.raises(SavingError) as failed:
        failing.train()
    said = str(failed.value)
    assert said.startswith(f"could not write the checkpoint of update 2 in {run}: ")
    assert "too large" in said
    assert said.endswith(f"step-00001 is the last checkpoint. Mend that, then: customized-grpo train {run} --resume")
    assert "\n" not in said
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00001"]
    assert damage(run / "checkpoints" / "step-00001") is None
    assert_goes_on(make_trainer, adapter_of, settings, tmp_path)


def assert_goes_on(
    make_trainer: MakeTrainer, adapter_of: Callable[[Policy], Tensor], settings: tuple[str, ...], tmp_path: Path
) -> None:
    resumed = make_trainer(*settings, "updates=2", resume=True)
    resumed.train()
    whole = make_trainer(*settings, "updates=2", f"output={tmp_path / 'whole'}")
    whole.train()
    assert torch.equal(adapter_of(resumed.policy), adapter_of(whole.policy))
    assert metrics(resumed) == metrics(whole)


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations.jsonl"])
def test_a_row_that_finds_no_room_is_named(
    name: str,
    make_trainer: MakeTrainer,
    adapter_of: Callable[[Policy], Tensor],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    settings = (*SMALL, "save_every=1", "evaluation.every=1", "data.held_out_samples=2")
    make_trainer(*settings, "updates=1").train()
    failing = make_trainer(*settings, "updates=2", resume=True)
    real = Path.open

    def full(path: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
        file = real(path, mode, *more, **named)
        if path.name == name and mode == "a":
            file.write('{"half')
            file.close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(SavingError, match=f"could not write {name} in .*: No space left on device; step-00001 is"):
            failing.train()
    assert_goes_on(make_trainer, adapter_of, settings, tmp_path)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory; skips where the user may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up_leaves_whole_checkpoints_only(
    make_trainer: MakeTrainer, adapter_of: Callable[[Policy], Tensor], tmp_path: Path
):
    """A real one of 4 MB; a checkpoint has more than one."""
    settings = (*SMALL[:-1], "save_every=1", "keep_last=null")
    with mounted(tmp_path / "disk", "size=4m") as disk:
        run = disk / "run"
        trainer = make_trainer(*settings, "updates=9", f"output={run}")
        with pytest.raises(SavingError, match=r"No space left on device.*is the last checkpoint\. Mend that, then"):
            trainer.train()
        saved = checkpoints_of(run)
        assert 1 <= len(saved) < 9
        assert [damage(checkpoint) for checkpoint in saved] == [None] * len(saved)
        assert not list(run.rglob("*.saving"))
        updates = len(saved) + 1
        shutil.rmtree(saved[0])  # room for one
        resumed = make_trainer(*settings, f"updates={updates}", f"output={run}", "keep_last=1", resume=True)
        resumed.train()
        whole = make_trainer(*settings, f"updates={updates}", f"output={tmp_path / 'whole'}")
        whole.train()
        assert torch.equal(adapter_of(resumed.policy), adapter_of(whole.policy))
        assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["update"] == updates


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nothing can be written into: root may write anywhere but on a disk that is so as a whole."""
    folder = tmp_path / "read_only"
    if os.geteuid() == 0:
        with mounted(folder, "ro"):
            yield folder
    else:
        folder.mkdir(mode=0o500)
        yield folder


def test_a_read_only_folder_is_refused_before_anything_is_loaded(read_only: Path, make_trainer: MakeTrainer):
    with pytest.raises(RunDirectoryError) as refused:
        make_trainer(f"output={read_only / 'runs' / 'one'}", "model.path=/no/such")
    assert str(refused.value) == (
        f"cannot write into {read_only / 'runs' / 'one'}: {read_only} is read-only for you; "
        "choose another folder with output=..."
    )


def test_a_folder_that_turns_out_to_be_unwritable_is_one_line_too(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def refuses(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refuses)
    with pytest.raises(RunDirectoryError, match=f"cannot write into {tmp_path / 'run'}: Permission denied; choose"):
        make_trainer(*SMALL)


def test_a_file_is_no_folder(make_trainer: MakeTrainer, tmp_path: Path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunDirectoryError, match="is a file; choose another folder"):
        make_trainer(*SMALL)
