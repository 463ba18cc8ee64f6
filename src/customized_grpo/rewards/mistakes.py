"""Pydantic's validation errors as lines for the user: the dotted key as they write it, the mistake, the way out."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from customized_grpo.errors import InputError
from customized_grpo.rewards.by_name import kind_of, names, parse_reward
from customized_grpo.rewards.settings import RewardSettings

_SHORT = reprlib.Repr()  # a file may hold values of any length
_SHORT.maxstring = _SHORT.maxother = 80

# Pydantic adds the name that selects a reward's class to the location: ("rewards", "prompt", "clip_t", "batch").
# By the first key, the position of that name.
_POSITION_OF_REWARD = {"rewards": 2, "evaluation": 3}
# It also adds the branch of a union, and a marker for bad keys: ("sampling", "shift", "literal['checkpoint']").
_NOT_A_KEY = re.compile(r"(function-\w+|literal|constrained-\w+|tuple)\[|\[key\]$")

_METRIC = ("evaluation", "metrics", "0")  # the location of a metric that is validated on its own


def shorten(value: object) -> str:
    """The value as a message shows it, cut if it is long."""
    return _SHORT.repr(value)


def nearest(key: str, known: Iterable[str]) -> str:
    """The hint "; did you mean ...?", or nothing if no known key is close."""
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


class ConfigError(InputError, ValueError):
    """A configuration that cannot be used. The message has one line per mistake."""


@dataclass(frozen=True)
class _Place:
    """Where a mistake is."""

    keys: tuple[str, ...]  # as the user writes them
    reward: str | None  # the name of the reward whose setting it is
    known: tuple[str, ...]  # keys that could be written in the place of the last one, if that is unknown

    def line(self, problem: str, *further_keys: str) -> str:
        where = ".".join([*self.keys, *further_keys])
        return f"{where}: {problem}" if where else problem


def describe_mistakes(error: ValidationError, schema: type[BaseModel], inside: tuple[str, ...] = ()) -> Iterator[str]:
    """The lines for a validation error, at least one for each mistake.

    schema   the class of the whole configuration
    inside   location of the part that was validated, which is not repeated: `_METRIC` for a metric on its own
    """
    for place, mistakes in groupby(error.errors(), lambda mistake: _locate(mistake, schema, inside)):
        first, *alternatives = mistakes  # a union has one mistake for each of its branches
        if describe := _MESSAGES.get(first["type"]):
            yield from describe(place, first)
        else:
            yield _refuse_value(place, [first, *alternatives])


def parse_metric(line: str) -> RewardSettings:
    """A metric from a line such as "dino against=other_view". Raises ConfigError."""
    try:
        return parse_reward(line)
    except ValidationError as error:
        problems = "; ".join(describe_mistakes(error, RewardSettings, _METRIC))
        name = shorten(line.partition(" ")[0])  # the name alone: a URL in the line may hold a key
        raise ConfigError(f"metric {name}: {problems}; write for instance 'dino against=other_view'") from None


def _locate(mistake: ErrorDetails, schema: type[BaseModel], inside: tuple[str, ...]) -> _Place:
    location = [*inside, *map(str, mistake["loc"])]
    position = _POSITION_OF_REWARD.get(location[0], len(location)) if location else 0
    reward = location.pop(position) if len(location) > position else None
    all_are_keys = mistake["type"] == "extra_forbidden"
    keys = [key for key in location if all_are_keys or not _NOT_A_KEY.match(key)]
    known = _known_keys(schema, keys, reward) if all_are_keys else ()
    return _Place(tuple(keys[len(inside) :]), reward, known)


def _known_keys(schema: type[BaseModel], keys: Sequence[str], reward: str | None) -> tuple[str, ...]:
    if reward is not None:
        return tuple(kind_of(reward).model_fields)
    section = schema.model_fields[keys[0]].annotation if len(keys) == 2 and keys[0] in schema.model_fields else schema
    return tuple(getattr(section, "model_fields", ()))


# --- one function for each type of mistake ---------------------------------------------------------------------------


def _refuse_key(place: _Place, _: ErrorDetails) -> Iterator[str]:
    key = place.keys[-1]
    hint = nearest(key, place.known) or f"; known here: {', '.join(place.known)}"
    if "did you mean" not in hint and place.keys[0] == "rewards" and place.reward in names():
        # Most often a setting of the recipe's reward, which the user replaced by naming another one.
        replaced = f"rewards.{place.keys[1]}={{name: {place.reward}}}"
        hint += f"; to drop the recipe's settings of this reward, write '{replaced}'"
    yield place.line(f"unknown key{hint}")


def _refuse_name(place: _Place, mistake: ErrorDetails) -> Iterator[str]:
    name = mistake.get("ctx", {})["tag"]
    hint = nearest(name, names()) or f"; known here: {', '.join(names())}"
    yield place.line(f"no reward is named {name!r}{hint}", "name")


def _ask_for_name(place: _Place, _: ErrorDetails) -> Iterator[str]:
    yield place.line(f"a reward needs a name; known: {', '.join(names())}")


def _ask_for_value(place: _Place, _: ErrorDetails) -> Iterator[str]:
    yield place.line("is missing and has no default; set it")


def _ask_for_list(place: _Place, mistake: ErrorDetails) -> Iterator[str]:
    yield place.line(f"write {_a_list(mistake)}, not {shorten(mistake['input'])}")


def _a_list(mistake: ErrorDetails) -> str:
    value = mistake["input"]
    return f"a list such as [{value if isinstance(value, str) and value.isidentifier() else 'a, b'}]"


def _ask_for_mapping(place: _Place, mistake: ErrorDetails) -> Iterator[str]:
    yield place.line(f"write keys with values, such as {{key: value}}, not {shorten(mistake['input'])}")


def _repeat_message(place: _Place, mistake: ErrorDetails) -> Iterator[str]:
    """The message of a validator of this package, whose lines are mistakes of their own."""
    yield from map(place.line, mistake["msg"].removeprefix("Value error, ").split("\n"))


_MESSAGES: dict[str, Callable[[_Place, ErrorDetails], Iterator[str]]] = {
    "extra_forbidden": _refuse_key,
    "union_tag_invalid": _refuse_name,
    "union_tag_not_found": _ask_for_name,
    "missing": _ask_for_value,
    "tuple_type": _ask_for_list,
    "model_type": _ask_for_mapping,
    "dict_type": _ask_for_mapping,
    "value_error": _repeat_message,
}


def _refuse_value(place: _Place, mistakes: Sequence[ErrorDetails]) -> str:
    """Pydantic's own message; of several branches "... ; or 'checkpoint'"."""
    first, *others = (_a_list(each) if each["type"] == "tuple_type" else each["msg"] for each in mistakes)
    message = "; or ".join([first[0].lower() + first[1:], *(text.removeprefix("Input should be ") for text in others)])
    return place.line(f"{message}, not {shorten(mistakes[0]['input'])}")
