"""Exported adapters do in every reader what the adapter did: the same velocity, and the same update of each layer."""

import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from test_every_family import FAMILIES, Family, picture
from torch import Tensor, nn

import tiny_models
from customized_grpo.commands.export import ExportRequest, write_export
from customized_grpo.config import CONFIG, dump_config, load_config
from customized_grpo.critters.weights import resolve
from customized_grpo.data import Sample
from customized_grpo.errors import UsageError
from customized_grpo.files.adapter_places import find_adapter, folder_of
from customized_grpo.policies.adapter_formats import check_comfyui
from customized_grpo.policies.adapter_layers import linear_layers
from customized_grpo.policies.diffusers_policy import DiffusersPolicy
from customized_grpo.policies.lora_tensors import DOWN, UP, LoraTensors
from program import TINY

RANK, ALPHA = 4, 6.0
BUILT_IN = Family("built in", Path(resolve("critters", "generator")), {}, None)
MAKERS = {"klein": tiny_models.klein, "qwen": tiny_models.qwen_edit, "uno": tiny_models.flux_dev}
Excite = Callable[[DiffusersPolicy], None]


@pytest.fixture(scope="module", params=["built in", *MAKERS])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    if request.param == "built in":
        yield BUILT_IN
        return
    path = tiny_models.saved(MAKERS[request.param](), tmp_path_factory.mktemp("exported") / request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_qwenimage_edit_plus, "VAE_IMAGE_SIZE", 96 * 96)  # 1024 is slow
        yield Family(request.param, path, *FAMILIES[request.param][1:])


@pytest.fixture(scope="module")
def plain(family: Family) -> DiffusersPolicy:
    return family.policy()


@pytest.fixture(scope="module", params=[False, True], ids=["", "shared"])
def trained(
    request: pytest.FixtureRequest,
    plain: DiffusersPolicy,
    excite: Excite,
    tmp_path_factory: pytest.TempPathFactory,
) -> "Trained":
    policy, folder = deepcopy(plain), tmp_path_factory.mktemp("trained")
    policy.add_adapter(RANK, ALPHA, seed=1, share_qkv=request.param)
    excite(policy)
    policy.save_adapter(folder)
    return Trained(folder, velocity(policy), updates(policy.module))


@dataclass(frozen=True)
class Trained:
    """An adapter, and what a model does with it."""

    folder: Path
    velocity: Tensor
    updates: dict[str, Tensor]

    def check(self, policy: DiffusersPolicy, total: dict[str, Tensor] | None = None) -> None:
        torch.testing.assert_close(velocity(policy), self.velocity, atol=5e-5, rtol=1e-5)
        assert_same(updates(policy.module), total or self.updates)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for layer, update in expected.items():
        assert update.abs().max() > 0.01
        torch.testing.assert_close(found[layer], update, atol=1e-6, rtol=1e-6)


def velocity(policy: DiffusersPolicy) -> Tensor:
    condition = policy.encode([Sample("one", "dog", "a dog on a beach", (picture(48, 64, 0),))])
    with torch.no_grad():
        return policy.velocity(policy.noise(condition, [1]), 0.6, condition)


def updates(module: nn.Module) -> dict[str, Tensor]:
    """What the adapter adds to each layer's weight; peft computes it from B, A and its scale."""
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}
    return {name: only_delta(layer) for name, layer in layers.items()}


def only_delta(layer: Any) -> Tensor:
    (adapter,) = layer.lora_A
    return layer.get_delta_weight(adapter).detach()


def read_by_pipeline(policy: DiffusersPolicy, exported: Path) -> None:
    policy.pipe.load_lora_weights(exported)


def read_by_peft(policy: DiffusersPolicy, exported: Path) -> None:
    PeftModel.from_pretrained(policy.module, exported)  # adds the adapter to the module itself


def read_by_us(policy: DiffusersPolicy, exported: Path) -> None:
    policy.load_adapter(find_adapter(exported))


