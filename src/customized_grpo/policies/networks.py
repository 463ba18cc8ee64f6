"""What the configurations of a family's networks decide, without building them: no torch, so that a dry run is quick.

Each function below names the linear layers of one of diffusers' transformers as its constructor makes them; the
arguments are fields of its configuration, with the constructor's defaults. Tests compare them with diffusers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from customized_grpo.errors import UsageError
from customized_grpo.files.pretrained import reading
from customized_grpo.policies.architectures import configuration
from customized_grpo.policies.layers import Layers, Sizes, adapter_size
from customized_grpo.sections import Adapter, Model

Config = Mapping[str, Any]
_TIME = 256  # features of a time


@dataclass(frozen=True)
class Architecture:
    """A family's transformer and VAE.

    layers  that can be adapted
    linear  all linear layers, by the transformer's configuration
    scale   how many times smaller than pictures latents are, by the VAE's configuration; as in the pipeline
    """

    layers: Layers
    linear: Callable[..., Sizes]
    scale: Callable[[Config], int]

    def adapter_size(self, path: str | Path, model: Model, adapter: Adapter) -> int | None:
        """As `Policy.adapter_size`."""
        transformer, vae = (configuration(path, part) for part in ("transformer", "vae"))
        if transformer is None or vae is None:
            return None
        with reading(path):
            scale, linear = self.scale(vae), self.linear(**transformer)
        check_size(model.height, model.width, scale)
        return adapter_size(adapter, self.layers, linear)


def check_guidance(guidance: float) -> None:
    """Raises UsageError for a scale of classifier-free guidance below 1: at 0 the prompt would decide nothing."""
    if guidance < 1:
        raise UsageError(f"model.guidance={guidance:g}: classifier-free guidance is at least 1, which switches it off")


def check_size(height: int, width: int, scale: int) -> None:
    """Raises UsageError unless the sides, in pixels, are multiples of the patches of latents `scale` times smaller."""
    multiple = 2 * scale
    if height % multiple or width % multiple:
        raise UsageError(f"pictures of {width}x{height} pixels; this model needs multiples of {multiple}")


def flux1_linear(
    *,
    num_layers: int = 19,
    num_single_layers: int = 38,
    num_attention_heads: int = 24,
    attention_head_dim: int = 128,
    in_channels: int = 64,
    out_channels: int | None = None,
    patch_size: int = 1,
    joint_attention_dim: int = 4096,
    pooled_projection_dim: int = 768,
    guidance_embeds: bool = False,
    **_: Any,
) -> Sizes:
    """The linear layers of `FluxTransformer2DModel`."""
    width = num_attention_heads * attention_head_dim
    outputs = patch_size**2 * (out_channels or in_channels)
    sizes = _mlp("time_text_embed.timestep_embedder", _TIME, width)
    if guidance_embeds:
        sizes |= _mlp("time_text_embed.guidance_embedder", _TIME, width)
    sizes |= _mlp("time_text_embed.text_embedder", pooled_projection_dim, width)
    sizes |= {"context_embedder": (joint_attention_dim, width), "x_embedder": (in_channels, width)}
    for block in _blocks("transformer_blocks", num_layers):
        sizes |= {f"{block}.{norm}.linear": (width, 6 * width) for norm in ("norm1", "norm1_context")}
        sizes |= _joint_attention(f"{block}.attn", width)
        for stream in ("ff", "ff_context"):
            sizes |= _feed_forward(f"{block}.{stream}", width)
    for block in _blocks("single_transformer_blocks", num_single_layers):
        sizes |= {f"{block}.norm.linear": (width, 3 * width), f"{block}.proj_mlp": (width, 4 * width)}
        sizes |= {f"{block}.proj_out": (5 * width, width)}
        sizes |= {f"{block}.attn.{name}": (width, width) for name in ("to_q", "to_k", "to_v")}
    return sizes | {"norm_out.linear": (width, 2 * width), "proj_out": (width, outputs)}


def flux2_linear(
    *,
    num_layers: int = 8,
    num_single_layers: int = 48,
    num_attention_heads: int = 48,
    attention_head_dim: int = 128,
    in_channels: int = 128,
    out_channels: int | None = None,
    patch_size: int = 1,
    joint_attention_dim: int = 15360,
    timestep_guidance_channels: int = _TIME,
    mlp_ratio: float = 3.0,
    guidance_embeds: bool = True,
    **_: Any,
) -> Sizes:
    """The linear layers of `Flux2Transformer2DModel`."""
    width = num_attention_heads * attention_head_dim
    inner = int(width * mlp_ratio)
    outputs = patch_size**2 * (out_channels or in_channels)
    sizes = _mlp("time_guidance_embed.timestep_embedder", timestep_guidance_channels, width)
    if guidance_embeds:
        sizes |= _mlp("time_guidance_embed.guidance_embedder", timestep_guidance_channels, width)
    sizes |= {f"double_stream_modulation_{stream}.linear": (width, 6 * width) for stream in ("img", "txt")}
    sizes |= {"single_stream_modulation.linear": (width, 3 * width)}
    sizes |= {"x_embedder": (in_channels, width), "context_embedder": (joint_attention_dim, width)}
    for block in _blocks("transformer_blocks", num_layers):
        sizes |= _joint_attention(f"{block}.attn", width)
        for stream in ("ff", "ff_context"):
            sizes |= {
                f"{block}.{stream}.linear_in": (width, 2 * inner),
                f"{block}.{stream}.linear_out": (inner, width),
            }
    for block in _blocks("single_transformer_blocks", num_single_layers):
        sizes |= {f"{block}.attn.to_qkv_mlp_proj": (width, 3 * width + 2 * inner)}
        sizes |= {f"{block}.attn.to_out": (width + inner, width)}
    return sizes | {"norm_out.linear": (width, 2 * width), "proj_out": (width, outputs)}


def qwen_image_linear(
    *,
    num_layers: int = 60,
    num_attention_heads: int = 24,
    attention_head_dim: int = 128,
    in_channels: int = 64,
    out_channels: int | None = 16,
    patch_size: int = 2,
    joint_attention_dim: int = 3584,
    **_: Any,
) -> Sizes:
    """The linear layers of `QwenImageTransformer2DModel`."""
    width = num_attention_heads * attention_head_dim
    outputs = patch_size**2 * (out_channels or in_channels)
    sizes = _mlp("time_text_embed.timestep_embedder", _TIME, width)
    sizes |= {"img_in": (in_channels, width), "txt_in": (joint_attention_dim, width)}
    for block in _blocks("transformer_blocks", num_layers):
        sizes |= _joint_attention(f"{block}.attn", width)
        for stream in ("img", "txt"):
            sizes |= {f"{block}.{stream}_mod.1": (width, 6 * width)}
            sizes |= _feed_forward(f"{block}.{stream}_mlp", width)
    return sizes | {"norm_out.linear": (width, 2 * width), "proj_out": (width, outputs)}


def _blocks(name: str, count: int) -> Iterator[str]:
    return (f"{name}.{index}" for index in range(count))


def _mlp(name: str, inputs: int, width: int) -> dict[str, tuple[int, int]]:
    return {f"{name}.linear_1": (inputs, width), f"{name}.linear_2": (width, width)}


def _joint_attention(name: str, width: int) -> dict[str, tuple[int, int]]:
    """Attention over two streams: queries, keys, values and output of each."""
    parts = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    return {f"{name}.{part}": (width, width) for part in parts}


def _feed_forward(name: str, width: int) -> dict[str, tuple[int, int]]:
    return {f"{name}.net.0.proj": (width, 4 * width), f"{name}.net.2": (4 * width, width)}


def _by_blocks(vae: Config) -> int:
    return 2 ** (len(vae["block_out_channels"]) - 1)


FLUX1 = Architecture(
    Layers(
        blocks=("transformer_blocks", "single_transformer_blocks"),
        attention=("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        output=("proj_out",),  # attention and feed-forward of a single block; the last layer has this name, too
        feed_forward=("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp"),
    ),
    flux1_linear,
    _by_blocks,
)
FLUX2 = Architecture(
    Layers(
        blocks=("transformer_blocks", "single_transformer_blocks"),
        attention=(
            *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
            *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
        ),
        output=("attn.to_qkv_mlp_proj", "attn.to_out"),  # attention and feed-forward of a single block
        feed_forward=("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out"),
    ),
    flux2_linear,
    _by_blocks,
)
QWEN_IMAGE = Architecture(
    Layers(
        blocks=("transformer_blocks",),
        attention=("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        output=(),
        feed_forward=("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
    ),
    qwen_image_linear,
    lambda vae: 2 ** len(vae["temperal_downsample"]),
)
# By the names of families. What has no entry here is asked itself: its `adapter_size`.
ARCHITECTURES = {
    "FluxKontextPipeline": FLUX1,
    "uno": FLUX1,
    "Flux2KleinPipeline": FLUX2,
    "QwenImageEditPlusPipeline": QWEN_IMAGE,
}
