"""Time to the same result: the table and its censoring, and that a run that has ended is not repeated."""

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from customized_grpo.training.trainer import Trainer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmark() -> Callable[[str], Any]:
    return import_module


def run(arm: str, seed: int, *values: float) -> dict[str, Any]:
    """Evaluations every 10 updates and 20 seconds."""
    rows = [
        {"update": 10 * number, "seconds": 20.0 * number, "forwards": 5e3 * number, "joint_success": value}
        for number, value in enumerate(values)
    ]
    return {"arm": arm, "seed": seed, "rows": rows}


def test_the_table_by_hand(benchmark: Callable[[str], Any]):
    runs = [
        *(run("release", seed, 0.3, 0.55, 0.65) for seed in range(3)),
        run("critters", 0, 0.3, 0.6, 0.91, 0.8),
        run("critters", 1, 0.3, 0.6, 0.7, 0.9),
        run("critters", 2, 0.3, 0.5, 0.5, 0.7),
    ]
    _, _, release, critters = benchmark("same_result").table(runs).splitlines()
    assert release == "| release | 20 | 40 | - | - | - | not in 40, not in 40, not in 40 | - | 2.00 |"
    # the level .7 is reached at 40, 40 and 60 seconds; .9 at 40, at 60 and never
    assert critters == "| critters | 20 | 20 | 40 | 60 | 60 | 40, 60, not in 60 | 15 thousand | 2.00 |"


def test_the_table_of_the_page_is_that_of_its_figures(benchmark: Callable[[str], Any]):
    runs = json.loads((ROOT / "docs" / "same_result.json").read_text())["runs"]
    assert benchmark("same_result").table(runs) in (ROOT / "docs" / "performance.md").read_text()


@pytest.mark.slow
def test_runs_are_written_and_not_repeated(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    benchmark: Callable[[str], Any],
):
    monkeypatch.setattr(sys, "argv", ["same_result.py", "--quick", "--output", str(tmp_path)])
    module = benchmark("same_result")
    module.main()
    results = json.loads((tmp_path / "same_result.json").read_text())
    assert [each["arm"] for each in results["runs"]] == list(module.ARMS)
    for each in results["runs"]:
        assert each["ended"] == "limit"
        assert [row["update"] for row in each["rows"]] == [0, module.ARMS[each["arm"]].every]
        assert each["rows"][1]["seconds"] > each["rows"][0]["seconds"] == 0
    assert (tmp_path / "same_result.png").stat().st_size > 1000
    assert "| critters |" in capsys.readouterr().out
    monkeypatch.setattr(module, "assemble", None)  # would be needed for any further run
    module.main()
    assert json.loads((tmp_path / "same_result.json").read_text())["runs"] == results["runs"]


def test_timing_passes_leaves_no_gradient(make_trainer: Callable[..., Trainer], benchmark: Callable[[str], Any]):
    """It would go into the next update."""
    trainer, times = make_trainer("groups.size=2"), benchmark("pass_times")
    for measured in (lambda: times.time_passes(trainer, (1,), 1), lambda: times.forwards_per_training_pass(trainer)):
        measured()
        assert all(weight.grad is None for weight in trainer.policy.trainable_parameters().values())
