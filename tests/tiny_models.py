"""Tiny checkpoints of each model family in diffusers' format: the real classes and files, with random weights."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
)
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from customized_grpo.critters.build import models

WIDTH = 32
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is false %}[]\n{% endif %}"
)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Letters and spaces (Ġ), line ends (Ċ) and the special tokens of Qwen."""
    pieces = [*string.ascii_letters, *string.digits, *string.punctuation, "Ġ", "Ċ"]
    tokenizer: Any = Qwen2Tokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL), "pad_token": "<|endoftext|>"})
    tokenizer.chat_template = CHAT
    return tokenizer


def klein(*, distilled: bool = False) -> Flux2KleinPipeline:
    """FLUX.2-klein with a VAE of scale 4, so that a token is 8 x 8 pixels, and a text encoder of 28 layers."""
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=28,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    statistics: Any = vae.bn
    statistics.running_mean.normal_(0, 0.3)  # or undoing them would go untested
    statistics.running_var.uniform_(0.5, 2)
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
        vae=vae,
        text_encoder=Qwen3ForCausalLM(config),
        tokenizer=tokenizer,
        transformer=Flux2Transformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * 16,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        is_distilled=distilled,
    )


def flux_dev(transformer: Any = None) -> FluxPipeline:
    """FLUX.1-dev: the parts of the built-in generator with embedded guidance and FLUX's schedule."""
    torch.manual_seed(0)
    pipe = models.pipeline()
    if transformer is None:
        transformer = FluxTransformer2DModel.from_config(dict(pipe.transformer.config) | {"guidance_embeds": True})
    pipe.vae.register_to_config(shift_factor=0.1159, scaling_factor=0.3611)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
        vae=pipe.vae,
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        text_encoder_2=pipe.text_encoder_2,
        tokenizer_2=pipe.tokenizer_2,
        transformer=transformer,
    )


def saved(pipe: Any, folder: Path) -> Path:
    pipe.save_pretrained(folder)
    return folder
