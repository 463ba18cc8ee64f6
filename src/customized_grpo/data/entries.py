"""The entries of JSON, JSONL and CSV files, read field by field; problems are added to the findings."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from customized_grpo.data.findings import DataError, Findings, Place, show
from customized_grpo.data.reading import read_text
from customized_grpo.files.paths import display
from customized_grpo.files.text import flaw_of, is_utf8

_DEEPEST = 100  # levels of brackets in an entry
_TOO_DEEP = "brackets are nested too deeply"
_TABLE = "metadata.csv"
ENDINGS = (".json", ".jsonl", ".ndjson")  # of lists; the first holds one array, the others one value per line
_PATHS = ("image_path", "mask")  # fields whose blanks belong to a name
_LIST_COLUMNS = ("image_paths", "other_views")  # a cell holds one path, or an array of them in JSON


def read_entries(path: Path, findings: Findings) -> Iterator[tuple[Place, Any]]:
    """(place, value) of each entry: `.json` holds one array, `.jsonl` or `.ndjson` one value per line, and a table
    `metadata.csv` one row per entry below the names of its columns, in UTF-8.

    A single entry that cannot be used is added to the findings and skipped.

    Raises:
        DataError: the file as a whole is not a list of entries.
    """
    if path.name.lower() == _TABLE:
        yield from _parse_table(read_text(path), path, findings)
        return
    by_line = path.suffix.lower() in ENDINGS[1:]
    if not by_line and path.suffix.lower() != ENDINGS[0]:
        remedy = "Name it .json for one array of objects, .jsonl for one object per line, metadata.csv for a table."
        raise DataError(path, [f"unknown ending {path.suffix!r}"], remedy)
    text = read_text(path)
    for place, value in _parse_lines(text, path, findings) if by_line else _parse_array(text, path):
        if flaw := _flaw(value):
            findings.add([place], flaw)
        else:
            yield place, value


def _parse_lines(text: str, path: Path, findings: Findings) -> Iterator[tuple[Place, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() also breaks inside JSON strings
        if not line.strip():
            continue
        place = Place(path, number, "line")
        try:
            value = _loads(line)
        except (ValueError, RecursionError) as error:
            findings.add([place], _why_not_parsed(error))
            continue
        yield place, value


def _parse_array(text: str, path: Path) -> Iterator[tuple[Place, Any]]:
    remedy = "A .json list is one array of objects; name a list with one object per line .jsonl."
    try:
        values = _loads(text)
    except (ValueError, RecursionError) as error:
        line = f"line {error.lineno}: " if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(path, [f"{line}{_why_not_parsed(error)}"], remedy) from error
    if not isinstance(values, list):
        raise DataError(path, [f"must be an array, not {show(values)}"], remedy)
    for number, value in enumerate(values, start=1):
        yield Place(path, number), value


def _parse_table(text: str, path: Path, findings: Findings) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Rows as RFC 4180 has them: values in quotes may hold commas and line breaks. An empty value is absent."""
    remedy = "A table has the names of its columns in the first line and values separated by commas."
    rows = csv.reader(StringIO(text, newline=""), strict=True, skipinitialspace=True)
    names: list[str] = []
    while True:
        place = Place(path, rows.line_num + 1, "line")
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise DataError(path, [f"line {place.number}: not CSV: {error}"], remedy) from error
        if row is None:
            return
        if not names:
            names = [name.strip() for name in row]
            if len(names) == 1 and any(mark in names[0] for mark in ";\t"):
                raise DataError(
                    path, [f"line {place.number}: {show(names[0])} is one column; separate columns by commas"], remedy
                )
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise DataError(path, [f"line {place.number}: two columns are called {show(twice[0])}"], remedy)
        elif len(row) == len(names):
            yield place, {name: _cell(name, value) for name, value in zip(names, row, strict=True) if value.strip()}
        elif row:
            columns = f"there are {len(names)} columns ({', '.join(map(display, names))})"
            findings.add([place], f"{columns}, and {len(row)} in this row; put a text with commas in quotes")


def _cell(name: str, value: str) -> Any:
    if name not in _LIST_COLUMNS:
        return value
    try:
        return _loads(value) if value.lstrip().startswith("[") else [value]
    except (ValueError, RecursionError):
        return value  # no list: reported as such


class _KeyTwiceError(ValueError):
    """A key that an object has twice: the standard library would keep the last value."""


def _loads(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _KeyTwiceError(next(key for key in keys if keys.count(key) > 1))
    return found


def _why_not_parsed(error: ValueError | RecursionError) -> str:
    if isinstance(error, _KeyTwiceError):
        return f"{show(str(error))} is written twice; keep one"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg}, column {error.colno}"
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    return "a number has too many digits"  # Python's limit, the only other ValueError of json.loads


def _flaw(value: Any, depth: int = 0) -> str | None:
    """What JSON allows but no later step can handle."""
    if depth > _DEEPEST:
        return _TOO_DEEP
    if isinstance(value, str):
        return None if is_utf8(value) else f"{show(value)} {flaw_of(value)}"
    parts: Sequence[Any] = ()
    if isinstance(value, dict):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, list):
        parts = value
    return next((flaw for part in parts if (flaw := _flaw(part, depth + 1))), None)


class Entry:
    """Reads the fields of one entry. null counts as absent; a wrong value is added to the findings, then absent too.

    aliases  what a layout calls our fields: {"prompt": "text"}. Our own name is accepted as well, but not both
    """

    def __init__(
        self, place: Place, given: Mapping[str, Any], findings: Findings, aliases: Mapping[str, str] | None = None
    ) -> None:
        self.place = place
        self.fields = {name: value for name, value in given.items() if value is not None}
        self.findings = findings
        self.aliases = aliases or {}
        for name, alias in self.aliases.items():
            if name in self.fields and alias in self.fields:
                self.report(f"has both {name} and {alias}; keep one")

    def report(self, problem: str) -> None:
        """Add a problem of this entry to the findings."""
        self.findings.add([self.place], problem)

    def report_missing(self, name: str) -> None:
        self.report(f"has no {self.key(name)} (fields: {', '.join(self.fields) or 'none'})")

    def key(self, name: str) -> str:
        """The name under which this entry has a field, or should have it."""
        return name if name in self.fields else self.aliases.get(name, name)

    def __contains__(self, name: str) -> bool:
        return self.key(name) in self.fields

    def text(self, name: str) -> str | None:
        value = self.fields.get(self.key(name))
        if isinstance(value, str) and (flaw := flaw_of(value)):
            self.report(f"{self.key(name)} {show(value)} {flaw}")
            return None
        if value is None or (isinstance(value, str) and value.strip()):
            return value if value is None or name in _PATHS else value.strip(" \t\r\n")
        self.report(f"{self.key(name)} must be a non-empty text, not {show(value)}")
        return None

    def required_text(self, name: str) -> str:
        if name not in self:
            self.report_missing(name)
        return self.text(name) or ""

    def texts(self, name: str, what: str = "paths") -> list[str]:
        value = self.fields.get(self.key(name), [])
        if isinstance(value, list) and all(isinstance(item, str) and item.strip() for item in value):
            return value
        self.report(f"{self.key(name)} must be a list of {what}, not {show(value)}")
        return []
