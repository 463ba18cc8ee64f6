"""How much memory the rewards' models need on the device that trains."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from customized_grpo.config import RunConfig
from customized_grpo.files.paths import is_folder
from customized_grpo.files.pretrained import find_offline
from customized_grpo.rewards.settings import EncoderSettings, OwnFunctionSettings, RewardSettings

FILE = "model.safetensors"
# Weights of the models that the recipes and docs/rewards.md name; those of other models are read from their files.
PUBLISHED = {
    "facebook/dinov2-small": 22_056_576,
    "facebook/dinov2-base": 86_580_480,
    "facebook/dinov2-large": 304_368_640,
    "facebook/dino-vits16": 21_665_664,
    "facebook/dino-vitb16": 85_798_656,
    "openai/clip-vit-base-patch32": 151_277_313,
    "openai/clip-vit-large-patch14": 427_616_513,
    "yuvalkirstain/PickScore_v1": 986_109_441,
    "MizzenAI/HPSv3": 7_748_610_610,
}


def reward_memory(config: RunConfig) -> tuple[dict[str, int], list[str]]:
    """Bytes of each model that rewards and metrics load on the run's device; and those whose size is not known.

    A model that several of them use is there once. Remote rewards need no memory here, and what a reward's own code
    needs is not known.
    """
    known: dict[str, int] = {}
    unknown: list[str] = []
    models = set()
    for reward in _rewards(config):
        if isinstance(reward, OwnFunctionSettings):
            unknown.append(reward.name)
        elif isinstance(reward, EncoderSettings) and reward.device in (None, config.device):
            name, weights = str(reward.model or reward.usual_model), _weights(reward)
            if weights is None:
                unknown.append(name)
            elif (reward.files(), _bytes(reward)) not in models:
                models.add((reward.files(), _bytes(reward)))
                known[f"{reward.name} ({name})"] = weights * _bytes(reward)
    return known, list(dict.fromkeys(unknown))


def _rewards(config: RunConfig) -> Iterator[RewardSettings]:
    yield from config.trained().values()
    if config.evaluation.every:
        yield from map(config.resolve, config.evaluation.metrics)


def _bytes(reward: EncoderSettings) -> int:
    """Of a weight: encoders are loaded in float32."""
    dtype: torch.dtype = getattr(torch, getattr(reward, "dtype", "float32"))
    return dtype.itemsize


def _weights(reward: EncoderSettings) -> int | None:
    """The number of weights in a model's files on this machine, else of a published one."""
    model = reward.files()
    names = {name for name in reward.needed().values() if name.endswith(".safetensors")} or {FILE}
    if is_folder(Path(model)):
        files = sorted(Path(model).glob("*.safetensors"))
    else:
        found = [find_offline(model, name) for name in names]
        files = [file for file in found if file is not None]
    return sum(map(_count, files)) if files else PUBLISHED.get(model)


def _count(file: Path) -> int:
    with safe_open(file, framework="pt") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118 (no dict)
