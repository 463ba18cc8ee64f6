"""FLUX.1-Kontext: the tokens of the references follow those of the image, and position ids tell them apart.

The arithmetic is that of diffusers' `FluxKontextPipeline` (diffusers 0.42), taken apart so that single velocities have
a gradient. Without noise and with one reference, the images are those of the pipeline, bit for bit. For several
references see `flux_condition`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
)
from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift
from diffusers.training_utils import _collate_lora_metadata
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import CLIPTextModel, T5EncoderModel

from customized_grpo.algorithm import sigma_schedule
from customized_grpo.data import Sample
from customized_grpo.errors import UsageError
from customized_grpo.files.pretrained import find_offline, load_part, loading, read_json
from customized_grpo.policies.adapter_file import (
    ADAPTER_FILE,
    TRANSFORMER,
    Adapter,
    check_same,
    read_adapter,
    sort_metadata,
    translating,
)
from customized_grpo.policies.adapter_layers import layers_of
from customized_grpo.policies.base import Targets
from customized_grpo.policies.condition_cache import ConditionCache
from customized_grpo.policies.flux_condition import Bucket, FluxCondition
from customized_grpo.policies.flux_encoder import TEXT_ENCODERS, FluxEncoder
from customized_grpo.policies.flux_lora import ADAPTER, add_lora, check_shared, lora_size
from customized_grpo.runtime.device import usable_device
from customized_grpo.runtime.distributed import shard
from customized_grpo.sections import Adapter as AdapterSettings
from customized_grpo.sections import Model

NUMERIC_SHIFT = "set sampling.shift to a number, for instance 3"
PARTS = {
    "transformer": FluxTransformer2DModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": T5EncoderModel,
}


def _load_pipeline(path: str | Path, dtype: torch.dtype) -> FluxKontextPipeline:
    """The pipeline in a folder or hub id. Raises ModelError if it cannot be loaded, or weights are missing."""
    parts = {name: load_part(kind, path, name, dtype=dtype) for name, kind in PARTS.items()}
    with loading(path):
        return FluxKontextPipeline.from_pretrained(path, dtype=dtype, use_safetensors=True, **parts)


def _check_size(height: int, width: int, scale: int) -> None:
    """Raises UsageError unless the sides, in pixels, are multiples of the patches of latents `scale` times smaller."""
    multiple = 2 * scale
    if height % multiple or width % multiple:
        raise UsageError(f"pictures of {width}x{height} pixels; this model needs multiples of {multiple}")


class FluxKontextPolicy:
    """FLUX.1-Kontext as a `Policy`.

    path                    a folder or hub id in diffusers' format
    dtype                   of the frozen weights; latents, adapter and time stay float32 (autocast does the rest)
    height, width           in pixels, of the generated pictures, and of the references after resizing
    guidance                embedded guidance; only used if the checkpoint has `guidance_embeds`
    max_sequence_length     T5 tokens
    gradient_checkpointing  keep no activations inside the transformer's blocks; the backward pass computes them
                            again, with the same gradients. No effect if no gradient is needed
    offload_text_encoders   keep the text encoders on the CPU, except while `encode` needs them
    condition_cache         a folder in which encoded prompts and references stay for other runs; None: no cache
    shard                   leave the transformer on the CPU until the method `shard` divides it

    Raises ModelError if the checkpoint cannot be loaded, and UsageError if the size is not a multiple of the model's
    patches, the device does not exist, or the cache's folder cannot be used.
    """

    usual_steps: ClassVar[int] = 28

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
            on_cpu = (offload_text_encoders and name in TEXT_ENCODERS) or (shard and name == "transformer")
            getattr(self.pipe, name).to("cpu" if on_cpu else device).eval().requires_grad_(False)
        self.module = self.pipe.transformer
        if gradient_checkpointing:
            self.module.enable_gradient_checkpointing()  # acts whenever a gradient is needed, also in eval mode
        self.height, self.width = height, width
        self.guidance, self.max_sequence_length = guidance, max_sequence_length
        self.scale = self.pipe.vae_scale_factor
        _check_size(height, width, self.scale)
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

    @classmethod
    def adapter_size(cls, path: str | Path, model: Model, adapter: AdapterSettings) -> int | None:
        files = [find_offline(path, f"{part}/config.json") for part in ("transformer", "vae")]
        transformer, vae = (None if file is None else read_json(file) for file in files)
        if transformer is None or vae is None:
            return None
        with loading(path):
            scale = 2 ** (len(vae["block_out_channels"]) - 1)  # as in the pipeline
        _check_size(model.height, model.width, scale)
        return lora_size(transformer, adapter)

    # --- the adapter -------------------------------------------------------------------------------------------------

    def add_adapter(
        self, rank: int, alpha: float, targets: Targets = None, *, seed: int = 0, share_qkv: bool = False
    ) -> None:
        add_lora(self.module, rank, alpha, targets, seed=seed, share_qkv=share_qkv)
        self._share_inputs()

    def _share_inputs(self) -> None:
        """Let the adapter read its layers' inputs directly: peft would keep a float32 copy, which autocast rounds."""
        for layer in self.module.modules():
            if isinstance(layer, LoraLayer):
                layer.cast_input_dtype_enabled = False

    def shard(self) -> None:
        blocks = [*self.module.transformer_blocks, *self.module.single_transformer_blocks]
        shard(blocks, list(self.trainable_parameters().values()), self.device)
        self.module.to(self.device)  # the adapter, and the weights outside of the blocks

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
            weight_name=ADAPTER_FILE,
            # Copies: safetensors refuses the one matrix of q, k and v under three names, which others read.
            transformer_lora_layers={name: weight.clone() for name, weight in self._adapter_state().items()},
            **_collate_lora_metadata({"transformer": self.module}),  # holds alpha, which would be lost otherwise
        )
        sort_metadata(directory / ADAPTER_FILE)

    def load_adapter(self, path: Path) -> None:
        adapter = read_adapter(path)
        if not getattr(self.module, "peft_config", None):
            self._create_adapter(adapter)
            return
        state = {name.removeprefix(TRANSFORMER): weight for name, weight in adapter.tensors.items()}
        check_same(adapter, state, self._adapter_state())
        check_shared(adapter, state, self.module)
        set_peft_model_state_dict(self.module, state, adapter_name=ADAPTER)

    def _create_adapter(self, adapter: Adapter) -> None:
        """A new adapter from a file, whose names may be those of other programs."""

        def translate(pair: dict[str, Tensor]) -> dict[str, Tensor]:
            with translating(adapter):
                return self.pipe.lora_state_dict(pair)

        state, config = layers_of(adapter, self.module, translate)
        with loading(adapter.file):
            self.module.load_lora_adapter(
                state,
                adapter_name=ADAPTER,
                metadata={f"{TRANSFORMER}{name}": value for name, value in config.items()},
                low_cpu_mem_usage=True,  # keeps the file's precision
            )
        # What was left out on the way, or left as it was made, would change pictures in silence.
        expected = {name.removeprefix(TRANSFORMER): weight for name, weight in state.items()}
        check_same(adapter, expected, self._adapter_state())
        self._share_inputs()

    def _adapter_state(self) -> dict[str, Tensor]:
        """The adapter's tensors, named as in its file but for `TRANSFORMER`; a shared one under each of its names."""
        return get_peft_model_state_dict(self.module, adapter_name=ADAPTER)

    # --- grid, conditions and noise ----------------------------------------------------------------------------------

    def sigmas(self, num_steps: int, shift: float | str) -> Tensor:
        if shift != "checkpoint":
            return sigma_schedule(num_steps, float(shift))
        scheduler = copy.deepcopy(self.pipe.scheduler)
        if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            raise UsageError(
                f"the model's scheduler is {type(scheduler).__name__}, which is not supported; {NUMERIC_SHIFT}"
            )
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
        sigmas = torch.as_tensor(scheduler.sigmas).clamp(max=1.0)  # in float32 some shifts give 1 + 1e-7
        if sigmas[-1] != 0 or not (sigmas.diff() < 0).all():
            raise UsageError(f"the model's schedule does not fall from 1 to 0 in {num_steps} steps; {NUMERIC_SHIFT}")
        return sigmas

    def encode(self, samples: Sequence[Sample]) -> FluxCondition:
        return FluxCondition(self.encoder.encode(samples), self.height, self.width)

    @property
    def _channels(self) -> int:
        return self.module.config.in_channels // 4

    def noise(self, condition: FluxCondition, seeds: Sequence[int]) -> Tensor:
        if len(seeds) != len(condition):
            raise ValueError(f"{len(seeds)} seeds for {len(condition)} images; pass one seed per image")
        height, width = condition.height // self.scale, condition.width // self.scale
        shape = (1, self._channels, height, width)
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        latents = torch.cat(drawn).to(self.device)
        return self.pipe._pack_latents(latents, len(seeds), self._channels, height, width)

    # --- the generator -----------------------------------------------------------------------------------------------

    def velocity(self, latents: Tensor, sigma: float | Tensor, condition: FluxCondition) -> Tensor:
        """One forward pass for each number of references in the batch."""
        # Times 1000 and back, as in the pipeline, so that the time embedding gets the same bits.
        time = torch.as_tensor(sigma, dtype=torch.float32, device=self.device).expand(len(latents)) * 1000 / 1000
        buckets = condition.buckets
        if len(buckets) == 1:
            return self._forward(latents, time, buckets[0])
        velocities = torch.cat([self._forward(latents[b.rows], time[b.rows], b) for b in buckets])
        return velocities[torch.cat([b.rows for b in buckets]).argsort()]

    def _forward(self, latents: Tensor, time: Tensor, bucket: Bucket) -> Tensor:
        """The velocity of entries with the same number of references: one call of the transformer."""
        guidance = None
        if self.module.config.guidance_embeds:
            guidance = torch.full((len(latents),), self.guidance, dtype=torch.float32, device=self.device)
        ids = torch.cat([self.encoder.position_ids(0), bucket.reference_ids])
        half = self.dtype != torch.float32
        exact = self._exact_time(time, guidance) if half else nullcontext()
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
    def _exact_time(self, time: Tensor, guidance: Tensor | None) -> Iterator[None]:
        """Pass time and guidance to the time embedding in float32.

        In half precision diffusers rounds them first, and sigmas that differ by up to .4 % become equal.
        """
        exact = [values * 1000 for values in (time, guidance) if values is not None]
        hook = self.module.time_text_embed.register_forward_pre_hook(lambda _, inputs: (*exact, inputs[-1]))
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
