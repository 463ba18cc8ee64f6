"""The command `plan`: published models without their files, own models, sizes by hand, and what fits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import tiny_models
from customized_grpo.config import load_config
from customized_grpo.cost import measured as measuring
from customized_grpo.cost.cards import fits, remedies
from customized_grpo.cost.estimate import Estimate, estimate
from customized_grpo.cost.measured import Settings, measured
from customized_grpo.errors import UsageError
from customized_grpo.policies import planned_family
from customized_grpo.sections import Model
from program import TINY, Refusal, start

SMALL = ("groups.rollout_batch=1", "groups.update_batch=1", "model.height=128", "model.width=128")
MODELS = {  # hub id: weights of the transformer, and of the text encoders; model cards say them in billions
    "black-forest-labs/FLUX.1-Kontext-dev": (11_901_408_320, 4_885_371_136),
    "black-forest-labs/FLUX.2-klein-base-4B": (3_875_544_576, 4_022_468_096),
    "black-forest-labs/FLUX.2-klein-4B": (3_875_544_576, 4_022_468_096),
    "black-forest-labs/FLUX.2-klein-base-9B": (9_078_581_248, 8_190_735_360),
    "black-forest-labs/FLUX.2-klein-9B": (9_078_581_248, 8_190_735_360),
    "Qwen/Qwen-Image-Edit-2509": (20_430_401_088, 8_292_166_656),
    "Qwen/Qwen-Image-Edit-2511": (20_430_401_088, 8_292_166_656),
}


@pytest.fixture(scope="module")
def small_klein(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of FLUX.2-klein with a few thousand weights."""
    return str(tiny_models.saved(tiny_models.klein(), tmp_path_factory.mktemp("klein")))


def of(recipe: str, *overrides: str) -> Estimate:
    return estimate(load_config(recipe, overrides))


@pytest.mark.parametrize("path", MODELS)
def test_the_sizes_of_published_models_are_exact(path: str):
    model = Model(path=path)
    family: Any = planned_family(model)
    policy = family.sketch(path, model)
    sizes = {name: sum(weight.numel() for weight in getattr(policy.pipe, name).parameters()) for name in policy.parts}
    readers = sum(sizes[name] for name in policy.encoder.text_encoders)
    assert (sizes["transformer"], readers) == MODELS[path]


def test_only_distilled_klein_refuses_guidance():
    path = "black-forest-labs/FLUX.2-klein-4B"
    with pytest.raises(UsageError, match="is distilled and takes no guidance"):
        of("klein", f"model.path={path}", "model.guidance=4")


@pytest.mark.parametrize("recipe", ["klein", "qwen-edit"])
def test_classifier_free_guidance_begins_at_1(recipe: str):
    of(recipe, "model.guidance=1")
    with pytest.raises(
        UsageError, match=r"model.guidance=0.5: classifier-free guidance is at least 1, which switches"
    ):
        of(recipe, "model.guidance=0.5")


def test_memory_of_the_published_recipe_by_hand():
    """956.3 M adapter weights: 3.8 GB each for them and their gradients, 7.7 GB for AdamW; 23.8 GB of weights."""
    plan = of("uno-paper", *SMALL)
    assert plan.measured.adapter == 956_301_312
    parts = {**plan.resident, **plan.phases["update"], **plan.phases["encoding of prompts"]}
    gigabytes = {name: round(size / 1e9, 1) for name, size in parts.items()}
    expected = {"transformer": 23.8, "adapter": 3.8, "AdamW": 7.7, "gradients": 3.8, "text encoders": 9.8}
    assert {name: gigabytes[name] for name in expected} == expected
    assert gigabytes["reward hpsv3 (MizzenAI/HPSv3)"] == 15.5


def test_eight_bits_halve_the_blocks(small_klein: str):
    """And add a scale per row, of which these narrow layers have many."""
    whole, eight = (of("klein", f"model.path={small_klein}", f"model.quantise={kind}") for kind in ("null", "int8"))
    saved = whole.resident["transformer"] - eight.resident["transformer"]
    assert 0.4 * whole.measured.blocks < saved < 0.5 * whole.measured.blocks


def test_sharding_divides_the_blocks_and_the_work(small_klein: str):
    config = load_config("klein", [f"model.path={small_klein}", "model.shard=true", "rewards.prompt.name=clip_t"])
    one, four = estimate(config), estimate(config, processes=4)
    blocks = one.measured.blocks
    assert one.resident["transformer"] - four.resident["transformer"] == pytest.approx(blocks * 3 / 4, abs=4)
    assert four.flops == pytest.approx(one.flops / 4)
    assert four.phases["update"]["gathered blocks"] == 2 * one.measured.largest_block


