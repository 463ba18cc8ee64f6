"""Adapters of FLUX.2-klein and Qwen-Image-Edit in the names that ComfyUI and its trainers use are read as they act."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import tiny_models
from customized_grpo.files.pretrained import ModelError
from customized_grpo.policies.diffusers_policy import DiffusersPolicy
from customized_grpo.policies.flux2_klein import Flux2KleinPolicy
from customized_grpo.policies.qwen_image_edit import QwenImageEditPolicy
from customized_grpo.sections import Model

RANK, ALPHA = 4, 6.0
Load = Callable[[Mapping[str, Tensor]], DiffusersPolicy]


def loader(kind: type[DiffusersPolicy], checkpoint: Path, file: Path) -> Load:
    settings = Model(path=str(checkpoint), height=32, width=32, max_sequence_length=32, dtype="float32")

    def load(tensors: Mapping[str, Tensor]) -> DiffusersPolicy:
        save_file(dict(tensors), file)
        policy = kind.load(checkpoint, settings, "cpu")
        policy.load_adapter(file)
        return policy

    return load


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Load:
    folder = tmp_path_factory.mktemp("klein")
    return loader(
        Flux2KleinPolicy, tiny_models.saved(tiny_models.klein(), folder / "model"), folder / "lora.safetensors"
    )


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Load:
    folder = tmp_path_factory.mktemp("qwen")
    model = tiny_models.saved(tiny_models.qwen_edit(), folder / "model")
    return loader(QwenImageEditPolicy, model, folder / "lora.safetensors")


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) / 8


def updates(policy: DiffusersPolicy) -> dict[str, Tensor]:
    layers: dict[str, Any] = dict(policy.module.named_modules())
    return {
        name: layer.get_delta_weight("default").detach()
        for name, layer in layers.items()
        if hasattr(layer, "lora_A") and len(layer.lora_A)
    }


def check(policy: DiffusersPolicy, expected: Mapping[str, Tensor]) -> None:
    found = updates(policy)
    assert found.keys() == expected.keys()
    for layer, update in expected.items():
        torch.testing.assert_close(found[layer], update, atol=1e-6, rtol=1e-6)
        assert update.abs().max() > 0.01


# --- FLUX.2-klein: width 32, text 48, feed-forward 96; ComfyUI has the layers of FLUX.2's own code -------------------

BLOCK, SINGLE = "transformer_blocks.1", "single_transformer_blocks.0"
KLEIN: dict[str, tuple[tuple[int, int], list[str]]] = {
    "double_blocks.1.img_attn.qkv": ((32, 96), [f"{BLOCK}.attn.to_{part}" for part in "qkv"]),
    "double_blocks.1.txt_attn.qkv": ((32, 96), [f"{BLOCK}.attn.add_{part}_proj" for part in "qkv"]),
    "double_blocks.1.img_attn.proj": ((32, 32), [f"{BLOCK}.attn.to_out.0"]),
    "double_blocks.1.txt_attn.proj": ((32, 32), [f"{BLOCK}.attn.to_add_out"]),
    "double_blocks.1.img_mlp.0": ((32, 192), [f"{BLOCK}.ff.linear_in"]),
    "double_blocks.1.txt_mlp.2": ((96, 32), [f"{BLOCK}.ff_context.linear_out"]),
    "single_blocks.0.linear1": ((32, 288), [f"{SINGLE}.attn.to_qkv_mlp_proj"]),
    "single_blocks.0.linear2": ((128, 32), [f"{SINGLE}.attn.to_out"]),
    "txt_in": ((48, 32), ["context_embedder"]),
    "final_layer.linear": ((32, 16), ["proj_out"]),
    "double_stream_modulation_img.lin": ((32, 192), ["double_stream_modulation_img.linear"]),
    "double_stream_modulation_txt.lin": ((32, 192), ["double_stream_modulation_txt.linear"]),
    "single_stream_modulation.lin": ((32, 96), ["single_stream_modulation.linear"]),
}
SPELLINGS = [
    ("diffusion_model.", False, ("lora_A", "lora_B")),
    ("diffusion_model.", False, ("lora_down", "lora_up")),
    ("base_model.model.", False, ("lora_A", "lora_B")),
    ("lora_unet_", True, ("lora_down", "lora_up")),
]


@pytest.mark.parametrize(("prefix", "flat", "sides"), SPELLINGS)
@pytest.mark.parametrize("alpha", [None, ALPHA])
def test_kleins_layers_as_comfyui_names_them(
    prefix: str, flat: bool, sides: tuple[str, str], alpha: float | None, klein: Load
):
    tensors, expected = {}, {}
    for name, ((inputs, outputs), layers) in KLEIN.items():
        down, up = drawn(RANK, inputs), drawn(outputs, RANK)
        stem = prefix + (name.replace(".", "_") if flat else name)
        tensors |= {f"{stem}.{sides[0]}.weight": down, f"{stem}.{sides[1]}.weight": up}
        tensors |= {} if alpha is None else {f"{stem}.alpha": torch.tensor(alpha)}
        parts = ((alpha or RANK) / RANK * up @ down).chunk(len(layers))
        expected |= dict(zip(layers, parts, strict=True))
    check(klein(tensors), expected)


def test_a_pair_of_klein_that_is_three_in_one(klein: Load):
    """The adapters of q, k and v as a converter fuses them: one below the other, with one alpha."""
    downs, ups = [drawn(2, 32 + n)[:, :32] for n in range(3)], [drawn(32, 2 + n)[:, :2] for n in range(3)]
    stem = "diffusion_model.double_blocks.0.txt_attn.qkv"
    tensors = {f"{stem}.lora_A.weight": torch.cat(downs), f"{stem}.lora_B.weight": torch.block_diag(*ups)}
    policy = klein({**tensors, f"{stem}.alpha": torch.tensor(9.0)})
    layers = [f"transformer_blocks.0.attn.add_{part}_proj" for part in "qkv"]
    check(policy, {name: 9 / 6 * up @ down for name, up, down in zip(layers, ups, downs, strict=True)})


@pytest.mark.parametrize(
    "wrong",
    [
        "double_blocks.7.img_attn.proj",  # the model has two
        "double_blocks.0.img_attn.qkw",
        "single_blocks.0.modulation.lin",  # FLUX.1's
        "guidance_in.in_layer",  # FLUX.2-dev's
        "final_layer.adaLN_modulation.1",  # diffusers has its halves in the other order, and forgets it in reading
        "double_stream_modulation_img.linn",
        "single_stream_modulation",
        "vector_in.in_layer",
    ],
)
@pytest.mark.parametrize("flat", [False, True])
def test_a_layer_that_klein_lacks_is_refused_by_name(wrong: str, flat: bool, klein: Load):
    stem = f"lora_unet_{wrong.replace('.', '_')}" if flat else f"diffusion_model.{wrong}"
    good = "diffusion_model.txt_in"
    pairs = {f"{each}.lora_down.weight": drawn(RANK, 48) for each in (good, stem)}
    pairs |= {f"{each}.lora_up.weight": drawn(32, RANK) for each in (good, stem)}
    with pytest.raises(ModelError) as caught:
        klein(pairs)
    assert stem in str(caught.value)
    assert "\n" not in str(caught.value)


# --- Qwen-Image-Edit: ComfyUI names its layers as diffusers does -----------------------------------------------------

QWEN = {
    "transformer_blocks.0.attn.to_q": (32, 32),
    "transformer_blocks.0.attn.to_out.0": (32, 32),
    "transformer_blocks.1.attn.add_k_proj": (32, 32),
    "transformer_blocks.1.attn.to_add_out": (32, 32),
    "transformer_blocks.0.img_mlp.net.0.proj": (32, 128),
    "transformer_blocks.1.txt_mlp.net.2": (128, 32),
    "transformer_blocks.1.img_mod.1": (32, 192),
    "img_in": (16, 32),
    "proj_out": (32, 16),
}


@pytest.mark.parametrize(
    ("prefix", "flat", "sides"),
    [
        *SPELLINGS,
        ("transformer.", False, ("lora_A", "lora_B")),
        ("diffusion_model.", False, ("lora_A.default", "lora_B.default")),
        ("", False, ("lora_A", "lora_B")),
        ("lycoris_", True, ("lora_down", "lora_up")),
    ],
)
@pytest.mark.parametrize("alpha", [None, ALPHA])
def test_qwens_layers_as_comfyui_names_them(
    prefix: str, flat: bool, sides: tuple[str, str], alpha: float | None, qwen: Load
):
    tensors, expected = {}, {}
    for name, (inputs, outputs) in QWEN.items():
        down, up = drawn(RANK, inputs), drawn(outputs, RANK)
        stem = prefix + (name.replace(".", "_") if flat else name)
        tensors |= {f"{stem}.{sides[0]}.weight": down, f"{stem}.{sides[1]}.weight": up}
        tensors |= {} if alpha is None else {f"{stem}.alpha": torch.tensor(alpha)}
        expected[name] = (alpha or RANK) / RANK * up @ down
    check(qwen(tensors), expected)


@pytest.mark.parametrize("wrong", ["transformer_blocks.9.attn.to_q", "double_blocks.0.img_attn.qkv", "txt_out"])
def test_a_layer_that_qwen_lacks_is_refused_by_name(wrong: str, qwen: Load):
    stems = ("diffusion_model.transformer_blocks.0.attn.to_k", f"diffusion_model.{wrong}")
    pairs = {f"{stem}.lora_A.weight": drawn(RANK, 32) for stem in stems}
    pairs |= {f"{stem}.lora_B.weight": drawn(32, RANK) for stem in stems}
    with pytest.raises(ModelError) as caught:
        qwen(pairs)
    assert wrong in str(caught.value)
    assert "\n" not in str(caught.value)
