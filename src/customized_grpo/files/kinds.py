"""What the type of a field says about a value that a user writes there: text, a path, or further keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from customized_grpo.fields import OF_USER


@dataclass(frozen=True)
class WrittenAs:
    """Annotates a type whose values are written as one of `kinds`; pydantic ignores it."""

    kinds: tuple[Any, ...]


@dataclass(frozen=True)
class DottedKeysOf:
    """Annotates a mapping whose keys are dotted keys of this section, such as "data.root"; pydantic ignores it."""

    section: type[BaseModel]


def is_text(kind: Any) -> bool:
    """Whether every single value of this kind is text: `str | None` and `Literal["a", "b"]`, not `int | str`."""
    single = [branch for branch in _branches(kind) if branch is not NoneType and not _holds_more(branch)]
    return bool(single) and all(branch in (str, Path) or _is_names(branch) for branch in single)


def is_path(kind: Any) -> bool:
    """Whether `~` at the beginning is the user's folder."""
    return any(note == OF_USER for note in _notes(kind))


def holds_more(kind: Any) -> bool:
    """Whether a value may be a list or a mapping."""
    return any(map(_holds_more, _branches(kind)))


def at_key(kind: Any, key: str) -> Any:
    """The kind of a mapping's value; Any if `kind` says nothing about the key."""
    for note in _notes(kind):
        if isinstance(note, DottedKeysOf):
            return at_keys(note.section, key.split("."))
    for branch in _branches(kind):
        if _is_section(branch) and (field := branch.model_fields.get(key)):
            return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        if _is(branch, Mapping):
            return get_args(branch)[1]
    return Any


def at_keys(kind: Any, keys: Sequence[str]) -> Any:
    """The kind at the end of a dotted key."""
    for key in keys:
        kind = at_key(kind, key)
    return kind


def of_items(kind: Any) -> Any:
    """The kind of a list's items; Any if `kind` is no list."""
    return next((get_args(branch)[0] for branch in _branches(kind) if _is(branch, tuple)), Any)


def _branches(kind: Any) -> Iterator[Any]:
    """The types of a union, without annotations."""
    arguments = get_args(kind)
    if get_origin(kind) is Annotated:
        written = next((note.kinds for note in arguments[1:] if isinstance(note, WrittenAs)), arguments[:1])
        for each in written:
            yield from _branches(each)
    elif get_origin(kind) in (Union, UnionType):
        for each in arguments:
            yield from _branches(each)
    else:
        yield kind


def _notes(kind: Any) -> Iterator[Any]:
    """The annotations of a type and of the types of a union."""
    arguments = get_args(kind)
    if get_origin(kind) is Annotated:
        yield from arguments[1:]
        yield from _notes(arguments[0])
    elif get_origin(kind) in (Union, UnionType):
        for each in arguments:
            yield from _notes(each)


def _holds_more(branch: Any) -> bool:
    return _is_section(branch) or _is(branch, Mapping) or _is(branch, tuple)


def _is(branch: Any, origin: type) -> bool:
    return get_origin(branch) is origin


def _is_section(branch: Any) -> bool:
    return isinstance(branch, type) and issubclass(branch, BaseModel)


def _is_names(branch: Any) -> bool:
    return get_origin(branch) is Literal and all(isinstance(name, str) for name in get_args(branch))
