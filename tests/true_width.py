"""Slices of the published models: their real width, heads, tokens and precision, one block of each kind.

Weights are random. The text encoders have the real width and little else, and the VAE few channels in between.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)
from true_size import sliced_transformer, sliced_vae

import tiny_models
from customized_grpo.critters.build import models
from customized_grpo.policies.sketch import made

KONTEXT, DEV = "black-forest-labs/FLUX.1-Kontext-dev", "black-forest-labs/FLUX.1-dev"
KLEIN, QWEN = "black-forest-labs/FLUX.2-klein-base-4B", "Qwen/Qwen-Image-Edit-2511"
UNO_RANK = 8


def transformer(kind: Any, model: str) -> Any:
    """One block of each kind in bfloat16."""
    return made(kind, sliced_transformer(model, 1), torch.bfloat16, "cpu")


def schedule() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)


def flux1(pipeline: Any, model: str) -> Any:
    pipe = models.pipeline()  # for its tokenizers
    clip: Any = {"hidden_size": 768, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 12}
    t5: Any = {"d_model": 4096, "d_ff": 32, "d_kv": 32, "num_heads": 2, "num_layers": 1}
    ends = {"bos_token_id": pipe.tokenizer.bos_token_id, "eos_token_id": pipe.tokenizer.eos_token_id}
    return pipeline(
        scheduler=schedule(),
        vae=AutoencoderKL.from_config(sliced_vae(model, AutoencoderKL)),
        text_encoder=CLIPTextModel(CLIPTextConfig(vocab_size=len(pipe.tokenizer), **clip, **ends)),
        tokenizer=pipe.tokenizer,
        text_encoder_2=T5EncoderModel(T5Config(vocab_size=len(pipe.tokenizer_2), **t5)),
        tokenizer_2=pipe.tokenizer_2,
        transformer=transformer(FluxTransformer2DModel, model),
    )


def klein() -> Any:
    tokenizer = tiny_models.qwen_tokenizer()
    sizes: Any = {"hidden_size": 2560, "intermediate_size": 32, "num_hidden_layers": 28, "head_dim": 8}
    config = Qwen3Config(vocab_size=len(tokenizer), num_attention_heads=2, num_key_value_heads=1, **sizes)
    return Flux2KleinPipeline(
        scheduler=schedule(),
        vae=AutoencoderKLFlux2.from_config(sliced_vae(KLEIN, AutoencoderKLFlux2)),
        text_encoder=Qwen3ForCausalLM(config),
        tokenizer=tokenizer,
        transformer=transformer(Flux2Transformer2DModel, KLEIN),
    )


def qwen_edit() -> Any:
    tokenizer: Any = tiny_models.qwen_tokenizer()
    no_processor: Any = None
    names = ("image_pad", "vision_start", "vision_end")
    ids = dict(zip(("image", "vision_start", "vision_end"), map("<|{}|>".format, names), strict=True))
    text: Any = {"hidden_size": 3584, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 28}
    vision: Any = {"depth": 1, "hidden_size": 1280, "intermediate_size": 32, "num_heads": 16, "out_hidden_size": 3584}
    rope = {"type": "default", "mrope_section": [16, 24, 24], "rope_type": "default"}
    config = Qwen2_5_VLConfig(
        text_config={**text, "vocab_size": len(tokenizer), "num_key_value_heads": 4, "rope_scaling": rope},
        vision_config={**vision, "fullatt_block_indexes": [0]},
        **{f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in ids.items()},
    )
    return QwenImageEditPlusPipeline(
        scheduler=schedule(),
        vae=AutoencoderKLQwenImage.from_config(sliced_vae(QWEN, AutoencoderKLQwenImage)),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer,
        processor=no_processor,
        transformer=transformer(QwenImageTransformer2DModel, QWEN),
    )


def uno_adapter(folder: Path) -> Path:
    """UNO's layers of one double and one single block, under its own names, at the real width and a small rank."""
    width, generator = 3072, torch.Generator().manual_seed(0)
    double = {f"double_blocks.0.processor.{kind}_lora{stream}" for kind in ("qkv", "proj") for stream in (1, 2)}
    single = {f"single_blocks.0.processor.{kind}_lora" for kind in ("qkv", "proj")}
    tensors = {}
    for name in sorted(double | single):
        inputs = 5 * width if name == "single_blocks.0.processor.proj_lora" else width
        outputs = 3 * width if "qkv" in name else width
        tensors[f"{name}.down.weight"] = torch.randn(UNO_RANK, inputs, generator=generator) / 100
        tensors[f"{name}.up.weight"] = torch.randn(outputs, UNO_RANK, generator=generator) / 100
    file = folder / "dit_lora.safetensors"
    save_file(tensors, file)
    return file


def saved(family: str, folder: Path) -> Path:
    """A checkpoint of a family: "kontext", "uno", "klein" or "qwen"."""
    torch.manual_seed(0)
    if family in ("kontext", "uno"):
        pipe = flux1(FluxKontextPipeline, KONTEXT) if family == "kontext" else flux1(FluxPipeline, DEV)
    else:
        pipe = klein() if family == "klein" else qwen_edit()
    return tiny_models.saved(pipe, folder)
