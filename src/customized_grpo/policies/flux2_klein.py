"""FLUX.2-klein, base and distilled: references are further images at their own times, 10, 20, ...

Positions are (time, row, column, place in the text). The generated picture is at time 0; text tokens have only a
place. Guidance is classifier-free, against an empty prompt, in one forward pass of twice the batch; distilled models
have none. The arithmetic is that of diffusers' `Flux2KleinPipeline` (diffusers 0.42).
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from PIL import Image
from torch import Tensor
from transformers import Qwen3ForCausalLM

from customized_grpo.data import Sample
from customized_grpo.errors import UsageError
from customized_grpo.policies.condition_cache import Tensors
from customized_grpo.policies.conditions import Bucket, EncodedSamples, Grid
from customized_grpo.policies.diffusers_policy import DiffusersPolicy, guided
from customized_grpo.policies.encoder import Encoder, Reading
from customized_grpo.policies.networks import FLUX2, check_guidance
from customized_grpo.sections import Model

SIDE = 1024  # references of a larger area are shrunk to that of a square with this side, in pixels
TIME_BETWEEN = 10  # of two references
READER = "Qwen3 (model.max_sequence_length)"
ZERO = torch.zeros(1, dtype=torch.int64)


class Flux2KleinEncoder(Encoder):
    """Entries have text [L, C], three layers of the text encoder side by side, negative [L, C] if there is guidance,
    and reference [R, D]."""

    text_encoders = ("text_encoder",)
    tokenizers = ("tokenizer",)
    with_negative = True  # whether guidance needs the empty prompt

    def texts(self, sample: Sample) -> Tensors:
        self._warn_if_long(sample.prompt)
        text = {"text": self._text(sample.prompt)}
        return {**text, "negative": self._no_text} if self.with_negative else text

    def blank_texts(self, sample: Sample) -> Tensors:  # noqa: ARG002
        names = ("text", "negative") if self.with_negative else ("text",)
        return {name: self.blank_text(self.max_sequence_length) for name in names}

    def _text(self, prompt: str) -> Tensor:
        """The encoded prompt [L, C]."""
        return self.read_text(lambda: self._encode_text(prompt), self.max_sequence_length, prompt)["text"]

    @cached_property
    def _no_text(self) -> Tensor:
        """The encoded empty prompt [L, C], for classifier-free guidance."""
        return self._text("")

    def _encode_text(self, prompt: str) -> Tensors:
        text, _ = self.pipe.encode_prompt(prompt, self.device, max_sequence_length=self.max_sequence_length)
        return {"text": text[0]}

    def _warn_if_long(self, prompt: str) -> None:
        chat = [{"role": "user", "content": prompt}]
        template = self.pipe.tokenizer.apply_chat_template
        whole = template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        self.warn_if_long(prompt, Reading("tokenizer", whole, READER, self.max_sequence_length))

    def resize(self, sample: Sample) -> list[Image.Image]:
        return [self._resize(picture, sample) for picture in sample.reference_images()]

    def _resize(self, picture: Image.Image, sample: Sample) -> Image.Image:
        """The picture in its own aspect, at most as large as the model takes, cropped to whole tokens."""
        limit = (self.reference_size or SIDE) ** 2
        processor = self.pipe.image_processor
        if picture.width * picture.height > limit:
            picture = processor._resize_to_target_area(picture, limit)
        width, height = (side // self.patch * self.patch for side in picture.size)
        if not (width and height):
            raise UsageError(
                f"sample {sample.id}: a reference of {picture.width} x {picture.height} pixels is smaller than one "
                f"token, {self.patch} x {self.patch}; use a larger picture"
            )
        return processor._resize_and_crop(picture, width, height)

    def encode_picture(self, picture: Image.Image) -> Tensor:
        pixels = self.pipe.image_processor.preprocess(picture, picture.height, picture.width, resize_mode="crop")
        latents = self.pipe._encode_vae_image(pixels.to(self.device, self.dtype), None)
        return self.pipe._pack_latents(latents)[0].float()


class Flux2KleinPolicy(DiffusersPolicy):
    """FLUX.2-klein as a `Policy`."""

    usual_steps: ClassVar[int] = 50
    usual_guidance = 4.0
    pipeline = Flux2KleinPipeline
    parts: ClassVar[Any] = {
        "transformer": Flux2Transformer2DModel,
        "vae": AutoencoderKLFlux2,
        "text_encoder": Qwen3ForCausalLM,
    }
    encoder_class = Flux2KleinEncoder
    architecture = FLUX2
    encoder: Flux2KleinEncoder

    def __init__(self, pipe: Any, model: Model, *args: Any, **settings: Any):
        super().__init__(pipe, model, *args, **settings)
        check_guidance(self.guidance)
        self._positions = lru_cache(maxsize=64)(self.positions)
        if self.pipe.config.is_distilled:
            if model.guidance not in (None, 1.0):
                raise UsageError(
                    f"model.guidance={model.guidance:g}: this FLUX.2-klein is distilled and takes no guidance; set "
                    "model.guidance=null"
                )
            self.guidance = 1.0
        self.encoder.with_negative = self.guidance != 1

    def draw(self, generator: torch.Generator) -> Tensor:
        noise = torch.randn(1, self.module.config.in_channels, *self.grid, generator=generator)
        return self.pipe._pack_latents(noise)

    def dynamic_shift(self, num_steps: int) -> float:
        rows, columns = self.grid
        return compute_empirical_mu(rows * columns, num_steps)

    def positions(self, picture: Grid, references: tuple[Grid, ...], text: int) -> tuple[Tensor, Tensor]:
        """Positions [tokens, 4] of the picture's and its references' tokens, and those of `text` tokens."""
        grids = []
        for number, size in enumerate((picture, *references)):
            time, (rows, columns) = torch.tensor([TIME_BETWEEN * number]), map(torch.arange, size)
            grids.append(torch.cartesian_prod(time, rows, columns, ZERO))
        places = torch.cartesian_prod(ZERO, ZERO, ZERO, torch.arange(text))
        return torch.cat(grids).to(self.device), places.to(self.device)

    def forward(self, latents: Tensor, time: Tensor, bucket: Bucket) -> Tensor:
        tokens, text = torch.cat([latents, bucket.tensors["reference"]], dim=1), bucket.tensors["text"]
        if self.guidance == 1:
            velocity = self._call(time, tokens, text, bucket)
        else:
            velocity = guided(
                lambda times, states, texts: self._call(times, states, texts, bucket),
                self.guidance,
                (time, tokens, text),
                (time, tokens, bucket.tensors["negative"]),
                together=self.together(latents),
            )[0]
        return velocity[:, : latents.shape[1]]

    def _call(self, time: Tensor, tokens: Tensor, text: Tensor, bucket: Bucket) -> Tensor:
        ids, places = self._positions(self.grid, bucket.references, text.shape[1])
        return self.call_transformer(
            time,
            self.module.time_guidance_embed,
            hidden_states=tokens,
            encoder_hidden_states=text,
            txt_ids=places,
            img_ids=ids,
        ).float()

    @torch.no_grad()
    def decode(self, latents: Tensor, condition: EncodedSamples) -> Tensor:
        vae, patch = self.pipe.vae, self.encoder.patch
        grid = latents.transpose(1, 2).unflatten(2, (condition.height // patch, condition.width // patch))
        mean = vae.bn.running_mean.view(1, -1, 1, 1).to(grid)
        std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).to(grid)
        unpacked = self.pipe._unpatchify_latents(grid * std + mean).to(self.dtype)
        images = vae.decode(unpacked, return_dict=False)[0]
        return self.pipe.image_processor.postprocess(images, output_type="pt").float()
