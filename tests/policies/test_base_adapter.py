"""`model.base_adapter`: training begins from an adapter that is fused into the frozen weights."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from customized_grpo.config import RunConfig
from customized_grpo.critters.weights import resolve
from customized_grpo.data import Sample
from customized_grpo.files.adapter_places import ADAPTER_FILE
from customized_grpo.files.pretrained import ModelError
from customized_grpo.policies import adapter_size
from customized_grpo.policies.flux_kontext import FluxKontextPolicy
from customized_grpo.training.assemble import assemble

MakePolicy = Callable[..., FluxKontextPolicy]
Excite = Callable[[FluxKontextPolicy], None]


@pytest.fixture
def first(make_policy: MakePolicy, excite: Excite, tmp_path: Path) -> tuple[FluxKontextPolicy, Path]:
    """A policy with an adapter that changes pictures, alpha != rank, and its folder."""
    policy = make_policy(rank=4, alpha=6.0)
    excite(policy)
    policy.save_adapter(tmp_path / "first")
    return policy, tmp_path / "first"


def velocity(policy: FluxKontextPolicy, sample: Sample) -> Tensor:
    condition = policy.encode([sample])
    with torch.no_grad():
        return policy.velocity(policy.noise(condition, [1]), 0.6, condition)


@pytest.mark.parametrize("named", ["folder", "file"])
def test_the_base_is_model_and_adapter(
    named: str, first: tuple[FluxKontextPolicy, Path], make_policy: MakePolicy, samples: list[Sample], excite: Excite
):
    one, folder = first
    fused = make_policy(base_adapter=str(folder if named == "folder" else folder / ADAPTER_FILE), rank=2)
    expected = velocity(one, samples[0])
    torch.testing.assert_close(velocity(fused, samples[0]), expected, atol=1e-4, rtol=1e-4)
    assert (expected - velocity(make_policy(), samples[0])).abs().max() > 0.01
    assert all("lora" in name for name in fused.trainable_parameters())
    excite(fused)
    assert (velocity(fused, samples[0]) - expected).abs().max() > 0.01
    with fused.base_policy():
        torch.testing.assert_close(velocity(fused, samples[0]), expected, atol=1e-4, rtol=1e-4)


def test_it_is_found_where_adapter_finds_it(
    first: tuple[FluxKontextPolicy, Path], make_policy: MakePolicy, samples: list[Sample], tmp_path: Path
):
    policy, folder = first
    for name, file in (
        ("own", "my_dog.safetensors"),
        ("run/adapter", ADAPTER_FILE),
        ("other/best/step-00010", ADAPTER_FILE),
    ):
        (tmp_path / name).mkdir(parents=True)
        shutil.copyfile(folder / ADAPTER_FILE, tmp_path / name / file)
    for place in ("own", "run", "other/best"):
        fused = make_policy(base_adapter=str(tmp_path / place))
        torch.testing.assert_close(velocity(fused, samples[0]), velocity(policy, samples[0]), atol=1e-4, rtol=1e-4)


def test_what_a_transformer_saves_itself_is_read(
    first: tuple[FluxKontextPolicy, Path], make_policy: MakePolicy, samples: list[Sample], tmp_path: Path
):
    policy, _ = first
    policy.module.save_lora_adapter(tmp_path / "transformer")  # its names and metadata have no "transformer."
    expected = velocity(policy, samples[0])
    fused = make_policy(base_adapter=str(tmp_path / "transformer"))
    torch.testing.assert_close(velocity(fused, samples[0]), expected, atol=1e-4, rtol=1e-4)
    loaded = make_policy()
    loaded.load_adapter(tmp_path / "transformer")
    torch.testing.assert_close(velocity(loaded, samples[0]), expected, atol=1e-4, rtol=1e-4)


def as_kohya(name: str) -> str:
    stem, _, part = name.removeprefix("transformer.").rpartition(".lora_")
    return f"lora_unet_{stem.replace('.', '_')}.lora_{'down' if part.startswith('A') else 'up'}.weight"


@pytest.mark.parametrize("spelling", [lambda n: n.replace("transformer.", "base_model.model."), as_kohya])
def test_other_spellings_mean_the_same(
    spelling: Callable[[str], str],
    first: tuple[FluxKontextPolicy, Path],
    make_policy: MakePolicy,
    samples: list[Sample],
    tmp_path: Path,
):
    tensors = load_file(first[1] / ADAPTER_FILE)
    renamed = {spelling(name): tensor for name, tensor in tensors.items()}
    alphas = {name.replace("lora_down.weight", "alpha"): torch.tensor(6.0) for name in renamed if "lora_down" in name}
    plain = {name: tensor * (1 if alphas or "lora_B" not in name else 6 / 4) for name, tensor in renamed.items()}
    save_file({**plain, **alphas}, tmp_path / "other.safetensors")
    fused = make_policy(base_adapter=str(tmp_path / "other.safetensors"))
    torch.testing.assert_close(velocity(fused, samples[0]), velocity(first[0], samples[0]), atol=1e-4, rtol=1e-4)


def misnamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    name = next(name for name in tensors if name.endswith("lora_A.weight"))
    stem = name.removesuffix("lora_A.weight")
    return {key.replace(stem, "transformer.no_such_layer."): tensor for key, tensor in tensors.items()}


def test_what_no_layer_takes_is_refused_before_weights_are_loaded(
    first: tuple[FluxKontextPolicy, Path], make_config: Callable[..., RunConfig], tmp_path: Path
):
    wrong = tmp_path / "wrong.safetensors"
    save_file(misnamed(load_file(first[1] / ADAPTER_FILE)), wrong)
    config = make_config(f"model.base_adapter={wrong}")
    with pytest.raises(
        ModelError, match=r"wrong\.safetensors does not fit this model: .*no_such_layer is not a linear"
    ):
        adapter_size(config.model, config.adapter)
    with pytest.raises(ModelError, match="no_such_layer is not a linear"):
        FluxKontextPolicy.load(resolve("critters", "generator"), config.model, "cpu")
    missing = make_config(f"model.base_adapter={tmp_path / 'nothing'}")
    with pytest.raises(ModelError, match=r"no adapter in .*nothing"):
        adapter_size(missing.model, missing.adapter)


def test_training_goes_on_from_it_and_its_divergence_is_measured_against_it(
    first: tuple[FluxKontextPolicy, Path], make_config: Callable[..., RunConfig]
):
    trainer = assemble(make_config(f"model.base_adapter={first[1]}", "objective.kl=.1", "adapter.rank=2"))
    row = trainer.step()
    assert row["kl"] == 0  # a new adapter changes nothing, so the policy is the base with the fused adapter
    assert row["ratio_mean"] == pytest.approx(1, abs=1e-6)
    assert trainer.step()["kl"] > 0
