"""The sections of a configuration: typed, one comment per field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import model_validator

from customized_grpo.fields import (
    BUILT_IN,
    Count,
    GroupSize,
    Index,
    NonNegative,
    Pixels,
    Positive,
    Rank,
    Section,
    Share,
    Steps,
    Tokens,
)
from customized_grpo.rewards.by_name import AnyReward

# What a model other than the built-in one is run with unless the configuration says otherwise.
OF_OTHER_MODELS: Mapping[str, Any] = {"dtype": "bfloat16", "height": 512, "width": 512, "max_sequence_length": 512}


class Model(Section):
    path: str = "critters"  # the built-in generator, or a folder or hub id in diffusers' format
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the frozen weights; the adapter is always float32
    height: Pixels = 32  # pixels; for models other than the built-in one see OF_OTHER_MODELS
    width: Pixels = 32
    guidance: NonNegative = 2.5  # embedded guidance, where the checkpoint has it
    max_sequence_length: Tokens = 16  # T5 tokens
    gradient_checkpointing: bool = False  # the update computes activations twice instead of holding them all
    offload_text_encoders: bool = False  # on the CPU, except while prompts are encoded
    condition_cache: str | None = None  # a folder that keeps encoded prompts and references for other runs
    shard: bool = False  # divide the frozen weights among the processes (FSDP2): for a base larger than a card

    @model_validator(mode="before")
    @classmethod
    def _usual_of_the_model(cls, values: Any) -> Any:
        built_in = not isinstance(values, Mapping) or values.get("path", BUILT_IN) == BUILT_IN
        return values if built_in else {**OF_OTHER_MODELS, **values}


class Adapter(Section):
    rank: Rank = 16
    alpha: Positive = 16.0  # the update is scaled by alpha / rank
    targets: tuple[str, ...] | None = None  # names of layers; null: attention, feed-forward, output


class Data(Section):
    source: str = "critters"  # the built-in world, a named layout, a list or a folder: see docs/data.md
    root: str | None = None  # folder of a named layout, or where a list's paths start from; null: the list's own
    class_word: str | None = None  # what the photographs show, "dog", or a list that does not say it
    train_samples: Count | None = None  # at most so many; critters need a number
    held_out_samples: Count = 128  # fixed cases of the evaluation during training
    held_out_share: Share = 0.1  # of the subjects, kept from training; critters are always new ones


class Sampling(Section):
    num_steps: Steps = 10  # denoising steps T
    shift: Positive | Literal["checkpoint"] = 3.0  # of the sigma grid; "checkpoint": the pipeline's own schedule


class Noise(Section):
    dynamics: Literal["dance", "flow", "cps"] = "flow"  # how a stochastic step adds its noise
    level: Positive = 0.8  # eta of "dance", a of "flow" and "cps"


class Window(Section):
    strategy: Literal["all", "random", "sliding", "fixed"] = "random"  # which steps are stochastic and trained
    size: Count | None = 2  # steps in a window; null with "all"
    first: Index = 0  # first step that a window may hold
    last: Index | None = None  # last one; null: T - 2, the last step is never trained
    start: Index | None = None  # of the "fixed" window
    every: Count = 1  # updates between moves of the "sliding" window
    stride: Count = 1  # steps per move

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.strategy == "all" and self.size is not None:
            raise ValueError(f'strategy "all" has no window, and size is {self.size}; set window.size=null')
        if self.strategy != "all" and self.size is None:
            raise ValueError(f'strategy "{self.strategy}" needs a size; set for instance window.size=2')
        if (self.start is None) == (self.strategy == "fixed"):
            raise ValueError('start goes with the strategy "fixed" and only with it')
        return self


class Shaping(Section):
    rule: Literal["sars", "linear", "raw_sum", "min", "max", "harmonic", "geometric", "gdpo"] = "sars"
    gamma: NonNegative = 0.4  # size of the synergy bonus of "sars"
    recentre: bool = False  # subtract the bonus's group mean (the published form does not)
    scale: Positive = 1.0  # factor on the rule's advantage, without the bonus: to compare rules at equal spread
    clip: Positive = 5.0  # bound of the final advantage


class Weighting(Section):
    kind: Literal["tdw", "constant"] = "tdw"
    prompt: Share = 0.5  # the constant prompt weight; identity has the rest
    progress: Literal["step", "sigma"] = "step"  # what "tdw" takes as time: t / T, or the noise level
    high: Share = 0.7  # prompt weight early
    low: Share = 0.3  # prompt weight late
    final: Share = 0.5  # prompt weight at the very end
    start: Share = 0.24  # progress at which the fall begins
    centre: Share = 0.40  # progress in the middle of the fall
    end: Share = 0.88  # progress at which the final phase begins
    rate: Positive = 20.0  # steepness of the fall


class Objective(Section):
    clip_range: Positive = 1e-4  # of the probability ratio; small because log-probabilities are means
    kl: NonNegative = 0.0  # coefficient of the KL divergence to the base policy
    step_scale: Literal["none", "equal"] = "none"  # "equal" makes every step pull alike
    updates_per_rollout: Count = 1  # optimiser steps on one rollout; clipping acts from the second


class Optimizer(Section):
    lr: Positive = 1e-3
    weight_decay: NonNegative = 1e-4
    warmup: Index = 3  # updates of linear warm-up
    max_grad_norm: Positive = 1.0


class Groups(Section):
    prompts: Count = 8  # groups per update
    size: GroupSize = 8  # images per group
    rollout_batch: Count = 64  # images per forward pass of the rollout
    update_batch: Count = 64  # images per forward and backward pass of the update


class Evaluation(Section):
    every: Index = 20  # updates between evaluations on the held-out cases; 0 = never
    metrics: tuple[AnyReward, ...] = ()  # beside the rewards: each by name, or a line such as "dino region=centre"
    grid: Index = 8  # cases drawn into the picture of each evaluation
