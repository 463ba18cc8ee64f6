"""Rewards and metrics by name: `reward(images, samples) -> Tensor[N]`, higher is better, NaN = could not be scored.

images are [N, 3, H, W] in [0, 1], samples carry everything else. A reward serves as a metric and the other way
round; whether one is trained on is the configuration's business. Each name maps to a factory that imports late.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from customized_grpo.data import Sample


class Reward(Protocol):
    def __call__(self, images: Tensor, samples: Sequence[Sample]) -> Tensor: ...


@dataclass(frozen=True)
class Entry:
    """A reward that can be named: how it is made, what it measures, which kind of encoder it runs on."""

    make: Callable[[str | Path, str, torch.device], Reward]
    measures: Literal["identity", "prompt", "both", "copying"]
    encoder: Literal["dino", "clip"] | None = None


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


REWARDS: dict[str, Entry] = {
    "dino": Entry(_dino, "identity", "dino"),
    "clip_t": Entry(_clip_t, "prompt", "clip"),
    "copy_paste": Entry(_copy_paste, "copying", "dino"),
    "oracle_identity": Entry(_of_critters("oracle_identity"), "identity"),
    "oracle_prompt": Entry(_of_critters("oracle_prompt"), "prompt"),
    "joint_success": Entry(_of_critters("joint_success"), "both"),
}


def load_reward(name: str, model: str | Path, against: str, device: torch.device) -> Reward:
    """The reward `name` with the encoder `model` ("critters": the built-in one); ValueError for an unknown name."""
    if name not in REWARDS:
        raise ValueError(f"no reward is named {name!r}; known: {', '.join(REWARDS)}")
    from customized_grpo.critters.weights import resolve

    entry = REWARDS[name]
    return entry.make(model if entry.encoder is None else resolve(model, entry.encoder), against, device)
