"""What is wrong with the files of a data set: gathered as they are read, then told all at once."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from customized_grpo.data.images import Source, check_image
from customized_grpo.data.sample import Sample
from customized_grpo.errors import InputError

_SHOWN = 20  # problems in the message of a DataError; `problems` has all


class DataError(InputError, ValueError):
    """Data that cannot be used; `problems` has one line for each thing wrong with them."""

    def __init__(self, path: Path, problems: Sequence[str], remedy: str) -> None:
        lines = [f"  {problem}" for problem in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            lines.append(f"  and {len(problems) - _SHOWN} more")
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{path} cannot be used, {count}:", *lines, remedy]))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Place:
    """Where in a file something stands."""

    file: Path
    number: int  # from 1
    unit: str = "entry"  # what is counted: "line", "entry" of an array, "row" of a table


_PLURALS = {"line": "lines", "entry": "entries", "row": "rows"}


class Findings:
    """What is wrong with the data at `path` (a file or a folder), each with its places."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: list[tuple[list[Place], str]] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, places: Iterable[Place], problem: str) -> None:
        """Without places where the problem names its own file."""
        self._found.append((list(places), problem))

    def raise_if_any(self, remedy: str) -> None:
        """Raises: DataError, in the order of the files, what has no place last."""
        if self._found:
            ordered = sorted(self._found, key=lambda each: _order(each[0]))
            raise DataError(self.path, [_line(*each) for each in ordered], remedy)


def _order(places: list[Place]) -> tuple[bool, str, int]:
    return (False, str(places[0].file), places[0].number) if places else (True, "", 0)


def _line(places: list[Place], problem: str) -> str:
    numbers: defaultdict[tuple[Path, str], list[int]] = defaultdict(list)
    for place in places:
        numbers[place.file, place.unit].append(place.number)
    where = [_numbers(file, unit, each) for (file, unit), each in numbers.items()]
    return ": ".join([*(["; ".join(where)] if where else []), problem])


def _numbers(file: Path, unit: str, numbers: list[int]) -> str:
    rest = f" and {len(numbers) - 3} more" if len(numbers) > 3 else ""
    shown = ", ".join(map(str, numbers[:3]))
    return f"{file.name}, {_PLURALS[unit] if len(numbers) > 1 else unit} {shown}{rest}"


def show(value: object) -> str:
    """A value of a file as it stood there, cut after 40 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else f"{text[:37]}..."


def check_ids(ids: Iterable[tuple[Place, str]], findings: Findings) -> None:
    places: defaultdict[str, list[Place]] = defaultdict(list)
    for place, name in ids:
        places[name].append(place)
    for name, met in places.items():
        if len(met) > 1:
            findings.add(met, f"id {show(name)} is used more than once; groups are told apart by it")


def check_inside(uses: Iterable[tuple[Place, str]], root: Path, findings: Findings) -> None:
    """Says of each path, used at these places, that it leads out of `root`, and what to do."""
    places: defaultdict[str, list[Place]] = defaultdict(list)
    for place, name in uses:
        if place not in places[name]:
            places[name].append(place)
    for name, met in places.items():
        remedy = "data.root=/ allows absolute paths" if name.startswith("/") else "give data.root a folder above both"
        findings.add(met, f"{show(name)} leads out of {root}, where pictures are read from; {remedy}")


def check_pictures(uses: Iterable[tuple[Place | None, Source]], findings: Findings) -> None:
    """Opens each distinct picture once, wherever and however often it is used."""
    places: defaultdict[Source, list[Place]] = defaultdict(list)
    for place, picture in uses:
        met = places[picture]
        if place is not None and place not in met[-1:]:
            met.append(place)
    for picture, met in places.items():
        try:
            check_image(picture)
        except ValueError as error:
            findings.add(met, str(error))


def check_samples(samples: Sequence[tuple[Place | None, Sample]], findings: Findings) -> None:
    """Ids and pictures of samples that a layout has made, each with its place."""
    check_ids(((place, sample.id) for place, sample in samples if place is not None), findings)
    check_pictures(
        (
            (place, picture)
            for place, sample in samples
            for picture in (*sample.references, *sample.other_views, *([sample.mask] if sample.mask else []))
        ),
        findings,
    )
