"""docs/coming_from.md: every setting that it names exists, and the paper's recipe has what its table says."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from configuration_page import section_of
from customized_grpo.config import RunConfig, load_config

PAGE = (Path(__file__).parents[1] / "docs" / "coming_from.md").read_text(encoding="utf-8")
TABLES = dict(zip(*[iter(re.split(r"^## (.*)$", PAGE, flags=re.MULTILINE)[1:])] * 2, strict=True))


def settings(table: str) -> dict[str, Any]:
    """Settings by dotted name that the right column gives in code; None where it gives no value."""
    found: dict[str, Any] = {}
    for row in re.findall(r"^\| .*? \| (.*) \|$", table, re.MULTILINE):
        for code in re.findall(r"`([a-z_.]+(?:: [^`]+)?)`", row):
            name, _, value = code.partition(": ")
            if name.partition(".")[0] in RunConfig.model_fields:
                found |= flat(name, yaml.safe_load(value) if value else None)
    return found


def flat(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {key: each for inner, part in value.items() for key, each in flat(f"{name}.{inner}", part).items()}


def exists(name: str) -> bool:
    section: Any = RunConfig
    for part in name.split("."):
        if section is None or part not in section.model_fields:
            return False
        section = section_of(section.model_fields[part])
    return True


@pytest.mark.parametrize("trainer", TABLES)
def test_the_settings_exist(trainer: str):
    names = [name for name in settings(TABLES[trainer]) if not name.startswith("rewards")]
    assert len(names) > 10
    assert [name for name in names if not exists(name)] == []


def test_the_recipe_has_what_the_release_has():
    config = load_config("uno-paper", ["data.source=list.json", "model.base_adapter=uno.safetensors"]).model_dump()
    known = settings(TABLES["The authors' release of Customized-GRPO"])
    examples = {"shaping.rule", "weighting.kind", "weighting.prompt", "data.source", "data.root"}  # rows of choices
    for name, value in known.items():
        if value is None or name in examples:
            continue
        found: Any = config
        for part in name.split("."):
            found = found[part] if isinstance(found, dict) else found.model_dump()[part]
        assert found == value, name
