"""Evaluations in a report: what is compared, and what is said where it cannot be."""

import json
from pathlib import Path

import pytest
from report_folders import fake_evaluation, fake_run

from customized_grpo.files.adapter_places import ADAPTER_FILE, FINAL
from customized_grpo.policies.adapter_file import adapter_digest
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


def test_a_run_shows_only_finished_evaluations_of_its_own_adapter(tmp_path: Path):
    run = fake_run(tmp_path / "run")
    (run / FINAL).mkdir()
    (run / FINAL / ADAPTER_FILE).write_bytes(b"weights")
    tuned = fake_evaluation(run / "evaluation-tuned", 3, 8)
    settings = json.loads((tuned / "settings.json").read_text())
    (tuned / "settings.json").write_text(json.dumps({**settings, "adapter": adapter_digest(run / FINAL)}))
    assert "3 images of 3 subjects" in text_of(run)

    (run / FINAL / ADAPTER_FILE).write_bytes(b"trained further")
    with pytest.warns(UserWarning, match="evaluation-tuned is of an earlier adapter of the run, and left out"):
        assert "3 images of 3 subjects" not in text_of(run)
    (tuned / "summary.json").unlink()
    with pytest.warns(UserWarning, match="evaluation-tuned is not finished, and left out"):
        text_of(run)


def test_a_run_that_goes_on_says_what_it_has_done(tmp_path: Path):
    run = fake_run(tmp_path / "run")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("updates: 1\n", "updates: 40\n"))
    assert "12 of 40 updates, 72 images" in text_of(run)


def test_a_report_holds_no_folders_and_servers_of_the_machine(tmp_path: Path):
    run = fake_run(tmp_path / "run")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("source: critters", "source: /home/ann/secret/rex.json"))
    evaluation = fake_evaluation(tmp_path / "tested", 3, 8)
    settings = json.loads((evaluation / "settings.json").read_text())
    (evaluation / "settings.json").write_text(json.dumps({**settings, "data": "/home/ann/secret/rex.json"}))
    text = text_of(run, evaluation)
    assert "rex.json" in text
    assert "/home/ann" not in text
