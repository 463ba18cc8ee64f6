"""Qwen-Image-Edit-2509 and 2511: references enter twice, through the VAE and the text encoder.

Guidance is classifier-free, against a blank prompt with the same references, and keeps the norm of the velocity with
the prompt. Prompts of several lengths are padded and masked. The arithmetic is that of diffusers'
`QwenImageEditPlusPipeline` (diffusers 0.42), which takes one sample at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageEditPlusPipeline, QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import (
    CONDITION_IMAGE_SIZE,
    calculate_dimensions,
)
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from transformers import BatchFeature, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from customized_grpo.data import Sample
from customized_grpo.files.pretrained import loading
from customized_grpo.policies.condition_cache import Tensors
from customized_grpo.policies.conditions import Bucket, EncodedSamples
from customized_grpo.policies.diffusers_policy import DiffusersPolicy, guided
from customized_grpo.policies.encoder import Encoder
from customized_grpo.policies.networks import QWEN_IMAGE, check_guidance

SIDE = 1024  # references are resized to the area of a square with this side, in pixels
SEEN_TOKEN = 28  # side of a token of the text encoder, in pixels
LONG_PROMPT = 128  # tokens; prompts are never cut, so this is only for estimates
BLANK = " "  # the prompt of the velocity that guidance leads away from


class Processor:
    """Text and pictures for the text encoder, as `Qwen2VLProcessor` makes them, which needs torchvision for videos."""

    def __init__(self, tokenizer: Any, image_processor: Any):
        self.tokenizer, self.image_processor = tokenizer, image_processor

    def __call__(self, text: Sequence[str], images: Sequence[Image.Image], **settings: Any) -> BatchFeature:
        """`<|image_pad|>` in the texts stands for one picture each, in their order."""
        pictures = self.image_processor(images=list(images), return_tensors="pt")
        counts = iter((pictures["image_grid_thw"].prod(dim=1) // self.image_processor.merge_size**2).tolist())
        pad_token = "<|image_pad|>"
        texts = []
        for each in text:
            first, *rest = each.split(pad_token)
            texts.append(first + "".join(pad_token * next(counts) + part for part in rest))
        return BatchFeature({**self.tokenizer(texts, **settings), **pictures})


class QwenImageEditEncoder(Encoder):
    """Entries have text [L, C], which has seen the references, negative [L', C] if there is guidance, and reference
    [R, D]."""

    text_encoders = ("text_encoder",)
    tokenizers = ("tokenizer",)
    with_negative = True  # whether guidance needs the blank prompt

    def texts(self, sample: Sample) -> Tensors:
        seen = self._seen(sample)
        texts = {"text": self._text(sample.prompt, seen)}
        if self.with_negative:
            texts["negative"] = self._text(BLANK, seen)
        return texts

    def blank_texts(self, sample: Sample) -> Tensors:
        pictures = sum(picture.width * picture.height // SEEN_TOKEN**2 for picture in self._seen(sample))
        texts = {"text": self.blank_text(LONG_PROMPT + pictures)}
        return {**texts, "negative": self.blank_text(pictures)} if self.with_negative else texts

    def resize(self, sample: Sample) -> list[Image.Image]:
        return [self._resize(picture, (self.reference_size or SIDE) ** 2) for picture in sample.reference_images()]

    def _seen(self, sample: Sample) -> list[Image.Image]:
        """The references as the text encoder sees them."""
        return [self._resize(picture, CONDITION_IMAGE_SIZE) for picture in sample.reference_images()]

    def _resize(self, picture: Image.Image, area: int) -> Image.Image:
        width, height = calculate_dimensions(area, picture.width / picture.height)
        return self.pipe.image_processor.resize(picture, int(height), int(width))

    def _text(self, prompt: str, seen: list[Image.Image]) -> Tensor:
        def compute() -> Tensors:
            text, _ = self.pipe.encode_prompt(prompt, seen, device=self.device)
            return {"text": text[0]}

        pictures = [part for each in seen for part in (each.width, each.height, each.tobytes())]
        return self.read_text(compute, prompt, *pictures)["text"]

    def encode_picture(self, picture: Image.Image) -> Tensor:
        pixels = self.pipe.image_processor.preprocess(picture, picture.height, picture.width).unsqueeze(2)
        latents = self.pipe._encode_vae_image(pixels.to(self.device, self.dtype), None)
        batch, channels, _, height, width = latents.shape
        return self.pipe._pack_latents(latents, batch, channels, height, width)[0].float()


class QwenImageEditPolicy(DiffusersPolicy):
    """Qwen-Image-Edit as a `Policy`."""

    usual_steps: ClassVar[int] = 50
    usual_guidance = 4.0
    pipeline = QwenImageEditPlusPipeline
    parts: ClassVar[Any] = {
        "transformer": QwenImageTransformer2DModel,
        "vae": AutoencoderKLQwenImage,
        "text_encoder": Qwen2_5_VLForConditionalGeneration,
    }
    left_out = ("processor",)  # it would need torchvision; see `Processor`
    encoder_class = QwenImageEditEncoder
    architecture = QWEN_IMAGE
    encoder: QwenImageEditEncoder

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        check_guidance(self.guidance)
        self.encoder.with_negative = self.guidance != 1

    @classmethod
    def load_pipeline(cls, path: str | Path, dtype: torch.dtype) -> Any:
        pipe = super().load_pipeline(path, dtype)
        with loading(path):
            pipe.processor = Processor(
                pipe.tokenizer, Qwen2VLImageProcessorPil.from_pretrained(path, subfolder="processor")
            )
        return pipe

    def draw(self, generator: torch.Generator) -> Tensor:
        channels, (rows, columns) = self.module.config.in_channels // 4, self.grid
        noise = torch.randn(1, 1, channels, 2 * rows, 2 * columns, generator=generator)
        return self.pipe._pack_latents(noise, 1, channels, 2 * rows, 2 * columns)

    def exact_inputs(self, time: Tensor, guidance: Tensor | None) -> list[Tensor]:  # noqa: ARG002
        # The embedding multiplies by 1000 itself. In 2511 reference tokens have time 0: the second half.
        return [torch.cat([time, time * 0]) if self.module.config.zero_cond_t else time]

    def forward(self, latents: Tensor, time: Tensor, bucket: Bucket) -> Tensor:
        tokens = torch.cat([latents, bucket.tensors["reference"]], dim=1)
        shapes = [(1, *size) for size in (self.grid, *bucket.references)]

        def call(time: Tensor, tokens: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
            velocity = self.call_transformer(
                time,
                self.module.time_text_embed,
                hidden_states=tokens,
                encoder_hidden_states=text,
                encoder_hidden_states_mask=mask,
                img_shapes=[shapes] * len(tokens),
            )
            return velocity[:, : latents.shape[1]].float()

        if self.guidance == 1:
            return call(time, tokens, bucket.tensors["text"], bucket.mask("text"))
        texts = {name: (bucket.tensors[name], bucket.mask(name)) for name in ("text", "negative")}
        together = self.together(latents)
        if together:
            texts = _equally_long(texts)
        inputs = [(time, tokens, *(part for part in texts[name] if part is not None)) for name in ("text", "negative")]
        combined, with_prompt = guided(call, self.guidance, *inputs, together=together)
        norm = torch.norm(with_prompt, dim=-1, keepdim=True) / torch.norm(combined, dim=-1, keepdim=True)
        return combined * norm

    @torch.no_grad()
    def decode(self, latents: Tensor, condition: EncodedSamples) -> Tensor:
        vae = self.pipe.vae
        unpacked = self.pipe._unpack_latents(latents, condition.height, condition.width, self.scale).to(self.dtype)
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1, 1).to(unpacked)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        images = vae.decode(unpacked / (1.0 / std) + mean, return_dict=False)[0][:, :, 0]
        return self.pipe.image_processor.postprocess(images, output_type="pt").float()


def _equally_long(texts: Mapping[str, tuple[Tensor, Tensor | None]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Prompts and blank prompts padded to one length, with masks, so that one batch takes both."""
    longest = max(text.shape[1] for text, _ in texts.values())
    padded = {}
    for name, (text, mask) in texts.items():
        known = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device) if mask is None else mask
        missing = longest - text.shape[1]
        padded[name] = pad(text, (0, 0, 0, missing)), pad(known, (0, missing))
    return padded
