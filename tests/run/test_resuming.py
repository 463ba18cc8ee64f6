"""Resuming with other settings, after damage, on a full disk, in a folder that is in use or not writable."""

import errno
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

from customized_grpo.config import RunConfig, load_config
from customized_grpo.errors import UsageError
from customized_grpo.files.adapter_places import checkpoints_of, find_adapter
from customized_grpo.files.durable import SavingError
from customized_grpo.files.pretrained import ModelError
from customized_grpo.policies.base import Policy
from customized_grpo.run.access import RunDirectoryError, check_access
from customized_grpo.run.checkpoints import find_damage
from customized_grpo.run.directory import RunDirectory
from customized_grpo.run.logs import LOGS
from customized_grpo.training.assemble import assemble
from customized_grpo.training.trainer import Trainer
from program import TINY
from runs import SMALL, rows_of

MakeConfig = Callable[..., RunConfig]
MakeTrainer = Callable[..., Trainer]
AdapterOf = Callable[[Policy], Tensor]
SAVED = (*SMALL, "updates=3", "save_every=1", "evaluation.every=2", "optimizer.warmup=4")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """Three updates, each saved."""
    trainer = assemble(load_config(TINY, [*SAVED, f"output={tmp_path_factory.mktemp('whole') / 'run'}"]))
    trainer.train()
    return trainer


@pytest.fixture
def run(uninterrupted: Trainer, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(uninterrupted.directory.path, tmp_path / "run"))


def assert_same(resumed: Trainer, uninterrupted: Trainer, adapter_of: AdapterOf) -> None:
    assert torch.equal(adapter_of(resumed.policy), adapter_of(uninterrupted.policy))
    for log in LOGS:
        assert rows_of(resumed.directory.path, log) == rows_of(uninterrupted.directory.path, log)


# --- other settings --------------------------------------------------------------------------------------------------


def test_a_run_resumes_with_its_own_settings_only(run: Path, make_trainer: MakeTrainer):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(RunDirectoryError) as refused:
        make_trainer(*SAVED, "updates=4", "optimizer.lr=1e-5", "seed=3", resume=True)
    assert str(refused.value).splitlines() == [
        f"{run} was trained with other settings:",
        "seed: 0 -> 3; resume with seed=0, or start another run with output=...",
        "optimizer.lr: 0.001 -> 1.0e-05; resume with optimizer.lr=0.001, or start another run with output=...",
    ]
    assert {path: path.read_bytes() for path in before} == before


