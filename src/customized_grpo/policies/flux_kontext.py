"""FLUX.1-Kontext: references are further images, each with its own rows and columns.

Positions are triplets (image, row, column). The generated picture is image 0; the references are images 1, 2, ... in
the order of `Sample.references`, each with its own rows and columns from 0. Source: FLUX.1 Kontext, arXiv 2506.15742,
section 3: u = (0, h, w) for the target, (i, h, w) for context image i. diffusers' `FluxKontextPipeline` takes one
reference and also makes it image 1. The released FLUX.1-Kontext-dev was trained with one reference, so a checkpoint or
its adapter must have learnt images 2, 3, ... first. (ComfyUI calls these positions "index", for models trained with
several references; for others it places the references side by side on image 1, "offset".)
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FluxKontextPipeline
from PIL import Image
from torch import Tensor

from customized_grpo.data import Sample, fit
from customized_grpo.errors import UsageError
from customized_grpo.policies.conditions import Grid
from customized_grpo.policies.flux1 import Flux1Encoder, Flux1Policy, grid_positions
from customized_grpo.sections import Model


class FluxKontextEncoder(Flux1Encoder):
    def __init__(self, pipe: Any, model: Model, *args: Any):
        super().__init__(pipe, model, *args)
        if model.reference_size is not None:
            raise UsageError(
                f"model.reference_size={model.reference_size}: FLUX.1-Kontext gets references in the size of the "
                "generated picture; set model.reference_size=null"
            )

    def resize(self, sample: Sample) -> list[Image.Image]:
        """All in the size of the generated picture, cropped to its aspect."""
        return [fit(picture, self.width, self.height) for picture in sample.reference_images()]


class FluxKontextPolicy(Flux1Policy):
    """FLUX.1-Kontext as a `Policy`."""

    usual_guidance = 2.5
    pipeline = FluxKontextPipeline
    encoder_class = FluxKontextEncoder

    def positions(self, picture: Grid, references: tuple[Grid, ...]) -> Tensor:
        grids = (picture, *references)
        ids = torch.cat([grid_positions(size, image) for image, size in enumerate(grids)])
        return ids.to(self.device, self.dtype)  # in the weights' dtype, as in diffusers
