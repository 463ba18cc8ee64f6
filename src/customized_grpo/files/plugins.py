"""What other installed packages add, each by an entry point: rewards, shaping rules, model families, data layouts.

A package is imported only when a configuration names something of it. Docs: docs/api.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from customized_grpo.errors import InputError
from customized_grpo.files.user_code import user_code

REWARDS, RULES = "customized_grpo.rewards", "customized_grpo.rules"
FAMILIES, SOURCES = "customized_grpo.families", "customized_grpo.sources"
# What an entry of each group is called in a message.
KINDS = {REWARDS: "reward", RULES: "shaping rule", FAMILIES: "model family", SOURCES: "data source"}


class PluginError(InputError, ValueError):
    """Something that another package registers cannot be used: its name is taken, or it is not what it should be."""


@cache
def _entries(group: str) -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for entry in sorted(entry_points(group=group), key=lambda entry: (entry.name, package_of(entry))):
        found.setdefault(entry.name, []).append(entry)
    return found


def names(group: str) -> list[str]:
    """The names that installed packages register in a group, sorted. Imports none of them."""
    return list(_entries(group))


def package_of(entry: EntryPoint) -> str:
    """Name and version of the package that an entry comes from."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "a package without a name"


def installed() -> dict[str, str]:
    """All that is registered: "shaping rule cubic" -> "their-package 1.2"."""
    return {
        f"{kind} {name}": " and ".join(map(package_of, entries))
        for group, kind in KINDS.items()
        for name, entries in _entries(group).items()
    }


def double(group: str, name: str, built_in: Collection[str]) -> str | None:
    """Why a name cannot be used that means two things: which one was meant cannot be guessed. None if it means one."""
    entries, kind = _entries(group).get(name, []), KINDS[group]
    packages = " and ".join(map(package_of, entries))
    if entries and name in built_in:
        return (
            f"the {kind} {name!r} is built in, and {packages} registers another one of this name; uninstall that "
            "package, or rename its entry"
        )
    if len(entries) > 1:
        return f"the {kind} {name!r} is registered by {packages}; uninstall one of them"
    return None


def refuse_doubles(group: str, name: str, built_in: Collection[str]) -> None:
    """Raises PluginError if a name means two things."""
    if problem := double(group, name, built_in):
        raise PluginError(problem)


def load(group: str, name: str, fits: Callable[[Any], bool], expected: str) -> Any:
    """What a package registers under `name`, which must be one of `names(group)`. Imports it.

    fits, expected  whether the loaded object is what it should be, and what that is, for the message

    Raises PluginError if two packages register it, if its import fails, or if it is something else.
    """
    refuse_doubles(group, name, ())
    (entry,) = _entries(group)[name]
    where = f"the {KINDS[group]} {name!r} of {package_of(entry)} ({entry.value})"
    with user_code(f"{where} cannot be loaded", PluginError):
        loaded = entry.load()
    if not fits(loaded):
        what = f"the class {loaded.__name__}" if isinstance(loaded, type) else f"a {type(loaded).__name__}"
        raise PluginError(f"{where} is {what}; it must be {expected}")
    return loaded


def registered(group: str) -> AfterValidator:
    """A validator of names that packages register in a group, for the second branch of a union with the built-in."""

    def check(name: str) -> str:
        if name not in _entries(group):
            known = ", ".join(names(group)) or "none"
            about = {"kind": KINDS[group], "known": known}
            raise PydanticCustomError("plugin", "a {kind} of an installed package ({known})", about)
        return name

    return AfterValidator(check)


def single(group: str, built_in: Collection[str]) -> AfterValidator:
    """A validator that refuses a name which means two things."""

    def check(name: str | None) -> str | None:
        if name is not None:
            refuse_doubles(group, name, built_in)
        return name

    return AfterValidator(check)
