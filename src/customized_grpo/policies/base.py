"""What the rollout and the trainer ask of a model family. One file per family implements it.

Conventions, everywhere: sigma = 1 is noise, sigma = 0 the image; x_sigma = (1 - sigma) x_0 + sigma eps;
velocity v = eps - x_0. Latents are a batch first, whatever comes after is the family's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeAlias

import torch
from torch import Tensor, nn

from customized_grpo.data import Sample
from customized_grpo.sections import Model


class Condition(Protocol):
    """What a batch of images is generated from: encoded prompts and references, and the picture's size.

    Entries may differ in their number of references: grouping them for the model is the family's business.
    """

    def __len__(self) -> int: ...

    def repeat(self, count: int) -> Self:
        """Every entry `count` times in a row: a batch of prompts becomes a batch of groups."""
        ...

    def __getitem__(self, part: slice | Tensor) -> Self:
        """Some of the entries, by slice or by index."""
        ...


# What the policy's own `encode` returned: a family reads no other family's conditions.
OwnCondition: TypeAlias = Any


class Policy(Protocol):
    """A reference-conditioned flow-matching generator with a trainable adapter."""

    usual_steps: ClassVar[int]  # denoising steps that the family is customarily sampled with
    module: nn.Module  # holds the adapter; train() and eval() act on it
    device: torch.device

    @classmethod
    def load(cls, path: str | Path, model: Model, device: str, *, shard: bool = False) -> Self:
        """The generator in `path`, a folder or hub id, with the settings of the section `model`.

        shard  leave on the CPU what the method `shard` divides
        """
        ...

    def add_adapter(self, rank: int, alpha: float, targets: Sequence[str] | None = None, *, seed: int = 0) -> None:
        """A new adapter that changes nothing yet; targets are names of layers, None means the family's default."""
        ...

    def shard(self) -> None:
        """Divide the frozen weights among the processes; the adapter, added before, stays whole in each."""
        ...

    def sigmas(self, num_steps: int, shift: float | str) -> Tensor:
        """The grid [num_steps + 1] from 1 to 0, on the CPU; shift "checkpoint" is the model's own schedule."""
        ...

    def encode(self, samples: Sequence[Sample]) -> Condition:
        """Text and reference tokens, one entry per sample; an entry does not depend on the rest of the batch."""
        ...

    def noise(self, condition: OwnCondition, seeds: Sequence[int]) -> Tensor:
        """Initial latents, one seed per entry, so that an image depends on neither batch nor rank."""
        ...

    def velocity(self, latents: Tensor, sigma: float | Tensor, condition: OwnCondition) -> Tensor:
        """Velocity at `sigma` (scalar or [batch], exact), in the latents' shape. Rollout and update both call this."""
        ...

    def decode(self, latents: Tensor, condition: OwnCondition) -> Tensor:
        """Images [N, 3, H, W] in [0, 1]."""
        ...

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The adapter's weights by name."""
        ...

    def base_policy(self) -> AbstractContextManager[None]:
        """Inside, the adapter is off."""
        ...

    def save_adapter(self, directory: Path) -> None:
        """Write the adapter so that the family's plain diffusers pipeline reads it with `load_lora_weights`."""
        ...

    def load_adapter(self, directory: Path) -> None:
        """Put the weights that `save_adapter` wrote into this policy's adapter, creating it if need be."""
        ...