def test_before_anything_is_trained_any_setting_may_change(
    make_trainer: MakeTrainer, adapter_of: AdapterOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A run that failed in its first update because of a wrong setting does not need a new folder."""
    failing = make_trainer(*SMALL, "evaluation.every=1", "evaluation.grid=2")
    monkeypatch.setattr(failing, "step", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.train()
    images = tmp_path / "run" / "images"
    assert (images / "reference-01.png").exists()
    corrected = make_trainer(*SMALL, "evaluation.every=1", "evaluation.grid=1", "seed=3", resume=True)
    assert "resuming with seed: 0 -> 3" in corrected.directory.notices
    corrected.train()
    fresh = make_trainer(*SMALL, "evaluation.every=1", "evaluation.grid=1", "seed=3", f"output={tmp_path / 'fresh'}")
    fresh.train()
    assert torch.equal(adapter_of(corrected.policy), adapter_of(fresh.policy))
    assert rows_of(corrected.directory.path) == rows_of(fresh.directory.path)
    assert sorted(path.name for path in images.glob("*.png")) == sorted(
        path.name for path in (tmp_path / "fresh" / "images").glob("*.png")
    )


def test_a_run_with_more_updates_equals_the_longer_run(
    uninterrupted: Trainer, make_trainer: MakeTrainer, adapter_of: AdapterOf, tmp_path: Path
):
    """Also if other harmless settings change as well. The checkpoint of the old end is removed."""
    make_trainer(*SAVED, "save_every=2", "updates=1").train()
    longer = make_trainer(*SAVED, "save_every=2", "keep_last=9", "tracking=[tensorboard]", resume=True)
    assert longer.directory.notices == [
        "resuming with tracking: [] -> [tensorboard]",
        "resuming with updates: 1 -> 3",
        "resuming with keep_last: 3 -> 9",
        "the adapter of update 1 is now in adapter-step-00001",
    ]
    with pytest.raises(ModelError, match=r"the run is not finished; name a checkpoint, .*step-00001"):
        find_adapter(tmp_path / "run")
    assert load_config(str(find_adapter(tmp_path / "run" / "adapter-step-00001"))).updates == 1
    longer.train()
    assert_same(longer, uninterrupted, adapter_of)
    assert [path.name for path in checkpoints_of(tmp_path / "run")] == ["step-00002", "step-00003"]
    assert load_config(str(tmp_path / "run")).updates == 3


@pytest.mark.usefixtures("run")
def test_fewer_updates_than_finished_are_refused(make_trainer: MakeTrainer):
    with pytest.raises(RunDirectoryError, match="updates: 3 -> 1, but 3 are finished; resume with updates=3"):
        make_trainer(*SAVED, "updates=1", resume=True)


def test_a_run_with_a_damaged_log_does_not_resume(run: Path, make_trainer: MakeTrainer):
    log = run / "metrics.jsonl"
    first, second, _ = log.read_text().splitlines(keepends=True)
    log.write_text(first + second[:40] + "\n")
    resumed = make_trainer(*SAVED, "updates=4", resume=True)
    with pytest.raises(UsageError, match=rf"{log}, line 2: not JSON: .*; restore it, or remove the line"):
        resumed.train()
    assert log.read_text() == first + second[:40] + "\n"


def test_a_configuration_of_another_version_is_named(run: Path, make_trainer: MakeTrainer):
    config = run / "config.yaml"
    config.write_text(config.read_text() + "flavour: mint\n")
    with pytest.raises(
        RunDirectoryError, match=r"config\.yaml is not a configuration of this version:\nflavour: unknown"
    ):
        make_trainer(*SAVED, resume=True)


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


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (cut_short, "optimizer.safetensors does not match its checksum"),
        (flip_a_bit, "pytorch_lora_weights.safetensors does not match its checksum"),
        (lose_a_file, "state.json is missing"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_with_a_note(
    harm: Callable[[Path], None],
    problem: str,
    uninterrupted: Trainer,
    run: Path,
    make_trainer: MakeTrainer,
    adapter_of: AdapterOf,
    capsys: pytest.CaptureFixture[str],
):
    folder = run / "checkpoints"
    harm(folder / "step-00003")
    resumed = make_trainer(*SAVED, resume=True)
    resumed.train()
    assert (
        f"note: step-00003 is damaged: {problem}; resuming from step-00002; damaged checkpoints were renamed to "
        "*.damaged" in capsys.readouterr().err.splitlines()
    )
    assert_same(resumed, uninterrupted, adapter_of)
    assert find_damage(folder / "step-00003") is None
    assert (folder / "step-00003.damaged").is_dir()


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_over_on_its_own(run: Path, make_trainer: MakeTrainer):
    folder = run / "checkpoints"
    for checkpoint in checkpoints_of(run):
        flip_a_bit(checkpoint)
    resumed = make_trainer(*SAVED, resume=True)
    with pytest.raises(
        RunDirectoryError, match=r"every checkpoint in .* is damaged \(step-00003 is damaged: .*; step-00002 is .*copy"
    ):
        resumed.train()
    assert len(list(folder.glob("step-0000?"))) == 3
    shutil.rmtree(folder)  # as the message suggests
    make_trainer(*SAVED, resume=True).train()
    assert len(checkpoints_of(run)) == 3


# --- one process at a time -------------------------------------------------------------------------------------------


def test_a_second_run_in_the_same_folder_is_refused(make_trainer: MakeTrainer):
    """Whether it finds the lock before it loads a model, or only when it starts to write."""
    first = make_trainer(*SMALL)
    with pytest.raises(RunDirectoryError, match="is in use: a run is writing there; stop that run, or choose another"):
        make_trainer(*SMALL, resume=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("customized_grpo.run.directory.check_access", lambda *_, **__: [])
        with pytest.raises(RunDirectoryError, match="is in use"):
            RunDirectory(first.config, resume=True)
    first.train()
    make_trainer(*SMALL, resume=True)  # a finished run holds no lock


def test_a_failed_run_unlocks_its_folder(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch):
    failing = make_trainer(*SMALL)

    def fails() -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(failing, "step", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        failing.train()
    make_trainer(*SMALL, resume=True)


@pytest.mark.parametrize("left", [[], ["run.lock"], ["run.lock", "config.yaml.saving"]])
def test_a_start_that_died_before_writing_its_configuration_can_be_repeated(
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


@pytest.fixture
def stopped(run: Path) -> Path:
    """The same run with its first checkpoint only; the rows of later updates are removed when it resumes."""
    for checkpoint in checkpoints_of(run)[1:]:
        shutil.rmtree(checkpoint)
    return run


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    stopped: Path, uninterrupted: Trainer, make_trainer: MakeTrainer, adapter_of: AdapterOf
):
    """With a limit on file sizes the adapter is still written, but the optimiser is not."""
    checkpoint = stopped / "checkpoints" / "step-00001"
    size = (checkpoint / "pytorch_lora_weights.safetensors").stat().st_size
    failing = make_trainer(*SAVED, "keep_last=1", resume=True)
    with files_of_at_most(size + 1000), pytest.raises(SavingError) as failed:
        failing.train()
    message = str(failed.value)
    assert message.startswith(f"could not write the checkpoint of update 2 in {stopped}: ")
    assert "too large" in message
    command = f"customized-grpo train {stopped} --resume"
    assert message.endswith(f"; step-00001 is the last checkpoint. Fix this, then run: {command}")
    assert "\n" not in message
    assert list((stopped / "checkpoints").iterdir()) == [checkpoint]
    assert find_damage(checkpoint) is None
    resumed = make_trainer(*SAVED, resume=True)
    resumed.train()
    assert_same(resumed, uninterrupted, adapter_of)


@pytest.mark.parametrize("name", LOGS)
def test_a_log_that_does_not_fit_on_the_disk_is_named(
    name: str,
    stopped: Path,
    uninterrupted: Trainer,
    make_trainer: MakeTrainer,
    adapter_of: AdapterOf,
    monkeypatch: pytest.MonkeyPatch,
):
    failing = make_trainer(*SAVED, resume=True)
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
        with pytest.raises(SavingError, match=f"write {name} in {stopped}: No space left on device; step-00001 is"):
            failing.train()
    resumed = make_trainer(*SAVED, resume=True)
    resumed.train()
    assert_same(resumed, uninterrupted, adapter_of)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory; the test is skipped if the user may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_leaves_only_intact_checkpoints(
    uninterrupted: Trainer, make_trainer: MakeTrainer, adapter_of: AdapterOf, tmp_path: Path
):
    """A real disk, too small for three checkpoints."""
    with mounted(tmp_path / "disk", "size=220k") as disk:
        run = disk / "run"
        trainer = make_trainer(*SAVED, f"output={run}")
        with pytest.raises(SavingError, match=r"No space left on device.*is the last checkpoint\. Fix this, then run"):
            trainer.train()
        saved = checkpoints_of(run)
        assert 1 <= len(saved) < 3
        assert [find_damage(checkpoint) for checkpoint in saved] == [None] * len(saved)
        assert not list(run.rglob("*.saving"))
        resumed = make_trainer(*SAVED, f"output={run}", "keep_last=1", resume=True)  # makes room
        resumed.train()
        assert_same(resumed, uninterrupted, adapter_of)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that is not writable. Root may write anywhere except on a disk that is mounted read-only."""
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
        f"cannot write into {read_only / 'runs' / 'one'}: {read_only} is not writable; "
        "choose another folder with output=..."
    )


def test_a_folder_that_turns_out_to_be_unwritable_is_named(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def refuses(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refuses)
    with pytest.raises(RunDirectoryError, match=f"cannot write into {tmp_path / 'run'}: Permission denied; choose"):
        make_trainer(*SMALL)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("file", "file is a file"),
        ("file/run", "file is a file"),
        ("x" * 300, "File name too long"),
        ("x/" * 3000, "File name too long"),
        ("a\0b", "embedded null byte"),
    ],
    ids=["a file", "within a file", "a long name", "a long path", "a NUL character"],
)
def test_a_path_that_the_system_refuses(
    path: str, problem: str, resume: bool, make_config: MakeConfig, tmp_path: Path
):
    (tmp_path / "file").touch()
    config = make_config(*SMALL).model_copy(update={"output": str(tmp_path / path)})
    with pytest.raises(RunDirectoryError, match=rf"^cannot write into .*: .*{problem}; choose another folder"):
        check_access(config, resume=resume)
