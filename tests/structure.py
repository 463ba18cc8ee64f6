"""The rooms of the package, from the lowest to the highest, and what the code's own imports say about them.

    python tests/structure.py [FOLDER]           rooms, floors and arrows of a package; default: this one
    python tests/structure.py --write            put the map of the rooms into CONTRIBUTING.md

A room is a folder of the package, or a module that stands in the package's root. An arrow is an import of one by
another, wherever in a file it is written. What imports nothing of the package is on floor 1, everything else one floor
above the highest that it imports; rooms that import each other share a floor.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "customized_grpo"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
START, END = "<!-- rooms: python tests/structure.py --write -->\n", "<!-- end of rooms -->\n"

# Lowest first: a room may import those above it in this table, never those below.
ROOMS = {
    "errors": "the two roots of all errors that the user sees as one line",
    "fields": "the types of settings",
    "algorithm": "the paper as pure functions on tensors; `rules/` has one file per shaping rule",
    "files": "durable writes, YAML, picture sheets, warnings, safe reading of foreign checkpoints",
    "runtime": "devices, several processes, launchers, memory, signals",
    "data": "samples from lists, folders and published sets: reading, checking, splitting",
    "critters": "the built-in world: renderer, oracle, samples, weights; `build/` trains them",
    "rewards": "one file per reward or metric; `settings.py` has the settings of each",
    "sections": "the sections of a configuration, with a description of every setting",
    "policies": "one file per model family, behind the protocol in `base.py`",
    "validation": "pydantic's errors as lines for the user",
    "config": "the configuration of a run: recipes, overrides, contradictions",
    "run": "the folder of a run: access, checkpoints, logs, resuming, trackers",
    "training": "trainer, rollout, plan of the updates, held-out evaluation, warnings",
    "measure": "evaluate, check-rewards and probe",
    "compare": "arms over several seeds: running them, tables, plots",
    "report": "the HTML page: reading folders, and its template",
    "commands": "demo and generate",
    "cli": "the command line",
    "__main__": "`python -m customized_grpo`",
}


def imports(package: Path) -> dict[str, set[str]]:
    """By dotted name inside the package ("data.lists", "data" for its __init__): what each file imports of it."""
    files = {_dotted(path, package): path for path in package.rglob("*.py")}
    return {name: set(_imported(name, path, package.name, files)) - {name} for name, path in files.items()}


def _dotted(path: Path, package: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(name: str, path: Path, package: str, files: Mapping[str, Path]) -> Iterator[str]:
    folder = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name.removeprefix(f"{package}.") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = ".".join([*folder[: len(folder) - node.level + 1], *([node.module] if node.module else [])])
            elif node.module == package or (node.module or "").startswith(f"{package}."):
                base = (node.module or "").removeprefix(package).removeprefix(".")
            else:
                continue
            names = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
            found = [each if each in files else base for each in names]
        else:
            continue
        yield from (each for each in found if each in files)


def room_of(module: str) -> str:
    """The folder or the root module that a module belongs to."""
    return module.split(".", maxsplit=1)[0]


def arrows_between_rooms(modules: Mapping[str, set[str]]) -> dict[str, set[str]]:
    arrows: defaultdict[str, set[str]] = defaultdict(set)
    for module, others in modules.items():
        arrows[room_of(module)] |= {room_of(other) for other in others} - {room_of(module)}
    return {room: others for room, others in arrows.items() if room}


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups whose members all reach each other: nothing in a healthy package."""
    reach = {name: _reachable(name, arrows) for name in arrows}
    groups = {tuple(sorted(b for b in arrows if b in reach[a] and a in reach[b])) for a in arrows if a in reach[a]}
    return sorted(map(list, groups))


def _reachable(start: str, arrows: Mapping[str, set[str]]) -> set[str]:
    found, waiting = set[str](), [start]
    while waiting:
        for other in arrows.get(waiting.pop(), ()):
            if other not in found:
                found.add(other)
                waiting.append(other)
    return found


def floors(arrows: Mapping[str, set[str]]) -> dict[str, int]:
    """The floor of each, from 1."""
    group_of = {name: (name,) for name in arrows} | {n: tuple(group) for group in circles(arrows) for n in group}
    known: dict[tuple[str, ...], int] = {}

    def floor(group: tuple[str, ...]) -> int:
        if group not in known:
            below = {group_of[other] for name in group for other in arrows[name] if other in arrows} - {group}
            known[group] = 1 + max((floor(each) for each in below), default=0)
        return known[group]

    return {name: floor(group_of[name]) for name in arrows}


def rooms_table() -> str:
    """The map of the rooms for CONTRIBUTING.md."""
    width = max(len(room) for room in ROOMS) + 3
    rows = [f"{_shown(room):<{width}}  {what}" for room, what in reversed(ROOMS.items())]
    return "\n".join(["```", *(row.replace("`", "") for row in rows), "```", ""])


def _shown(room: str) -> str:
    return f"{room}/" if (PACKAGE / room).is_dir() else f"{room}.py"


def describe(package: Path) -> str:
    """Rooms with files, lines, floors and arrows, and the totals."""
    modules = imports(package)
    arrows, files, lines = arrows_between_rooms(modules), Counter[str](), Counter[str]()
    for path in package.rglob("*.py"):
        room = room_of(_dotted(path, package)) or "__init__"
        files[room] += 1
        lines[room] += len(path.read_text(encoding="utf-8").split("\n")) - 1
    of_rooms, of_files = floors(arrows), floors(modules)
    rows = [
        f"{of_rooms[room]:>5}  {room:<14} {files[room]:>3} files {lines[room]:>6} lines   -> "
        f"{', '.join(sorted(arrows[room])) or '-'}"
        for room in sorted(of_rooms, key=lambda each: (-of_rooms[each], each))
    ]
    root = sorted(path.stem for path in package.glob("*.py"))
    between_files = sum(map(len, modules.values()))
    return "\n".join(
        [
            "floor  room",
            *rows,
            "",
            f"modules in the root: {len(root)} ({', '.join(root)})",
            f"rooms: {len(of_rooms)} on {max(of_rooms.values())} floors, {sum(map(len, arrows.values()))} arrows",
            f"files: {len(modules)} on {max(of_files.values())} floors, {between_files} arrows",
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
