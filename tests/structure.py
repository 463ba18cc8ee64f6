"""The rooms of the package, from the lowest to the highest, and what the code's own imports say about them.

    python tests/structure.py [FOLDER]           rooms, floors and arrows of a package; default: this one
    python tests/structure.py --write            put the map of the rooms into CONTRIBUTING.md

A room is a folder of the package, or a module in the package's root. An arrow is an import of one room by another,
wherever in a file it is written: inside a function and for types only, too. Whatever imports nothing of the package is
on floor 1, everything else one floor above the highest that it imports; rooms that import each other share a floor.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "customized_grpo"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
START, END = "<!-- rooms: python tests/structure.py --write -->\n", "<!-- end of rooms -->\n"

# Lowest first: a room may import those above it in this table, never those below.
ROOMS = {
    "errors": "the two roots of all errors that the user sees as one line",
    "wording": "words that many messages share",
    "inputs": "limits of numbers and `~` in paths, for settings and options",
    "fields": "the types of settings",
    "algorithm": "the paper as pure functions on tensors; `rules/` has one file per shaping rule",
    "files": "durable writes, YAML, picture sheets, warnings, safe reading of foreign checkpoints",
    "runtime": "devices, several processes, launchers, memory, signals",
    "data": "samples from lists, folders and published sets: reading, checking, splitting",
    "critters": "the built-in world: renderer, oracle, samples, weights; `build/` trains them",
    "rewards": "one file per reward or metric; `settings.py` has the settings of each",
    "sections": "the sections of a configuration, with a description of every setting",
    "policies": "one file per model family, behind the protocol in `base.py`",
    "config": "the configuration of a run: recipes, overrides, contradictions",
    "run": "the folder of a run: access, checkpoints, logs, resuming, trackers",
    "calibration": "what the rewards give to bad and to good pictures; known pictures, intervals",
    "sharing": "the model card of an adapter, and what may leave the machine",
    "training": "trainer, rollout, plan of the updates, held-out evaluation, warnings",
    "cost": "what an update costs, before it is started: passes, FLOPs, memory by running models without numbers",
    "measure": "evaluate, check-rewards and probe",
    "compare": "arms over several seeds: running them, tables, plots",
    "report": "the HTML page: reading folders, and its template",
    "commands": "demo, generate and export; the options of all commands",
    "studio": "the page to try a model and watch a run; the extra `studio`",
    "cli": "the command line",
    "__main__": "`python -m customized_grpo`",
}


@cache
def parsed(package: Path = PACKAGE) -> dict[str, ast.Module]:
    """Every file of a package by its path inside it, such as "data/lists.py"."""
    files = sorted(package.rglob("*.py"))
    return {file.relative_to(package).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in files}


@cache
def imports(package: Path = PACKAGE) -> dict[str, set[str]]:
    """What each module of a package imports of it, by dotted names: "data.lists", "data" for its __init__."""
    modules = {_dotted(file): file for file in parsed(package)}

    def imported(name: str, file: str) -> Iterator[str]:
        for node in ast.walk(parsed(package)[file]):
            for module, member in _import_names(node, _folder(name, file), package.name):
                yield member if member in modules else module  # a module, or something that a module defines

    return {name: (modules.keys() & set(imported(name, file))) - {name} for name, file in modules.items()}


def _dotted(file: str) -> str:
    return file.removesuffix(".py").removesuffix("__init__").rstrip("/").replace("/", ".")


def _folder(name: str, file: str) -> list[str]:
    parts = name.split(".")
    return parts if file.endswith("__init__.py") else parts[:-1]


def _import_names(node: ast.AST, folder: list[str], package: str) -> Iterator[tuple[str, str]]:
    """(module, module.member) for all that a statement in `folder` imports of the package."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield (name := alias.name.removeprefix(f"{package}.")), name
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        if node.level:
            module = ".".join([*folder[: len(folder) - node.level + 1], *module.split(".")]).rstrip(".")
        elif f"{module}.".startswith(f"{package}."):
            module = module.removeprefix(package).removeprefix(".")
        else:
            return
        for alias in node.names:
            yield module, f"{module}.{alias.name}".lstrip(".")


