"""What the families built on FLUX.1's transformer have in common: Kontext, and FLUX.1-dev with UNO."""

from __future__ import annotations

from abc import abstractmethod
from functools import lru_cache
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, T5EncoderModel

from customized_grpo.data import Sample
from customized_grpo.policies.condition_cache import Tensors
from customized_grpo.policies.conditions import Bucket, EncodedSamples, Grid
from customized_grpo.policies.diffusers_policy import DiffusersPolicy
from customized_grpo.policies.encoder import Encoder, Reading
from customized_grpo.policies.networks import FLUX1

T5 = "T5 (model.max_sequence_length, at most 512)"
CLIP = "CLIP (only a summary in addition to T5's text)"


class Flux1Encoder(Encoder):
    """Entries have text [L, C] of T5, pooled [C] of CLIP, and the references' tokens [R, D], in this order."""

    text_encoders = ("text_encoder", "text_encoder_2")
    tokenizers = ("tokenizer", "tokenizer_2")

    def texts(self, sample: Sample) -> Tensors:
        self.warn_if_long(
            sample.prompt,
            Reading("tokenizer_2", sample.prompt, T5, self.max_sequence_length),
            Reading("tokenizer", sample.prompt, CLIP, self.pipe.tokenizer_max_length),
        )
        return self.read_text(lambda: self._encode_text(sample.prompt), self.max_sequence_length, sample.prompt)

    def blank_texts(self, sample: Sample) -> Tensors:  # noqa: ARG002
        pooled = torch.zeros(self.pipe.transformer.config.pooled_projection_dim, dtype=self.dtype, device=self.device)
        return {"text": self.blank_text(self.max_sequence_length), "pooled": pooled}

    def _encode_text(self, prompt: str) -> Tensors:
        text, pooled, _ = self.pipe.encode_prompt(
            prompt, None, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return {"text": text[0], "pooled": pooled[0]}

    def encode_picture(self, picture: Image.Image) -> Tensor:
        pixels = self.pipe.image_processor.preprocess(picture, picture.height, picture.width)
        vae = self.pipe.vae
        latents = vae.encode(pixels.to(self.device, self.dtype)).latent_dist.mode()
        latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        return self.pipe._pack_latents(latents, *latents.shape)[0].float()


class Flux1Policy(DiffusersPolicy):
    """FLUX.1's transformer: the references' tokens follow the picture's, and position ids tell them apart."""

    usual_steps: ClassVar[int] = 28
    parts: ClassVar[Any] = {
        "transformer": FluxTransformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": T5EncoderModel,
    }
    architecture = FLUX1

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        self._positions = lru_cache(maxsize=64)(self.positions)

    @property
    def _channels(self) -> int:
        return self.module.config.in_channels // 4

    def draw(self, generator: torch.Generator) -> Tensor:
        shape = (1, self._channels, self.height // self.scale, self.width // self.scale)
        return self.pipe._pack_latents(torch.randn(shape, generator=generator), *shape)

    @abstractmethod
    def positions(self, picture: Grid, references: tuple[Grid, ...]) -> Tensor:
        """The positions (image, row, column) [tokens, 3] of a picture's tokens, then of its references'."""

    def forward(self, latents: Tensor, time: Tensor, bucket: Bucket) -> Tensor:
        guidance = None
        if self.module.config.guidance_embeds:
            guidance = torch.full((len(latents),), self.guidance, dtype=torch.float32, device=self.device)
        text, ids = bucket.tensors["text"], self._positions(self.grid, bucket.references)
        velocity = self.call_transformer(
            time,
            self.module.time_text_embed,
            guidance,
            hidden_states=torch.cat([latents, bucket.tensors["reference"]], dim=1),
            pooled_projections=bucket.tensors["pooled"],
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=self.device, dtype=ids.dtype),
            img_ids=ids,
        )
        return velocity[:, : latents.shape[1]].float()

    @torch.no_grad()
    def decode(self, latents: Tensor, condition: EncodedSamples) -> Tensor:
        unpacked = self.pipe._unpack_latents(latents, condition.height, condition.width, self.scale)
        config = self.pipe.vae.config
        unscaled = (unpacked / config.scaling_factor + config.shift_factor).to(self.dtype)
        images = self.pipe.vae.decode(unscaled, return_dict=False)[0]
        return self.pipe.image_processor.postprocess(images, output_type="pt").float()


def grid_positions(size: Grid, image: int = 0, row: int = 0, column: int = 0) -> Tensor:
    """The positions (image, row, column) [rows * columns, 3] of a picture's tokens, from these on."""
    rows, columns = (torch.arange(side, dtype=torch.float32) for side in size)
    corner = torch.tensor([image, row, column], dtype=torch.float32)
    return torch.cartesian_prod(torch.zeros(1), rows, columns) + corner
