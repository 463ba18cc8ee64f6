"""Rewards and metrics by name: `reward(images, samples) -> Tensor[N]`, higher is better, NaN = could not be scored.

images are [N, 3, H, W] in [0, 1], samples carry everything else. A reward serves as a metric and the other way
round; whether one is trained on is the configuration's business. Each name maps to a factory that imports late.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from customized_grpo.data import Sample


class Reward(Protocol):
    def __call__(self, images: Tensor, samples: Sequence[Sample]) -> Tensor: ...


def _dino(model: str | Path, against: str, device: torch.device) -> Reward:
    from customized_grpo.rewards.dino import DinoIdentity

    return DinoIdentity(model, against, device)


def _clip_t(model: str | Path, against: str, device: torch.device) -> Reward:  # noqa: ARG001 (one shape for all)
    from customized_grpo.rewards.clip_t import ClipPrompt

    return ClipPrompt(model, device)


def _copy_paste(model: str | Path, against: str, device: torch.device) -> Reward:  # noqa: ARG001
    from customized_grpo.rewards.dino import CopyPaste

    return CopyPaste(model, device)


def _of_critters(name: str) -> Callable[..., Reward]:
    def make(*_: object) -> Reward:
        from customized_grpo.critters import metrics

        return getattr(metrics, name)

    return make


REWARDS: dict[str, Callable[[str | Path, str, torch.device], Reward]] = {
    "dino": _dino,
    "clip_t": _clip_t,
    "copy_paste": _copy_paste,
    "oracle_identity": _of_critters("oracle_identity"),
    "oracle_prompt": _of_critters("oracle_prompt"),
    "joint_success": _of_critters("joint_success"),
}


def load_reward(name: str, model: str | Path, against: str, device: torch.device) -> Reward:
    """The reward `name` with the encoder `model` ("critters": the built-in one); ValueError for an unknown name."""
    if name not in REWARDS:
        raise ValueError(f"no reward is named {name!r}; known: {', '.join(REWARDS)}")
    from customized_grpo.critters.weights import resolve

    return REWARDS[name](resolve(model, "clip" if name == "clip_t" else "dino"), against, device)
