"""The report of a comparison: figures over seeds, differences, tables; with --report-only nothing else."""

import json
import sys
from pathlib import Path

import pytest
from comparison_files import FILE, result, write
from PIL import Image

from customized_grpo import cli
from customized_grpo.compare.comparison import Comparison, Results
from customized_grpo.compare.runner import ComparisonError, report
from customized_grpo.compare.tables import differences, tabulate, write_report


@pytest.fixture
def results() -> Results:
    """Worked by hand below: sars_tdw - naive is .2, .1, .3 in joint success."""
    return {
        "base": {seed: result(0.1) for seed in (0, 1, 2)},
        "naive": {0: result(0.1), 1: result(0.4), 2: result(0.2, 0.6)},
        "sars_tdw": {0: result(0.3), 1: result(0.5), 2: result(0.5), 7: result(0.9)},
    }


def test_differences_are_paired_by_seed_and_the_primary_one_stands_alone(results: Results, tmp_path: Path):
    comparison = Comparison.read(write(tmp_path, seeds=[0, 1, 2]))
    first, second = differences(comparison, results)
    assert (first.arm, first.against, first.metric, first.primary, first.corrected) == (
        *("sars_tdw", "naive", "joint_success"),
        True,
        None,
    )
    assert first.difference.pairs == 3
    assert first.difference.estimate.mean == pytest.approx(0.2)
    assert first.difference.p_value == pytest.approx(0.0742, abs=1e-4)  # t = .2 / (.1 / sqrt(3)), two degrees
    assert (second.metric, second.primary) == ("dino", False)
    assert second.difference.estimate.mean == pytest.approx(-0.1 / 3)
    assert second.corrected == pytest.approx(second.difference.p_value)  # alone in its family


def test_holms_family_is_everything_that_is_not_primary(results: Results, tmp_path: Path):
    results["other"] = {seed: result(0.1 * seed, 0.1 + 0.01 * seed) for seed in (0, 1, 2)}
    arms = {**FILE["arms"], "other": {"shaping.gamma": 0}}
    comparison = Comparison.read(write(tmp_path, seeds=[0, 1, 2], arms=arms))
    tests = [test for test in differences(comparison, results) if not test.primary]
    assert [(test.arm, test.against, test.metric) for test in tests] == [
        ("sars_tdw", "naive", "dino"),
        ("other", "naive", "joint_success"),
        ("other", "naive", "dino"),
        ("sars_tdw", "other", "joint_success"),  # the primary arm is compared with every arm
        ("sars_tdw", "other", "dino"),
    ]
    smallest = min(tests, key=lambda test: test.difference.p_value)
    assert smallest.corrected == pytest.approx(5 * smallest.difference.p_value)


def test_two_reference_arms_are_compared_once(results: Results, tmp_path: Path):
    """Their difference with either sign is one test; counting it twice would make all corrected p-values larger."""
    results["other"] = {seed: result(0.1 * seed, 0.1 + 0.01 * seed) for seed in (0, 1, 2)}
    arms = {**FILE["arms"], "other": {"shaping.gamma": 0}}
    primary = {**FILE["primary"], "against": ["naive", "other"]}
    tests = differences(Comparison.read(write(tmp_path, seeds=[0, 1, 2], arms=arms, primary=primary)), results)
    assert [(test.arm, test.against, test.metric, test.primary) for test in tests] == [
        ("sars_tdw", "naive", "joint_success", True),
        ("sars_tdw", "other", "joint_success", True),
        ("sars_tdw", "naive", "dino", False),
        ("other", "naive", "joint_success", False),
        ("other", "naive", "dino", False),
        ("sars_tdw", "other", "dino", False),
    ]


def test_the_table_shows_the_compared_metrics_and_figures_over_training_on_request(results: Results, tmp_path: Path):
    for by_seed in results.values():
        for each in by_seed.values():
            each["test"]["joint_success_over_training"] = 0.25
    heads = [
        tabulate(Comparison.read(write(tmp_path, compare_on=names)), results)[1].split("\n")[0]
        for names in ([], ["dino"], ["joint_success_over_training"])
    ]
    assert heads == [
        "| arm | seeds | joint_success | dino |",
        "| arm | seeds | joint_success | dino |",
        "| arm | seeds | joint_success | joint_success_over_training |",
    ]


def test_the_report_has_tables_json_and_pictures(results: Results, tmp_path: Path):
    comparison = Comparison.read(write(tmp_path, seeds=[0, 1, 2]))
    comparison.output.mkdir()
    table = write_report(comparison, results)
    assert "| naive | 3 | 0.233 [-0.146, 0.613] | 0.533 [0.390, 0.677] |" in table
    assert "| sars_tdw - naive | joint_success | +0.200 [-0.048, +0.448] | 0.074 | primary | 3 |" in table
    content = json.loads((comparison.output / "comparison.json").read_text())
    assert content["arms"]["naive"]["seeds"]["1"] == {"joint_success": 0.4, "dino": 0.5, "clip_t": None}
    assert content["arms"]["naive"]["settings"] == FILE["arms"]["naive"]
    assert content["differences"][0]["mean"] == pytest.approx(0.2)
    assert (content["finished"], content["runs"]) == (10, 9)
    for name in ("curves.png", "paths.png", "conflict.png"):
        assert len(Image.open(comparison.output / name).convert("RGB").getcolors(1 << 20) or []) > 20
    # No plane: nothing was scored by clip_t.
    assert {path.name for path in comparison.output.iterdir()} == {
        *("comparison.json", "table.md", "curves.png", "paths.png", "conflict.png")
    }


