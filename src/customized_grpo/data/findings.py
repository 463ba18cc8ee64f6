"""Problems of a data set's files: collected while reading, then reported all at once."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from customized_grpo.errors import InputError
from customized_grpo.files.paths import display
from customized_grpo.wording import counted

_SHOWN = 20  # problems in the message of a DataError; `problems` has all


class DataError(InputError, ValueError):
    """Data that cannot be used; `problems` has one line for each problem."""

    def __init__(self, path: Path, problems: Sequence[str], remedy: str) -> None:
        lines = [f"  {problem}" for problem in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            lines.append(f"  and {len(problems) - _SHOWN} more")
        head = f"{display(path)} cannot be used, {counted(len(problems), 'problem')}:"
        super().__init__("\n".join([head, *lines, remedy]))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Place:
    """A position in a file."""

    file: Path
    number: int  # from 1
    unit: str = "entry"  # what is counted: "line", "entry" of an array, "row" of a table


_PLURALS = {"line": "lines", "entry": "entries", "row": "rows"}


class Findings:
    """The problems of the data at `path` (a file or a folder), each with its places."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._problems: list[tuple[list[Place], str]] = []

    def __bool__(self) -> bool:
        return bool(self._problems)

    def add(self, places: Iterable[Place], problem: str) -> None:
        """Add one problem; `places` is empty if the problem names its own file."""
        self._problems.append((list(places), problem))

    def include(self, name: object, error: DataError) -> None:
        """Add all problems of one file or folder of the data set, so that reading goes on with the next."""
        for problem in error.problems:
            self.add([], f"{name}: {problem}")

    def raise_if_any(self, remedy: str) -> None:
        """Raise DataError if there are problems: in the order of the files, those without a place last."""
        if self._problems:
            ordered = sorted(self._problems, key=lambda problem: _order(problem[0]))
            raise DataError(self.path, [_line(*problem) for problem in ordered], remedy)


def _order(places: list[Place]) -> tuple[bool, str, int]:
    return (False, str(places[0].file), places[0].number) if places else (True, "", 0)


def _line(places: list[Place], problem: str) -> str:
    numbers: defaultdict[tuple[Path, str], list[int]] = defaultdict(list)
    for place in places:
        numbers[place.file, place.unit].append(place.number)
    positions = "; ".join(_positions(file, unit, counted) for (file, unit), counted in numbers.items())
    return f"{positions}: {problem}" if positions else problem


def _positions(file: Path, unit: str, numbers: list[int]) -> str:
    rest = f" and {len(numbers) - 3} more" if len(numbers) > 3 else ""
    first = ", ".join(map(str, numbers[:3]))
    return f"{file.name}, {_PLURALS[unit] if len(numbers) > 1 else unit} {first}{rest}"


def show(value: object) -> str:
    """A value as JSON writes it, cut after 40 characters."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")  # halves of characters
    return text if len(text) <= 40 else f"{text[:37]}..."
