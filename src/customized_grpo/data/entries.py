"""The entries of JSON and JSONL files, field by field; what is wrong goes to the findings."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from customized_grpo.data.findings import DataError, Findings, Place, show

_DEEP = "brackets inside brackets, too deep to be meant"


def read_entries(path: Path, findings: Findings) -> Iterator[tuple[Place, Any]]:
    """(place, value) of each entry: `.json` holds one array, `.jsonl` or `.ndjson` one value per line, in UTF-8.

    Raises:
        DataError: the file as a whole is no list of entries. A line that is no JSON goes to the findings.
    """
    by_line = path.suffix.lower() in (".jsonl", ".ndjson")
    if not by_line and path.suffix.lower() != ".json":
        remedy = "Call it .json for one array of objects, .jsonl for one object per line."
        raise DataError(path, [f"unknown ending {path.suffix!r}"], remedy)
    text = read_text(path)
    yield from _of_lines(text, path, findings) if by_line else _of_array(text, path)


def read_text(path: Path) -> str:
    """Raises: DataError, if there is no such file or it is not UTF-8."""
    if not path.is_file():
        raise DataError(path, ["no such file"], "Check the path.")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(path, [f"line {line}: not UTF-8"], "Save it as UTF-8.") from error


def _of_lines(text: str, path: Path, findings: Findings) -> Iterator[tuple[Place, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() also breaks inside JSON strings
        if not line.strip():
            continue
        place = Place(path, number, "line")
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            findings.add([place], f"not JSON: {error.msg}, column {error.colno}")
            continue
        except RecursionError:
            findings.add([place], f"not JSON: {_DEEP}")
            continue
        yield place, item


def _of_array(text: str, path: Path) -> Iterator[tuple[Place, Any]]:
    remedy = "A .json list is one array of objects; call a list with one object per line .jsonl."
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        problem = f"line {error.lineno}: not JSON: {error.msg}, column {error.colno}"
        raise DataError(path, [problem], remedy) from error
    except RecursionError:
        raise DataError(path, [f"not JSON: {_DEEP}"], remedy) from None
    if not isinstance(items, list):
        raise DataError(path, [f"must be an array, not {show(items)}"], remedy)
    for number, item in enumerate(items, start=1):
        yield Place(path, number), item


class Entry:
    """Reads the fields of one entry; null is absent, and so is what is wrong, which goes to the findings.

    spelled  what a layout calls our fields: {"prompt": "text"}. Our own name will do as well, but not both.
    """

    def __init__(
        self, place: Place, given: Mapping[str, Any], findings: Findings, spelled: Mapping[str, str] | None = None
    ) -> None:
        self.place = place
        self.fields = {name: value for name, value in given.items() if value is not None}
        self.findings = findings
        self.spelled = spelled or {}
        for name, other in self.spelled.items():
            if name in self.fields and other in self.fields:
                self.say(f"has both {name} and {other}; keep one")

    def say(self, problem: str) -> None:
        self.findings.add([self.place], problem)

    def key(self, name: str) -> str:
        """Under which name a field stands in this entry, or should."""
        return name if name in self.fields else self.spelled.get(name, name)

    def __contains__(self, name: str) -> bool:
        return self.key(name) in self.fields

    def text(self, name: str) -> str | None:
        value = self.fields.get(self.key(name))
        if value is None or (isinstance(value, str) and value.strip()):
            return value
        self.say(f"{self.key(name)} must be a text and not empty, not {show(value)}")
        return None

    def required_text(self, name: str) -> str:
        if name not in self:
            self.say(f"has no {self.key(name)} (fields: {', '.join(self.fields) or 'none'})")
        return self.text(name) or ""

    def texts(self, name: str, what: str = "paths") -> list[str]:
        value = self.fields.get(self.key(name), [])
        if isinstance(value, list) and all(isinstance(each, str) and each.strip() for each in value):
            return value
        self.say(f"{self.key(name)} must be a list of {what}, not {show(value)}")
        return []
