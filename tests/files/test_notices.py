"""Warnings: one line each, and only a few of a kind."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from customized_grpo.data import Sample
from customized_grpo.files.notices import PACKAGE, LongPrompts
from program import TINY, Answer, start

Run = Callable[..., Answer]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda *arguments: start(arguments, monkeypatch, capsys)


@pytest.fixture
def long_prompts(samples: list[Sample], tmp_path: Path) -> Path:
    """Six samples of six subjects, with prompts longer than the built-in models read."""
    entries = []
    for number, sample in enumerate(samples[:6]):
        sample.reference_images()[0].save(tmp_path / f"{number}.png")
        prompt = f"critter {number} " + "on the beach, at the left, wearing a red hat, " * 4
        entries.append({"prompt": prompt, "image_paths": [f"{number}.png"], "subject": str(number)})
    file = tmp_path / "list.json"
    file.write_text(json.dumps(entries))
    return file


def test_only_the_first_long_prompts_are_named_and_once_each(recwarn: pytest.WarningsRecorder):
    long = LongPrompts()
    for prompt in ("a", "b", "a", "c", "d", "e", "f", "a"):
        long.warn(prompt, "too long")
    assert [str(warning.message) for warning in recwarn] == [
        "too long: 'a'",
        "too long: 'b'",
        "too long: 'c'",
        "more prompts are too long; they are not listed",
    ]


def test_warnings_are_single_lines_and_the_built_in_parts_load_silently(run: Run, long_prompts: Path, tmp_path: Path):
    answer = run("train", TINY, f"output={tmp_path / 'run'}", f"data.source={long_prompts}", "data.train_samples=null")
    assert answer.code == 0
    lines = [line for line in answer.error.splitlines() if line.startswith("warning: ")]
    assert sum("longer than the model reads" in line for line in lines) in (2, 3)  # an update has two samples
    assert sum("is cut to the" in line for line in lines) in (2, 3)  # the reward's own text encoder
    assert "UserWarning" not in answer.error
    assert "Loading" not in answer.error
    assert "warnings.warn" not in answer.error


def test_warnings_of_libraries_are_shown_as_usual(
    recwarn: pytest.WarningsRecorder, run: Run, capsys: pytest.CaptureFixture[str]
):
    assert run("env").code == 0
    warnings.warn_explicit("of a library", UserWarning, "/elsewhere/library.py", 7)
    warnings.warn_explicit("of this package", UserWarning, str(PACKAGE / "memory.py"), 7)
    assert [str(warning.message) for warning in recwarn] == ["of a library"]
    assert capsys.readouterr().err == "warning: of this package\n"