def room_of(module: str) -> str:
    """The folder or the root module that a module belongs to; "" for the package's own __init__."""
    return module.partition(".")[0]


def arrows_between_rooms(modules: Mapping[str, set[str]]) -> dict[str, set[str]]:
    arrows: defaultdict[str, set[str]] = defaultdict(set)
    for module, imported in modules.items():
        arrows[room_of(module)] |= {room_of(name) for name in imported} - {room_of(module), ""}
    arrows.pop("", None)
    return dict(arrows)


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups whose members all reach each other: none in a healthy package."""
    groups = {tuple(sorted(_circle(name, arrows))) for name in arrows if name in _reachable(name, arrows)}
    return sorted(map(list, groups))


def _circle(name: str, arrows: Mapping[str, set[str]]) -> set[str]:
    """Everything that a name reaches and that reaches it, with itself."""
    return {name} | {other for other in _reachable(name, arrows) if name in _reachable(other, arrows)}


def _reachable(start: str, arrows: Mapping[str, set[str]]) -> set[str]:
    reached, waiting = set[str](), [start]
    while waiting:
        new = arrows.get(waiting.pop(), set()) - reached
        reached |= new
        waiting += new
    return reached


def floors(arrows: Mapping[str, set[str]]) -> dict[str, int]:
    """The floor of each name, from 1."""

    @cache
    def floor(name: str) -> int:
        circle = _circle(name, arrows)
        below = {other for member in circle for other in arrows[member]} - circle
        return 1 + max(map(floor, below), default=0)

    return {name: floor(name) for name in arrows}


def rooms_table() -> str:
    """The map of the rooms for CONTRIBUTING.md, highest first."""
    names = {room: f"{room}/" if (PACKAGE / room).is_dir() else f"{room}.py" for room in ROOMS}
    width = max(map(len, names.values())) + 3
    rows = [f"{names[room]:<{width}}{what}".replace("`", "") for room, what in reversed(ROOMS.items())]
    return "\n".join(["```", *rows, "```", ""])


def describe(package: Path) -> str:
    """Rooms with files, lines, floors and arrows, and the totals."""
    modules = imports(package)
    arrows, files, lines = arrows_between_rooms(modules), Counter[str](), Counter[str]()
    for file in parsed(package):
        room = room_of(_dotted(file))
        files[room] += 1
        lines[room] += (package / file).read_text(encoding="utf-8").count("\n")
    floor_of, floor_of_file = floors(arrows), floors(modules)
    rows = [
        f"{floor_of[room]:>5}  {room:<14} {files[room]:>3} files {lines[room]:>6} lines   -> "
        f"{', '.join(sorted(arrows[room])) or '-'}"
        for room in sorted(floor_of, key=lambda room: (-floor_of[room], room))
    ]
    root = sorted(path.stem for path in package.glob("*.py"))
    return "\n".join(
        [
            "floor  room",
            *rows,
            "",
            f"modules in the root: {len(root)} ({', '.join(root)})",
            f"rooms: {len(arrows)} on {max(floor_of.values())} floors, {sum(map(len, arrows.values()))} arrows",
            f"files: {len(modules)} on {max(floor_of_file.values())} floors, {sum(map(len, modules.values()))} arrows",
            f"circles of rooms: {circles(arrows) or 'none'}",
            f"circles of files: {circles(modules) or 'none'}",
        ]
    )


def write_map() -> None:
    text = CONTRIBUTING.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    CONTRIBUTING.write_text(f"{before}{START}{rooms_table()}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write_map()
    else:
        print(describe(Path(sys.argv[1]).resolve() if sys.argv[1:] else PACKAGE))
