"""What a checkpoint holds, how damage is found, and what a crash leaves at any moment while one is saved."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from customized_grpo.files import durable
from customized_grpo.files.adapter_places import checkpoints_of, update_of
from customized_grpo.files.durable import SAVING
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.run.checkpoints import find_damage, mark_damaged, newest_intact, save_checkpoint
from customized_grpo.run.state import CheckpointError, Position, read_state, write_state
from customized_grpo.sharing.card import CARD
from customized_grpo.training.trainer import Trainer
from runs import SMALL

MakeTrainer = Callable[..., Trainer]


def stepped(steps: int, *, fused: bool | None = None) -> torch.optim.AdamW:
    """An optimiser of two weights after some steps; the second weight never had a gradient."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2))]
    optimizer = torch.optim.AdamW(weights, lr=0.1, weight_decay=0.3, fused=fused)
    for _ in range(steps):
        weights[0].grad = torch.randn(3, 2)
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1 / 3  # no short decimal
    return optimizer


def save(run: Path, update: int, keep_last: int | None = None) -> None:
    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "weights.bin").write_bytes(bytes([update]) * 1000)
        write_state(folder, Position(update, 2 * update), stepped(update))

    save_checkpoint(run, update, write, keep_last)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints of updates 1 and 2."""
    (tmp_path / "checkpoints").mkdir()
    save(tmp_path, 1)
    save(tmp_path, 2)
    return tmp_path


# --- what it holds ---------------------------------------------------------------------------------------------------


def test_optimiser_random_state_and_position_are_restored_bit_for_bit(tmp_path: Path):
    saved = stepped(3)
    drawn = torch.get_rng_state()
    write_state(tmp_path, Position(7, 21), saved)
    restored = stepped(0)
    torch.manual_seed(99)
    assert read_state(tmp_path, restored) == Position(7, 21)
    assert torch.equal(torch.get_rng_state(), drawn)
    before, after = saved.state_dict(), restored.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert after["state"].keys() == before["state"].keys() == {0}
    for name, value in before["state"][0].items():
        assert torch.equal(after["state"][0][name], value)


@pytest.mark.parametrize(("before", "now"), [(True, None), (None, True)])
def test_step_kernels_follow_the_device_that_resumes(before: bool | None, now: bool | None, tmp_path: Path):
    """A run from a GPU, where steps are fused, resumes on a CPU like one that started there."""
    write_state(tmp_path, Position(1, 1), stepped(3, fused=before))
    (same := tmp_path / "same").mkdir()
    write_state(same, Position(1, 1), stepped(3, fused=now))
    moved, stayed = stepped(0, fused=now), stepped(0, fused=now)
    read_state(tmp_path, moved)
    read_state(same, stayed)
    assert moved.state_dict()["param_groups"] == stayed.state_dict()["param_groups"]
    assert moved.param_groups[0]["fused"] is now
    moved.param_groups[0]["params"][0].grad = torch.ones(3, 2)
    moved.step()


def test_optimiser_state_other_than_tensors_is_restored(tmp_path: Path):
    saved, restored = stepped(1), stepped(0)
    saved.state[saved.param_groups[0]["params"][0]]["scale"] = 0.1
    write_state(tmp_path, Position(1, 1), saved)
    read_state(tmp_path, restored)
    assert restored.state_dict()["state"][0]["scale"] == 0.1


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path):
    write_state(tmp_path, Position(1, 1), stepped(1))
    state = json.loads((tmp_path / "state.json").read_text())
    del state["groups"]
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(
        CheckpointError, match=r"was written by another version of this program: .* no 'groups'; resume"
    ):
        read_state(tmp_path, stepped(0))


def test_the_state_of_another_optimiser_is_refused(tmp_path: Path):
    write_state(tmp_path, Position(1, 1), stepped(1))
    with pytest.raises(ValueError, match="group"):
        read_state(tmp_path, torch.optim.AdamW([nn.Parameter(torch.zeros(1))]))


def test_nothing_in_a_run_is_a_pickle(make_trainer: MakeTrainer, tmp_path: Path):
    """torch.save writes a ZIP file; a pickle of protocol 2 or later starts with byte 0x80."""
    make_trainer(*SMALL, "evaluation.every=1").train()
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".jsonl", ".yaml", ".png", ".safetensors", ".lock", ".md", ""}
    assert not [path for path in files if path.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")]


def test_diffusers_loads_a_checkpoint_as_an_adapter(
    make_trainer: MakeTrainer,
    make_policy: Callable[..., FluxKontextPolicy],
    tmp_path: Path,
):
    """The pipeline picks the weights out of the two safetensors files."""
    make_trainer(*SMALL).train()
    policy = make_policy()
    policy.pipe.load_lora_weights(str(tmp_path / "run" / "checkpoints" / "step-00001"))
    weights = load_file(tmp_path / "run" / "adapter" / "pytorch_lora_weights.safetensors")
    loaded = {name for name, _ in policy.module.named_parameters() if "lora" in name}
    assert len(loaded) == len(weights)


# --- damage ----------------------------------------------------------------------------------------------------------


def test_any_flipped_bit_is_found(run: Path):
    """64 random bits of every file."""
    checkpoint, rng = run / "checkpoints" / "step-00002", random.Random(0)
    for file in sorted(checkpoint.iterdir()):
        content = file.read_bytes()
        for _ in range(64):
            place, bit = rng.randrange(len(content)), rng.randrange(8)
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            file.write_bytes(changed)
            # A flipped bit can turn white space in the manifest into other white space.
            harmless = file.name == "manifest.json" and parsed(changed) == json.loads(content)
            assert harmless or find_damage(checkpoint), (file.name, place, bit)
        file.write_bytes(content)
    assert find_damage(checkpoint) is None


def parsed(content: bytearray) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_any_file_cut_short_or_missing_is_found(run: Path):
    checkpoint = run / "checkpoints" / "step-00002"
    for file in sorted(checkpoint.iterdir()):
        content = file.read_bytes()
        for length in (0, 1, len(content) // 2, len(content) - 2):
            file.write_bytes(content[:length])
            assert find_damage(checkpoint), (file.name, length)
        file.unlink()
        assert find_damage(checkpoint) == f"{file.name} is missing"
        file.write_bytes(content)


@pytest.mark.parametrize(
    ("manifest", "problem"),
    [
        ("{}", "manifest.json lacks optimizer.safetensors"),
        ("[]", "manifest.json cannot be read"),
        ("[" * 100_000, "manifest.json cannot be read"),
        ('{"optimizer.safetensors": "", "state.json": ""}', "optimizer.safetensors does not match its checksum"),
        (
            '{"a\\u0000b": "", "optimizer.safetensors": "", "state.json": ""}',
            "a\0b cannot be read (embedded null byte)",
        ),
        ('{".": "", "optimizer.safetensors": "", "state.json": ""}', ". cannot be read (Is a directory)"),
    ],
)
def test_a_manifest_that_was_edited_is_damage(manifest: str, problem: str, run: Path):
    checkpoint = run / "checkpoints" / "step-00002"
    (checkpoint / "manifest.json").write_text(manifest)
    assert find_damage(checkpoint) == problem


def test_the_newest_intact_checkpoint_is_found_behind_damaged_ones(run: Path):
    save(run, 3)
    folder = run / "checkpoints"
    (folder / "step-00003" / "weights.bin").write_bytes(b"")
    (folder / "step-00002" / "state.json").unlink()
    intact, damaged = newest_intact(run)
    assert intact == folder / "step-00001"
    assert damaged == {
        folder / "step-00003": "weights.bin does not match its checksum",
        folder / "step-00002": "state.json is missing",
    }
    for path in damaged:
        mark_damaged(path)
    mark_damaged(shutil.copytree(folder / "step-00001", folder / "step-00003"))  # a second time
    assert [path.name for path in checkpoints_of(run)] == ["step-00001"]


# --- how many stay ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep_last", "kept"), [(1, [5]), (2, [4, 5]), (9, [1, 2, 3, 4, 5]), (None, [1, 2, 3, 4, 5])])
def test_the_newest_checkpoints_are_kept(keep_last: int | None, kept: list[int], run: Path):
    for update in (3, 4, 5):
        save(run, update, keep_last)
    assert list(map(update_of, checkpoints_of(run))) == kept


def test_what_shaping_remembers_is_saved_with_the_position(tmp_path: Path):
    write_state(tmp_path, Position(3, 4, {"means": {"prompt": 0.5}}), stepped(1))
    assert read_state(tmp_path, stepped(0)) == Position(3, 4, {"means": {"prompt": 0.5}})


def test_a_checkpoint_of_a_version_that_remembered_nothing_is_read(tmp_path: Path):
    write_state(tmp_path, Position(3, 4), stepped(1))
    state = tmp_path / "state.json"
    values = json.loads(state.read_text())
    assert values.pop("running") == {}
    state.write_text(json.dumps(values))
    assert read_state(tmp_path, stepped(0)) == Position(3, 4, {})


def test_a_stopped_run_leaves_the_checkpoints_of_an_uninterrupted_one(make_trainer: MakeTrainer):
    """Stopped after updates 1 and 3: those checkpoints are removed later."""
    trainer = make_trainer(*SMALL, "save_every=2", "keep_last=2")
    kept = []
    for update in range(1, 7):
        if update in (1, 2, 3, 4, 6):
            trainer.directory.checkpoint(Position(update, update), trainer.policy, trainer.learner.optimizer, {})
        kept.append([int(path.name[-1]) for path in checkpoints_of(trainer.directory.path)])
    assert kept == [[1], [2], [2, 3], [2, 4], [2, 4], [4, 6]]


# --- dying at any moment ---------------------------------------------------------------------------------------------


@contextmanager
def photographed(folder: Path, album: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Copies the folder before every operation that a crash may interrupt; yields the copies."""
    copies: list[Path] = []

    def before(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def operation(*args: object, **named: object) -> object:
            copies.append(Path(shutil.copytree(folder, album / f"{len(copies):03d}")))
            return real(*args, **named)

        patch.setattr(owner, name, operation)

    with monkeypatch.context() as patch:
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "write_text"), (durable.shutil, "rmtree")):
            before(owner, name)
        yield copies
    copies.append(Path(shutil.copytree(folder, album / "end")))


