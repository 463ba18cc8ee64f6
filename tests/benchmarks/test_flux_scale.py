"""The benchmark at real size, with a tiny model: what it counts is what runs, and what it divides is right."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import flux_scale
import pytest
import torch
from diffusers import Flux2Transformer2DModel as Flux2
from diffusers import FluxTransformer2DModel as Flux1
from scale_rows import RECIPES, Scale, Setting, model_path, needed, refusal, setting
from true_size import known, random_policy, random_sample, random_trainer, sliced_transformer

import tiny_models
import true_width
from customized_grpo.config import load_config
from customized_grpo.cost.batches import SPARE
from customized_grpo.cost.estimate import estimate
from customized_grpo.cost.passes import Passes, passes
from customized_grpo.cost.simulated import measure
from customized_grpo.policies.sketch import made


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The configurations of a tiny FLUX.2-klein."""
    return str(tiny_models.saved(tiny_models.klein(), tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def chosen(tiny: str, tmp_path: Path) -> Callable[..., Setting]:
    """A row of the benchmark for one block of each kind of the tiny model."""
    scale = Scale("cpu", 1, 64, 3, 2, tiny, 8, ())
    path = model_path("klein", scale, tmp_path)
    return lambda row, steps=6, rank="2": setting("klein", rank, steps, row, scale, path)


@pytest.mark.parametrize("row", "abd")
def test_a_row_executes_what_was_planned(row: str, chosen: Callable[..., Setting]):
    of_row = chosen(row)
    trainer = random_trainer(of_row.config, random_policy(of_row.config), random_sample(64))
    of_row.update(trainer)  # encodes the sample and its features once
    counted = measure(lambda: of_row.update(trainer), ()).flops
    images = torch.rand(of_row.config.groups.size, 3, 64, 64)
    parts = images.split(1) if row == "a" else [images]  # the release asks for each image alone

    def rewards() -> None:
        for part in parts:
            for reward in trainer.rewards.values():
                reward(part, [trainer.samples[0]] * len(part))

    of_rewards = measure(rewards, ()).flops
    plan = estimate(of_row.config)
    assert counted - of_rewards == pytest.approx(plan.flops_of("rollout") + plan.flops_of("update"), rel=1e-9)
    assert plan.flops == plan.flops_of("rollout") + plan.flops_of("update")


def test_rows_do_less_and_less_work(chosen: Callable[..., Setting]):
    """By hand, for 3 images in 25 steps: 14 of 24 are trained, or a window of 3 at step 4 of 25."""
    of = {row: passes(chosen(row, 25).config) for row in "abcd"}
    assert (of["a"].sampled, of["a"].trained) == (3 * 25, 3 * 14)
    assert of["b"] == of["a"]
    assert (of["c"].shared, of["c"].own, of["c"].trained) == (4, 3 * (3 + 18), 3 * 3)
    assert (of["d"].shared, of["d"].own, of["d"].trained) == (4, 3 * (3 + 6), 3 * 3)


@pytest.mark.parametrize(("steps", "last"), [(10, 4), (25, 10)])
def test_the_window_costs_what_random_windows_cost_on_average(steps: int, last: int, chosen: Callable[..., Setting]):
    config = chosen("c", steps).config
    size = config.window.size
    assert size == 3
    everywhere = [
        passes(config.model_copy(update={"window": config.window.model_copy(update={"start": start})}))
        for start in range(last - size + 2)
    ]
    mean = Passes(
        **{name: sum(getattr(each, name) for each in everywhere) / len(everywhere) for name in vars(passes(config))}
    )
    assert passes(config) == mean


@pytest.mark.parametrize(("model", "kind"), [(true_width.KONTEXT, Flux1), (true_width.KLEIN, Flux2)])
def test_a_slice_has_whole_blocks_but_few(model: str, kind: Any):
    whole = made(kind, known(model, "transformer"), torch.bfloat16, "meta")
    few = made(kind, sliced_transformer(model, 1), torch.bfloat16, "meta")
    for name in ("transformer_blocks", "single_transformer_blocks"):
        (block,) = getattr(few, name)
        assert len(getattr(whole, name)) > 1
        assert shapes(block) == shapes(getattr(whole, name)[0])
    assert shapes(few.proj_out) == shapes(whole.proj_out)


def shapes(module: torch.nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (weight.shape, weight.dtype) for name, weight in module.named_parameters()}


def test_the_papers_adapter_is_that_of_its_recipe(chosen: Callable[..., Setting]):
    published = load_config("kontext-paper").adapter
    assert chosen("a", rank="paper").config.adapter == published
    usual = load_config("kontext").adapter
    assert chosen("a", rank="64").config.adapter == usual.model_copy(update={"ema": published.ema})


@pytest.mark.parametrize("family", RECIPES)
def test_every_family_trains_the_same_adapter_in_the_same_rows(family: str):
    scale = Scale("cpu", None, 512, 12, None, None, None, ())
    configs = [setting(each, "64", 25, "c", scale, None).config for each in (family, "kontext")]
    for section in ("adapter", "sampling", "noise", "window", "objective", "shaping"):
        assert getattr(configs[0], section) == getattr(configs[1], section)
    assert configs[0].model.path == load_config(RECIPES[family]).model.path


def test_shares_and_refusals_by_hand():
    assert flux_scale.share(6e14, 2.0, 1e15) == pytest.approx(0.3)
    free = 100 * 10**9
    most = int((1 - SPARE) * free)
    assert refusal({"large": 10**15}, None) is None
    assert refusal({"small": 1, "large": most}, free) is None
    line = refusal({"small": 1, "large": most + 10}, free)
    assert line is not None
    assert line.startswith("large needs 93.0 GB and 7% to spare, and 100.0 GB are free; choose another --family")
    assert "\n" not in line


def arguments(tiny: str, output: Path, *more: str) -> list[str]:
    small = ("--size", "64", "--group", "2", "--steps", "3", "--rank", "2", "--text", "8", "--device", "cpu")
    return ["flux_scale.py", "--family", "klein", "--model", tiny, *small, "--output", str(output), *more]


def test_the_smallest_run(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", arguments(tiny, tmp_path, "--row", "a", "d"))
    flux_scale.main()
    results = json.loads((tmp_path / "flux_scale.json").read_text())
    (model,) = results["models"]
    rows: list[dict[str, Any]] = model["rows"]
    assert [row["row"] for row in rows] == ["a", "d"]
    assert rows[0]["times_release"] == 1
    for row in rows:
        seconds = row["seconds"]
        assert seconds["all"] >= seconds["rollout"] + seconds["reward"] + seconds["update"] > 0
        assert row["times_release"] == pytest.approx(rows[0]["seconds"]["all"] / seconds["all"])
        for phase in ("rollout", "update"):
            flops = row["flops"]["model"][phase]
            assert row["share"][phase] == pytest.approx(flops / seconds[phase] / model["matrix_rate"])
        assert row["flops"]["executed"]["rollout"] == row["flops"]["model"]["rollout"]
        assert row["flops"]["executed"]["update"] > row["flops"]["model"]["update"]  # checkpointing repeats passes
        assert 0.5 * row["planned_peak"] < row["peak"] < 2 * row["planned_peak"]
    for each in model["lora"].values():
        assert each["operations"] == pytest.approx(each["flops"]["with"] / each["flops"]["without"] - 1)
        assert each["operations"] > 0
        assert each["points"] == pytest.approx(100 * (each["time"] - each["operations"]))
    printed = capsys.readouterr().out
    assert "klein, rank 2: needs" in printed
    measured = ("adapter, pass", "3  ")  # lines of times, which have any number of digits on a busy machine
    assert all(len(line) <= 80 for line in printed.splitlines()[:-1] if not line.startswith(measured))


def test_a_card_that_is_too_small_is_refused_before_anything_is_made(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", arguments(tiny, tmp_path / "out", "--memory", "0.0001"))
    monkeypatch.setattr(flux_scale, "random_policy", lambda _: pytest.fail("a model was made"))
    with pytest.raises(
        SystemExit, match=r"^klein, rank 2, T 3, row \w needs 0\.0 GB and 7% to spare, and 0\.0 GB are free"
    ):
        flux_scale.main()
    assert not (tmp_path / "out").exists()
    capsys.readouterr()


def test_memory_leaves_out_what_is_not_there(chosen: Callable[..., Setting]):
    plan = estimate(chosen("b").config)
    assert plan.phases["update"]["encoded samples"] > 0
    without = sum(size for part, size in plan.phases["update"].items() if part != "encoded samples")
    assert needed(plan) >= sum(plan.resident.values()) + without
    assert needed(plan) < plan.peak


def test_the_last_row_takes_the_batch_that_fits(tiny: str, tmp_path: Path):
    scale = Scale("cpu", 1, 64, 6, None, tiny, 8, ())
    path = model_path("klein", scale, tmp_path)

    def batches(free: int | None) -> dict[str, int]:
        configs = {row: setting("klein", "2", 6, row, replace(scale, free=free), path).config for row in "abcd"}
        assert all(config.groups.rollout_batch == config.groups.update_batch for config in configs.values())
        return {row: config.groups.rollout_batch for row, config in configs.items()}

    assert batches(None) == batches(10**15) == {"a": 1, "b": 4, "c": 4, "d": 6}
    assert batches(1)["d"] == 1