@pytest.mark.parametrize("family", ["klein", "qwen"])
def test_further_blocks_cost_as_much_as_the_last(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pipe = tiny_models.klein() if family == "klein" else tiny_models.qwen_edit()
    counts = {"num_layers": 5, "num_single_layers": 4} if family == "klein" else {"num_layers": 6}
    pipe.transformer = type(pipe.transformer).from_config({**pipe.transformer.config, **counts})
    path = tiny_models.saved(pipe, tmp_path)
    settings = ("model.quantise=null", "groups.rollout_batch=3", "groups.update_batch=3", "model.reference_size=128")
    config = load_config("klein", [f"model.path={path}", "model.height=128", "model.width=128", *settings])
    few = measured(Settings.of(config))
    measured.cache_clear()
    for name in ("SAMPLED", "TRAINED"):
        monkeypatch.setattr(measuring, name, 100)
    whole = measured(Settings.of(config))
    measured.cache_clear()
    for name in ("sampling", "training", "evaluation", "decoding"):
        assert getattr(few, name).flops == pytest.approx(getattr(whole, name).flops, rel=1e-9)
        assert getattr(few, name).memory == pytest.approx(getattr(whole, name).memory, rel=0.02)


def test_each_remedy_makes_the_run_smaller(small_klein: str):
    large = ("model.gradient_checkpointing=false", "model.offload_text_encoders=false", "groups.update_batch=2")
    overrides = [f"model.path={small_klein}", *large]
    before = of("klein", *overrides)
    offered = list(remedies(before.config, before))
    assert [settings[0][0] for settings in offered] == [
        *("model.gradient_checkpointing", "model.offload_text_encoders", "groups.rollout_batch", "model.quantise"),
        *("rewards.prompt.device", "adapter.rank", "model.height"),
    ]
    for settings in offered:
        overrides += [f"{key}={value}" for key, value in settings]
        after = of("klein", *overrides)
        assert after.peak <= before.peak, settings
        before = after


def test_a_card_fits_as_many_billion_bytes_as_its_name_says(small_klein: str):
    plan = of("klein", f"model.path={small_klein}")
    memory = -(-plan.peak // 10**9)
    assert fits(plan, memory)
    assert not fits(plan, memory - 1)


def test_the_command_without_any_file_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    answer = start(("plan", "klein-24gb", "--utilisation", "0.5"), monkeypatch, capsys)
    assert answer.code == 0
    assert "3,875,544,576 weights in the transformer (bfloat16, blocks in int8)" in answer.out
    (seconds,) = re.findall(
        r"^  seconds at 50% of a card's dense bfloat16 rate:\n.* H100 ([\d,.]+),", answer.out, re.M
    )
    ((updates, hours),) = re.findall(r"^  hours for all (\d+) updates:\n.* H100 ([\d,.]+),", answer.out, re.M)
    assert float(hours) == pytest.approx(float(seconds) * int(updates) / 3600, rel=0.03)  # both are rounded
    assert re.search(r"^Fits a card of: 16 GB \w+, 24 GB yes, 48 GB yes, 80 GB yes, 141 GB yes$", answer.out, re.M)
    assert max(map(len, answer.out.splitlines()[:40])) <= 110


def test_a_smaller_card_is_told_what_to_change(
    small_klein: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    answer = start(("plan", "klein", f"model.path={small_klein}"), monkeypatch, capsys)
    (change,) = re.findall(r"^To fit 16 GB \(([\d.]+) GB\): (.+)$", answer.out, re.M)
    assert change[1] == "rewards.prompt.device=cuda:1"  # nothing else takes much
    again = of("klein", f"model.path={small_klein}", *change[1].split())
    assert f"{again.peak / 1e9:.1f}" == change[0]
    assert fits(again, 16)


def test_own_models_and_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    path = tiny_models.saved(tiny_models.klein(), tmp_path / "own")
    size = ("model.height=64", "model.width=64", "model.reference_size=64")
    answer = start(("plan", TINY, f"model.path={path}", *size), monkeypatch, capsys)
    assert answer.code == 0
    assert str(path) in answer.out
    assert "Memory in MB" in answer.out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.path=nobody/knows",), "nobody/knows is neither on this machine nor a published model"),
        (("model.path=no-such-folder",), "no-such-folder is neither a folder here nor a hub id"),
        (("model.height=30",), "pictures of 32x30 pixels; this model needs multiples of 4"),
        (("adapter.targets=[nothing]",), "nothing"),
        (("groups.size=x",), "groups.size"),
    ],
)
def test_bad_input_is_one_line(overrides: tuple[str, ...], message: str, refused: Refusal):
    assert message in refused.line("plan", TINY, *overrides)
