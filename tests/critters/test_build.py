"""Building the built-in world: stages that survive a kill, gates that are reported if missed, files that load."""

import hashlib
import json
import os
import re
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
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer, Dinov2Model
from typer.testing import CliRunner

from customized_grpo.critters import world
from customized_grpo.critters.build import gates, models, stages
from customized_grpo.critters.build import pictures as pics
from customized_grpo.critters.build.run import LIMITS, Build, GateError, Recipe
from program import Refusal

torch.set_num_threads(1)

STAGES = [field.name.removesuffix("_steps") for field in fields(Recipe) if field.name.endswith("_steps")]
# Every stage of a real build at a small size: only the VAE passes a save before its last step.
SHORT: dict[str, Any] = {f"{stage}_steps": 6 if stage == "vae" else 2 for stage in STAGES}
RECIPE = replace(Recipe(), **SHORT)
SAVED_AT, KILLED_AT = 3, 5  # steps of the VAE's stage


@contextmanager
def in_small() -> Iterator[None]:
    """Smaller batches, few pictures and steps per gate, frequent saves; everything else is the real build."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "SAVE_EVERY", SAVED_AT)
        patch.setattr(gates, "STEPS", 2)
        patch.setattr(pics, "renders", lambda rng, _, of=world.HATTED, real=pics.renders: real(rng, 2, of))
        patch.setattr(pics, "mosaics", lambda rng, _, real=pics.mosaics: real(rng, 1))
        patch.setattr(stages, "dino_loss", partial(stages.dino_loss, batch=2))
        patch.setattr(stages, "flow_loss", partial(stages.flow_loss, batch=2))
        patch.setattr(gates, "oracle_gates", partial(gates.oracle_gates, count=8))
        patch.setattr(gates, "encoder_gates", partial(gates.encoder_gates, count=16))
        patch.setattr(gates, "base_gates", partial(gates.base_gates, groups=2, size=3))
        yield


def run(work: Path, target: Path, recipe: Recipe = RECIPE) -> str:
    """A small build, which misses its gates; returns the message."""
    with in_small(), pytest.raises(GateError) as missed:
        Build(recipe, work).run(target)
    return str(missed.value)


def test_the_world_of_dyes_is_built_by_the_same_command(tmp_path: Path):
    """Its gates have one figure more, and its stages are not mistaken for those of another world."""
    dyed = replace(RECIPE, world="critters-dye")
    message = run(tmp_path / "work", tmp_path / "weights", dyed)
    assert re.search(r"encoders\.identity_dyed is -?[\d.]+, must be 0\.35 to 0\.6", message)
    provenance = json.loads((tmp_path / "weights" / "provenance.json").read_text())
    assert provenance["recipe"]["world"] == "critters-dye"
    words = CLIPTokenizer.from_pretrained(tmp_path / "weights" / "clip").get_vocab()
    assert "tinted</w>" in words
    assert "hat</w>" not in words
    with in_small(), pytest.raises(stages.StageError, match=r"vae\..* was trained with world critters-dye instead of"):
        Build(RECIPE, tmp_path / "work").run(tmp_path / "other")


def run_until(stop: Callable[[], object], work: Path, target: Path) -> None:
    """A build in which `stop` is called in the middle of the VAE's stage, after a save."""
    calls = iter(range(KILLED_AT))

    def stopping(vae: Any, of: world.World, real: Callable[..., stages.Loss] = stages.vae_loss) -> stages.Loss:
        loss = real(vae, of)

        def count_and_lose(rng: np.random.Generator, generator: torch.Generator) -> Tensor:
            if next(calls, None) is None:
                stop()
            return loss(rng, generator)

        return count_and_lose

    with pytest.MonkeyPatch.context() as patch, in_small():
        patch.setattr(stages, "vae_loss", stopping)
        Build(RECIPE, work).run(target)


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    raise KeyboardInterrupt


def interrupt_before_saving(stage: str) -> Callable[[dict[str, object], Path], None]:
    def save(state: dict[str, object], path: Path, real: Callable[..., None] = stages.save_state) -> None:
        if path.stem == stage:
            raise KeyboardInterrupt
        real(state, path)

    return save


