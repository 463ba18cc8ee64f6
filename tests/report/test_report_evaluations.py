"""Evaluations in a report: what is compared, and what is said where it cannot be."""

from pathlib import Path

from report_folders import fake_evaluation

from customized_grpo.report import write_report


def text_of(*folders: Path) -> str:
    return write_report(folders, folders[0].parent / "page.html").read_text(encoding="utf-8")


def test_an_evaluation_explains_its_intervals_and_different_sampling(tmp_path: Path):
    first = fake_evaluation(tmp_path / "one", 3, 8, subjects=1)
    second, third = (fake_evaluation(tmp_path / name, 3, 8, steps=28, subjects=1) for name in ("two", "three"))
    text = text_of(first, second)
    assert "3 images of 1 subject. Intervals: 95 %, over its images." in text
    assert "two: steps, schedule, guidance or size of the sampling differ from one." in text
    same = text_of(second, third)
    assert "of the sampling differ" not in same
    several = text_of(fake_evaluation(tmp_path / "four", 3, 8))
    assert "3 images of 3 subjects. Intervals: 95 %, over subjects." in several


def test_scores_of_different_encoders_are_not_subtracted(tmp_path: Path):
    one, two = (fake_evaluation(tmp_path / name, 3, 8, encoder=name) for name in ("one", "two"))
    text = text_of(one, two)
    assert "dino is not the same measurement in all: one has dino model=one, two has dino model=two." in text
    assert "+0.000" not in text
    same = text_of(one, fake_evaluation(tmp_path / "three", 3, 8, encoder="one"))
    assert "not the same measurement" not in same
    assert "+0.000" in same