READERS: dict[str, Any] = {"comfyui": read_by_pipeline, "diffusers": read_by_pipeline, "peft": read_by_peft}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_gets_the_same_adapter(name: Any, trained: Trained, plain: DiffusersPolicy, tmp_path: Path):
    exported = write_export(ExportRequest(trained.folder, name, tmp_path / "exported.safetensors"))
    assert (velocity(plain) - trained.velocity).abs().max() > 0.01
    for read in (READERS[name], read_by_us):
        policy = deepcopy(plain)
        read(policy, exported)
        trained.check(policy)


@pytest.mark.parametrize("name", READERS)
def test_an_exported_adapter_can_be_exported_again(
    name: Any, trained: Trained, family: Family, plain: DiffusersPolicy, tmp_path: Path
):
    """Files of other programs do not tell which layers they mean, but the model does."""
    first = write_export(ExportRequest(trained.folder, name, tmp_path / "first.safetensors"))
    (folder_of(find_adapter(first)) / CONFIG).write_text(dump_config(load_config(TINY, family.overrides)))
    policy = deepcopy(plain)
    policy.load_adapter(write_export(ExportRequest(first, "diffusers", tmp_path / "again")))
    trained.check(policy)


# What ComfyUI finds behind "transformer." for FLUX.1 and FLUX.2; for Qwen-Image it finds every layer.
IN_COMFYUI = re.compile(
    r"transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)|norm1(_context)?\.linear"
    r"|ff(_context)?\.(net\.0\.proj|net\.2|linear_in|linear_out))"
    r"|single_transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_qkv_mlp_proj|to_out)|norm\.linear|proj_mlp|proj_out)"
    r"|x_embedder|context_embedder|proj_out|norm_out\.linear"
    r"|time_text_embed\.(timestep|text|guidance)_embedder\.linear_[12]"
)


def test_exactly_what_comfyui_would_overlook_is_refused(family: Family, plain: DiffusersPolicy):
    for name, layer in linear_layers(plain.module).items():
        pair = {DOWN: torch.ones(1, layer.in_features), UP: torch.ones(layer.out_features, 1)}
        lora = LoraTensors({f"transformer.{name}.{part}": tensor for part, tensor in pair.items()}, {name: 1.0})
        if family.name == "qwen" or IN_COMFYUI.fullmatch(name):
            check_comfyui(lora)
        else:
            with pytest.raises(UsageError, match=f"ComfyUI does not read {name}; "):
                check_comfyui(lora)


# --- with the adapter that was fused before training -----------------------------------------------------------------


@pytest.fixture(scope="module")
def on_base(
    family: Family, plain: DiffusersPolicy, excite: Excite, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trained, dict[str, Tensor]]:
    """A run's adapter on a base adapter of another rank, scale and other layers, and the updates of the base."""
    base, layers, folder = deepcopy(plain), plain.layers, tmp_path_factory.mktemp("on_base")
    base.add_adapter(2, 5.0, [*layers.attention[:5], *layers.feed_forward[:1]], seed=2)
    excite(base)
    base.save_adapter(folder / "base")
    policy = family.policy(base_adapter=str(folder / "base"))
    policy.add_adapter(RANK, ALPHA, layers.attention, seed=1)
    excite(policy)
    policy.save_adapter(folder / "run" / "adapter")
    config = load_config(TINY, [*family.overrides, f"model.base_adapter={folder / 'base'}"])
    (folder / "run" / "adapter" / CONFIG).write_text(dump_config(config))
    return Trained(folder / "run", velocity(policy), updates(policy.module)), updates(base.module)


@pytest.mark.parametrize("name", READERS)
def test_with_its_base_an_adapter_works_on_the_plain_model(
    name: Any, on_base: tuple[Trained, dict[str, Tensor]], plain: DiffusersPolicy, tmp_path: Path
):
    trained, base = on_base
    exported = write_export(ExportRequest(trained.folder, name, tmp_path / "both.safetensors", with_base=True))
    own = trained.updates
    assert own.keys() - base.keys()
    assert base.keys() - own.keys()
    total = {layer: own.get(layer, 0) + base.get(layer, torch.zeros(())) for layer in own.keys() | base.keys()}
    for read in (READERS[name], read_by_us):
        policy = deepcopy(plain)
        read(policy, exported)
        trained.check(policy, total)


