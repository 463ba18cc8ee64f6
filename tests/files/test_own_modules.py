"""A reward file imports the files beside it, and nobody else's."""

import re
import sys
from pathlib import Path

import pytest
import torch

from customized_grpo.critters.samples import TEST_CRITTERS, draw_samples
from customized_grpo.files.user_code import OwnCodeError
from customized_grpo.rewards.own import load_function

SAMPLES = draw_samples(2, TEST_CRITTERS, 5)
IMAGES = torch.zeros(2, 3, 8, 8)


def write(folder: Path, **files: str) -> Path:
    """Files by their names without .py; a name that ends in _package becomes a package of that name."""
    for name, text in files.items():
        file = folder / name.removesuffix("_package") / "__init__.py" if "_package" in name else folder / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def value(file: Path) -> float:
    """What the function `score` of a file gives."""
    (score,) = set(load_function(f"{file}:score", {}, torch.device("cpu"))(IMAGES, SAMPLES).tolist())
    return score


def returning(expression: str) -> str:
    return f"\n\ndef score(images, samples):\n    return images.new_full((len(images),), {expression})\n"


BESIDE = {
    "import": ("import helper", "helper.V"),
    "from": ("from helper import V", "V"),
    "star": ("from helper import *", "V"),
    "relative": ("from .helper import V", "V"),
    "package": ("import parts", "parts.V"),
    "of a package": ("import parts.deep.part", "parts.deep.part.V"),
    "renamed": ("import parts.deep.part as p", "p.V"),
    "from a package": ("from parts.deep import part", "part.V"),
    "through another": ("from outer import V", "V"),
    "by name": ("import importlib\nV = importlib.import_module('.helper', __package__).V", "V"),
}


@pytest.mark.parametrize(("statement", "expression"), BESIDE.values(), ids=list(BESIDE))
def test_whatever_lies_beside_the_file_can_be_imported(
    statement: str, expression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """From any working folder, and without a trace in what all modules share."""
    outer = "import helper\nfrom parts.deep.part import V\n"
    folder = write(tmp_path / "my rewards", helper="import numpy\nV = float(numpy.sqrt(16))\n", outer=outer)
    write(write(folder, parts_package="V = 4\n") / "parts", deep_package="")
    write(folder / "parts" / "deep", part="from helper import V\n")
    write(folder, score=statement + returning(expression))
    monkeypatch.chdir(tmp_path)
    path, known = list(sys.path), set(sys.modules)
    assert value(folder / "score.py") == 4
    assert value(Path("my rewards/score.py")) == 4
    assert sys.path == path
    assert not {"helper", "parts", "outer", "score"} & (set(sys.modules) - known)


def test_an_import_inside_the_function_works_too(tmp_path: Path):
    score = "def score(images, samples):\n    import helper\n    return images.new_full((len(images),), helper.V)\n"
    write(tmp_path, helper="V = 5\n", late=score)
    assert value(tmp_path / "late.py") == 5


def test_two_folders_have_a_helper_each(tmp_path: Path):
    text = "from helper import V" + returning("V")
    files = [write(tmp_path / name, helper=f"V = {n}\n", score=text) / "score.py" for n, name in enumerate("ab")]
    rewards = [load_function(f"{file}:score", {}, torch.device("cpu")) for file in files]
    assert [reward(IMAGES, SAMPLES)[0].item() for reward in rewards] == [0, 1]
    write(tmp_path / "a", helper="V = 77\n")
    assert value(files[0]) == 77  # read again


def test_a_library_is_not_replaced_by_a_file_of_its_name(tmp_path: Path):
    """Neither for the user's code, which asks for the library, nor for another library that asks for it later."""
    write(tmp_path, json="raise SystemExit", wave="raise SystemExit")
    write(tmp_path, torch="import json, torch, wave\nassert torch.ones(1) == 1" + returning("len(json.dumps([]))"))
    assert value(tmp_path / "torch.py") == 2


def test_a_folder_of_weights_does_not_hide_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "installed", scorer_library_package="V = 6\n")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    (tmp_path / "own" / "scorer_library").mkdir(parents=True)
    write(tmp_path / "own", score="import scorer_library" + returning("scorer_library.V"))
    assert value(tmp_path / "own" / "score.py") == 6
    del sys.modules["scorer_library"]


@pytest.mark.parametrize("name", ["my-scores", "my.scores", "1st", "ästhetik"])
def test_the_file_may_have_any_name(name: str, tmp_path: Path):
    (tmp_path / f"{name}.py").write_text(returning("3"))
    assert value(tmp_path / f"{name}.py") == 3


BROKEN = {
    "missing package": ("import no_such_library\n", r"No module named 'no_such_library' \(\S*helper\.py, line 1\)"),
    "missing part": ("import parts.missing\n", r"No module named 'parts.missing' \(\S*helper\.py, line 1\)"),
    "syntax": ("V = 1\ndef f(:\n", r"SyntaxError: invalid syntax \(\S*helper\.py, line 2\)"),
    "missing name": ("", r"cannot import name 'V' from .* \(\S*score\.py, line 1\)"),
}


@pytest.mark.parametrize(("helper", "message"), BROKEN.values(), ids=list(BROKEN))
def test_a_fault_in_the_file_beside_is_one_line_with_its_place(helper: str, message: str, tmp_path: Path):
    write(tmp_path, helper=helper, parts_package="", score="from helper import V" + returning("V"))
    with pytest.raises(OwnCodeError, match=message) as error:
        value(tmp_path / "score.py")
    assert "\n" not in str(error.value)
    assert not re.search("customized_grpo_own_", str(error.value))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no_library",
            r"No module named 'no_library' \(\S*score\.py, line 2\); install no_library or correct the code",
        ),
        ("helper", r"SyntaxError: invalid syntax \(\S*helper\.py, line 1\); correct the code"),
    ],
)
def test_an_import_that_fails_only_when_the_function_runs_is_the_same_error(name: str, message: str, tmp_path: Path):
    write(tmp_path, score=f"def score(images, samples):\n    import {name}\n", helper="def f(:\n")
    with pytest.raises(OwnCodeError, match=message) as error:
        value(tmp_path / "score.py")
    assert "\n" not in str(error.value)


def test_a_link_finds_what_lies_beside_the_file_that_is_meant(tmp_path: Path):
    write(tmp_path / "real", score="from helper import V" + returning("V"), helper="V = 5\n")
    (tmp_path / "link.py").symlink_to(tmp_path / "real" / "score.py")
    assert value(tmp_path / "link.py") == 5
