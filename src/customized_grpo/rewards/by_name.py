"""All rewards by name: the class that a reward's name chooses validates its other settings.

A new reward is one file next to this one, a class of settings and a line in `REWARDS`. Other packages register theirs
by an entry point: `files/plugins.py`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import GetCoreSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, core_schema

from customized_grpo.files import plugins
from customized_grpo.files.kinds import WrittenAs
from customized_grpo.rewards.remote_settings import HttpSettings, VlmJudgeSettings
from customized_grpo.rewards.settings import (
    ClipISettings,
    ClipTSettings,
    CopyPasteSettings,
    DinoSettings,
    HPSv3Settings,
    OracleSettings,
    OwnFunctionSettings,
    PickScoreSettings,
    RewardSettings,
)

REWARDS: dict[str, type[RewardSettings]] = {
    "dino": DinoSettings,
    "clip_i": ClipISettings,
    "clip_t": ClipTSettings,
    "pickscore": PickScoreSettings,
    "hpsv3": HPSv3Settings,
    "copy_paste": CopyPasteSettings,
    "oracle_identity": OracleSettings,
    "oracle_prompt": OracleSettings,
    "joint_success": OracleSettings,
    "http": HttpSettings,
    "vlm_judge": VlmJudgeSettings,
}

_OWN = "own"  # stands for all names with a colon


def names() -> list[str]:
    """All rewards by name: the built-in ones, then those of installed packages."""
    return [*REWARDS, *(name for name in plugins.names(plugins.REWARDS) if name not in REWARDS)]


def kind_of(name: str) -> type[RewardSettings]:
    """The class of settings of a reward; your own functions' for a name that nobody knows. Raises PluginError."""
    if name in REWARDS or name not in plugins.names(plugins.REWARDS):
        return REWARDS.get(name, OwnFunctionSettings)
    expected = (
        "a class derived from customized_grpo.rewards.RewardSettings; a function needs no entry point, name it as "
        "package.module:function"
    )
    return plugins.load(plugins.REWARDS, name, _is_settings, expected)


def _is_settings(loaded: Any) -> bool:
    return isinstance(loaded, type) and issubclass(loaded, RewardSettings)


def _of_package(value: Any) -> RewardSettings:
    """Settings of a reward that a package registers. Raises PluginError and pydantic's ValidationError."""
    return value if isinstance(value, RewardSettings) else kind_of(value["name"]).model_validate(value)


def _prepared(value: Any) -> Any:
    """A mapping of settings, whose name means one thing. Raises PluginError, and ValueError as `from_line`."""
    value = from_line(value)
    if isinstance(name := value.get("name") if isinstance(value, Mapping) else None, str):
        plugins.refuse_doubles(plugins.REWARDS, name, REWARDS)
    return value


def _class_key(value: Any) -> str | None:
    """The key of the class for a mapping of settings, or for settings that exist already."""
    name = value.get("name") if isinstance(value, Mapping) else getattr(value, "name", None)
    if not isinstance(name, str):
        return None
    return _OWN if ":" in name else name


class _ByName:
    """Tells pydantic to choose the class by name."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        classes = [*REWARDS.items(), (_OWN, OwnFunctionSettings)]
        choices: dict[Any, CoreSchema] = dict.fromkeys(
            plugins.names(plugins.REWARDS), core_schema.no_info_plain_validator_function(_of_package)
        )
        choices |= {name: handler.generate_schema(kind) for name, kind in classes}
        union = core_schema.tagged_union_schema(choices, discriminator=_class_key)
        return core_schema.no_info_before_validator_function(_prepared, union)


def from_line(value: Any) -> Any:
    """ "dino against=other_view" -> {"name": "dino", "against": "other_view"}; other types pass unchanged.

    Raises ValueError for a quotation mark that is not closed.
    """
    if not isinstance(value, str):
        return value
    try:
        name, *settings = shlex.split(value) or [""]
    except ValueError:
        raise ValueError(f"{value!r} has a quotation mark that is not closed") from None
    pairs = [("name", "=", name), *(setting.partition("=") for setting in settings)]
    keys = [key for key, _, _ in pairs]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        first = " (the first word)" if twice == "name" else ""
        raise ValueError(f"{value!r} has {twice} twice{first}; keep one")
    return {key: _value(text) if text else (name if key == "name" else None) for key, _, text in pairs}


def _value(text: str) -> Any:
    """A setting's text; a mapping or list that is written as JSON."""
    try:
        return json.loads(text) if text.startswith(("{", "[")) else text
    except ValueError:
        return text  # the field's type tells what is wrong


AnyReward = Annotated[RewardSettings, _ByName, WrittenAs((str, *REWARDS.values(), OwnFunctionSettings))]
_ANY: TypeAdapter[RewardSettings] = TypeAdapter(AnyReward)


def parse_reward(value: Any) -> RewardSettings:
    """Settings from a mapping or from one line, "dino against=other_view". Raises pydantic's ValidationError."""
    return _ANY.validate_python(value)
