"""An adapter as files for other programs: diffusers, peft and ComfyUI. Written from tensors alone, without a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from diffusers.loaders.lora_base import LoraBaseMixin
from peft import LoraConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor

from customized_grpo.errors import UsageError
from customized_grpo.files.adapter_places import ADAPTER_FILE
from customized_grpo.policies.adapter_file import TRANSFORMER, sort_metadata
from customized_grpo.policies.lora_tensors import DOWN, UP, LoraTensors

PEFT_PREFIX = "base_model.model."
# The layers of FLUX.2 that ComfyUI does not read under diffusers' names. Those of its blocks it reads since January
# 2026: its pull request 11981.
_UNREAD_BY_COMFYUI = re.compile(
    r"(double_stream_modulation_img|double_stream_modulation_txt|single_stream_modulation|time_guidance_embed)\..+"
)


def write_diffusers(lora: LoraTensors, folder: Path) -> None:
    """The folder that `load_lora_weights` of a pipeline takes; alpha is in the file's metadata."""
    LoraBaseMixin.write_lora_layers(
        state_dict=_copies(lora.tensors),
        save_directory=str(folder),
        is_main_process=True,
        weight_name=ADAPTER_FILE,
        save_function=None,  # pyright: ignore[reportArgumentType] (diffusers' own callers pass None for the usual one)
        safe_serialization=True,
        lora_adapter_metadata={f"{TRANSFORMER}{name}": value for name, value in _config(lora).to_dict().items()},
    )
    sort_metadata(folder / ADAPTER_FILE)


def write_peft(lora: LoraTensors, folder: Path) -> None:
    """The folder that `PeftModel.from_pretrained` of a transformer takes; alpha is in adapter_config.json."""
    _config(lora).save_pretrained(str(folder))
    tensors = {f"{PEFT_PREFIX}{name.removeprefix(TRANSFORMER)}": each for name, each in lora.tensors.items()}
    save_file(_copies(tensors), folder / SAFETENSORS_WEIGHTS_NAME, {"format": "pt"})


def check_comfyui(lora: LoraTensors) -> None:
    """Raises UsageError for an adapter that ComfyUI would not read whole."""
    if others := lora.beyond((DOWN, UP)):
        raise UsageError(
            f"--format comfyui: {others[0]} is more than lora_A and lora_B; export it for diffusers or peft"
        )
    if unread := sorted(filter(_UNREAD_BY_COMFYUI.fullmatch, lora.alphas)):
        raise UsageError(f"--format comfyui: ComfyUI does not read {unread[0]}; export it for diffusers or peft")


def write_comfyui(lora: LoraTensors, file: Path) -> None:
    """The file that ComfyUI takes from models/loras, of an adapter that passes `check_comfyui`.

    ComfyUI reads diffusers' names behind "transformer." for FLUX.1, FLUX.2 and Qwen-Image, with q, k and v apart, so
    nothing is fused. It ignores the metadata in which diffusers keeps alpha, and for FLUX.2 and Qwen-Image diffusers
    does not read the tensors in which ComfyUI keeps it. Without alpha both take alpha / rank as 1, so the scale goes
    into B. Sources: ComfyUI's comfy/lora.py, comfy/weight_adapter/lora.py and flux_to_diffusers in comfy/utils.py;
    diffusers 0.42, loaders/lora_pipeline.py.
    """
    scaled = {f"{TRANSFORMER}{layer}.{UP}": lora.up_with_scale(layer) for layer in lora.alphas}
    save_file(_copies({**lora.tensors, **scaled}), file, {"format": "pt"})


def _config(lora: LoraTensors) -> LoraConfig:
    return LoraConfig(**lora.config(), inference_mode=True)


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses tensors that share memory: a pair that is divided among q, k and v has one A."""
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
