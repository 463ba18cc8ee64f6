"""The published models at their true width, with random weights made on the device and without a single file.

With all blocks that is the true size. A slice has the true width, heads, tokens and precision, but few blocks of each
kind, and a VAE with few channels. Text encoders and tokenizers are left out: encoded prompts are random numbers.
"""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from customized_grpo.config import RunConfig
from customized_grpo.critters.weights import resolve
from customized_grpo.data import Sample
from customized_grpo.policies import planned_family
from customized_grpo.policies.architectures import configuration
from customized_grpo.policies.condition_cache import Tensors
from customized_grpo.policies.diffusers_policy import DiffusersPolicy
from customized_grpo.policies.sketch import sketched
from customized_grpo.run.follower import FollowedDirectory
from customized_grpo.runtime.distributed import Processes
from customized_grpo.training.assemble import add_adapter, load_rewards
from customized_grpo.training.evaluation import HeldOut
from customized_grpo.training.trainer import RATIO_CHECKS, Trainer

COUNTS = ("num_layers", "num_single_layers")  # of blocks, in the configurations of transformers
FEW_CHANNELS = {"block_out_channels": 32, "base_dim": 8, "layers_per_block": 1, "num_res_blocks": 1}  # at most
BUILT = ("transformer", "vae")


def sliced_transformer(model: str | Path, blocks: int) -> dict[str, Any]:
    """The configuration of a model's transformer with so many blocks of each kind."""
    config = known(model, "transformer")
    return {**config, **{name: min(config[name], blocks) for name in COUNTS if name in config}}


def sliced_vae(model: str | Path, kind: Any) -> dict[str, Any]:
    """The configuration of a model's VAE, of this class, with few channels between pictures and latents."""
    config, fields = known(model, "vae"), signature(kind.__init__).parameters
    few = {name: most for name, most in FEW_CHANNELS.items() if name in fields}
    return {**config, **{name: _at_most(config.get(name, fields[name].default), most) for name, most in few.items()}}


def _at_most(value: Any, most: int) -> Any:
    return [min(each, most) for each in value] if isinstance(value, list | tuple) else min(value, most)


def known(model: str | Path, part: str = "") -> dict[str, Any]:
    config = configuration(model, part)
    if config is None:
        raise SystemExit(f"{model}: the configuration of its {part or 'pipeline'} is not on this machine")
    return config


def write_slice(model: str, family: type[DiffusersPolicy], blocks: int, folder: Path) -> Path:
    """A folder with the configurations of a slice, and no weights: a path of a model for `plan`, and for this file."""
    configs = {
        **{name: known(model, name) for name in family.parts},
        "transformer": sliced_transformer(model, blocks),
        "vae": sliced_vae(model, family.parts["vae"]),
    }
    for name, config in configs.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    index = {name: value for name, value in known(model).items() if not isinstance(value, list)}  # no list of parts
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def random_policy(config: RunConfig) -> DiffusersPolicy:
    """The generator of a configuration with random weights and a new adapter."""
    model, path = config.model, resolve(config.model.path, "generator")
    family: Any = planned_family(model)
    parts = {name: family.parts[name] for name in BUILT}
    torch.manual_seed(0)
    pipe: Any = sketched(family.pipeline, parts, path, getattr(torch, model.dtype), config.device)
    for name in family.encoder_class.text_encoders:
        setattr(pipe, name, nn.Module())
    policy: DiffusersPolicy = family(pipe, model, torch.device(config.device))
    policy.encoder.texts = lambda sample: random_texts(policy, sample)
    add_adapter(policy, config)
    return policy


def random_texts(policy: DiffusersPolicy, sample: Sample) -> Tensors:
    """Random numbers in the place of what text encoders make of the longest prompt."""
    return {name: torch.randn_like(text) for name, text in policy.encoder.blank_texts(sample).items()}


def random_sample(side: int) -> Sample:
    """A sample whose reference is noise, `side` pixels wide and high."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Sample("noise", "noise", "a toy on the beach", (Image.fromarray(pixels),))


def random_trainer(config: RunConfig, policy: DiffusersPolicy, sample: Sample) -> Trainer:
    """A trainer for single updates of a policy; it writes nothing."""
    processes, rewards = Processes(config.device), load_rewards(config)
    held_out = HeldOut([], {}, config.groups.rollout_batch, processes, config.evaluation_size)
    trainer = Trainer(config, policy, rewards, [sample], held_out, FollowedDirectory(config), processes)
    trainer.ratio_checks = RATIO_CHECKS  # the check belongs to the first updates of a run only
    return trainer
