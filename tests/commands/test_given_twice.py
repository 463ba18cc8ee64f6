"""A value that is given twice is refused: one of the two would be dropped without a word."""

from pathlib import Path

import pytest

from program import Refusal


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusal:
    return Refusal(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "--adapter", "a", "--prompt", "a cat", "--adapter", "b"),
        ("report", ".", "--output", "a.html", "--output=b.html"),
    ],
)
def test_an_option_with_one_value_is_given_once(words: tuple[str, ...], refused: Refusal):
    option = "--adapter" if "a" in words else "--output"
    assert refused.line(*words) == f"{option} is given 2 times but has one value; keep one of them"


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (("train", "critters", "--seed", 1, "seed=2"), "seed is given twice, as --seed 1 and as seed=2"),
        (("evaluate", "critters", "device=cpu", "--device", "cuda"), "device is given twice, as --device cuda and as"),
        (("evaluate", "own-subject", "--root", "a", "data.root=b"), "data.root is given twice, as --root a and as"),
        (("probe", "critters", "device=cpu", "--device", "cpu"), "device is given twice"),
        (("check-rewards", "critters", "device=cpu", "--device", "cpu"), "device is given twice"),
    ],
)
def test_a_setting_is_given_as_an_option_or_as_an_override(words: tuple[object, ...], given: str, refused: Refusal):
    message = refused.line(*words)
    assert message.startswith(given)
    assert message.endswith("; keep one of them")
