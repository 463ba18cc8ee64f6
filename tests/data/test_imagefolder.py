import json
from collections.abc import Callable
from pathlib import Path

import pytest

from customized_grpo.data import Sample
from customized_grpo.data.lists import load_imagefolder


def write(root: Path, *items: object) -> Path:
    (root / "metadata.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))
    return root


def test_a_line_is_a_sample(draw: Callable[..., Path]):
    root = draw("dog/0.png", "dog/1.png", "cat/0.png")
    samples = load_imagefolder(
        write(
            root,
            {"file_name": "dog/0.png", "text": "a dog in a boat", "other_views": ["dog/1.png"], "score": 3},
            {"file_name": "cat/0.png", "prompt": "a cat in a boat", "class_word": "cat"},
        )
    )
    assert samples[0] == Sample(
        id="00000",
        subject="dog",
        prompt="a dog in a boat",
        references=(root / "dog/0.png",),
        other_views=(root / "dog/1.png",),
        extra={"score": 3},
    )
    assert (samples[1].prompt, samples[1].subject, samples[1].class_word) == ("a cat in a boat", "cat", "cat")


def test_problems_speak_of_the_fields_as_the_file_spells_them(
    draw: Callable[..., Path], problems: Callable[..., list[str]]
):
    root = write(
        draw("0.png"),
        {"text": "no picture"},
        {"file_name": "0.png"},
        {"file_name": "0.png", "text": 5},
        {"file_name": "0.png", "text": "a", "prompt": "b"},
        {"file_name": "none.png", "text": "a"},
    )
    assert problems(load_imagefolder, root) == [
        "metadata.jsonl, line 1: has no file_name; list at least one picture of the subject",
        "metadata.jsonl, line 2: has no text (fields: file_name)",
        "metadata.jsonl, line 3: text must be a text and not empty, not 5",
        "metadata.jsonl, line 4: has both prompt and text; keep one",
        f"metadata.jsonl, line 5: {root}/none.png: no such file or directory; check the path",
    ]


def test_a_folder_without_metadata(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r'(?s)no metadata\.jsonl.*\{"file_name": \.\.\., "text": \.\.\.\} per picture'
    ):
        load_imagefolder(tmp_path)
