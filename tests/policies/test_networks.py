"""What configurations decide without torch, against the models that diffusers builds from them."""

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any

import pytest
import torch
import yaml
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel, QwenImageTransformer2DModel
from torch import nn

from customized_grpo.policies import FAMILIES, adapter_size, architectures, planned_family
from customized_grpo.policies.layers import Sizes, containers
from customized_grpo.policies.networks import (
    ARCHITECTURES,
    FLUX1,
    FLUX2,
    QWEN_IMAGE,
    flux1_linear,
    flux2_linear,
    qwen_image_linear,
)
from customized_grpo.sections import Adapter, Model

KINDS: dict[str, tuple[Any, Any]] = {
    "flux1": (FluxTransformer2DModel, flux1_linear),
    "flux2": (Flux2Transformer2DModel, flux2_linear),
    "qwen": (QwenImageTransformer2DModel, qwen_image_linear),
}
SMALL = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "joint_attention_dim": 24}
SINGLE = {**SMALL, "num_single_layers": 3}
# Every argument with a value that is not its default.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("flux1", {}),
    ("flux1", {**SINGLE, "in_channels": 8, "pooled_projection_dim": 12, "guidance_embeds": True, "patch_size": 2}),
    ("flux1", {**SINGLE, "in_channels": 8, "out_channels": 4}),
    ("flux2", {**SINGLE, "axes_dims_rope": [4, 4, 4, 4]}),
    ("flux2", {**SINGLE, "in_channels": 8, "out_channels": 4, "patch_size": 2, "mlp_ratio": 2.5}),
    ("flux2", {**SINGLE, "timestep_guidance_channels": 128, "guidance_embeds": False}),
    ("qwen", {**SMALL, "axes_dims_rope": [4, 6, 6]}),
    ("qwen", {**SMALL, "in_channels": 16, "out_channels": 4, "patch_size": 1}),
    ("qwen", {**SMALL, "zero_cond_t": True, "use_additional_t_cond": True, "out_channels": None}),
]


def built(kind: Any, config: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return kind.from_config(config)


def sizes(module: nn.Module) -> Sizes:
    layers = ((name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear))
    return {name: (layer.in_features, layer.out_features) for name, layer in layers}


@pytest.mark.parametrize(("name", "config"), CASES)
def test_the_linear_layers_of_a_configuration_are_those_that_diffusers_builds(name: str, config: dict[str, Any]):
    kind, linear = KINDS[name]
    assert linear(**config) == sizes(built(kind, config))


@pytest.mark.parametrize("name", KINDS)
def test_the_defaults_are_those_of_diffusers(name: str):
    kind, linear = KINDS[name]
    own = {key: of.default for key, of in signature(linear).parameters.items() if of.kind is Parameter.KEYWORD_ONLY}
    assert own == {key: signature(kind.__init__).parameters[key].default for key in own}


@pytest.mark.parametrize(("name", "config"), CASES[1:])
def test_only_what_holds_a_layer_shares_the_end_of_its_name(name: str, config: dict[str, Any]):
    """So a target that names what is not linear is found without the modules: a dry run says what `train` says."""
    module = built(KINDS[name][0], config)
    linear = sizes(module)
    others = {name for name, _ in module.named_modules() if name} - linear.keys() - containers(linear)
    ends = {f".{name}"[dot:] for name in linear for dot, letter in enumerate(f".{name}") if letter == "."}
    assert [name for name in others if any(f".{name}".endswith(end) for end in ends if not end[1:].isdigit())] == []


@pytest.mark.parametrize("checkpoint", yaml.safe_load(architectures.PUBLISHED.read_text())["checkpoints"])
@pytest.mark.parametrize(
    "adapter",
    [
        Adapter(rank=8),
        Adapter(rank=4, targets="attention", share_qkv=True),
        Adapter(rank=4, targets="attention_and_output"),
        Adapter(rank=2, targets=("to_q", "proj_out")),
    ],
    ids=["all", "shared", "output", "named"],
)
def test_the_size_of_an_adapter_is_that_of_peft(checkpoint: str, adapter: Adapter):
    family = "uno" if checkpoint == "black-forest-labs/FLUX.1-dev" else None
    model = Model(path=checkpoint, family=family)
    policy: Any = planned_family(model)
    module = built(policy.parts["transformer"], architectures.configuration(checkpoint, "transformer") or {})
    module.requires_grad_(False)
    sketch = object.__new__(policy)
    sketch.module = module
    with torch.device("meta"):
        sketch.add_adapter(adapter.rank, adapter.alpha, adapter.targets, share_qkv=adapter.share_qkv)
    assert adapter_size(model, adapter) == sum(weight.numel() for weight in sketch.trainable_parameters().values())


def test_every_built_in_family_is_known_without_torch():
    assert {*FAMILIES, "uno"} == ARCHITECTURES.keys()
    assert {FLUX1.scale({"block_out_channels": [1, 2, 3, 4]}), FLUX2.scale({"block_out_channels": [1, 2]})} == {8, 2}
    assert QWEN_IMAGE.scale({"temperal_downsample": [False, True, True]}) == 8
