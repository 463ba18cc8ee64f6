"""The benchmark runs, and what it compares is the same work. No test asks how long anything takes."""

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from customized_grpo.cost.passes import Passes
from customized_grpo.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
PUBLISHED = (
    *("groups.size=6", "objective.minibatches=3", "noise.steps=all"),
    *("window.strategy=scattered", "window.size=2", "noise.dynamics=dance"),
)


@pytest.fixture
def benchmark() -> Callable[[str], Any]:
    return import_module


@pytest.mark.parametrize("prompts", [1, 2])
def test_the_releases_loop_trains_what_the_trainer_trains(
    make_trainer: Callable[..., Trainer], tmp_path: Path, benchmark: Callable[[str], Any], prompts: int
):
    batched, single = (
        make_trainer(*PUBLISHED, f"groups.prompts={prompts}", f"output={tmp_path / name}")
        for name in ("batched", "single")
    )
    before = {name: weight.detach().clone() for name, weight in single.policy.trainable_parameters().items()}
    for _ in range(2):
        batched.step()
        benchmark("release_loop").release_update(single)
    assert single.learner.steps == batched.learner.steps == 6
    expected = batched.policy.trainable_parameters()
    for name, weight in single.policy.trainable_parameters().items():
        change = (expected[name] - before[name]).norm()
        assert change > 0, name
        # Adam turns the smallest rounding of a tiny gradient into a step of full size, so single weights may differ.
        assert (weight - expected[name]).norm() < 0.01 * change, name


def test_a_straight_line_is_fitted_exactly(benchmark: Callable[[str], Any]):
    straight = benchmark("bench_scaling").straight
    assert straight([1, 2, 4], [5.0, 7.0, 11.0]) == pytest.approx({"slope": 2, "intercept": 3, "r2": 1})
    # mean 1; slope ((-1)(-1) + 0 + 1 * 0) / 2 = 1/2; residuals 1/6, -1/3, 1/6 squared: 1/6 of 2/3
    assert straight([0, 1, 2], [0.0, 2 / 3, 1.0])["r2"] == pytest.approx(1 - (1 / 54) / (14 / 27))


def test_the_floor_is_the_sum_of_all_passes(benchmark: Callable[[str], Any]):
    module = benchmark("pass_times")
    times = {"sampled": {1: 9.0, 4: 1.0}, "trained": {1: 9.0, 4: 3.0}, "images": {1: 0.5, 4: 0.7}, "scored": {1: 0.1}}
    assert module.best_batches([times]) == {"sampled": 4, "trained": 4, "images": 1, "scored": 1}
    counted = Passes(shared=2, own=10, extra=5, trained=6, evaluation=99, images=4, evaluated=99)
    assert module.floor(counted, times, module.best_batches([times])) == pytest.approx(
        {"rollout": 12 * 1 + 4 * 0.5, "reward": 4 * 0.1, "update": 6 * 3 + 5 * 1}
    )


def test_all_rows_and_lines_are_measured(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    benchmark: Callable[[str], Any],
):
    monkeypatch.setattr(sys, "argv", ["bench.py", "--quick", "--output", str(tmp_path / "out")])
    bench = benchmark("bench")
    bench.main()
    results = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert results["rows"].keys() == bench.ROWS.keys()
    for row in results["rows"].values():
        for figure in ("images_per_second", "forward_equivalents_per_image", "over_floor", "over_batch_1", "peak_mib"):
            assert row[figure] > 0, figure
    assert results["rows"]["release"]["times_baseline"] == 1
    assert results["rows"]["release, batched"]["peak_mib"] > results["rows"]["release"]["peak_mib"] > 0
    for line in results["lines"].values():
        assert len(line["x"]) == len(line["seconds"]) > 1
    assert (tmp_path / "out" / "bench.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in bench.ROWS)


def test_the_table_of_the_page_is_that_of_its_run(benchmark: Callable[[str], Any]):
    results = json.loads((ROOT / "docs" / "performance.json").read_text(encoding="utf-8"))
    assert benchmark("bench").table(results["rows"]) in (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
