"""FLUX.1-Kontext: the references' tokens are appended to the image's and marked by their position ids.

The arithmetic is that of diffusers' `FluxKontextPipeline` (diffusers 0.42), opened up so that it has a velocity and
a gradient; at zero noise and with one reference the images are the pipeline's, bit for bit. With several references
see `flux_condition`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxKontextPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift
from diffusers.training_utils import _collate_lora_metadata, cast_training_params
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import CLIPTextModel, T5EncoderModel

from customized_grpo.algorithm import sigma_schedule
from customized_grpo.data import Sample
from customized_grpo.errors import UsageError
from customized_grpo.files.pretrained import load_part, loading
from customized_grpo.policies.adapter_file import ADAPTER_FILE, TRANSFORMER, check_fits, check_same, read_adapter
from customized_grpo.policies.condition_cache import ConditionCache
from customized_grpo.policies.flux_condition import Bucket, FluxCondition
from customized_grpo.policies.flux_encoder import TEXT_ENCODERS, FluxEncoder
from customized_grpo.runtime.device import usable_device
from customized_grpo.runtime.distributed import shard
from customized_grpo.sections import Model

ADAPTER = "default"
# Attention and feed-forward projections of both kinds of block; "proj_out" also names the layer after the last block.
LORA_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp", "proj_out"),
)


PARTS = {
    "transformer": FluxTransformer2DModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": T5EncoderModel,
}


def _load_pipeline(path: str | Path, dtype: torch.dtype) -> FluxKontextPipeline:
    """The pipeline of a folder or hub id. Raises ModelError if weights are missing."""
    parts = {name: load_part(kind, path, name, dtype=dtype) for name, kind in PARTS.items()}
    with loading(path):
        return FluxKontextPipeline.from_pretrained(path, dtype=dtype, use_safetensors=True, **parts)


class FluxKontextPolicy:
    """FLUX.1-Kontext as a `Policy`.

    path               a folder or hub id in diffusers' format
    dtype              of the frozen weights; latents, adapter and time stay float32 (autocast does the rest)
    height, width      of the generated pictures and of the reference as the model sees it, in pixels
    guidance           embedded guidance; read where the checkpoint has `guidance_embeds`
    max_sequence_length   T5 tokens
    gradient_checkpointing   keep no activations inside the transformer's blocks for the backward pass, which computes
                       them again; the same gradients, and nothing changes where none are asked for
    offload_text_encoders   hold the text encoders on the CPU, except while `encode` needs them
    condition_cache    a folder that keeps what was encoded for the next process; None: none
    shard              leave the transformer on the CPU until the method `shard` divides it
    Raises ValueError where the size is not a multiple of the model's patches, or the folder is a file; ModelError
    where there is no such model.
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
        gradient_checkpointing: bool = False,
        offload_text_encoders: bool = False,
        condition_cache: str | Path | None = None,
        shard: bool = False,
    ):
        self.device, self.dtype = usable_device(device), dtype
        cache = None if condition_cache is None else ConditionCache(condition_cache)
        # Any: diffusers' annotations leave out what its pipelines return and hold.
        self.pipe: Any = _load_pipeline(path, dtype)
        for name in ("transformer", "vae", *TEXT_ENCODERS):
            stays = (offload_text_encoders and name in TEXT_ENCODERS) or (shard and name == "transformer")
            getattr(self.pipe, name).to("cpu" if stays else device).eval().requires_grad_(False)
        self.module = self.pipe.transformer
        if gradient_checkpointing:
            self.module.enable_gradient_checkpointing()  # acts wherever a gradient is asked for, in eval() too
        self.height, self.width = height, width
        self.guidance, self.max_sequence_length = guidance, max_sequence_length
        self.scale = self.pipe.vae_scale_factor
        multiple = 2 * self.scale
        if height % multiple or width % multiple:
            raise UsageError(f"pictures of {width}x{height} pixels; this model needs multiples of {multiple}")
        self.encoder = FluxEncoder(
            self.pipe,
            device=self.device,
            dtype=dtype,
            height=height,
            width=width,
            max_sequence_length=max_sequence_length,
            offload=offload_text_encoders,
            cache=cache,
        )

    usual_steps: ClassVar[int] = 28

    @classmethod
    def load(cls, path: str | Path, model: Model, device: str, *, shard: bool = False) -> Self:
        return cls(
            path,
            device=device,
            dtype=getattr(torch, model.dtype),
            height=model.height,
            width=model.width,
            guidance=model.guidance,
            max_sequence_length=model.max_sequence_length,
            gradient_checkpointing=model.gradient_checkpointing,
            offload_text_encoders=model.offload_text_encoders,
            condition_cache=model.condition_cache,
            shard=shard,
        )

    # --- the adapter -------------------------------------------------------------------------------------------------

    def add_adapter(self, rank: int, alpha: float, targets: Sequence[str] | None = None, *, seed: int = 0) -> None:
        """A fresh LoRA on the transformer, in float32; it changes nothing until it is trained."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = LoraConfig(
                r=rank,
                lora_alpha=alpha,  # pyright: ignore[reportArgumentType] (declared int, only ever divided by r)
                target_modules=list(LORA_TARGETS if targets is None else targets),
                init_lora_weights="gaussian",
            )
            self.module.add_adapter(config, adapter_name=ADAPTER)
        cast_training_params(self.module, torch.float32)
        self._share_inputs()

    def _share_inputs(self) -> None:
        """The adapter reads its layers' inputs as they are, and not a copy in float32 that autocast rounds again."""
        for layer in self.module.modules():
            if isinstance(layer, LoraLayer):
                layer.cast_input_dtype_enabled = False

    def shard(self) -> None:
        """Divide the frozen weights among the processes; the adapter, added before, stays whole in each."""
        blocks = [*self.module.transformer_blocks, *self.module.single_transformer_blocks]
        shard(blocks, list(self.trainable_parameters().values()), self.device)
        self.module.to(self.device)  # what is in no block, and the adapter

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
        tensors = read_adapter(directory)
        if not getattr(self.module, "peft_config", None):
            # Adapters from elsewhere come in several spellings; diffusers knows them.
            named, _ = self.pipe.lora_state_dict(dict(tensors), return_alphas=True)
            check_fits(directory, named, self.module)
            with loading(directory):
                self.pipe.load_lora_weights(
                    str(directory), weight_name=ADAPTER_FILE, use_safetensors=True, adapter_name=ADAPTER
                )
            self._share_inputs()
            self.encoder.forget()  # an adapter from elsewhere may hold weights for a text encoder
            return
        state = {name.removeprefix(TRANSFORMER): weight for name, weight in tensors.items()}
        check_same(directory, state, get_peft_model_state_dict(self.module, adapter_name=ADAPTER))
        set_peft_model_state_dict(self.module, state, adapter_name=ADAPTER)

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
        return FluxCondition(self.encoder.encode(samples), self.height, self.width)

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
        """One forward pass for each number of references in the batch."""
        # Through thousandths and back, as the pipeline does: the same bits reach the time embedding.
        time = torch.as_tensor(sigma, dtype=torch.float32, device=self.device).expand(len(latents)) * 1000 / 1000
        buckets = condition.buckets
        if len(buckets) == 1:
            return self._forward(latents, time, buckets[0])
        velocities = torch.cat([self._forward(latents[b.rows], time[b.rows], b) for b in buckets])
        return velocities[torch.cat([b.rows for b in buckets]).argsort()]

    def _forward(self, latents: Tensor, time: Tensor, bucket: Bucket) -> Tensor:
        """The velocity of rows that share their positions, as the transformer wants it."""
        guidance = None
        if self.module.config.guidance_embeds:
            guidance = torch.full((len(latents),), self.guidance, dtype=torch.float32, device=self.device)
        ids = torch.cat([self.encoder.position_ids(0), bucket.reference_ids])
        half = self.dtype != torch.float32
        exact = self._told_exactly(time, guidance) if half else nullcontext()
        with torch.autocast(self.device.type, self.dtype, enabled=half), exact:
            velocity = self.module(
                hidden_states=torch.cat([latents, bucket.reference], dim=1),
                timestep=time,
                guidance=guidance,
                pooled_projections=bucket.pooled,
                encoder_hidden_states=bucket.text,
                txt_ids=torch.zeros(bucket.text.shape[1], 3, device=self.device, dtype=ids.dtype),
                img_ids=ids,
                return_dict=False,
            )[0]
        return velocity[:, : latents.shape[1]].float()

    @contextmanager
    def _told_exactly(self, time: Tensor, guidance: Tensor | None) -> Iterator[None]:
        """Give the time embedding its numbers in float32: in half precision diffusers rounds them first, and sigmas
        up to .4 % apart become one."""
        told = [each * 1000 for each in (time, guidance) if each is not None]
        hook = self.module.time_text_embed.register_forward_pre_hook(lambda _, given: (*told, given[-1]))
        try:
            yield
        finally:
            hook.remove()

    @torch.no_grad()
    def decode(self, latents: Tensor, condition: FluxCondition) -> Tensor:
        unpacked = self.pipe._unpack_latents(latents, condition.height, condition.width, self.scale)
        config = self.pipe.vae.config
        unscaled = (unpacked / config.scaling_factor + config.shift_factor).to(self.dtype)
        images = self.pipe.vae.decode(unscaled, return_dict=False)[0]
        return self.pipe.image_processor.postprocess(images, output_type="pt").float()
