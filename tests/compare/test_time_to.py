"""When an arm first reaches a level, with runs that never do."""

import json
from pathlib import Path
from typing import Any

import pytest
from comparison_files import result, write

from customized_grpo.compare.arm import run_arm
from customized_grpo.compare.comparison import Comparison
from customized_grpo.compare.results import SECONDS, collect
from customized_grpo.compare.tables import tabulate
from customized_grpo.compare.time_to import censored_median, first_at, times_to


def run(*joint: float, seconds: list[float] | None = None) -> dict[str, Any]:
    """A finished run, evaluated every ten updates."""
    held_out = [{"update": 10 * n, "joint_success": value} for n, value in enumerate(joint)]
    return {**result(0.5), "held_out": held_out, **({} if seconds is None else {"seconds": seconds})}


def comparison(folder: Path) -> Comparison:
    return Comparison.read(write(folder, time_to={"joint_success": 0.9}, seeds=[0, 1, 2]))


def test_the_first_evaluation_at_the_level_counts_even_if_it_falls_again():
    rows = run(0.3, 0.9, 0.4, 0.95)["held_out"]
    assert first_at(rows, "joint_success", 0.9) == 10
    assert first_at(rows, "joint_success", 0.91) == 30
    assert first_at(rows, "joint_success", 0.96) is None


@pytest.mark.parametrize(
    ("values", "middle"), [([10, 30, None], 30), ([10, None, None], None), ([10, 20], 15), ([None], None)]
)
def test_a_run_that_never_gets_there_is_later_than_all_others(values: list[float | None], middle: float | None):
    assert censored_median(values) == middle


def test_updates_and_minutes_of_every_arm(tmp_path: Path):
    """Twenty updates of three seconds are a minute."""
    found = {
        "naive": {0: run(0.3, 0.5, 0.6), 1: run(0.3, 0.5, 0.9)},
        "sars_tdw": {0: run(0.3, 0.5, 0.9, seconds=[3.0] * 30), 1: run(0.3, 0.95, seconds=[6.0] * 30)},
    }
    naive, tuned = times_to(comparison(tmp_path), found)
    assert (naive.arm, naive.updates, naive.minutes) == ("naive", (None, 20), (None, None))
    assert (tuned.arm, tuned.updates, tuned.minutes) == ("sars_tdw", (20, 10), (1.0, 1.0))
    content, table = tabulate(comparison(tmp_path), found)
    assert "| naive | joint_success 0.9 | 1 of 2 | - (20 to 20) | - |" in table
    assert "| sars_tdw | joint_success 0.9 | 2 of 2 | 15 (10 to 20) | 1.0 |" in table
    assert content["time_to"][0]["updates"] == [None, 20]


def test_an_arm_keeps_the_seconds_of_its_updates_outside_its_result(tmp_path: Path):
    tiny = Comparison.read(write(tmp_path, time_to={"joint_success": 0.0}))
    run_arm(tiny, "naive", 0)
    folder = tiny.folder("naive", 0)
    seconds = json.loads((folder / SECONDS).read_text())
    assert len(seconds) == 3
    assert min(seconds) > 0
    assert "seconds" not in json.loads((folder / "result.json").read_text())
    results = collect(tiny)
    assert results["naive"][0]["seconds"] == seconds
    assert times_to(tiny, results)[0].updates == (0,)
