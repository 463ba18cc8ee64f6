"""`model.quantise`: frozen blocks in 8 or 4 bits, an adapter in float32 on top.

bitsandbytes' 4 bits run on a CPU, too, by other kernels than on a card, which nobody has tried yet.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from customized_grpo.config import ConfigError, RunConfig
from customized_grpo.critters.weights import resolve
from customized_grpo.data import Sample
from customized_grpo.errors import UsageError
from customized_grpo.policies import load_policy, quantise
from customized_grpo.policies.diffusers_policy import DiffusersPolicy
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.sections import Model
from customized_grpo.training.assemble import assemble

torchao = pytest.importorskip("torchao", reason="the extra `quantise` is not installed")
MakePolicy = Callable[..., FluxKontextPolicy]
bitsandbytes = pytest.importorskip("bitsandbytes", reason="the extra `nf4` is not installed")
KINDS = ("int8", "fp8", "nf4")


def velocity(policy: DiffusersPolicy, samples: list[Sample]) -> Tensor:
    condition = policy.encode(samples)
    with torch.no_grad():
        return policy.velocity(policy.noise(condition, range(len(samples))), 0.6, condition)


def is_quantised(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and (
        type(layer.weight.data) is not Tensor or not layer.weight.is_floating_point()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_blocks_are_quantised_and_the_velocity_hardly_changes(
    kind: str, make_policy: MakePolicy, samples: list[Sample]
):
    whole, eight = make_policy(dtype="bfloat16"), make_policy(dtype="bfloat16", quantise=kind)
    inside = {name for name, layer in eight.module.named_modules() if is_quantised(layer)}
    blocks = ("transformer_blocks.", "single_transformer_blocks.")
    linear = {name for name, layer in eight.module.named_modules() if isinstance(layer, nn.Linear)}
    assert inside == {name for name in linear if name.startswith(blocks)}
    expected, got = velocity(whole, samples[:3]), velocity(eight, samples[:3])
    error = (got - expected).norm() / expected.norm()
    assert 1e-4 < error < {"int8": 0.02, "fp8": 0.06, "nf4": 0.15}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_of_the_adapter_gets_a_gradient_and_the_ratio_is_one(
    kind: str, make_config: Callable[..., RunConfig]
):
    trainer = assemble(make_config(f"model.quantise={kind}", "model.dtype=bfloat16", "adapter.targets=all"))
    row = trainer.step()  # would raise if the ratio were not 1
    assert row["ratio_mean"] == pytest.approx(1, abs=1e-5)
    policy = trainer.policy
    condition = policy.encode(trainer.samples[:2])
    weights = policy.trainable_parameters()  # one update old: lora_A gets a gradient as soon as lora_B is not zero
    loss = policy.velocity(policy.noise(condition, [1, 2]), 0.6, condition).square().mean()
    gradients = torch.autograd.grad(loss, [*weights.values()])
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        assert weight.dtype == gradient.dtype == torch.float32
        assert gradient.any(), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_works_on_the_whole_base(
    kind: str, make_policy: MakePolicy, samples: list[Sample], excite: Callable[..., None], tmp_path: Path
):
    eight = make_policy(dtype="bfloat16", quantise=kind, rank=4, alpha=6.0)
    excite(eight)
    eight.save_adapter(tmp_path)
    again, whole = make_policy(dtype="bfloat16", quantise=kind), make_policy(dtype="bfloat16")
    for policy in (again, whole):
        policy.load_adapter(tmp_path)
    expected = velocity(eight, samples[:2])
    assert torch.equal(velocity(again, samples[:2]), expected)
    error = (velocity(whole, samples[:2]) - expected).norm() / expected.norm()
    assert error < (0.3 if kind == "nf4" else 0.1)


def test_an_adapter_is_fused_before(
    make_policy: MakePolicy, samples: list[Sample], excite: Callable[..., None], tmp_path: Path
):
    one = make_policy(dtype="bfloat16", rank=4)
    excite(one)
    one.save_adapter(tmp_path)
    fused = make_policy(dtype="bfloat16", quantise="int8", base_adapter=str(tmp_path))
    expected = velocity(one, samples[:2])
    error = (velocity(fused, samples[:2]) - expected).norm()
    base = velocity(make_policy(dtype="bfloat16"), samples[:2])
    assert error / expected.norm() < 0.1 < (base - expected).norm() / expected.norm()


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_large_text_encoder_is_quantised_too(
    kind: str, make_policy: MakePolicy, samples: list[Sample], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    encoders = {name: getattr(make_policy().pipe, name) for name in FluxKontextPolicy.encoder_class.text_encoders}
    sizes = {name: sum(w.numel() for w in encoder.parameters()) for name, encoder in encoders.items()}
    large = max(sizes, key=lambda name: sizes[name])
    monkeypatch.setattr(quantise, "LARGE", sizes[large])
    policy = make_policy(dtype="bfloat16", quantise=kind, condition_cache=str(tmp_path), offload_text_encoders=True)
    counts = {
        name: sum(map(is_quantised, getattr(policy.pipe, name).modules())) for name in policy.encoder.text_encoders
    }
    assert [name for name, count in counts.items() if count] == [large]
    part = "pooled" if large == "text_encoder" else "text"
    expected = make_policy(dtype="bfloat16").encode(samples[:1]).entries[0].tensors[part]
    got = policy.encode(samples[:1]).entries[0].tensors[part]
    assert 0 < (got - expected).norm() / expected.norm() < {"int8": 0.05, "nf4": 0.3}[kind]
    again = make_policy(dtype="bfloat16", quantise=kind, condition_cache=str(tmp_path))
    assert torch.equal(again.encode(samples[:1]).entries[0].tensors[part], got)


def test_what_does_not_go_together_is_refused(make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="quantise=int8 needs dtype=bfloat16, not float32"):
        make_config("model.quantise=int8")
    with pytest.raises(ConfigError, match="quantise=fp8 cannot be sharded"):
        make_config("model.quantise=fp8", "model.dtype=bfloat16", "model.shard=true")
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    model = Model(dtype="bfloat16", quantise="int8")
    with pytest.raises(UsageError, match=r"needs torchao; pip install \"customized-grpo\[quantise\]\""):
        load_policy(model.model_copy(update={"path": str(resolve("critters", "generator"))}), "cpu")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UsageError, match=r"needs bitsandbytes; pip install \"customized-grpo\[nf4\]\""):
        load_policy(Model(dtype="bfloat16", quantise="nf4"), "cpu")


def test_four_bits_take_the_planned_memory(make_policy: MakePolicy):
    policy = make_policy(dtype="bfloat16", quantise="nf4")
    layers = [layer for layer in policy.module.modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)]
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    states = [layer.weight.quant_state for layer in layers]
    sizes = [
        layer.weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
        for layer, state in zip(layers, states, strict=True)
    ]
    assert sum(sizes) == pytest.approx(quantise.NF4_BYTES * weights, rel=0.01)
