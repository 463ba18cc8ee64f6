"""FLUX.1-dev with UNO's adapter: references stand diagonally below and to the right of the picture.

The checkpoint is FLUX.1-dev's; `model.base_adapter` is UNO's `dit_lora.safetensors`, fused into it. Positions are
(0, row, column), and each reference begins where the picture and the references before it end, in rows as well as in
columns. References keep their aspect. Source: UNO (arXiv 2504.02160), section 3, and its public code, whose numbers a
test compares.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Self

import torch
from diffusers import FluxPipeline
from PIL import Image
from torch import Tensor

from customized_grpo.data import Sample
from customized_grpo.policies.conditions import Grid
from customized_grpo.policies.flux1 import Flux1Encoder, Flux1Policy, grid_positions
from customized_grpo.sections import Model

LONG_SIDE, LONG_SIDE_OF_SEVERAL = 512, 320  # pixels


class UnoEncoder(Flux1Encoder):
    def resize(self, sample: Sample) -> list[Image.Image]:
        """Each with its long side at 512 pixels, several at 320, and cropped to whole patches."""
        pictures = sample.reference_images()
        usual = LONG_SIDE if len(pictures) == 1 else LONG_SIDE_OF_SEVERAL
        return [to_long_side(picture, self.reference_size or usual, self.patch) for picture in pictures]


class UnoPolicy(Flux1Policy):
    """FLUX.1-dev with UNO as a `Policy`."""

    usual_guidance = 3.5  # of the paper's training; UNO's own demo uses 4
    pipeline = FluxPipeline
    encoder_class = UnoEncoder

    @classmethod
    def load(cls, path: str | Path, model: Model, device: str, *, shard: bool = False) -> Self:
        if model.base_adapter is None:
            warnings.warn(
                "model.family=uno without model.base_adapter: FLUX.1-dev alone has not learnt to look at references; "
                "name UNO's dit_lora.safetensors there",
                stacklevel=2,
            )
        return super().load(path, model, device, shard=shard)

    def dynamic_shift(self, num_steps: int) -> float:  # noqa: ARG002
        """As in UNO's demo, which counts patches of 16 latents: 16 tokens for 512 pixels, so mu is about .46."""
        return self.shift_for((self.height // self.scale) * (self.width // self.scale) // 256)

    def positions(self, picture: Grid, references: tuple[Grid, ...]) -> Tensor:
        ids, (row, column) = [grid_positions(picture)], picture
        for rows, columns in references:
            ids.append(grid_positions((rows, columns), row=row, column=column))
            row, column = row + rows, column + columns
        return torch.cat(ids).to(self.device)


def to_long_side(picture: Image.Image, side: int, multiple: int) -> Image.Image:
    """The picture with its longer side at `side` pixels, then the centre of it in multiples of `multiple`.

    As in UNO's code: Lanczos, the shorter side rounded down.
    """
    width, height = picture.size
    width, height = (side, int(side / width * height)) if width >= height else (int(side / height * width), side)
    picture = picture.resize((max(width, multiple), max(height, multiple)), Image.Resampling.LANCZOS)
    cropped = [length // multiple * multiple for length in picture.size]
    left, top = ((length - kept) // 2 for length, kept in zip(picture.size, cropped, strict=True))
    return picture.crop((left, top, left + cropped[0], top + cropped[1]))
