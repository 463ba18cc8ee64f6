"""The untrained models of the built-in world: real classes of diffusers and transformers at tiny sizes."""

from __future__ import annotations

import string
from typing import Any

from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
)
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    PreTrainedTokenizerBase,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from customized_grpo.critters.world import HATTED, World

WIDTH = 64
TEXT_TOKENS = 16  # the longest prompt has 15 words, commas and ends
CLIP_TOKENS = 20
LETTERS = string.ascii_lowercase + string.digits + ",.:;!?-'\"()&/"


def _words(of: World) -> list[str]:
    """The words of all prompts, longest first."""
    words = {word for situation in of.situations for word in situation.prompt.replace(",", "").split()}
    return sorted(words, key=lambda word: (-len(word), word))


def clip_tokenizer(of: World = HATTED) -> CLIPTokenizer:
    """A byte-pair tokenizer in which each word of a critter prompt is one token; other text is split into letters.

    Each word is merged from its first letter on. Long words come first, so that a pair inside a long word that starts
    a short one ("ri" in "wearing" and "right") is not merged too early.
    """
    merges: dict[tuple[str, str], None] = {}
    for word in _words(of):
        letters = [*word[:-1], f"{word[-1]}</w>"]
        for end in range(1, len(letters)):
            merges["".join(letters[:end]), letters[end]] = None
    pieces = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    pieces += ["".join(pair) for pair in merges]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    pairs: Any = list(merges)  # transformers declares strings but takes pairs
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=CLIP_TOKENS)


def t5_tokenizer(of: World = HATTED) -> T5Tokenizer:
    """A unigram tokenizer in which every word of a critter prompt is one piece; other text is split into letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -3.0) for word in _words(of)]
    pieces += [("▁", -8.0)] + [(letter, -8.0) for letter in LETTERS]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def _clip_text(tokenizer: PreTrainedTokenizerBase, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "max_position_embeddings": CLIP_TOKENS,
        "projection_dim": WIDTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def pipeline(of: World = HATTED) -> FluxKontextPipeline:
    """FLUX.1-Kontext for 32x32 pixels: 16x16x4 latents, 64 + 64 + 16 tokens, half a million parameters."""
    tokenizer, tokenizer_2 = clip_tokenizer(of), t5_tokenizer(of)
    t5 = T5Config(
        vocab_size=len(tokenizer_2),
        d_model=WIDTH,
        d_kv=WIDTH // 2,
        d_ff=2 * WIDTH,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=3,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(4, 14, 14),
    )
    two_levels: dict[str, Any] = {  # diffusers declares tuples of one element
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (16, 32),
    }
    vae = AutoencoderKL(
        **two_levels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
        shift_factor=0.0,
        scaling_factor=1.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )
    return FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=CLIPTextModel(CLIPTextConfig(**_clip_text(tokenizer, layers=1))),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )


def dino() -> Dinov2Model:
    return Dinov2Model(
        Dinov2Config(
            hidden_size=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=2,
            mlp_ratio=2,
            image_size=32,
            patch_size=4,
        )
    )


def clip(of: World = HATTED) -> tuple[CLIPModel, CLIPTokenizer]:
    tokenizer = clip_tokenizer(of)
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 4,
        "projection_dim": WIDTH,
    }
    config = CLIPConfig(
        text_config=_clip_text(tokenizer, layers=2),
        vision_config=vision,
        projection_dim=WIDTH,
        logit_scale_init_value=2.3026,  # 10: cosines spread over [0, 1] instead of clustering
    )
    return CLIPModel(config), tokenizer