def weights(target: Path) -> dict[str, str]:
    """Digest of every file that a build writes except the provenance, which contains durations."""
    files = sorted(file for file in target.rglob("*") if file.is_file() and file.name != "provenance.json")
    return {str(file.relative_to(target)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """An uninterrupted build: its stages, its files, its message."""
    folder = tmp_path_factory.mktemp("complete")
    return folder / "work", folder / "weights", run(folder / "work", folder / "weights")


# --- the complete build ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["interrupted", pytest.param("killed", marks=pytest.mark.slow)])
def test_a_stopped_build_continues_and_ends_with_the_same_weights(
    how: str, complete: tuple[Path, Path, str], tmp_path: Path
):
    """Stopped between two saves of the VAE, by an exception or a real SIGKILL, then in the middle of the base."""
    work, target = tmp_path / "work", tmp_path / "weights"
    if how == "interrupted":
        with pytest.raises(KeyboardInterrupt):
            run_until(interrupt, work, target)
    else:
        code = "import sys; from test_build import *; run_until(kill_this_process, *map(Path, sys.argv[1:]))"
        command, folder = [sys.executable, "-c", code, str(work), str(target)], Path(__file__).parent
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(folder.parent), *sys.path])}
        died = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert died.returncode == -signal.SIGKILL, died.stderr
    assert [file.name for file in work.iterdir()] == ["vae.safetensors"]
    assert stages.read_state(work / "vae.safetensors")["step"] == SAVED_AT
    assert not target.exists()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "save_state", interrupt_before_saving("mixture"))
        with in_small(), pytest.raises(KeyboardInterrupt):
            Build(RECIPE, work).run(target)
    assert not (work / "mixture.safetensors").exists()

    message = run(work, target)
    assert weights(target) == weights(complete[1])
    assert len(weights(target)) > 15
    assert message == complete[2]
    figures, expected = (json.loads((t / "provenance.json").read_text()) for t in (target, complete[1]))
    assert figures["gates"] == expected["gates"]
    for stage in STAGES:
        assert figures["stages"][stage]["loss"] == expected["stages"][stage]["loss"]
        assert figures["stages"][stage]["steps"] == getattr(RECIPE, f"{stage}_steps")


def test_missed_gates_are_listed_by_name_and_figure(complete: tuple[Path, Path, str]):
    _, target, message = complete
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


def test_weights_that_miss_their_gates_are_written_and_load(complete: tuple[Path, Path, str]):
    _, target, _ = complete
    pipe = FluxKontextPipeline.from_pretrained(target / "generator")
    pipe.set_progress_bar_config(disable=True)
    dino, clip = Dinov2Model.from_pretrained(target / "dino"), CLIPModel.from_pretrained(target / "clip")
    rewards = gates.Rewards(dino, clip, CLIPTokenizer.from_pretrained(target / "clip"))
    figures = json.loads((target / "provenance.json").read_text())["gates"]
    threshold = figures["oracle"]["identity_threshold"]
    with in_small():
        assert gates.encoder_gates(rewards) == pytest.approx(figures["encoders"], abs=1e-5)
        assert gates.base_gates(pipe, rewards, threshold) == pytest.approx(figures["base"], abs=1e-4)


def test_every_part_was_trained(complete: tuple[Path, Path, str]):
    torch.manual_seed(RECIPE.seed)
    before = models.pipeline()
    after = FluxKontextPipeline.from_pretrained(complete[1] / "generator")
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        old, new = getattr(before, part).state_dict(), getattr(after, part).state_dict()
        assert {*old} == {*new}
        moved = [name for name in old if not torch.equal(old[name], new[name])]
        assert len(moved) > 0.7 * len(old)


def test_a_finished_build_is_read_back(complete: tuple[Path, Path, str], tmp_path: Path):
    """No stage takes another step, and no state file is rewritten."""
    work, target, message = complete
    states = {file: file.stat().st_mtime_ns for file in work.iterdir()}
    assert {file.name for file in states} == {f"{stage}.safetensors" for stage in STAGES}
    assert run(work, tmp_path / "again") == message
    assert weights(tmp_path / "again") == weights(target)
    assert {file: file.stat().st_mtime_ns for file in work.iterdir()} == states


def test_a_stage_of_another_recipe_is_refused(complete: tuple[Path, Path, str], tmp_path: Path):
    """Also one with the same settings of its own that was built on another VAE."""
    work = complete[0]
    before = {file: file.stat().st_mtime_ns for file in work.iterdir()}
    with (
        in_small(),
        pytest.raises(stages.StageError, match=r"vae\..* was trained with steps 6 instead of 7"),
    ):
        Build(replace(RECIPE, vae_steps=7), work).run(tmp_path)
    with (
        in_small(),
        pytest.raises(stages.StageError, match=r"mixture\.safetensors .*'faithful': 0\.3.* instead of"),
    ):
        Build(replace(RECIPE, mixture={"faithful": 0.5, "copied": 0.5}), work).run(tmp_path)
    fresh_vae = tmp_path / "work"
    fresh_vae.mkdir()
    (fresh_vae / "clip.safetensors").write_bytes((work / "clip.safetensors").read_bytes())
    with (
        in_small(),
        pytest.raises(stages.StageError, match=r"clip\.safetensors .*'steps': 6.* instead of .*'steps': 1,"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--output", "file", "--work", "work"), "--output file: "),
        (("--output", "weights", "--work", "file"), "--work file: "),
        (("--output", "weights", "--work", "work", "--device", "nothing"), "no device is named 'nothing'"),
    ],
)
def test_options_that_cannot_be_used_write_nothing(
    options: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    refused = Refusal(tmp_path, monkeypatch, capsys)
    (tmp_path / "file").write_text("")
    assert refused("build-critters", *options).startswith(message)