def test_a_crash_while_saving_always_leaves_an_intact_checkpoint(
    run: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    with photographed(run, tmp_path_factory.mktemp("album"), monkeypatch) as copies:
        save(run, 3, keep_last=1)
    assert len(copies) > 15
    newest = []
    for copy in copies:
        checkpoint, damaged = newest_intact(copy)
        assert checkpoint is not None
        assert not damaged
        newest.append(update_of(checkpoint))
        durable.remove_leftovers(copy)
        left = {path.name for path in (copy / "checkpoints").iterdir()}
        assert left <= {"step-00001", "step-00002", "step-00003"}
    assert newest == sorted(newest)
    assert set(newest) == {2, 3}


def test_a_crash_while_finishing_leaves_the_old_or_the_new_adapter(
    make_trainer: MakeTrainer,
    excite: Callable[[FluxKontextPolicy], None],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
):
    trainer = make_trainer(*SMALL)
    policy, run = trainer.policy, tmp_path / "run"
    assert isinstance(policy, FluxKontextPolicy)
    weights = run / "adapter" / "pytorch_lora_weights.safetensors"
    album = tmp_path_factory.mktemp("album")
    with photographed(run, album / "first", monkeypatch) as copies:
        trainer.directory.finish(policy, {})
    complete, card = {"config.yaml", "sampling.json", weights.name}, {CARD, CARD + SAVING}  # the card is written last
    for copy in copies:
        assert {path.name for path in (copy / "adapter").glob("*")} - card in (set(), complete)
    assert (run / "adapter" / CARD).is_file()
    old = weights.read_bytes()
    excite(policy)
    with photographed(run, album / "second", monkeypatch) as copies:
        trainer.directory.finish(policy, {})
    new = weights.read_bytes()
    contents = [(copy / "adapter" / weights.name).read_bytes() for copy in copies]
    assert [content == new for content in contents] == sorted(content == new for content in contents)
    assert set(contents) == {old, new}
    for copy in copies:
        assert {path.name for path in (copy / "adapter").iterdir()} - card == complete
