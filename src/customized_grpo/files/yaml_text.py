"""YAML as people write it, read without surprises: no object tags, no duplicate keys, no exponential expansion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from customized_grpo.errors import InputError
from customized_grpo.files.durable import reason_of

MAX_ALIASES = 20  # "*name": nested aliases multiply their content until memory is full


class YamlError(InputError, ValueError):
    """Text that is not valid YAML; one line with the position and the problem."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses duplicate keys and too many aliases."""

    aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                raise yaml.MarkedYAMLError(problem=f"more than {MAX_ALIASES} aliases; write the values out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = set[str]()
        for key, _ in node.value:  # before super() merges the keys of "<<: *name" into them
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                problem = f"{key.value!r} is written twice; keep one"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            keys.add(str(key.value))
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises YamlError."""
    try:
        return yaml.load(text, _Loader)  # a safe loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise YamlError(f"{position}{error.problem or error.context}") from None
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise YamlError(" ".join(str(error).split())) from None
    except RecursionError:
        raise YamlError("brackets are nested too deeply") from None
    except (ValueError, OverflowError) as error:  # 2026-13-45 looks like a date
        raise YamlError(str(error)) from None


def read_yaml(file: Path) -> Any:
    """The value of a YAML file in UTF-8. Raises YamlError, which names the file."""
    try:
        return parse_yaml(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise YamlError(f"{file} cannot be read: {reason_of(error)}") from None
    except UnicodeDecodeError as error:
        raise YamlError(f"{file} is not text in UTF-8 (byte {error.start + 1}); name a YAML file") from None
    except YamlError as error:
        raise YamlError(f"{file} is not YAML: {error}") from None
