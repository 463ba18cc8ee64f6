"""YAML as people write it, read without surprises: no object tags, no duplicate keys, no exponential expansion.

Where a field is for text, `2024`, `on` and `2026-01-05` are the text as written, not a number, true and a date: the
functions take the field's type, and `files.kinds` says what it means.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from customized_grpo.errors import InputError
from customized_grpo.files.durable import reason_of
from customized_grpo.files.kinds import at_key, holds_more, is_path, is_text, of_items

MAX_ALIASES = 20  # "*name": nested aliases multiply their content until memory is full


class YamlError(InputError, ValueError):
    """Text that is not valid YAML; one line with the position and the problem."""


_TEXT = "tag:yaml.org,2002:str"
_LEADING_ZERO, _OF_BASE_60 = re.compile("[-+]?0[0-9]+"), re.compile("[-+]?[0-9]+(:[0-9]+)+(\\.[0-9]*)?")
_NULLS = ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True)
class _Plain:
    """A value without quotes that YAML reads as something other than text, such as 2024, on, null or 2026-01-05.

    YAML 1.1 takes 010 for the octal number 8, and 1:30 for 90. Here, as in YAML 1.2, they are 10 and a text.
    """

    text: str

    def read(self, kind: Any) -> Any:
        """The text where `kind` is text, otherwise what YAML makes of it. In a path `~` is a folder, not null."""
        is_null = self.text in _NULLS and not (self.text == "~" and is_path(kind))
        if (is_text(kind) and not is_null) or _OF_BASE_60.fullmatch(self.text):
            return self.text
        return int(self.text) if _LEADING_ZERO.fullmatch(self.text) else yaml.safe_load(self.text)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which keeps `_Plain` values as written and refuses duplicate keys and too many aliases."""

    aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                raise yaml.MarkedYAMLError(problem=f"more than {MAX_ALIASES} aliases; write the values out")
        return super().compose_node(parent, index)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        return _Plain(node.value) if self._is_plain(node) else super().construct_object(node, deep)

    def _is_plain(self, node: Any) -> bool:
        """Whether YAML chose the type by the looks of a value. One in quotes, or after `!!int`, is no question."""
        if not isinstance(node, yaml.ScalarNode) or node.style is not None or node.tag == _TEXT:
            return False
        return node.tag == self.resolve(yaml.ScalarNode, node.value, (True, False))

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = set[str]()
        for key, _ in node.value:  # before super() merges the keys of "<<: *name" into them
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                problem = f"{key.value!r} is written twice; keep one"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            keys.add(str(key.value))
        self.flatten_mapping(node)
        node.value = [(yaml.ScalarNode(_TEXT, key.value) if self._is_plain(key) else key, v) for key, v in node.value]
        return super().construct_mapping(node, deep)


def _read(value: Any, kind: Any) -> Any:
    """`value` of the loader, with every `_Plain` in it read as the kind of its place asks for."""
    if isinstance(value, _Plain):
        return value.read(kind)
    if isinstance(value, dict):
        return {key: _read(each, at_key(kind, key)) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return type(value)(_read(each, of_items(kind)) for each in value)
    return value


def parse_yaml(text: str, kind: Any = Any) -> Any:
    """The value of a YAML text in a place of this kind. Keys are text. Raises YamlError."""
    try:
        return _read(yaml.load(text, _Loader), kind)  # a safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise YamlError(f"{position}{error.problem or error.context}") from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise YamlError(" ".join(str(error).split())) from None
    except RecursionError:
        raise YamlError("brackets are nested too deeply, or an alias stands inside what it names") from None
    except (ValueError, OverflowError) as error:  # 2026-13-45 looks like a date
        raise YamlError(str(error)) from None


def parse_value(text: str, kind: Any) -> Any:
    """What `text` means as the value of a setting: `null`, text in quotes, and otherwise, for a text, all of it.

    Comments, braces and the like are YAML only where a value of this kind is no text. Raises YamlError.
    """
    value = text.strip()
    is_yaml = not is_text(kind) or (holds_more(kind) and value.startswith(("{", "[")))
    return parse_yaml(value, kind) if is_yaml or value in _NULLS or _is_quoted(value) else text


def _is_quoted(text: str) -> bool:
    """Whether one pair of quotes is around all of it."""
    if not text.startswith(("'", '"')):
        return False
    try:
        node = yaml.compose(text, _Loader)
    except yaml.YAMLError:
        return False
    return isinstance(node, yaml.ScalarNode) and node.end_mark.index == len(text)


def read_yaml(file: Path, kind: Any = Any) -> Any:
    """The value of a YAML file in UTF-8, as `parse_yaml` reads it. Raises YamlError, which names the file."""
    try:
        return parse_yaml(file.read_bytes().decode("utf-8-sig"), kind)
    except OSError as error:
        raise YamlError(f"{file} cannot be read: {reason_of(error)}") from None
    except UnicodeDecodeError as error:
        raise YamlError(f"{file} is not text in UTF-8 (byte {error.start + 1}); name a YAML file") from None
    except YamlError as error:
        raise YamlError(f"{file} is not YAML: {error}") from None
