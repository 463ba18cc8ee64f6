"""Docstrings as Markdown: lines such as `name   what it is` in aligned columns become a list."""

import re
from typing import Any

import griffe

ENTRY = re.compile(r"([\w.*]+(?:, [\w.*]+)*) {2,}(\S.*)")


class AlignedColumns(griffe.Extension):
    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_list(obj.docstring.value)


def as_list(text: str) -> str:
    """The text with every block of aligned lines as a list; an indented line goes on with the entry above it."""
    lines: list[str] = []
    entry = False
    for line in text.splitlines():
        if match := ENTRY.fullmatch(line):
            names = ", ".join(f"`{name}`" for name in match[1].split(", "))
            lines += ([] if entry else [""]) + [f"- {names}: {match[2]}"]
            entry = True
        elif entry and line.startswith("  "):
            lines.append(f"    {line.strip()}")
        else:
            lines += ["", line] if entry and line else [line]
            entry = False
    return "\n".join(lines)
