"""One stage of the build: its data and schedule, its saves, and saved states that cannot be used."""

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from customized_grpo.critters.build import stages
from customized_grpo.files.durable import SavingError


class StopHereError(Exception):
    """Used in place of a kill, in the process of the test."""


class Regression:
    """A small network and a loss that uses both generators; raises StopHereError at step `stop`."""

    def __init__(self, stop: int | None = None):
        torch.manual_seed(0)
        self.network, self.stop, self.steps = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), stop, 0
        self.network.append(nn.Dropout(0.0))
        self.seen: list[tuple[float, float]] = []

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        if self.steps == self.stop:
            raise StopHereError
        self.steps += 1
        assert self.network.training
        inputs = torch.from_numpy(rng.normal(size=(8, 3))).float()
        noise = torch.randn(8, 1, generator=generator)
        self.seen.append((inputs[0, 0].item(), noise[0].item()))
        return (self.network(inputs) - inputs.sum(-1, keepdim=True) - 0.1 * noise).square().mean()

    def fit(self, folder: Path, steps: int = 250, name: str = "regression", seed: int = 0) -> dict[str, float]:
        folder.mkdir(exist_ok=True)
        return stages.fit(name, [self.network], self.loss, steps=steps, lr=1e-2, seed=seed, directory=folder)

    def same_weights(self, other: "Regression") -> bool:
        pairs = zip(self.network.parameters(), other.network.parameters(), strict=True)
        return all(torch.equal(one, two) for one, two in pairs)


def test_other_settings_of_a_stage_are_named_with_their_values(tmp_path: Path):
    Regression().fit(tmp_path, steps=3)
    with pytest.raises(stages.StageError) as error:
        Regression().fit(tmp_path, steps=4, seed=1)
    file = tmp_path / "regression.safetensors"
    assert str(error.value).startswith(f"{file} was trained with seed 0 instead of 1, steps 3 instead of 4: delete it")


def test_the_learning_rate_warms_up_is_held_and_falls_to_zero():
    factors = [stages._learning_rate_factor(step, steps=1000, hold=0.6) for step in range(1001)]
    assert factors[0] == 0.01
    assert factors[99:601] == [1.0] * 502
    assert factors[800] == pytest.approx(0.5)
    assert factors[1000] == pytest.approx(0, abs=1e-12)
    assert all(later < earlier for earlier, later in itertools.pairwise(factors[601:]))


@pytest.mark.parametrize("stop", [0, 9, 10, 11, 24])
def test_a_stopped_stage_ends_with_the_same_weights(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stages, "SAVE_EVERY", 10)
    complete, first, second = Regression(), Regression(stop), Regression()
    outcome = complete.fit(tmp_path / "complete", steps=25)
    with pytest.raises(StopHereError):
        first.fit(tmp_path / "parts", steps=25)
    again = second.fit(tmp_path / "parts", steps=25)
    assert second.steps == 25 - stop // 10 * 10
    assert second.same_weights(complete)
    assert not first.same_weights(complete)
    assert again["loss"] == outcome["loss"]
    assert second.seen == complete.seen[-second.steps :]


def test_a_finished_stage_takes_no_step_and_is_ready_for_use(tmp_path: Path):
    first, second = Regression(), Regression()
    outcome = first.fit(tmp_path)
    assert outcome["loss"] < 1.0  # of 3.0 for a prediction of zero
    assert second.fit(tmp_path) == outcome
    assert second.steps == 0
    assert second.same_weights(first)
    for network in (first.network, second.network):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_data_follow_seed_name_and_step(tmp_path: Path):
    runs = {key: Regression() for key in ("plain", "same", "seed", "name")}
    runs["plain"].fit(tmp_path / "a", steps=3)
    runs["same"].fit(tmp_path / "b", steps=3)
    runs["seed"].fit(tmp_path / "c", steps=3, seed=1)
    runs["name"].fit(tmp_path / "d", steps=3, name="another")
    assert runs["plain"].seen == runs["same"].seen
    drawn = [number for key in ("plain", "seed", "name") for pair in runs[key].seen for number in pair]
    assert len(set(drawn)) == len(drawn) == 18


def test_frozen_parameters_stay_as_they_are(tmp_path: Path):
    regression = Regression()
    frozen = next(regression.network.parameters()).requires_grad_(False)
    before = frozen.clone()
    regression.fit(tmp_path, steps=20)
    assert torch.equal(frozen, before)


def test_a_failed_save_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Regression().fit(tmp_path, steps=3)
    file = tmp_path / "regression.safetensors"
    state = stages.read_state(file)

    def fail_halfway(path: Path, content: bytes) -> None:
        with path.open("wb") as half:
            half.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fail_halfway)
    with pytest.raises(SavingError, match=r"could not write .*regression\.safetensors: No space left on device"):
        stages.save_state(state | {"step": 2}, file)
    assert stages.read_state(file)["step"] == 3
    monkeypatch.undo()
    stages.save_state(state | {"step": 2}, file)
    assert stages.read_state(file)["step"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["regression.safetensors"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda file: file.write_bytes(b""), r"cannot be read \(.+\)"),
        (lambda file: file.write_bytes(file.read_bytes()[:-10]), r"cannot be read \(.+\)"),
        (lambda file: (file.unlink(), file.mkdir()), r"cannot be read \(.+\)"),
        (lambda file: save_file({}, file), "is not the state of a stage"),
        (lambda file: save_file({}, file, {"state": "[1"}), r"cannot be read \(.+\)"),
        (lambda file: save_file({}, file, {"state": "[]"}), "is not the state of a stage"),
    ],
)
def test_a_damaged_state_is_refused_in_one_line(damage: Callable[[Path], object], reason: str, tmp_path: Path):
    Regression().fit(tmp_path, steps=3)
    damage(tmp_path / "regression.safetensors")
    with pytest.raises(stages.StageError, match=rf"regression\.safetensors {reason}; delete it to repeat the stage$"):
        Regression().fit(tmp_path, steps=3)


def test_the_state_of_another_network_is_refused(tmp_path: Path):
    Regression().fit(tmp_path, steps=3)
    file = tmp_path / "regression.safetensors"
    state = stages.read_state(file)
    state["network"].popitem()
    stages.save_state(state, file)
    with pytest.raises(
        stages.StageError, match=r"^.* does not hold this stage's weights \(.*Missing key.*\); delete it$"
    ):
        Regression().fit(tmp_path, steps=3)
