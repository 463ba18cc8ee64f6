"""docs/configuration.md, generated from the fields of the configuration and their docstrings.

python tests/configuration_page.py --write       write the page
python tests/configuration_page.py               print it
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from customized_grpo.config import RunConfig, recipes
from customized_grpo.fields import Section
from customized_grpo.rewards.by_name import REWARDS
from customized_grpo.rewards.settings import OwnFunctionSettings, RewardSettings

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"

INTRODUCTION = """\
<!-- Generated: python tests/configuration_page.py --write -->
# Configuration

A configuration is a YAML file, a *recipe*. For a large model begin with one of the [recipes](#recipes): change it on
the command line, or copy its file from `src/customized_grpo/recipes` and change that. A file of your own needs to name
only what differs from the defaults below. These are for the built-in model, and their method is SARS + TDW as
published, without `objective.step_scale=equal`, which the recipes have:

```yaml
output: runs/mine
data: {source: critters}
shaping: {rule: joint, normalise: pooled, kappa: 0.3}
weighting: {kind: constant}
objective: {step_scale: equal}
```

`train`, `probe`, `evaluate` and `check-rewards` take a recipe by its name or path, followed by any number of
overrides: `key=value`, with a dot between section and key. Quote those with spaces or braces for your shell.
`--dry-run` prints the complete configuration and stops:

```
customized-grpo train critters optimizer.lr=1e-4 'adapter.targets=[to_q, to_k]' --dry-run
```

A setting that is text, such as a path, is what you write: `output=2024` and `'output=runs/trial #2'` are folders of
these names. `null` means null; put quotes inside the value, `"output='null'"`, for the word. Other values are YAML.
In a file, too, `output: 2024` is text, but YAML ends a value at ` #`, so write `output: 'runs/trial #2'`. Lists and
mappings are YAML in both places. `~` at the beginning of a path is your home folder, `~name` that of another user, in
files, overrides and options; a folder of that name is `./~`. What stands in an option is never YAML.

Misspelt keys, values out of range and settings that contradict each other are refused before anything is loaded, all
at once. Every run keeps its complete configuration in `config.yaml`, and the run's folder can be used in place of a
recipe.
"""

REWARDS_INTRODUCTION = """\
Each reward is a section of its own under `rewards`, with a key of your choice. `identity` and `prompt` always exist;
other keys need a `role`. Metrics are written in the same way in `evaluation.metrics`, or each as one line:

```yaml
rewards:
  identity: {name: dino, against: other_view}
  prompt: {name: clip_t}
  look: {name: pickscore, role: quality, weight: 0.2}
evaluation:
  metrics: [clip_i, "dino region=centre"]
```

`rewards.prompt.name=hpsv3` replaces a recipe's reward and keeps its other settings; `rewards.prompt=hpsv3` and
`'rewards.prompt={name: hpsv3}'` drop them. [Rewards](rewards.md) has what each reward measures, its range, cost,
licence and blind spots.

Settings of every reward:
"""


def page() -> str:
    """The whole page."""
    return "\n".join(
        [
            INTRODUCTION,
            *_recipes(),
            *_run(),
            "## Rewards\n",
            REWARDS_INTRODUCTION,
            *_table(RewardSettings, RewardSettings.model_fields),
            *_rewards(),
        ]
    )


def _recipes() -> Iterator[str]:
    yield "## Recipes\n"
    yield "| name | for |\n| --- | --- |"
    for name, path in recipes().items():
        first_line = path.read_text(encoding="utf-8").splitlines()[0]
        yield f"| [`{name}`](../src/customized_grpo/recipes/{name}.yaml) | {first_line.removeprefix('# ')} |"
    yield ""


def _run() -> Iterator[str]:
    """The keys of the top level, then a table for each section."""
    sections = {key: section for key, info in RunConfig.model_fields.items() if (section := section_of(info))}
    links = ", ".join(f"[`{key}`](#{key})" for key in sections)
    yield f"## Top level\n\nSections with tables of their own: {links}, [`rewards`](#rewards).\n"
    yield from _table(RunConfig, [key for key in RunConfig.model_fields if key not in sections])
    for key, section in sections.items():
        yield f"## `{key}`\n\n{as_markdown(_one_line(section.__doc__))}\n"
        yield from _table(section, section.model_fields, f"{key}.")


def _rewards() -> Iterator[str]:
    common = set(RewardSettings.model_fields)
    for settings, names in groupby(REWARDS, REWARDS.__getitem__):
        yield f"### {', '.join(f'`{name}`' for name in names)}\n"
        if meaning := as_markdown(_one_line(settings.__doc__)):
            yield f"{meaning}\n"
        own = [key for key in settings.model_fields if key not in common]
        own.sort(key=lambda key: not settings.model_fields[key].is_required())
        yield from _table(settings, own) if own else ["No further settings.\n"]
    yield "### A reward of your own, `file.py:function`\n"
    yield from _table(OwnFunctionSettings, [key for key in OwnFunctionSettings.model_fields if key not in common])


def _table(section: type[BaseModel], keys: Sequence[str] | Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    yield "| key | type | default | meaning |\n| --- | --- | --- | --- |"
    yield from _lines(section, keys, prefix)
    yield ""


def _lines(section: type[BaseModel], keys: Sequence[str] | Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key in keys:
        info = section.model_fields[key]
        if inner := section_of(info):
            yield from _lines(inner, inner.model_fields, f"{prefix}{key}.")
            continue
        cells = [
            f"`{prefix}{key}`",
            type_of(info),
            _default(section, key, prefix),
            as_markdown(description(section, key)),
        ]
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def section_of(info: FieldInfo) -> type[Section] | None:
    """The section that a field is, if it is one."""
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def description(section: type[BaseModel], key: str) -> str:
    """What the docstring of a field says; a field that only changes the default keeps that of its parent."""
    parents = (parent for parent in section.__mro__ if issubclass(parent, BaseModel) and key in parent.model_fields)
    return next((_one_line(text) for each in parents if (text := each.model_fields[key].description)), "")


def as_markdown(text: str) -> str:
    """Values such as "critters" and null as code, pages as links."""
    text = re.sub(r'"([^"\s`]+)"|(?<!`)\b(null)\b(?!`)', lambda match: f"`{match[1] or match[2]}`", text)
    return re.sub(r"docs/(\w+[.]md)", r"[docs/\1](\1)", text)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


# --- defaults --------------------------------------------------------------------------------------------------------

_DATA = {"source": "list.json"}
BUILT_IN_MODEL = RunConfig.model_validate({"data": _DATA}).model_dump(mode="json")
OTHER_MODEL = RunConfig.model_validate({"data": _DATA, "model": {"path": "other"}}).model_dump(mode="json")


def _default(section: type[BaseModel], key: str, prefix: str) -> str:
    info = section.model_fields[key]
    if section is RunConfig and key == "rewards":
        return "`identity: {name: dino}`, `prompt: {name: clip_t}`"
    if info.is_required():
        return "required"
    default = as_yaml(info.get_default(call_default_factory=True))
    if issubclass(section, RewardSettings):
        model = section.usual_model if key == "model" else None
        built_in = "; with critters the built-in one" if section.encoder else ""
        return f"{default}, which means `{model}`{built_in}" if model else default
    keys = f"{prefix}{key}".split(".")
    other = _value_at(OTHER_MODEL, keys)
    changes = other != _value_at(BUILT_IN_MODEL, keys) and keys != ["model", "path"]
    return f"{default}; {as_yaml(other)} for other models" if changes else default


def _value_at(values: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        values = values[key]
    return values


def as_yaml(value: Any) -> str:
    """A default as it is written in a configuration."""
    if isinstance(value, tuple):
        value = list(value)
    return f"`{yaml.safe_dump(value, default_flow_style=True).removesuffix(chr(10) + '...' + chr(10)).strip()}`"


# --- types in a user's words -----------------------------------------------------------------------------------------


def type_of(info: FieldInfo) -> str:
    return _in_words(info.annotation, info.metadata)


def _in_words(kind: Any, constraints: Sequence[Any] = ()) -> str:
    arguments = get_args(kind)
    match get_origin(kind):
        case None:
            return _NAMES.get(kind, "mapping") + _range(constraints)
        case origin if origin is Annotated:
            return _in_words(arguments[0], [*constraints, *arguments[1:]])
        case origin if origin is Literal:
            names = ", ".join(f"`{name}`" for name in arguments)
            return f"one of {names}" if len(arguments) > 1 else names
        case origin if origin is tuple:
            return f"list of {_in_words(arguments[0]).removeprefix('one of ')}"
        case origin if origin in (Union, UnionType):
            words = [_in_words(kind, constraints) for kind in arguments]
            return ", or ".join(words) if "," in words[0] else " or ".join(words)
        case _:
            return "mapping"


_NAMES: dict[Any, str] = {
    bool: "`true` or `false`",
    int: "integer",
    float: "number",
    str: "text",
    type(None): "`null`",
    RewardSettings: "rewards",
}


def _range(constraints: Sequence[Any]) -> str:
    """ ", 1 to 1,000,000" from annotated_types' bounds."""
    flat = [part for each in constraints for part in getattr(each, "metadata", [each])]
    bounds = {name: getattr(part, name) for part in flat for name in ("ge", "gt", "le", "lt") if hasattr(part, name)}
    low, high = bounds.get("ge"), bounds.get("le")
    if isinstance(high, float) and high >= 1e9:  # only against overflow, of no interest to a user
        high = None
    if low is not None and high is not None:
        return f", {low:,} to {high:,}" if high < 2**53 else f", {low:,} to 2^63 - 1"
    if low is not None and "lt" in bounds:
        return f", {low:,} to below {bounds['lt']:,}"
    if "gt" in bounds:
        return f" above {bounds['gt']:,}"
    return "" if low is None else f", {low:,} or more"


def write_page() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write_page()
    else:
        print(page())
