"""Rows of evaluations: read back as written, and averages worked out by hand."""

import math
from pathlib import Path

import pytest

from customized_grpo.errors import UsageError
from customized_grpo.measure.rows import (
    EvaluationRow,
    count_unscored,
    joint_dominance,
    mean_change,
    mean_scores,
    means_by,
    read_rows,
)

NAN = math.nan


def row(
    sample: str, index: int = 0, subject: str = "dog", prompt: str = "on a beach", **scores: float
) -> EvaluationRow:
    return EvaluationRow(sample, subject, prompt, index, scores)


def test_a_row_is_read_back_as_it_was_written(tmp_path: Path):
    first, second = row("a", dino=0.25, clip_t=NAN), row("b", 1, prompt="über “Stein”\n", dino=1e-9, clip_t=-1.0)
    file = tmp_path / "rows.jsonl"
    file.write_text(first.as_line() + second.as_line() + second.as_line()[:-5])
    one, two = read_rows(file)
    assert two == second
    assert (one.key, one.scores["dino"]) == (("a", 0), 0.25)
    assert math.isnan(one.scores["clip_t"])
    assert "NaN" not in file.read_text()
    assert read_rows(tmp_path / "none.jsonl") == []


def test_rows_end_at_line_feeds_only(tmp_path: Path):
    """str.splitlines would break these prompts, which JSON does not escape (but for the form feed)."""
    rows = [row(f"{ord(break_):x}", prompt=f"one{break_}line", m=1.0) for break_ in "\u2028\x85\f"]
    (tmp_path / "rows.jsonl").write_text("".join(each.as_line() for each in rows), encoding="utf-8")
    assert read_rows(tmp_path / "rows.jsonl") == rows


GOOD = row("a", dino=1.0).as_line()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (GOOD + "{\n", "line 2: not a row of an evaluation (Invalid JSON: EOF"),
        ("[]\n", "line 1: not a row of an evaluation (Input should be an object"),
        (GOOD.replace('"a"', "5"), "line 1: not a row of an evaluation (sample Input should be a valid string"),
        (
            GOOD.replace("1.0", '"high"'),
            "line 1: not a row of an evaluation (scores.dino Input should be a valid number",
        ),
        (GOOD.replace('"index": 0, ', ""), "line 1: not a row of an evaluation (index Field required"),
        (
            GOOD + GOOD.replace("dino", "clip_t"),
            "line 2: not a row of an evaluation (scores of clip_t; line 1 has dino",
        ),
        (b"\xff\n", "cannot be read (not UTF-8); restore it"),
    ],
)
def test_a_damaged_row_is_named_with_the_way_out(content: str | bytes, problem: str, tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError) as error:
        read_rows(file)
    assert problem in str(error.value)
    assert str(error.value).startswith(str(file))
    assert "remove the " in str(error.value)
    assert "\n" not in str(error.value)


def test_rows_that_cannot_be_opened_are_one_line(tmp_path: Path):
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(UsageError, match=r"rows\.jsonl cannot be read \(Is a directory\); restore it"):
        read_rows(tmp_path / "rows.jsonl")


def test_means_over_everything_and_by_subject():
    rows = [
        row("a", subject="dog", m=1.0, n=NAN),
        row("b", subject="dog", m=0.0, n=0.5),
        row("c", subject="cat", m=0.5, n=NAN),
        row("d", subject="cat", m=NAN, n=NAN),
    ]
    overall = mean_scores(rows)
    assert overall["m"] is not None
    assert overall["m"].mean == 0.5
    assert overall["n"] is not None
    assert overall["n"].mean == 0.5
    assert count_unscored(rows) == {"m": 1, "n": 3}
    assert means_by(rows, lambda each: each.subject) == {
        "cat": {"m": 0.5, "n": None},
        "dog": {"m": 0.5, "n": 0.5},
    }
    assert mean_scores(rows[2:])["n"] is None


def test_intervals_resample_subjects_and_not_images():
    """Two subjects at 0 and 1: whole subjects are resampled, so the mean of a resample is 0, 1/2 or 1."""
    rows = [
        row(f"{subject}{i}", subject=subject, m=value) for subject, value in (("a", 0.0), ("b", 1.0)) for i in "xyz"
    ]
    figure = mean_scores(rows)["m"]
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


def test_the_mean_change_by_hand():
    """Over the images that both have and could score; another subject's mean does not enter."""
    base = [row("a", m=0.1), row("a", 1, m=0.3), row("b", subject="cat", m=NAN), row("c", m=9.0)]
    tuned = [row("a", m=0.4), row("a", 1, m=0.2), row("b", subject="cat", m=0.5), row("d", m=-9.0)]
    change = mean_change(tuned, base, "m")
    assert change is not None
    assert change.mean == pytest.approx((0.3 - 0.1) / 2)
    assert -0.101 < change.low < change.mean < change.high < 0.301
    assert mean_change(tuned, base, "another") is None
    assert mean_change(tuned[2:], base, "m") is None


def test_dominance_needs_images_in_common():
    with pytest.raises(UsageError, match="no image is in both"):
        joint_dominance([row("a", i=1.0)], [row("b", i=1.0)], ["i"])
    with pytest.raises(UsageError, match="no image is in both evaluations and scored by every reward"):
        joint_dominance([row("a", i=1.0)], [row("a", i=NAN)], ["i"])