def test_the_report_names_the_metrics_that_arms_were_trained_on(results: Results, tmp_path: Path):
    """From the comparison file, as the arms' folders may hold nothing but results."""
    results["view"] = {0: result(0.1)}
    arms = {**FILE["arms"], "view": {"rewards.identity.against": "other_view"}}
    comparison = Comparison.read(write(tmp_path, arms=arms))
    comparison.output.mkdir()
    write_report(comparison, results)
    content = json.loads((comparison.output / "comparison.json").read_text())["arms"]
    further = ["identity_reward_over_training", "prompt_reward_over_training"]
    assert {arm: each["trained_on"] for arm, each in content.items()} == {
        "base": [],
        "naive": ["dino", "clip_t", *further],
        "sars_tdw": ["dino", "clip_t", *further],
        "view": ["dino against=other_view", "clip_t", *further],
    }


def test_the_report_says_which_arms_are_not_tested_alike(results: Results, tmp_path: Path):
    arms = {**FILE["arms"], "few": {"evaluation.num_steps": 5}, "dyed": {"model.path": "critters-dye"}}
    assert "Not tested alike" not in tabulate(Comparison.read(write(tmp_path)), results)[1]
    comparison = Comparison.read(write(tmp_path, arms=arms))
    assert "Not tested alike: few is tested with num_steps 5, and base with 4; " in tabulate(comparison, results)[1]
    assert comparison.tested_otherwise() == [
        "few is tested with num_steps 5, and base with 4",
        "dyed is tested with model.path critters-dye, and base with critters",
    ]


def test_the_report_counts_degradation_by_arm(results: Results, tmp_path: Path):
    """In seed 1 identity is .5, then .4 and .6, while prompt falls: degraded at update 2, but not at the end.

    The end is the mean of both evaluations: identity .5, no higher than its start.
    """
    for row, identity, prompt in zip(results["naive"][1]["held_out"], (0.5, 0.4, 0.6), (0.5, 0.4, 0.4), strict=True):
        row |= {"identity_reward": identity, "prompt_reward": prompt}
    comparison = Comparison.read(write(tmp_path, seeds=[0, 1, 2]))
    comparison.output.mkdir()
    table = write_report(comparison, results)
    assert (
        "| arm | seeds | competitive degradation | mirrored degradation | identity hacking | prompt hacking |" in table
    )
    assert "| naive | 3 | 0 / 1 (2) / 0 | none | - | - |" in table
    assert "judged by sign alone" in table
    naive, tuned = json.loads((comparison.output / "comparison.json").read_text())["degradation"]
    assert (naive["arm"], tuned["arm"], tuned["seeds"]) == ("naive", "sars_tdw", 4)
    assert naive["competitive_degradation"] == {
        **{"judged": 3, "at_end": 0, "on_the_way": 1, "first_update": 2, "last_update": 2, "updates": {"1": [2]}},
        **{"warned": 0, "first_warning": None},
    }


# --- --report-only ---


def test_a_report_of_what_is_finished_runs_nothing(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """From result.json alone, as in the committed results; if there are none it names the folder it looked in."""
    file = write(tmp_path, seeds=[0, 1])
    arms = tmp_path / "out" / "arms"
    with pytest.raises(ComparisonError, match=f"^no run is finished in {arms}, so .*--output$"):
        report(file, output=None)
    assert not (tmp_path / "out").exists()
    (arms / "naive" / "seed-1").mkdir(parents=True)
    (arms / "naive" / "seed-1" / "result.json").write_text(json.dumps(results["naive"][1]))
    monkeypatch.setattr(sys, "argv", ["customized-grpo", "compare", str(file), "--report-only"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    assert "| naive | 1 | 0.400 | 0.500 |" in capsys.readouterr().out
    assert [path.name for path in arms.rglob("*")] == ["naive", "seed-1", "result.json"]
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["finished"] == 1


def test_a_dry_run_and_a_report_exclude_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    arguments = ["compare", str(write(tmp_path)), "--report-only", "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["customized-grpo", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "error: --dry-run writes nothing and --report-only runs nothing; choose one of them\n"
    )


def test_the_table_says_if_runs_were_made_with_different_code(results: Results, tmp_path: Path):
    comparison = Comparison.read(write(tmp_path, seeds=[0, 1, 2]))
    assert "different code" not in tabulate(comparison, results)[1]
    results["naive"][1]["code"] = "abc+changes"
    last = tabulate(comparison, results)[1].splitlines()[-1]
    assert last == "The runs were made with different code: unknown (9 runs), abc+changes (1 run)."


def test_a_report_of_one_seed_has_no_intervals(tmp_path: Path):
    comparison = Comparison.read(write(tmp_path))
    comparison.output.mkdir()
    table = write_report(comparison, {"naive": {0: result(0.1)}, "sars_tdw": {0: result(0.3)}})
    assert "| sars_tdw | 1 | 0.300 | 0.500 |" in table
    assert "| sars_tdw - naive | joint_success | +0.200 | - | primary | 1 |" in table
    assert "NaN" not in (comparison.output / "comparison.json").read_text()
