"""The order of the rooms (`structure.py` has the table): imports go down, never up or round."""

from pathlib import Path

import pytest

from structure import (
    CONTRIBUTING,
    END,
    PACKAGE,
    ROOMS,
    START,
    arrows_between_rooms,
    circles,
    floors,
    imports,
    rooms_table,
)

ORDER = list(ROOMS)
MODULES = imports(PACKAGE)


def test_every_room_has_its_place_and_its_line():
    assert set(arrows_between_rooms(MODULES)) == set(ORDER)


def test_the_root_holds_few_modules():
    assert len(list(PACKAGE.glob("*.py"))) <= 8


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_what_is_below_it(room: str):
    below = ORDER[: ORDER.index(room)]
    assert arrows_between_rooms(MODULES)[room] <= set(below)


def test_no_files_import_each_other_in_a_circle():
    assert circles(MODULES) == []


def test_the_algorithm_imports_nothing_of_ours():
    assert arrows_between_rooms(MODULES)["algorithm"] == set()


def test_the_map_in_contributing_is_the_table():
    text = CONTRIBUTING.read_text(encoding="utf-8")
    assert f"{START}{rooms_table()}{END}" in text, "python tests/structure.py --write"


# --- the measure itself ----------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Rooms a and b, and a module top; a/one imports b inside a function, b imports a for its types only."""
    files = {
        "__init__.py": "",
        "top.py": "from pkg.a import one\n",
        "a/__init__.py": "",
        "a/one.py": "import os\ndef f():\n    from pkg.b.two import x\n",
        "b/__init__.py": "from . import two\n",
        "b/two.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pkg.a.one\nx = 1\n",
    }
    for name, text in files.items():
        file = tmp_path / "pkg" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "pkg"


def test_imports_are_found_wherever_they_are_written(package: Path):
    found = imports(package)
    assert found == {"": set(), "top": {"a.one"}, "a": set(), "a.one": {"b.two"}, "b": {"b.two"}, "b.two": {"a.one"}}
    assert arrows_between_rooms(found) == {"top": {"a"}, "a": {"b"}, "b": {"a"}}


def test_circles_and_floors(package: Path):
    found = imports(package)
    assert circles(arrows_between_rooms(found)) == [["a", "b"]]
    assert circles(found) == [["a.one", "b.two"]]
    assert floors({"a": set(), "b": {"a"}, "c": {"a", "b"}}) == {"a": 1, "b": 2, "c": 3}
    assert floors(arrows_between_rooms(found)) == {"a": 1, "b": 1, "top": 2}
