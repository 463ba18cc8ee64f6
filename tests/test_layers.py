"""What CONTRIBUTING.md says of the package's order: `structure.py` has the table of the rooms and the measure."""

import ast
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
    parsed,
    rooms_table,
)


def test_every_room_is_in_the_table():
    assert arrows_between_rooms(imports()).keys() == ROOMS.keys()


def test_a_room_imports_only_what_is_below_it():
    order = list(ROOMS)
    upward = {
        f"{module} -> {imported}"
        for module, names in imports().items()
        for imported in names
        if module and imported and order.index(imported.partition(".")[0]) > order.index(module.partition(".")[0])
    }
    assert upward == set()


def test_no_files_import_each_other_in_a_circle():
    assert circles(imports()) == []


def test_the_algorithm_imports_nothing_else_of_the_package():
    assert arrows_between_rooms(imports())["algorithm"] == set()


def test_the_map_in_contributing_is_the_table():
    text = CONTRIBUTING.read_text(encoding="utf-8")
    assert f"{START}{rooms_table()}{END}" in text, "python tests/structure.py --write"


def test_files_and_functions_are_short():
    for package in (PACKAGE, Path(__file__).parent):
        for file, tree in parsed(package).items():
            assert len((package / file).read_text(encoding="utf-8").splitlines()) <= 400, file
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    assert (node.end_lineno or 0) - node.lineno < 60, f"{file}: {node.name}"


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
