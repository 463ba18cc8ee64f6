"""Building the built-in world: stages that survive a kill, gates that name what they miss, files that load."""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer, Dinov2Model
from typer.testing import CliRunner

from customized_grpo.critters.build import gates, models, stages
from customized_grpo.critters.build import pictures as pics
from customized_grpo.critters.build.run import LIMITS, Build, GateError, Recipe

torch.set_num_threads(1)

STAGES = [field.name.removesuffix("_steps") for field in fields(Recipe) if field.name.endswith("_steps")]
# Every stage of a real build in small: the VAE passes its save at step 100, the others end before one.
SHORT: dict[str, Any] = {f"{stage}_steps": 112 if stage == "vae" else 2 for stage in STAGES}
RECIPE = replace(Recipe(), **SHORT)
KILLED_AT = 106  # step of the VAE's stage, six after the save


@contextmanager
def in_small() -> Iterator[None]:
    """Smaller batches and a handful of pictures per gate; everything else is the real build."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pics, "renders", lambda rng, _, real=pics.renders: real(rng, 2))
        patch.setattr(pics, "mosaics", lambda rng, _, real=pics.mosaics: real(rng, 1))
        patch.setattr(stages, "flow_loss", partial(stages.flow_loss, batch=2))
        patch.setattr(gates, "oracle_gates", partial(gates.oracle_gates, count=8))
        patch.setattr(gates, "encoder_gates", partial(gates.encoder_gates, count=16))
        patch.setattr(gates, "base_gates", partial(gates.base_gates, groups=2, size=3))
        yield


def run(work: Path, target: Path, recipe: Recipe = RECIPE) -> str:
    """A build in small, which misses its gates; the message."""
    with in_small(), pytest.raises(GateError) as missed:
        Build(recipe, work).run(target)
    return str(missed.value)


def run_and_die(work: Path, target: Path) -> None:
    """In a process of its own: a build that is killed in the middle of the VAE's stage."""
    calls = iter(range(KILLED_AT))

    def deadly(vae: Any, real: Callable[..., stages.Loss] = stages.vae_loss) -> stages.Loss:
        loss = real(vae)

        def count_and_lose(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
            if next(calls, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return loss(rng, generator)

        return count_and_lose

    stages.vae_loss = deadly
    run(work, target)


def weights(target: Path) -> dict[str, str]:
    """Digest of every file that a build writes, but for the provenance, which holds seconds."""
    files = sorted(file for file in target.rglob("*") if file.is_file() and file.name != "provenance.json")
    return {str(file.relative_to(target)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """An uninterrupted build: its stages, its files, what it said."""
    folder = tmp_path_factory.mktemp("whole")
    return folder / "work", folder / "weights", run(folder / "work", folder / "weights")


# --- the whole build -------------------------------------------------------------------------------------------------


def test_a_killed_build_goes_on_and_ends_with_the_same_weights(whole: tuple[Path, Path, str], tmp_path: Path):
    """A real SIGKILL between two saves of the VAE, then a second one in spirit in the middle of the base."""
    work, target = tmp_path / "work", tmp_path / "weights"
    code = "import sys, pathlib, test_build; test_build.run_and_die(*map(pathlib.Path, sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(work), str(target)]
    here = Path(__file__).parent  # python -c finds modules in the working directory
    died = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert [file.name for file in work.iterdir()] == ["vae.safetensors"]
    assert stages.read_state(work / "vae.safetensors")["step"] == 100
    assert not target.exists()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "save_aside", interrupt_at("mixture"))
        with in_small(), pytest.raises(KeyboardInterrupt):
            Build(RECIPE, work).run(target)
    assert not (work / "mixture.safetensors").exists()

    message = run(work, target)
    assert weights(target) == weights(whole[1])
    assert len(weights(target)) > 15
    assert message == whole[2]
    figures, expected = (json.loads((t / "provenance.json").read_text()) for t in (target, whole[1]))
    assert figures["gates"] == expected["gates"]
    for stage in STAGES:
        assert figures["stages"][stage]["loss"] == expected["stages"][stage]["loss"]
        assert figures["stages"][stage]["steps"] == getattr(RECIPE, f"{stage}_steps")


def interrupt_at(stage: str) -> Callable[[dict[str, object], Path], None]:
    def save(state: dict[str, object], path: Path, real: Callable[..., None] = stages.save_aside) -> None:
        if path.stem == stage:
            raise KeyboardInterrupt
        real(state, path)

    return save


def test_missed_gates_are_listed_by_name_and_figure(whole: tuple[Path, Path, str]):
    _, target, message = whole
    figures = json.loads((target / "provenance.json").read_text())["gates"]
    expected = [
        f"{part}.{name} is {figures[part][name]:.3f}, must be {low:g} to {high:g}"
        for part, limits in LIMITS.items()
        for name, (low, high) in limits.items()
        if figures[part][name] < low or figures[part][name] > high
    ]
    assert message.splitlines() == ["the weights are written, but:", *expected]
    named = {line.split(" is ")[0] for line in expected}
    assert {"oracle.round_trip_prompt", "encoders.prompt_ranked_first", "faithful.joint_success"} <= named
    assert "oracle.clean_prompt" not in named


def test_what_misses_its_gates_is_written_and_loads(whole: tuple[Path, Path, str]):
    _, target, _ = whole
    pipe = FluxKontextPipeline.from_pretrained(target / "generator")
    pipe.set_progress_bar_config(disable=True)
    dino, clip = Dinov2Model.from_pretrained(target / "dino"), CLIPModel.from_pretrained(target / "clip")
    rewards = gates.Rewards(dino, clip, CLIPTokenizer.from_pretrained(target / "clip"))
    figures = json.loads((target / "provenance.json").read_text())["gates"]
    threshold = figures["oracle"]["identity_threshold"]
    assert gates.encoder_gates(rewards, count=16) == pytest.approx(figures["encoders"], abs=1e-5)
    assert gates.base_gates(pipe, rewards, threshold, groups=2, size=3) == pytest.approx(figures["base"], abs=1e-4)


def test_every_part_was_trained(whole: tuple[Path, Path, str]):
    torch.manual_seed(RECIPE.seed)
    before = models.pipeline()
    after = FluxKontextPipeline.from_pretrained(whole[1] / "generator")
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        old, new = getattr(before, part).state_dict(), getattr(after, part).state_dict()
        assert {*old} == {*new}
        moved = [name for name in old if not torch.equal(old[name], new[name])]
        assert len(moved) > 0.7 * len(old)


def test_a_finished_build_is_read_back(whole: tuple[Path, Path, str], tmp_path: Path):
    """No stage takes another step, no state file is written again."""
    work, target, message = whole
    states = {file: file.stat().st_mtime_ns for file in work.iterdir()}
    assert {file.name for file in states} == {f"{stage}.safetensors" for stage in STAGES}
    assert run(work, tmp_path / "again") == message
    assert weights(tmp_path / "again") == weights(target)
    assert {file: file.stat().st_mtime_ns for file in work.iterdir()} == states


def test_a_stage_of_another_recipe_is_refused(whole: tuple[Path, Path, str], tmp_path: Path):
    """Also one that is itself the same, but stands on another: the base on a VAE with more steps."""
    work = whole[0]
    before = {file: file.stat().st_mtime_ns for file in work.iterdir()}
    with (
        in_small(),
        pytest.raises(stages.StaleStageError, match=r"vae\..* was trained with steps 112 instead of 113"),
    ):
        Build(replace(RECIPE, vae_steps=113), work).run(tmp_path)
    with (
        in_small(),
        pytest.raises(stages.StaleStageError, match=r"mixture\.safetensors .*'faithful': 0\.3.* instead of"),
    ):
        Build(replace(RECIPE, mixture={"faithful": 0.5, "copied": 0.5}), work).run(tmp_path)
    fresh_vae = tmp_path / "work"
    fresh_vae.mkdir()
    (fresh_vae / "clip.safetensors").write_bytes((work / "clip.safetensors").read_bytes())
    with (
        in_small(),
        pytest.raises(stages.StaleStageError, match=r"clip\.safetensors .*'steps': 112.* instead of .*'steps': 1,"),
    ):
        Build(replace(RECIPE, vae_steps=1), fresh_vae).run(tmp_path)
    assert {file: file.stat().st_mtime_ns for file in work.iterdir()} == before


def test_the_seed_decides_where_training_starts(tmp_path: Path):
    def start(seed: int) -> Tensor:
        build = Build(Recipe(seed=seed), tmp_path)
        parts = (build.vae_model, build.pipe.transformer, build.clip_model, build.dino_model)
        return torch.cat([p.detach().flatten() for part in parts for p in part.parameters()])

    one, two, other = start(0), start(0), start(1)
    assert torch.equal(one, two)
    assert (one != other).float().mean() > 0.9  # biases and norms start at 0 and 1


def test_the_command_shortens_every_stage_and_names_the_gates(tmp_path: Path):
    from customized_grpo.cli import app

    arguments = ["build-critters", "--output", str(tmp_path / "w"), "--work", str(tmp_path / "s"), "--seed", "3"]
    with in_small():
        result = CliRunner().invoke(app, [*arguments, "--shorten", "100000", "--device", "cpu"])
    assert isinstance(result.exception, GateError)
    provenance = json.loads((tmp_path / "w" / "provenance.json").read_text())
    assert provenance["recipe"]["seed"] == 3
    assert {stage: provenance["stages"][stage]["steps"] for stage in STAGES} == dict.fromkeys(STAGES, 1)


def test_a_shortened_recipe_keeps_everything_but_its_steps():
    recipe = Recipe(seed=5, vae_steps=1000, clip_steps=999, dino_steps=10, faithful_steps=9, mixture_steps=0)
    short = recipe.shortened(10)
    assert (short.vae_steps, short.clip_steps, short.dino_steps) == (100, 99, 1)
    assert (short.faithful_steps, short.mixture_steps) == (1, 1)
    assert (short.seed, short.mixture) == (5, recipe.mixture)
    assert Recipe().shortened(1) == Recipe()


# --- one stage -------------------------------------------------------------------------------------------------------


class StopHereError(Exception):
    """Stands for a kill in the process of the test."""


class Regression:
    """A small network and a loss that uses both generators; it stops where it is told to."""

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
    with pytest.raises(stages.StaleStageError) as error:
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


@pytest.mark.parametrize("stop", [0, 99, 100, 101, 249])
def test_a_stopped_stage_ends_with_the_same_weights(stop: int, tmp_path: Path):
    whole, first, second = Regression(), Regression(stop), Regression()
    outcome = whole.fit(tmp_path / "whole")
    with pytest.raises(StopHereError):
        first.fit(tmp_path / "parts")
    again = second.fit(tmp_path / "parts")
    assert second.steps == 250 - stop // 100 * 100
    assert second.same_weights(whole)
    assert not first.same_weights(whole)
    assert again["loss"] == outcome["loss"]
    assert second.seen == whole.seen[-second.steps :]


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


def test_a_crash_while_saving_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "vae.safetensors"
    stages.save_aside({"step": 100}, file)

    def half_written(_: object, path: Path, __: object) -> None:
        path.write_bytes(b"half")
        raise StopHereError

    monkeypatch.setattr(stages, "save_file", half_written)
    with pytest.raises(StopHereError):
        stages.save_aside({"step": 200}, file)
    assert stages.read_state(file)["step"] == 100
    monkeypatch.undo()
    stages.save_aside({"step": 200}, file)
    assert stages.read_state(file)["step"] == 200
    assert [path.name for path in tmp_path.iterdir()] == ["vae.safetensors"]
