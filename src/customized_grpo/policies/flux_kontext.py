"""FLUX.1-Kontext: the reference's tokens are appended to the image's and marked by their position ids.

The arithmetic is that of diffusers' `FluxKontextPipeline` (diffusers 0.42), opened up so that it has a velocity and
a gradient; at zero noise the images are the pipeline's, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxKontextPipeline
from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift
from diffusers.training_utils import _collate_lora_metadata, cast_training_params
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from customized_grpo.algorithm import sigma_schedule
from customized_grpo.data import Sample, fit
from customized_grpo.policies.base import usable_device

ADAPTER = "default"
ADAPTER_FILE = "pytorch_lora_weights.safetensors"
# Attention and feed-forward projections of both kinds of block.
LORA_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out"),
)


@dataclass(frozen=True)
class FluxCondition:
    """Encoded prompts [B, L, C] and [B, C], packed reference tokens [B, R, D] with their ids [R, 3]; pixels."""

    text: Tensor
    pooled: Tensor
    reference: Tensor
    reference_ids: Tensor
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.text)

    def repeat(self, count: int) -> FluxCondition:
        return self._each(lambda tensor: tensor.repeat_interleave(count, dim=0))

    def __getitem__(self, part: slice | Tensor) -> FluxCondition:
        return self._each(lambda tensor: tensor[part])

    def _each(self, change: Callable[[Tensor], Tensor]) -> FluxCondition:
        return replace(self, text=change(self.text), pooled=change(self.pooled), reference=change(self.reference))


class FluxKontextPolicy:
    """FLUX.1-Kontext as a `Policy`.

    path               a folder or hub id in diffusers' format
    dtype              of the frozen weights; latents, adapter and time stay float32 (autocast does the rest)
    height, width      of the generated pictures and of the reference as the model sees it, in pixels
    guidance           embedded guidance; read where the checkpoint has `guidance_embeds`
    max_sequence_length   T5 tokens
    Raises ValueError where the size is not a multiple of the model's patches.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        height: int = 512,
        width: int = 512,
        guidance: float = 2.5,
        max_sequence_length: int = 512,
    ):
        self.device, self.dtype = usable_device(device), dtype
        # Any: diffusers' annotations leave out what its pipelines return and hold.
        self.pipe: Any = FluxKontextPipeline.from_pretrained(path, dtype=dtype).to(device)
        for part in (self.pipe.transformer, self.pipe.vae, self.pipe.text_encoder, self.pipe.text_encoder_2):
            part.eval().requires_grad_(False)
        self.module = self.pipe.transformer
        self.height, self.width = height, width
        self.guidance, self.max_sequence_length = guidance, max_sequence_length
        self.scale = self.pipe.vae_scale_factor
        multiple = 2 * self.scale
        if height % multiple or width % multiple:
            raise ValueError(f"pictures of {width}x{height} pixels; this model needs multiples of {multiple}")
        self._encode_one = lru_cache(maxsize=256)(self._encode_sample)

    # --- the adapter -------------------------------------------------------------------------------------------------

    def add_adapter(self, rank: int, alpha: float, targets: Sequence[str] = LORA_TARGETS, *, seed: int = 0) -> None:
        """A fresh LoRA on the transformer, in float32; it changes nothing until it is trained."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = LoraConfig(
                r=rank,
                lora_alpha=alpha,  # pyright: ignore[reportArgumentType] (declared int, only ever divided by r)
                target_modules=list(targets),
                init_lora_weights="gaussian",
            )
            self.module.add_adapter(config, adapter_name=ADAPTER)
        cast_training_params(self.module, torch.float32)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {name: weight for name, weight in self.module.named_parameters() if weight.requires_grad}

    @contextmanager
    def base_policy(self) -> Iterator[None]:
        self.module.disable_adapters()
        try:
            yield
        finally:
            self.module.enable_adapters()

    def save_adapter(self, directory: Path) -> None:
        self.pipe.save_lora_weights(
            directory,
            transformer_lora_layers=get_peft_model_state_dict(self.module, adapter_name=ADAPTER),
            **_collate_lora_metadata({"transformer": self.module}),  # without it diffusers forgets alpha
        )

    def load_adapter(self, directory: Path) -> None:
        file = Path(directory) / ADAPTER_FILE
        if not file.is_file():
            raise ValueError(f"no adapter in {directory}: {ADAPTER_FILE} is missing; name the folder that holds it")
        if not getattr(self.module, "peft_config", None):
            self.pipe.load_lora_weights(str(directory), adapter_name=ADAPTER)
            return
        prefix = "transformer."
        state = {name.removeprefix(prefix): weight for name, weight in load_file(file).items()}
        outcome = set_peft_model_state_dict(self.module, state, adapter_name=ADAPTER)
        if outcome.unexpected_keys:
            raise ValueError(f"the adapter in {directory} does not fit: it holds {outcome.unexpected_keys[0]}")

    # --- what is generated from --------------------------------------------------------------------------------------

    def sigmas(self, num_steps: int, shift: float | str) -> Tensor:
        if shift != "checkpoint":
            return sigma_schedule(num_steps, float(shift))
        scheduler = copy.deepcopy(self.pipe.scheduler)
        config = scheduler.config
        tokens = (self.height // self.scale // 2) * (self.width // self.scale // 2)
        mu = calculate_shift(
            tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps).tolist(), mu=mu)
        return scheduler.sigmas

    def encode(self, samples: Sequence[Sample]) -> FluxCondition:
        entries = [self._encode_one(sample) for sample in samples]
        return replace(
            entries[0],
            **{name: torch.cat([getattr(e, name) for e in entries]) for name in ("text", "pooled", "reference")},
        )

    @torch.no_grad()
    def _encode_sample(self, sample: Sample) -> FluxCondition:
        """One sample at a time: an entry's bits depend neither on its neighbours nor on what is cached."""
        text, pooled, _ = self.pipe.encode_prompt(
            sample.prompt, None, device=self.device, max_sequence_length=self.max_sequence_length
        )
        picture = fit(sample.reference_images()[0], self.width, self.height)
        pixels = self.pipe.image_processor.preprocess(picture, self.height, self.width)
        _, tokens, _, ids = self.pipe.prepare_latents(
            pixels,
            1,
            self._channels,
            self.height,
            self.width,
            self.dtype,
            self.device,
            generator=torch.Generator(),  # draws noise that is not used; the global generator must not move
        )
        return FluxCondition(text, pooled, tokens.float(), ids, self.height, self.width)

    @property
    def _channels(self) -> int:
        return self.module.config.in_channels // 4

    def noise(self, condition: FluxCondition, seeds: Sequence[int]) -> Tensor:
        if len(seeds) != len(condition):
            raise ValueError(f"{len(seeds)} seeds for {len(condition)} images; give one seed per image")
        height, width = condition.height // self.scale, condition.width // self.scale
        shape = (1, self._channels, height, width)
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        latents = torch.cat(drawn).to(self.device)
        return self.pipe._pack_latents(latents, len(seeds), self._channels, height, width)

    # --- the generator -----------------------------------------------------------------------------------------------

    def velocity(self, latents: Tensor, sigma: float | Tensor, condition: FluxCondition) -> Tensor:
        # Through thousandths and back, as the pipeline does: the same bits reach the time embedding.
        time = torch.as_tensor(sigma, dtype=torch.float32, device=self.device).expand(len(latents)) * 1000 / 1000
        guidance = None
        if self.module.config.guidance_embeds:
            guidance = torch.full((len(latents),), self.guidance, dtype=torch.float32, device=self.device)
        rows, columns = condition.height // self.scale // 2, condition.width // self.scale // 2
        ids = self.pipe._prepare_latent_image_ids(1, rows, columns, self.device, condition.reference_ids.dtype)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            velocity = self.module(
                hidden_states=torch.cat([latents, condition.reference], dim=1),
                timestep=time,
                guidance=guidance,
                pooled_projections=condition.pooled,
                encoder_hidden_states=condition.text,
                txt_ids=torch.zeros(condition.text.shape[1], 3, device=self.device, dtype=ids.dtype),
                img_ids=torch.cat([ids, condition.reference_ids]),
                return_dict=False,
            )[0]
        return velocity[:, : latents.shape[1]].float()

    @torch.no_grad()
    def decode(self, latents: Tensor, condition: FluxCondition) -> Tensor:
        unpacked = self.pipe._unpack_latents(latents, condition.height, condition.width, self.scale)
        config = self.pipe.vae.config
        unscaled = (unpacked / config.scaling_factor + config.shift_factor).to(self.dtype)
        images = self.pipe.vae.decode(unscaled, return_dict=False)[0]
        return self.pipe.image_processor.postprocess(images, output_type="pt").float()
