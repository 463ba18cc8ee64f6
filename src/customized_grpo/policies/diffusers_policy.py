"""What model families have in common that diffusers runs: a pipeline, a LoRA on its transformer, and its schedule.

A family adds how samples are encoded, where tokens are placed, and how the transformer is called. Its arithmetic is
that of its diffusers pipeline, taken apart so that single velocities have a gradient: without noise, and with one
picture, the images are those of the pipeline, bit for bit.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux_kontext import calculate_shift
from diffusers.training_utils import _collate_lora_metadata
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from customized_grpo.algorithm import sigma_schedule
from customized_grpo.data import Sample
from customized_grpo.errors import UsageError
from customized_grpo.files.adapter_places import ADAPTER_FILE
from customized_grpo.files.pretrained import load_part, loading
from customized_grpo.policies.adapter_file import (
    TRANSFORMER,
    Adapter,
    check_same,
    read_adapter,
    sort_metadata,
    translating,
)
from customized_grpo.policies.adapter_layers import layers_of, linear_layers
from customized_grpo.policies.architectures import configuration
from customized_grpo.policies.base import Targets
from customized_grpo.policies.compiled import compile_blocks
from customized_grpo.policies.conditions import Bucket, EncodedSamples
from customized_grpo.policies.encoder import Encoder
from customized_grpo.policies.layers import Layers
from customized_grpo.policies.libraries import Kind
from customized_grpo.policies.lora import ADAPTER, add_lora, check_shared
from customized_grpo.policies.lora_tensors import LoraTensors
from customized_grpo.policies.networks import Architecture, check_size
from customized_grpo.policies.quantise import is_large, quantise
from customized_grpo.policies.sketch import sketched
from customized_grpo.runtime.device import usable_device
from customized_grpo.runtime.distributed import highest, shard
from customized_grpo.sections import Adapter as AdapterSettings
from customized_grpo.sections import Model

NUMERIC_SHIFT = "set sampling.shift to a number, for instance 3"


class DiffusersPolicy(ABC):
    """A family's half of `Policy`.

    pipe    the family's pipeline, on the CPU or, without numbers, on the meta device
    model   the section of the configuration. Latents, adapter and time stay float32; autocast does the rest
    device  where it runs
    shard   leave the transformer on the CPU until the method `shard` divides it

    Raises UsageError if the size is not a multiple of the model's patches, or the cache's folder cannot be used, and
    ModelError if the adapter of `model.base_adapter` does not fit.
    """

    usual_steps: ClassVar[int]
    usual_guidance: ClassVar[float]  # if model.guidance is null
    pipeline: ClassVar[Any]  # the class of diffusers
    parts: ClassVar[Mapping[str, Any]]  # the pipeline's models by name, "transformer" and "vae" among them
    left_out: ClassVar[tuple[str, ...]] = ()  # parts of the pipeline that are not loaded
    encoder_class: ClassVar[type[Encoder]]
    architecture: ClassVar[Architecture]  # what configurations decide

    @property
    def layers(self) -> Layers:
        """Those of the transformer that can be adapted."""
        return self.architecture.layers

    def __init__(self, pipe: Any, model: Model, device: torch.device, *, shard: bool = False):
        # Any: diffusers' annotations leave out what its pipelines return and hold.
        self.pipe, self.device, self.dtype = pipe, device, getattr(torch, model.dtype)
        self.height, self.width = model.height, model.width
        self.guidance = self.usual_guidance if model.guidance is None else model.guidance
        self.scale: int = self.pipe.vae_scale_factor
        check_size(self.height, self.width, self.scale)
        self.encoder = self.encoder_class(self.pipe, model, self.device, self.dtype)
        self.module = self.pipe.transformer
        self.sharded = False
        for name in self.parts:
            getattr(self.pipe, name).eval().requires_grad_(False)
        if model.base_adapter is not None:
            self._fuse(read_adapter(Path(model.base_adapter)))
        if model.quantise is not None:
            self._quantise(model.quantise)
        for name in self.parts:
            left = (shard and name == "transformer") or (self.encoder.offload and name in self.encoder.text_encoders)
            getattr(self.pipe, name).to("cpu" if left else self.device)
        if model.gradient_checkpointing:
            self.module.enable_gradient_checkpointing()  # acts whenever a gradient is needed, also in eval mode
        if model.compile:
            compile_blocks((block for name in self.layers.blocks for block in getattr(self.module, name)), self.device)

    @classmethod
    def load(cls, path: str | Path, model: Model, device: str, *, shard: bool = False) -> Self:
        usable = usable_device(device)
        return cls(cls.load_pipeline(path, getattr(torch, model.dtype)), model, usable, shard=shard)

    @classmethod
    def load_pipeline(cls, path: str | Path, dtype: torch.dtype) -> Any:
        """The pipeline in a folder or hub id. Raises ModelError if it cannot be loaded, or weights are missing."""
        parts = {name: load_part(kind, path, name, dtype=dtype) for name, kind in cls.parts.items()}
        with loading(path):
            absent = dict.fromkeys(cls.left_out)
            return cls.pipeline.from_pretrained(path, dtype=dtype, use_safetensors=True, **parts, **absent)

    @classmethod
    def sketch(cls, path: str | Path, model: Model) -> Self | None:
        """The generator on the meta device: shapes without numbers. None if its configurations are not known here.

        Without tokenizers, `model.base_adapter`, which changes no shape, and offload. Raises ModelError for damaged
        files, and UsageError for settings that the model cannot take.
        """
        pipe = sketched(cls.pipeline, cls.parts, path, getattr(torch, model.dtype))
        if pipe is None:
            return None
        kept = {"base_adapter": None, "condition_cache": None, "offload_text_encoders": False, "compile": False}
        model = model.model_copy(update=kept)
        return cls(pipe, model, torch.device("meta"))

    @classmethod
    def adapter_size(cls, path: str | Path, model: Model, adapter: AdapterSettings) -> int | None:
        transformer = configuration(path, "transformer")
        if transformer is not None and model.base_adapter is not None:
            cls.lora_tensors(transformer, read_adapter(Path(model.base_adapter)))
        return cls.architecture.adapter_size(path, model, adapter)

    @classmethod
    def _without_weights(cls, config: Mapping[str, Any]) -> Any:
        """The transformer of this configuration on the meta device."""
        with torch.device("meta"):
            return cls.parts["transformer"].from_config(config).requires_grad_(False)

    # --- the adapter -------------------------------------------------------------------------------------------------

    def add_adapter(
        self, rank: int, alpha: float, targets: Targets = None, *, seed: int = 0, share_qkv: bool = False
    ) -> None:
        add_lora(self.module, self.layers, rank, alpha, targets, seed=seed, share_qkv=share_qkv)
        self._share_inputs()

    def _share_inputs(self) -> None:
        """Let the adapter read its layers' inputs directly: peft would keep a float32 copy, which autocast rounds."""
        for layer in self.module.modules():
            if isinstance(layer, LoraLayer):
                layer.cast_input_dtype_enabled = False

    def shard(self) -> None:
        blocks = [block for name in self.layers.blocks for block in getattr(self.module, name)]
        shard(blocks, list(self.trainable_parameters().values()), self.device)
        self.module.to(self.device)  # the adapter, and the weights outside of the blocks
        self.sharded = True

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        return {name: weight for name, weight in self.module.named_parameters() if weight.requires_grad}

    @contextmanager
    def base_policy(self) -> Iterator[None]:
        self.module.disable_adapters()
        try:
            yield
        finally:
            self.module.enable_adapters()

    @classmethod
    def lora_tensors(cls, config: Mapping[str, Any], adapter: Adapter) -> LoraTensors:
        """An adapter's tensors under diffusers' names, for a transformer of this configuration. Raises ModelError."""
        return cls._named_as_layers(adapter, cls._without_weights(config))

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
        lora = self._named_as_layers(adapter, self.module)
        with loading(adapter.file):
            self.module.load_lora_adapter(
                dict(lora.tensors),
                adapter_name=ADAPTER,
                metadata={f"{TRANSFORMER}{name}": value for name, value in lora.config().items()},
                low_cpu_mem_usage=True,  # keeps the file's precision
            )
        # What was left out on the way, or left as it was made, would change pictures in silence.
        expected = {name.removeprefix(TRANSFORMER): weight for name, weight in lora.tensors.items()}
        check_same(adapter, expected, self._adapter_state())
        self._share_inputs()

    def _fuse(self, adapter: Adapter) -> None:
        """Add an adapter's update to the frozen weights. Raises ModelError unless every tensor of it belongs there."""
        self._create_adapter(adapter)
        self.module.fuse_lora(adapter_names=[ADAPTER])
        self.module.unload_lora()
        self.module.requires_grad_(False)

    def _quantise(self, kind: Kind) -> None:
        for name, inside in self.quantised_parts():
            quantise(getattr(self.pipe, name), kind, inside, self.device)

    def quantised_parts(self) -> Iterator[tuple[str, Sequence[str]]]:
        """Which parts of the pipeline `model.quantise` is for, and which submodules of each."""
        yield "transformer", self.layers.blocks
        for name in self.encoder.text_encoders:
            encoder = getattr(self.pipe, name)
            if is_large(encoder):
                yield name, [part for part, _ in encoder.named_children()]

    @classmethod
    def _named_as_layers(cls, adapter: Adapter, module: nn.Module) -> LoraTensors:
        """See `layers_of`; names of other programs are translated by diffusers."""

        def translate(pair: dict[str, Tensor]) -> dict[str, Tensor]:
            with translating(adapter):
                return cls.pipeline.lora_state_dict(pair)

        return layers_of(adapter, linear_layers(module), translate)

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
        mu = self.dynamic_shift(num_steps)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps).tolist(), mu=mu)
        sigmas = torch.as_tensor(scheduler.sigmas).clamp(max=1.0)  # in float32 some shifts give 1 + 1e-7
        if sigmas[-1] != 0 or not (sigmas.diff() < 0).all():
            raise UsageError(f"the model's schedule does not fall from 1 to 0 in {num_steps} steps; {NUMERIC_SHIFT}")
        return sigmas

    def dynamic_shift(self, num_steps: int) -> float:  # noqa: ARG002 (of some families it depends on the steps)
        """The parameter mu of the pipeline's schedule, for pictures of this size."""
        rows, columns = self.grid
        return self.shift_for(rows * columns)

    def shift_for(self, tokens: int) -> float:
        """mu for this number of tokens: on the line of FLUX.1, which most pipelines follow."""
        config = self.pipe.scheduler.config
        return calculate_shift(
            tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a picture's tokens: patches of 2 x 2 latents."""
        return self.height // self.scale // 2, self.width // self.scale // 2

    @contextmanager
    def sized(self, height: int, width: int) -> Iterator[None]:
        check_size(height, width, self.scale)
        usual = self.height, self.width
        self._resize(height, width)
        try:
            yield
        finally:
            self._resize(*usual)

    def _resize(self, height: int, width: int) -> None:
        self.height = self.encoder.height = height
        self.width = self.encoder.width = width

    def encode(self, samples: Sequence[Sample]) -> EncodedSamples:
        return EncodedSamples(self.encoder.encode(samples), self.height, self.width)

    def blank(self, sample: Sample) -> EncodedSamples:
        """The condition of one sample with zeros for its prompt: for a sketch, which has no tokenizers."""
        with torch.no_grad():
            return EncodedSamples((self.encoder.blank_entry(sample),), self.height, self.width)

    def noise(self, condition: EncodedSamples, seeds: Sequence[int]) -> Tensor:
        if len(seeds) != len(condition):
            raise ValueError(f"{len(seeds)} seeds for {len(condition)} images; pass one seed per image")
        drawn = [self.draw(torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.cat(drawn).to(self.device)

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Tensor:
        """The tokens [1, R, D] of one picture's noise, drawn as the pipeline draws them."""

    # --- the generator -----------------------------------------------------------------------------------------------

    def velocity(self, latents: Tensor, sigma: float | Tensor, condition: EncodedSamples) -> Tensor:
        """One forward pass for each combination of the references' sizes in the batch; sharded, as many as in the
        process that needs most."""
        # Times 1000 and back, as in the pipelines, so that the time embedding gets the same bits.
        time = torch.as_tensor(sigma, dtype=torch.float32, device=self.device).expand(len(latents)) * 1000 / 1000
        buckets = condition.buckets
        further = highest(len(buckets), self.device) - len(buckets) if self.sharded else 0
        if len(buckets) == 1:
            velocities = self.forward(latents, time, buckets[0])
        else:
            unordered = torch.cat([self.forward(latents[b.rows], time[b.rows], b) for b in buckets])
            velocities = unordered[torch.cat([b.rows for b in buckets]).argsort()]
        for _ in range(further):  # part of the graph, since backward passes gather the weights too
            velocities = velocities + 0 * self.forward(latents[:1], time[:1], condition[:1].buckets[0]).sum()
        return velocities

    @abstractmethod
    def forward(self, latents: Tensor, time: Tensor, bucket: Bucket) -> Tensor:
        """The velocity of entries that fit into one batch, in the shape of `latents` [b, R, D]; time [b] is sigma."""

    def together(self, latents: Tensor) -> bool:
        """Whether classifier-free guidance takes one call of the transformer, or two as the pipelines make them.

        For a single picture two, since the batch would change the last bits; sharded processes need equally many.
        """
        return len(latents) > 1 or self.sharded

    def call_transformer(
        self, time: Tensor, embedding: nn.Module, guidance: Tensor | None = None, **inputs: Any
    ) -> Any:
        """The transformer's first output, in the model's precision, but with exact time and guidance.

        embedding  the transformer's part that gets time and guidance first
        """
        half = self.dtype != torch.float32
        exact = _with_inputs(embedding, self.exact_inputs(time, guidance)) if half else nullcontext()
        with torch.autocast(self.device.type, self.dtype, enabled=half), exact:
            return self.module(timestep=time, guidance=guidance, return_dict=False, **inputs)[0]

    def exact_inputs(self, time: Tensor, guidance: Tensor | None) -> list[Tensor]:
        """What the embedding gets first, in float32.

        In half precision diffusers rounds it, and sigmas that differ by up to .4 % become equal.
        """
        return [value * 1000 for value in (time, guidance) if value is not None]

    @abstractmethod
    def decode(self, latents: Tensor, condition: EncodedSamples) -> Tensor: ...


@contextmanager
def _with_inputs(embedding: nn.Module, exact: Sequence[Tensor]) -> Iterator[None]:
    """A block in which an embedding gets these as its first inputs."""
    hook = embedding.register_forward_pre_hook(lambda _, inputs: (*exact, *inputs[len(exact) :]))
    try:
        yield
    finally:
        hook.remove()


def guided(
    call: Callable[..., Tensor], scale: float, prompt: Sequence[Tensor], empty: Sequence[Tensor], *, together: bool
) -> tuple[Tensor, Tensor]:
    """Classifier-free guidance: v_empty + scale (v_prompt - v_empty), and v_prompt.

    prompt, empty  what `call` gets, [b, ...] each
    together       whether one call gets both
    """
    if not together:
        with_prompt, without = call(*prompt), call(*empty)
    else:
        with_prompt, without = call(*(torch.cat(pair) for pair in zip(prompt, empty, strict=True))).chunk(2)
    return without + scale * (with_prompt - without), with_prompt
