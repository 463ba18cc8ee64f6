"""The script that runs Flow-GRPO's functions, with a stand-in of our own in their place: nothing of theirs is here."""

import sys
from argparse import Namespace
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from customized_grpo.errors import UsageError

ROOT = Path(__file__).parents[2]
STEP = """
import torch
from customized_grpo.algorithm import log_prob, step_distribution

def sde_step_with_logprob(self, model_output, timestep, sample, noise_level=0.7, prev_sample=None, generator=None):
    step = self.index_for_timestep(timestep[0])
    sigma, after = self.sigmas[step].item(), self.sigmas[step + 1].item()
    mean, std = step_distribution("flow", sample, model_output, sigma, after, FACTOR * noise_level, self.sigmas[1])
    taken = mean + std * torch.randn(mean.shape, generator=generator) if prev_sample is None else prev_sample
    return taken, log_prob(taken, mean, std), mean, std / (sigma - after) ** 0.5
"""
LOOP = """
import torch
from .sd3_sde_with_logprob import sde_step_with_logprob

@torch.no_grad()
def pipeline_with_logprob(self, image, prompt_embeds, pooled_prompt_embeds, num_inference_steps, guidance_scale,
                          output_type, height, width, max_area, noise_level, generator):
    pixels = self.image_processor.preprocess(self.image_processor.resize(image, height, width), height, width)
    count, channels = len(prompt_embeds), self.transformer.config.in_channels // 4
    latents, references, positions, of_references = self.prepare_latents(
        pixels, count, channels, height, width, prompt_embeds.dtype, "cpu", generator)
    positions, text_positions = torch.cat([positions, of_references]), torch.zeros(prompt_embeds.shape[1], 3)
    self.scheduler.set_timesteps(sigmas=[1 - step / num_inference_steps for step in range(num_inference_steps)])
    found, log_probs = [latents], []
    for time in self.scheduler.timesteps:
        velocity = self.transformer(
            hidden_states=torch.cat([latents, references], dim=1), timestep=time.repeat(count) / 1000,
            pooled_projections=pooled_prompt_embeds,
            encoder_hidden_states=prompt_embeds, txt_ids=text_positions, img_ids=positions, return_dict=False,
        )[0][:, : latents.shape[1]]
        latents, log_prob, _, _ = sde_step_with_logprob(
            self.scheduler, velocity, time.repeat(count), latents, noise_level, generator=generator)
        found.append(latents)
        log_probs.append(log_prob)
    return torch.full([count, 3, height, width], 0.5), found, positions, text_positions, log_probs, references
"""


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The two modules, and a fresh start for the package that they read."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield Namespace(loop=import_module("flow_grpo_loop"), script=import_module("beside_flow_grpo"))
    for name in [name for name in sys.modules if name.split(".")[0] == "flow_grpo"]:
        del sys.modules[name]


@pytest.fixture
def package(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder with our own stand-in for the package `flow_grpo`."""

    def write(step: str = STEP, loop: str = LOOP, factor: float = 1.0) -> Path:
        folder = tmp_path / "clone" / "flow_grpo" / "diffusers_patch"
        folder.mkdir(parents=True)
        (folder / "sd3_sde_with_logprob.py").write_text(step.replace("FACTOR", str(factor)))
        (folder / "flux_kontext_pipeline_with_logprob.py").write_text(loop)
        return tmp_path / "clone"

    return write


def test_a_folder_without_it_is_one_line(scripts: Any, tmp_path: Path):
    with pytest.raises(UsageError, match=r"flux_kontext_pipeline_with_logprob\.py does not exist; clone https"):
        scripts.loop.FlowGRPO.read(tmp_path, 3)


def test_a_function_with_other_arguments_is_one_line(scripts: Any, package: Callable[..., Path]):
    with pytest.raises(UsageError, match=r"sde_step_with_logprob in .* takes no noise_level, prev_sample;"):
        scripts.loop.FlowGRPO.read(package(step="def sde_step_with_logprob(model_output, timestep, sample): ..."), 3)


def test_a_module_without_the_function_is_one_line(scripts: Any, package: Callable[..., Path]):
    with pytest.raises(UsageError, match="has no pipeline_with_logprob"):
        scripts.loop.FlowGRPO.read(package(loop=""), 3)


def settings(scripts: Any) -> tuple[str, ...]:
    return (*scripts.script.EVERYWHERE, "groups.prompts=1", "groups.size=3", "sampling.num_steps=3", "noise.level=0.7")


@pytest.mark.parametrize(("factor", "equal"), [(1.0, True), (1.1, False)])
def test_steps_are_compared(scripts: Any, package: Callable[..., Path], tmp_path: Path, *, factor: float, equal: bool):
    theirs = scripts.loop.FlowGRPO.read(package(factor=factor), 2)
    trainer = scripts.script._trainer(settings(scripts), tmp_path / "run")
    differences = scripts.script.compare_steps(trainer, theirs)
    assert differences["sigma"] < 1e-6
    for name in ("mean", "std", "log-probability"):
        assert (differences[name] < 1e-4) == equal, name


def test_an_update_trains_the_adapter(scripts: Any, package: Callable[..., Path], tmp_path: Path):
    theirs = scripts.loop.FlowGRPO.read(package(), 2)  # in batches of two and one
    trainer = scripts.script._trainer(settings(scripts), tmp_path / "run")
    before = {name: weight.detach().clone() for name, weight in trainer.policy.trainable_parameters().items()}
    trainer.rewards = {
        key: lambda images, _, n=n: n * torch.rand(len(images)) for n, key in enumerate(trainer.rewards, 1)
    }
    scripts.loop.flow_grpo_update(trainer, theirs)
    assert (trainer.update, trainer.learner.steps) == (1, 1)
    changed = [
        name for name, weight in trainer.policy.trainable_parameters().items() if not weight.equal(before[name])
    ]
    assert len(changed) == len(before) / 2  # the matrices B, which are zero at first
