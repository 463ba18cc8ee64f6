"""Tiny checkpoints of each model family in diffusers' format: the real classes and files, with random weights."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

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


def qwen_edit(*, newer: bool = False) -> QwenImageEditPlusPipeline:
    """Qwen-Image-Edit-2509, or 2511 with its time 0 for references; latents 8 times smaller than pictures.

    The processor is saved beside it: a `Qwen2VLProcessor` needs torchvision.
    """
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    names = ("image_pad", "vision_start", "vision_end")
    ids: Any = [tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names]
    rope = {"type": "default", "mrope_section": [2, 3, 3], "rope_type": "default"}
    config = Qwen2_5_VLConfig(
        text_config={
            **{"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2},
            **{"num_attention_heads": 2, "num_key_value_heads": 1, "rope_scaling": rope},
        },
        vision_config={
            **{"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32},
            **{"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 56},
            **{"fullatt_block_indexes": [0]},
        },
        image_token_id=ids[0],
        vision_start_token_id=ids[1],
        vision_end_token_id=ids[2],
    )
    no_processor: Any = None
    return QwenImageEditPlusPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[-0.7, 0.1, 0.4, -0.2],
            latents_std=[2.8, 1.4, 2.3, 0.7],
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer,
        processor=no_processor,
        transformer=QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 6, 6),
            zero_cond_t=newer,
        ),
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
    if isinstance(pipe, QwenImageEditPlusPipeline):
        Qwen2VLImageProcessorPil(patch_size=14, merge_size=2).save_pretrained(folder / "processor")
        index = json.loads((folder / "model_index.json").read_text())
        index["processor"] = ["transformers", "Qwen2VLProcessor"]
        (folder / "model_index.json").write_text(json.dumps(index))
    return folder
