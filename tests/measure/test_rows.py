"""Figures from rows: worked by hand."""

import math
from pathlib import Path

import pytest

from customized_grpo.measure import rows as figures
from customized_grpo.measure.rows import EvaluationRow, joint_dominance

NAN = math.nan


def row(
    sample: str, index: int = 0, subject: str = "dog", prompt: str = "on a beach", **scores: float
) -> EvaluationRow:
    return EvaluationRow(sample, subject, prompt, index, scores)


def test_a_row_is_read_back_as_it_was_written(tmp_path: Path):
    first, second = row("a", dino=0.25, clip_t=NAN), row("b", 1, prompt="über “Stein”\n", dino=1e-9, clip_t=-1.0)
    file = tmp_path / "rows.jsonl"
    file.write_text(first.as_line() + second.as_line() + second.as_line()[:-5])
    one, two = figures.read_rows(file)
    assert two == second
    assert (one.key, one.scores["dino"]) == (("a", 0), 0.25)
    assert math.isnan(one.scores["clip_t"])
    assert "NaN" not in file.read_text()
    assert figures.read_rows(tmp_path / "none.jsonl") == []


def test_means_over_everything_and_by_subject():
    rows = [
        row("a", subject="dog", m=1.0, n=NAN),
        row("b", subject="dog", m=0.0, n=0.5),
        row("c", subject="cat", m=0.5, n=NAN),
        row("d", subject="cat", m=NAN, n=NAN),
    ]
    overall = figures.overall(rows)
    assert overall["m"] is not None
    assert overall["m"].mean == 0.5
    assert overall["n"] is not None
    assert overall["n"].mean == 0.5
    assert figures.unscored(rows) == {"m": 1, "n": 3}
    assert figures.means_by(rows, lambda each: each.subject) == {
        "cat": {"m": 0.5, "n": None},
        "dog": {"m": 0.5, "n": 0.5},
    }
    assert figures.overall(rows[2:])["n"] is None


def test_an_interval_goes_over_subjects_and_not_over_pictures():
    """Two subjects at 0 and 1: whole subjects are drawn, so the mean of a resample is 0, 1/2 or 1."""
    rows = [
        row(f"{subject}{i}", subject=subject, m=value) for subject, value in (("a", 0.0), ("b", 1.0)) for i in "xyz"
    ]
    figure = figures.overall(rows)["m"]
    assert figure is not None
    assert (figure.mean, figure.low, figure.high) == (0.5, 0.0, 1.0)


def test_joint_dominance_by_hand():
    """Better on both, worse on both, mixed, a tie on one, unscored, only in one of the two."""
    base = [row(name, i=0.5, p=0.5) for name in "abcde"] + [row("only base", i=0.5, p=0.5)]
    tuned = [
        row("a", i=0.6, p=0.6),
        row("b", i=0.4, p=0.4),
        row("c", i=0.6, p=0.4),
        row("d", i=0.5, p=0.9),
        row("e", i=0.9, p=NAN),
        row("only tuned", i=0.9, p=0.9),
    ]
    found = joint_dominance(tuned, base, ["i", "p"])
    assert (found.better.mean, found.worse.mean) == (0.25, 0.25)
    assert (found.compared, found.left_out) == (4, 3)
    assert joint_dominance(tuned, base, ["i"]).better.mean == 3 / 5
    swapped = joint_dominance(base, tuned, ["i", "p"])
    assert (swapped.better.mean, swapped.worse.mean) == (found.worse.mean, found.better.mean)


def test_dominance_of_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="no image is in both"):
        joint_dominance([row("a", i=1.0)], [row("b", i=1.0)], ["i"])
    with pytest.raises(ValueError, match="do not share p"):
        joint_dominance([row("a", i=1.0, p=1.0)], [row("a", i=1.0)], ["i", "p"])
