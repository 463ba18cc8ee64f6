"""YAML as people write it, read without surprises: no tags that make objects, no key twice, no text that explodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from customized_grpo.errors import InputError

MOST_ALIASES = 20  # "*name": each level of them multiplies what stands there, up to the whole memory


class YamlError(InputError, ValueError):
    """Text that cannot be taken for YAML; one line with the place and what is wrong there."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without what it passes over in silence."""

    aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MOST_ALIASES:
                raise yaml.MarkedYAMLError(problem=f"more than {MOST_ALIASES} aliases; write the values out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        met = set[str]()
        for key, _ in node.value:  # before the keys of "<<: *name" are among them
            if isinstance(key, yaml.ScalarNode) and key.value in met:
                problem = f"{key.value!r} is written twice; keep one"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            met.add(str(key.value))
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """The value that a text stands for. Raises YamlError."""
    try:
        return yaml.load(text, _Loader)  # a safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise YamlError(f"{where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:  # a character that YAML does not have
        raise YamlError(" ".join(str(error).split())) from None
    except RecursionError:
        raise YamlError("brackets inside brackets, too deep to be meant") from None
    except (ValueError, OverflowError) as error:  # 2026-13-45 looks like a date
        raise YamlError(str(error)) from None


def read_yaml(file: Path) -> Any:
    """The value of a file in UTF-8. Raises YamlError, which names it, and OSError where it cannot be opened."""
    try:
        return parse_yaml(file.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise YamlError(f"{file} is not text in UTF-8 (byte {error.start + 1}); name a YAML file") from None
    except YamlError as error:
        raise YamlError(f"{file} is not YAML: {error}") from None