def test_the_exported_file_can_be_a_base_adapter(
    family: Family, on_base: tuple[Trained, dict[str, Tensor]], tmp_path: Path
):
    trained = on_base[0]
    file = write_export(ExportRequest(trained.folder, "comfyui", tmp_path / "both.safetensors", with_base=True))
    fused = family.policy(base_adapter=str(file))
    torch.testing.assert_close(velocity(fused), trained.velocity, atol=1e-5, rtol=1e-5)


def test_unos_own_adapter_can_be_the_base(excite: Excite, tmp_path: Path):
    """Its names are FLUX's own, with one A for q, k and v."""
    theirs = Path(__file__).with_name("uno")
    transformer = FluxTransformer2DModel.from_pretrained(theirs / "transformer")
    checkpoint = tiny_models.saved(tiny_models.flux_dev(transformer), tmp_path / "flux")
    family = Family("uno", checkpoint, {"family": "uno", "reference_size": 64}, None)
    adapter = theirs / "dit_lora.safetensors"
    policy = family.policy(base_adapter=str(adapter))
    policy.add_adapter(RANK, ALPHA, "attention_and_output", share_qkv=True)
    excite(policy)
    policy.save_adapter(tmp_path / "run" / "adapter")
    own = updates(policy.module)
    config = load_config(TINY, [f"model.path={checkpoint}", f"model.base_adapter={adapter}", "model.family=uno"])
    (tmp_path / "run" / "adapter" / CONFIG).write_text(dump_config(config))
    file = write_export(ExportRequest(tmp_path / "run", "comfyui", tmp_path / "both.safetensors", with_base=True))
    plain = family.policy(base_adapter=str(file))
    for name, weight in policy.module.named_parameters():
        if "lora_" not in name:
            layer = name.removesuffix(".base_layer.weight")
            expected = weight + own[layer] if layer in own else weight
            fused = plain.module.get_parameter(name.replace(".base_layer", ""))
            torch.testing.assert_close(fused, expected, atol=1e-5, rtol=1e-5)


# --- more than A and B -----------------------------------------------------------------------------------------------


@pytest.fixture(params=["use_dora", "lora_bias"])
def richer(request: pytest.FixtureRequest, tmp_path: Path) -> Trained:
    """An adapter of peft's for the built-in model, with magnitudes or biases in all its layers."""
    policy, generator = BUILT_IN.policy(), torch.Generator().manual_seed(0)
    config = LoraConfig(r=RANK, lora_alpha=6, target_modules=["to_q", "ff.net.2"])
    setattr(config, request.param, True)
    model = get_peft_model(policy.module, config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(str(tmp_path / "richer"))
    return Trained(tmp_path / "richer", velocity(policy), {})


@pytest.mark.parametrize("name", ["diffusers", "peft"])
def test_magnitudes_and_biases_reach_the_formats_that_have_them(name: Any, richer: Trained, tmp_path: Path):
    exported = write_export(ExportRequest(richer.folder, name, tmp_path / "exported", model="critters"))
    assert (velocity(BUILT_IN.policy()) - richer.velocity).abs().max() > 0.01
    for read in (READERS[name], read_by_us):
        policy = BUILT_IN.policy()
        read(policy, exported)
        torch.testing.assert_close(velocity(policy), richer.velocity, atol=1e-5, rtol=1e-5)


def test_comfyui_gets_no_magnitudes_and_biases(richer: Trained, tmp_path: Path):
    output = tmp_path / "x.safetensors"
    with pytest.raises(UsageError, match=r"^--format comfyui: .*lora_(magnitude_vector|B\.bias) is more than lora_A"):
        write_export(ExportRequest(richer.folder, "comfyui", output, model="critters"))
    assert list(tmp_path.iterdir()) == [richer.folder]
