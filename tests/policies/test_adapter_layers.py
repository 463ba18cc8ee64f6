"""Adapters of other programs: a tensor acts as its trainer meant, or the adapter is refused by the tensor's name."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from customized_grpo.files.adapter_places import ADAPTER_FILE
from customized_grpo.files.pretrained import ModelError
from customized_grpo.policies.adapter_file import PEFT_CONFIG
from customized_grpo.policies.flux_kontext import FluxKontextPolicy

MakePolicy = Callable[..., FluxKontextPolicy]

LAYER = "single_transformer_blocks.0.attn.to_q"  # 64 -> 64
FLAT = LAYER.replace(".", "_")
RANK = 4


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))) / 8


DOWN, UP = drawn(RANK, 64), drawn(64, RANK)


def loaded(
    make: MakePolicy,
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> FluxKontextPolicy:
    head = None if metadata is None else {"lora_adapter_metadata": json.dumps(metadata)}
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / ADAPTER_FILE, head)
    if config is not None:
        (folder / PEFT_CONFIG).write_text(json.dumps(config))
    policy = make()
    policy.load_adapter(folder)
    return policy


def assert_adds(policy: FluxKontextPolicy, layer: str, delta: Tensor, bias: Tensor | None = None) -> None:
    """The layer computes with its weight + delta."""
    module: Any = policy.module.get_submodule(layer)
    inputs = drawn(3, delta.shape[1])
    added = F.linear(inputs, delta, bias)
    expected = F.linear(inputs, module.base_layer.weight, module.base_layer.bias) + added
    torch.testing.assert_close(module(inputs), expected, atol=1e-5, rtol=1e-5)
    assert added.abs().max() > 0.01


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stem", "down", "up"),
    [
        (f"transformer.{LAYER}", "lora_A.weight", "lora_B.weight"),
        (LAYER, "lora_A.weight", "lora_B.weight"),
        (f"base_model.model.{LAYER}", "lora_A.weight", "lora_B.weight"),
        (f"base_model.model.{LAYER}", "lora_A.default.weight", "lora_B.default.weight"),
        (f"module.base_model.model.transformer.{LAYER}", "lora_A.mine.weight", "lora_B.mine.weight"),
        (f"diffusion_model.{LAYER}", "lora_A.weight", "lora_B.weight"),
        (f"transformer.{LAYER}", "lora_down.weight", "lora_up.weight"),
        (f"transformer.{LAYER}", "lora.down.weight", "lora.up.weight"),
        (f"lora_transformer_{FLAT}", "lora_down.weight", "lora_up.weight"),
        (f"lora_unet_{FLAT}", "lora_down.weight", "lora_up.weight"),
        (f"lycoris_{FLAT}", "lora_down.weight", "lora_up.weight"),
    ],
)
@pytest.mark.parametrize("alpha", [None, 3.0])
def test_the_names_of_other_programs(
    stem: str, down: str, up: str, alpha: float | None, tmp_path: Path, make_policy: MakePolicy
):
    tensors = {f"{stem}.{down}": DOWN, f"{stem}.{up}": UP}
    policy = loaded(make_policy, tmp_path, tensors | ({} if alpha is None else {f"{stem}.alpha": torch.tensor(alpha)}))
    assert_adds(policy, LAYER, (alpha or RANK) / RANK * UP @ DOWN)


DOUBLE, BLOCK = "double_blocks.0", "transformer_blocks.0"


@pytest.mark.parametrize(
    ("original", "size", "layers"),
    [
        (f"{DOUBLE}.img_attn.qkv", (64, 192), [f"{BLOCK}.attn.{each}" for each in ("to_q", "to_k", "to_v")]),
        (f"{DOUBLE}.img_attn.proj", (64, 64), [f"{BLOCK}.attn.to_out.0"]),
        (f"{DOUBLE}.txt_mlp.0", (64, 256), [f"{BLOCK}.ff_context.net.0.proj"]),
        (f"{DOUBLE}.img_mod.lin", (64, 384), [f"{BLOCK}.norm1.linear"]),
        ("single_blocks.1.linear2", (320, 64), ["single_transformer_blocks.1.proj_out"]),
        ("img_in", (16, 64), ["x_embedder"]),
        ("txt_in", (64, 64), ["context_embedder"]),
        ("time_in.in_layer", (256, 64), ["time_text_embed.timestep_embedder.linear_1"]),
        ("vector_in.out_layer", (64, 64), ["time_text_embed.text_embedder.linear_2"]),
        ("final_layer.linear", (64, 16), ["proj_out"]),
    ],
)
@pytest.mark.parametrize(
    ("prefix", "flat", "sides"),
    [
        ("lora_unet_", True, ("lora_down", "lora_up")),  # kohya's scripts
        ("diffusion_model.", False, ("lora_down", "lora_up")),  # ComfyUI
        ("diffusion_model.", False, ("lora_A", "lora_B")),
        ("base_model.model.", False, ("lora_A", "lora_B")),  # peft on the original model
    ],
)
def test_the_layers_of_the_original_model(
    original: str,
    size: tuple[int, int],
    layers: list[str],
    prefix: str,
    flat: bool,
    sides: tuple[str, str],
    tmp_path: Path,
    make_policy: MakePolicy,
):
    down, up = drawn(RANK, size[0]), drawn(size[1], RANK)
    stem = f"{prefix}{original.replace('.', '_') if flat else original}"
    tensors = {f"{stem}.{side}.weight": tensor for side, tensor in zip(sides, (down, up), strict=True)}
    policy = loaded(make_policy, tmp_path, {**tensors, f"{stem}.alpha": torch.tensor(2.0)})
    for layer, delta in zip(layers, (2 / RANK * up @ down).chunk(len(layers)), strict=True):
        assert_adds(policy, layer, delta)


def test_the_original_model_has_shift_and_scale_in_the_other_order(tmp_path: Path, make_policy: MakePolicy):
    down, up = drawn(RANK, 64), drawn(128, RANK)
    stem = "lora_unet_final_layer_adaLN_modulation_1"
    policy = loaded(make_policy, tmp_path, {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up})
    assert_adds(policy, "norm_out.linear", torch.cat(list((up @ down).chunk(2))[::-1]))


def test_a_rank_that_is_divided_among_layers_keeps_its_scale(tmp_path: Path, make_policy: MakePolicy):
    """Query, key and value each have a third of the rank if the other blocks of lora_up are zero."""
    down, thirds = drawn(6, 64), [drawn(64, 2) for _ in range(3)]
    stem = "lora_unet_double_blocks_0_txt_attn_qkv"
    tensors = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": torch.block_diag(*thirds)}
    policy = loaded(make_policy, tmp_path, {**tensors, f"{stem}.alpha": torch.tensor(3.0)})
    for name, up, part in zip(("add_q_proj", "add_k_proj", "add_v_proj"), thirds, down.chunk(3), strict=True):
        assert_adds(policy, f"{BLOCK}.attn.{name}", 3 / 6 * up @ part)


def test_the_names_of_xlabs(tmp_path: Path, make_policy: MakePolicy):
    qkv, stem = drawn(192, RANK), f"{DOUBLE}.processor"
    tensors = {f"{stem}.qkv_lora1.down.weight": DOWN, f"{stem}.qkv_lora1.up.weight": qkv}
    tensors |= {f"{stem}.proj_lora2.down.weight": DOWN, f"{stem}.proj_lora2.up.weight": UP}
    policy = loaded(make_policy, tmp_path, tensors)
    for name, up in zip(("to_q", "to_k", "to_v"), qkv.chunk(3), strict=True):
        assert_adds(policy, f"{BLOCK}.attn.{name}", up @ DOWN)
    assert_adds(policy, f"{BLOCK}.attn.to_add_out", UP @ DOWN)


# --- scale -----------------------------------------------------------------------------------------------------------

PAIR = {f"base_model.model.{LAYER}.lora_A.weight": DOWN, f"base_model.model.{LAYER}.lora_B.weight": UP}
OTHER = "single_transformer_blocks.1.attn.to_q"
CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "target_modules": ["to_q"], "bias": "none"}


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({}, 6 / 4),
        ({"use_rslora": True}, 6 / math.sqrt(4)),
        ({"alpha_pattern": {"single_transformer_blocks.0.attn.to_q": 10}}, 10 / 4),
        ({"r": 8, "rank_pattern": {"to_q": 4}, "alpha_pattern": {r"^.*\.1\..*": 10}}, 6 / 4),
        ({"init_lora_weights": "gaussian", "lora_dropout": 0.1, "inference_mode": True}, 6 / 4),
    ],
)
@pytest.mark.parametrize("place", ["beside", "head"])
def test_the_scale_of_a_configuration(
    changes: dict[str, Any], scale: float, place: str, tmp_path: Path, make_policy: MakePolicy
):
    config = {**CONFIG, **changes}
    head = {f"transformer.{name}": value for name, value in config.items()}
    policy = loaded(make_policy, tmp_path, PAIR, **({"config": config} if place == "beside" else {"metadata": head}))
    assert_adds(policy, LAYER, scale * UP @ DOWN)


def test_layers_have_ranks_and_alphas_of_their_own(tmp_path: Path, make_policy: MakePolicy):
    """A top layer's name is also the end of other layers' names."""
    ends = {"proj_out": (64, 16, 2, 1.0), "single_transformer_blocks.0.proj_out": (320, 64, 3, 6.0)}
    tensors = {}
    for layer, (into, out, rank, alpha) in ends.items():
        tensors |= {
            f"transformer.{layer}.lora_A.weight": drawn(rank, into),
            f"transformer.{layer}.alpha": torch.tensor(alpha),
        }
        tensors |= {f"transformer.{layer}.lora_B.weight": drawn(out, rank)}
    policy = loaded(make_policy, tmp_path, tensors)
    for layer, (into, out, rank, alpha) in ends.items():
        assert_adds(policy, layer, alpha / rank * drawn(out, rank) @ drawn(rank, into))


@pytest.mark.parametrize("ending", ["", ".weight", ".default"])
def test_dora(ending: str, tmp_path: Path, make_policy: MakePolicy):
    """arXiv 2402.09353, equation 5: each row of weight + update gets the length that its magnitude says."""
    magnitude = drawn(64).abs() + 0.5
    tensors = {**PAIR, f"base_model.model.{LAYER}.lora_magnitude_vector{ending}": magnitude}
    policy = loaded(make_policy, tmp_path, tensors, {**CONFIG, "use_dora": True})
    base: Any = policy.module.get_submodule(LAYER)
    changed = base.base_layer.weight + 6 / 4 * UP @ DOWN
    assert_adds(policy, LAYER, magnitude[:, None] * F.normalize(changed, dim=1) - base.base_layer.weight)


def test_the_bias_of_a_lora(tmp_path: Path, make_policy: MakePolicy):
    bias = drawn(64)
    tensors = {**PAIR, f"base_model.model.{LAYER}.lora_B.bias": bias}
    policy = loaded(make_policy, tmp_path, tensors, {**CONFIG, "lora_bias": True})
    assert_adds(policy, LAYER, 6 / 4 * UP @ DOWN, 6 / 4 * bias)


# --- what is refused -------------------------------------------------------------------------------------------------

PLAIN = {f"transformer.{LAYER}.lora_A.weight": DOWN, f"transformer.{LAYER}.lora_B.weight": UP}
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
REFUSED: dict[str, dict[str, Tensor]] = {
    f"transformer.{LAYER}.dora_scale": {"": drawn(64, 1)},
    f"transformer.{LAYER}.diff": {"": drawn(64, 64)},
    f"transformer.{LAYER}.diff_b": {"": drawn(64)},
    f"lora_unet_{FLAT}.lokr_w1": {"": drawn(8, 8)},
    f"lora_unet_{FLAT}.hada_w1_a": {"": drawn(64, 4)},
    "transformer.single_transformer_blocks.0.attn.norm_q.weight": {"": drawn(16)},
    "base_model.model.proj_out.modules_to_save.default.weight": {"": drawn(16, 64)},
    f"transformer.{LAYER}.lora_A.bias": {"": drawn(4)},
    f"transformer.{OTHER}.alpha": {"": torch.tensor(4.0)},
    f"transformer.{LAYER}.alpha": {"": torch.ones(2)},
    "position_embedding": {"": drawn(4, 4)},
    f"{LAYER}.lora_A.weight": {"": DOWN, f"{LAYER}.lora_B.weight": UP},  # the same layer twice
    f"transformer.{LAYER}.lora_A.other.weight": {"": DOWN},
    TEXT: {f"{TEXT}.lora_A.weight": DOWN, f"{TEXT}.lora_B.weight": UP},
    "lora_te1_text_model": {"lora_te1_text_model.lora_down.weight": DOWN, "lora_te1_text_model.lora_up.weight": UP},
    "transformer.nothing": {"transformer.nothing.lora_A.weight": DOWN, "transformer.nothing.lora_B.weight": UP},
    "double_blocks_7_img_mod_lin": {
        "lora_unet_double_blocks_7_img_mod_lin.lora_down.weight": DOWN,
        "lora_unet_double_blocks_7_img_mod_lin.lora_up.weight": UP,
    },
    "double_blocks_0_nothing": {
        "lora_unet_double_blocks_0_nothing.lora_down.weight": DOWN,
        "lora_unet_double_blocks_0_nothing.lora_up.weight": UP,
    },
    "lora_unet_img_in": {"lora_unet_img_in.lora_down.weight": DOWN},
    "lora_magnitude_vector": {  # of one layer only
        f"transformer.{LAYER}.lora_magnitude_vector": drawn(64),
        f"transformer.{OTHER}.lora_A.weight": DOWN,
        f"transformer.{OTHER}.lora_B.weight": UP,
    },
}


@pytest.mark.parametrize("named", REFUSED)
def test_a_tensor_that_would_be_left_out_is_refused_by_name(named: str, tmp_path: Path, make_policy: MakePolicy):
    further = {key or named: tensor for key, tensor in REFUSED[named].items()}
    with pytest.raises(ModelError) as caught:
        loaded(make_policy, tmp_path, {**PLAIN, **further})
    assert named.removeprefix("transformer.") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_part_that_is_all_zero_may_be_left_out(tmp_path: Path, make_policy: MakePolicy):
    zeros = {
        f"{TEXT}.lora_A.weight": DOWN,
        f"{TEXT}.lora_B.weight": UP * 0,
        "lora_unet_img_in.diff_b": torch.zeros(64),
    }
    assert_adds(loaded(make_policy, tmp_path, {**PLAIN, **zeros}), LAYER, UP @ DOWN)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"peft_type": "LOHA"}, "sets peft_type to 'LOHA', which is not supported"),
        ({"init_lora_weights": "pissa"}, "sets init_lora_weights to 'pissa'"),
        ({"bias": "all"}, "sets bias to 'all'"),
        ({"modules_to_save": ["proj_out"]}, r"sets modules_to_save to \['proj_out'\]"),
        ({"use_dora": True}, "sets use_dora to True, but the file holds no lora_magnitude_vector"),
        ({"nope": 1}, "sets nope to 1"),
        ({"r": 8}, "has rank 4, but .* says 8"),
        ({"r": "four"}, "r is 'four', not a number"),
        ({"lora_alpha": None}, "lora_alpha is None, not a number"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern is "),
    ],
)
def test_a_configuration_that_cannot_be_honoured_is_refused(
    config: dict[str, Any], problem: str, tmp_path: Path, make_policy: MakePolicy
):
    with pytest.raises(
        ModelError, match=rf"cannot be used: .*adapter_config\.json.*{problem}|cannot be used: .*{problem}"
    ):
        loaded(make_policy, tmp_path, PAIR, {**CONFIG, **config})


def test_two_different_alphas_are_refused(tmp_path: Path, make_policy: MakePolicy):
    key = f"base_model.model.{LAYER}.alpha"
    with pytest.raises(ModelError, match=r"alpha of .* is 6 in adapter_config.json, and 4 elsewhere"):
        loaded(make_policy, tmp_path, {**PAIR, key: torch.tensor(4.0)}, CONFIG)
    with pytest.raises(ModelError, match=r"alpha of .* is 6 in adapter_config.json, and 8 elsewhere"):
        loaded(make_policy, tmp_path, PAIR, CONFIG, {"transformer.r": 4, "transformer.lora_alpha": 8})


@pytest.mark.parametrize("content", ["[]", "{", ""])
def test_a_configuration_that_is_no_json_is_refused(content: str, tmp_path: Path, make_policy: MakePolicy):
    (tmp_path / PEFT_CONFIG).write_text(content)
    with pytest.raises(ModelError, match=r"adapter_config.json does not hold keys and values in JSON"):
        loaded(make_policy, tmp_path, PAIR)


def test_equal_adapters_are_equal_files(make_policy: MakePolicy, tmp_path: Path):
    """safetensors writes its metadata in another order each time; tensors and metadata stay as they were."""
    policy = make_policy(rank=2)
    for number in range(8):
        policy.save_adapter(tmp_path / str(number))
    files = [tmp_path / str(number) / ADAPTER_FILE for number in range(8)]
    assert len({file.read_bytes() for file in files}) == 1
    with safe_open(files[0], "pt") as opened:
        assert opened.metadata().keys() == {"format", "lora_adapter_metadata"}
    make_policy(rank=2).load_adapter(tmp_path / "0")
