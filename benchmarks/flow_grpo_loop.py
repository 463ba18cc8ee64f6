"""An update of the trainer with Flow-GRPO's public step functions (arXiv 2505.05470), which are read from a folder.

    git clone https://github.com/yifan123/flow_grpo

Nothing of it is part of this project. Used are its loop over the steps of a FLUX.1-Kontext pipeline, and its step with
a log-probability, which its training script calls for one step of a whole batch at a time. What is around them here,
as in that script: encoding, rewards, advantages, a pass backward for each batch and step, one optimiser step.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from release_loop import apply
from torch import Tensor

from customized_grpo.algorithm import clipped_objective
from customized_grpo.data import Sample
from customized_grpo.errors import UsageError
from customized_grpo.training.trainer import Trainer

PACKAGE = "flow_grpo.diffusers_patch"
LOOP = "flux_kontext_pipeline_with_logprob", "pipeline_with_logprob"
STEP = "sd3_sde_with_logprob", "sde_step_with_logprob"
LOOP_ARGUMENTS = (
    *("image", "prompt_embeds", "pooled_prompt_embeds", "num_inference_steps", "guidance_scale", "output_type"),
    *("height", "width", "max_area", "noise_level", "generator"),
)
STEP_ARGUMENTS = ("model_output", "timestep", "sample", "noise_level", "prev_sample")


@dataclass(frozen=True)
class FlowGRPO:
    """Its functions, and how this script calls them.

    loop        a pipeline's images, latents [B, ...] before and after every step, positions of picture tokens and of
                text tokens, log-probabilities [B] of every step, and the references' tokens
    step        the next latents, their log-probability [B], mean, and std without the factor sqrt(-dt)
    batch       images per pass
    """

    loop: Callable[..., Any]
    step: Callable[..., Any]
    batch: int

    @classmethod
    def read(cls, folder: Path, batch: int) -> FlowGRPO:
        """Raises UsageError if the folder holds no Flow-GRPO, or one whose functions take other arguments."""
        sys.path.insert(0, str(folder))
        return cls(_function(folder, *LOOP, LOOP_ARGUMENTS), _function(folder, *STEP, STEP_ARGUMENTS), batch)


def _function(folder: Path, module: str, name: str, arguments: Sequence[str]) -> Callable[..., Any]:
    file = folder / PACKAGE.replace(".", "/") / f"{module}.py"
    if not file.exists():
        raise UsageError(
            f"{file} does not exist; clone https://github.com/yifan123/flow_grpo and name its folder with --flow-grpo"
        )
    function = getattr(import_module(f"{PACKAGE}.{module}"), name, None)
    if function is None:
        raise UsageError(f"{file} has no {name}; this script knows Flow-GRPO of 2025, see docs/performance.md")
    missing = [argument for argument in arguments if argument not in inspect.signature(function).parameters]
    if missing:
        raise UsageError(
            f"{name} in {file} takes no {', '.join(missing)}; this script knows Flow-GRPO of 2025, see "
            "docs/performance.md"
        )
    return function


@dataclass(frozen=True)
class Trajectory:
    """Images of one prompt with all their steps."""

    images: Tensor  # [B, 3, H, W] in [0, 1]
    latents: Sequence[Tensor]  # [B, ...] at each of the T + 1 noise levels
    log_probs: Sequence[Tensor]  # [B] of each of the T steps
    inputs: dict[str, Tensor]  # of the transformer, that do not change
    references: Tensor  # their tokens [B, R, D]

    @property
    def steps(self) -> int:
        return len(self.log_probs)


def sample(trainer: Trainer, theirs: FlowGRPO, of: Sample, count: int, seed: int) -> Trajectory:
    """`count` images by its loop, in one batch, with noise at every step."""
    policy, config = trainer.policy, trainer.config
    pipe, height, width = policy.pipe, config.model.height, config.model.width
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        length = config.model.max_sequence_length
        text, pooled, _ = pipe.encode_prompt([of.prompt] * count, None, device="cpu", max_sequence_length=length)
    images, latents, positions, text_positions, log_probs, references = theirs.loop(
        pipe,
        image=[picture.resize((width, height)) for picture in of.reference_images()] * count,
        prompt_embeds=text,
        pooled_prompt_embeds=pooled,
        num_inference_steps=config.sampling.num_steps,
        guidance_scale=policy.guidance,
        output_type="pt",
        height=height,
        width=width,
        max_area=height * width,
        noise_level=config.noise.level,
        generator=torch.Generator().manual_seed(seed),
    )
    inputs = {"pooled_projections": pooled, "encoder_hidden_states": text}
    inputs |= {"txt_ids": text_positions, "img_ids": positions}
    return Trajectory(images, latents, log_probs, inputs, references)


def replay(trainer: Trainer, theirs: FlowGRPO, rolled: Trajectory, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability [B], mean and std of a step of all images under the current policy, by its step function."""
    policy, pipe, latents = trainer.policy, trainer.policy.pipe, rolled.latents[step]
    time = pipe.scheduler.timesteps[step].repeat(len(latents))
    guidance = (
        torch.full([1], policy.guidance).expand(len(latents)) if pipe.transformer.config.guidance_embeds else None
    )
    predicted = pipe.transformer(
        hidden_states=torch.cat([latents, rolled.references], dim=1),
        timestep=time / 1000,
        guidance=guidance,
        return_dict=False,
        **rolled.inputs,
    )[0][:, : latents.shape[1]]
    after, level = rolled.latents[step + 1], trainer.config.noise.level
    _, log_prob, mean, std = theirs.step(
        pipe.scheduler, predicted.float(), time, latents.float(), prev_sample=after.float(), noise_level=level
    )
    return log_prob, mean, std


def flow_grpo_update(trainer: Trainer, theirs: FlowGRPO) -> None:
    """The trainer's next update in its order of work; it trains all steps but the last."""
    plan, config, update = trainer.plan, trainer.config, trainer.update
    samples, size = plan.batch(update), config.groups.size
    rolled: list[Trajectory] = []
    scores: dict[str, list[Tensor]] = {key: [] for key in trainer.rewards}
    for number, each in enumerate(samples):
        for start in range(0, size, theirs.batch):
            count = min(theirs.batch, size - start)
            rolled.append(sample(trainer, theirs, each, count, plan.seed(update, number, start)))
            for key, reward in trainer.rewards.items():
                scores[key].append(reward(rolled[-1].images, [each] * count))
    rewards = {key: torch.cat(values).unflatten(0, (-1, size)) for key, values in scores.items()}
    steps = range(config.sampling.num_steps - 1)
    running = trainer.shaper.observe(rewards, steps)
    advantages = trainer.shaper.advantages(rewards, trainer.shaper.column_weight(steps, running), running)
    advantages = plan.at_trained_steps(update, advantages)  # [P G, T]
    parts = advantages.split([len(each.images) for each in rolled])
    for each, own in zip(rolled, parts, strict=True):
        for step in steps:
            log_prob, _, _ = replay(trainer, theirs, each, step)
            loss, _ = clipped_objective(
                *(log_prob, each.log_probs[step], own[:, step], config.objective.clip_range),
                normaliser=advantages.numel(),
            )
            loss.backward()
    apply(trainer)
    trainer.shaper.running = running
    trainer.update += 1
