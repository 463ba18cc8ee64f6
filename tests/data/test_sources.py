import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from customized_grpo.config import ConfigError, load_config
from customized_grpo.data import DataError, Sample, load_data
from customized_grpo.data.sources import NAMES, SOURCES
from customized_grpo.fields import BUILT_IN


def load(source: object, **given: Any) -> tuple[list[Sample], list[Sample]]:
    settings = {"root": None, "class_word": None, "held_out_share": 0.5, "seed": 0} | given
    return load_data(str(source), **settings)


@pytest.fixture
def folder(draw: Callable[..., Path]) -> Path:
    """Two subjects, and both a list and an imagefolder of the same samples."""
    root = draw("dog/0.png", "cat/0.png")
    entries = [{"prompt": f"a {name} in a boat", "image_path": f"{name}/0.png"} for name in ("dog", "cat")]
    (root / "list.json").write_text(json.dumps(entries))
    lines = [{"text": entry["prompt"], "file_name": entry["image_path"]} for entry in entries]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


def test_a_list_a_folder_and_a_name_lead_to_the_same_samples(folder: Path):
    train, held_out = load(folder / "list.json")
    assert {train[0].subject, held_out[0].subject} == {"dog", "cat"}
    assert (train, held_out) == load(folder) == load("imagefolder", root=folder)
    everything, none = load(folder / "list.json", held_out_share=0)
    assert ({sample.subject for sample in everything}, none) == ({"dog", "cat"}, [])


def test_the_seed_chooses_the_held_out_subjects(folder: Path):
    assert {load(folder, seed=seed)[1][0].subject for seed in range(8)} == {"dog", "cat"}


def test_a_class_word_goes_to_all_samples_of_a_list_that_has_none(folder: Path):
    train, held_out = load(folder / "list.json", class_word="pet")
    assert [sample.class_word for sample in (*train, *held_out)] == ["pet", "pet"]


def test_a_class_word_in_addition_to_one_in_the_list_is_refused(folder: Path):
    entry = {"prompt": "p", "image_path": "dog/0.png", "class_word": "dog"}
    (folder / "list.json").write_text(json.dumps([entry]))
    with pytest.raises(
        ValueError, match=r"^data\.class_word: 1 of 1 samples of .* the first 'dog'; remove 'pet' or theirs$"
    ):
        load(folder / "list.json", class_word="pet")


@pytest.mark.filterwarnings("ignore:one subject alone")
def test_a_folder_of_photographs_with_its_class_word(folder: Path):
    train, held_out = load(folder / "dog", class_word="dog")
    assert (len(train), len(held_out)) == (30, 10)
    assert (train, held_out) == load("photographs", root=folder / "dog", class_word="dog")
    assert load(folder / "dog", class_word="dog", held_out_share=0) == (train, [])


def test_a_folder_of_photographs_needs_a_class_word(folder: Path):
    with pytest.raises(ValueError, match=r"^data\.class_word: .*/dog is a folder without metadata\.jsonl.*=dog$"):
        load(folder / "dog")


def test_a_root_in_addition_to_a_folder_is_refused(folder: Path):
    for source, word in ((folder, None), (folder / "dog", "dog")):
        with pytest.raises(ValueError, match=r"^data\.root: .* is already the folder"):
            load(source, root=folder, class_word=word)


def test_critters_are_not_read_from_files():
    with pytest.raises(ValueError, match="critters are drawn, not read"):
        load("critters")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*BUILT_IN, "subjects200k")])
def test_a_root_with_a_null_byte(name: str):
    word = "dog" if name == "photographs" else None
    with pytest.raises(DataError, match=r"^'a\\x00b' cannot be used, 1 problem:\n  embedded null byte\n"):
        load(name, root=Path("a\0b"), class_word=word)


def test_an_unknown_name(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"(?s)not the name of a source.*dreambench, dreambench_pairs, syncd, subjects200k"
    ):
        load(tmp_path / "dreambnch")
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "none.json")


CONTRADICTIONS = [
    (["data.class_word=dog"], "data.class_word: data.source=critters has class words of its own"),
    *(([f"data.source={name}"], f"data.root: data.source={name} needs the folder of its files") for name in SOURCES),
    (["data.source=dreambench", "data.root=x", "data.class_word=dog"], "remove 'dog'"),
    (["data.source=photographs", "data.root=x"], "data.class_word: photographs need a word for their subject"),
    (["data.source=list.json", "data.class_word=' '"], "data.class_word: ' ' is empty"),
]


@pytest.mark.parametrize(("overrides", "line"), CONTRADICTIONS)
def test_settings_that_contradict_each_other_are_refused_before_any_file_is_read(overrides: list[str], line: str):
    with pytest.raises(ConfigError, match=re.escape(line)):
        load_config("critters", overrides)
    given = dict(override.removeprefix("data.").split("=") for override in overrides)
    word = given.get("class_word", "").strip("'") or None
    with pytest.raises(ValueError, match=re.escape(line)):
        load(given.get("source", "critters"), root=given.get("root"), class_word=word)
