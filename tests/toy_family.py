"""A model family in a few lines: its velocity pulls every pixel towards the mean colour of the first reference.

The adapter is one number per colour channel. It learns, saves, loads and resumes like a real one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from customized_grpo.algorithm import sigma_schedule
from customized_grpo.data import Sample
from customized_grpo.policies.base import OwnCondition, Targets
from customized_grpo.sections import Adapter, Model


class Colours(list[Tensor]):
    """The mean colours [3, 1, 1] of a batch, one per sample."""

    def repeat(self, count: int) -> Self:
        return type(self)(colour for colour in self for _ in range(count))

    def __getitem__(self, part: Any) -> Any:
        chosen = torch.arange(len(self))[part].tolist()
        return type(self)(list.__getitem__(self, row) for row in chosen)


class ToyPolicy:
    usual_steps: ClassVar[int] = 4

    def __init__(self, height: int = 32, width: int = 32):
        self.size, self.module, self.device = (3, height, width), nn.Module(), torch.device("cpu")
        self.shift = nn.Parameter(torch.zeros(3, 1, 1), requires_grad=False)

    @classmethod
    def load(cls, path: str | Path, model: Model, device: str, *, shard: bool = False) -> Self:  # noqa: ARG003
        return cls(model.height, model.width)

    @classmethod
    def adapter_size(cls, path: str | Path, model: Model, adapter: Adapter) -> int:  # noqa: ARG003
        return 3

    def add_adapter(
        self,
        rank: int,  # noqa: ARG002
        alpha: float,  # noqa: ARG002
        targets: Targets = None,  # noqa: ARG002
        *,
        seed: int = 0,  # noqa: ARG002
        share_qkv: bool = False,  # noqa: ARG002
    ) -> None:
        self.shift.requires_grad_()
        self.module.register_parameter("shift", self.shift)

    def shard(self) -> None: ...

    def sigmas(self, num_steps: int, shift: float | str) -> Tensor:
        return sigma_schedule(num_steps, 1.0 if shift == "checkpoint" else float(shift))

    @contextmanager
    def sized(self, height: int, width: int) -> Iterator[None]:
        usual, self.size = self.size, (3, height, width)
        yield
        self.size = usual

    def encode(self, samples: Sequence[Sample]) -> OwnCondition:
        pictures = (torch.tensor(np.asarray(sample.reference_images()[0]) / 255) for sample in samples)
        return Colours(pixels.float().mean(dim=(0, 1))[:, None, None] for pixels in pictures)

    def noise(self, condition: OwnCondition, seeds: Sequence[int]) -> Tensor:  # noqa: ARG002
        return torch.stack([torch.randn(self.size, generator=torch.Generator().manual_seed(seed)) for seed in seeds])

    def velocity(self, latents: Tensor, sigma: float | Tensor, condition: OwnCondition) -> Tensor:  # noqa: ARG002
        return latents - torch.stack(list(condition)) - self.shift

    def decode(self, latents: Tensor, condition: OwnCondition) -> Tensor:  # noqa: ARG002
        return latents.clamp(0, 1)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {"shift": self.shift}

    @contextmanager
    def base_policy(self) -> Iterator[None]:
        trained = self.shift.detach().clone()
        self.shift.data.zero_()
        try:
            yield
        finally:
            self.shift.data.copy_(trained)

    def save_adapter(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        save_file({"shift": self.shift.detach()}, directory / "pytorch_lora_weights.safetensors")

    def load_adapter(self, path: Path) -> None:
        self.add_adapter(1, 1.0)
        self.shift.data.copy_(load_file(path / "pytorch_lora_weights.safetensors")["shift"])
