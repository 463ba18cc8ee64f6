"""JSON files that this program wrote earlier, checked before anything in them is used.

A file may since have been cut short, edited, or replaced by one of another version. A problem is reported in one line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json

from customized_grpo.errors import InputError
from customized_grpo.files.durable import reason_of

Shape = type[BaseModel] | TypeAdapter[Any]


class JsonError(InputError, ValueError):
    """A file whose content cannot be used; one line with the place, what is wrong there, and the way out."""


def read_json(file: Path, shape: Shape, way_out: str) -> Any:
    """The content of a file that has this shape, as plain dicts and lists. Raises JsonError."""
    try:
        content = from_json(file.read_bytes())
    except OSError as error:
        raise JsonError(f"{file} cannot be read: {reason_of(error)}; {way_out}") from error
    except ValueError as error:
        raise JsonError(f"{file} is not JSON: {error}; {way_out}") from None
    check_shape(content, shape, str(file), way_out)
    return content


def check_shape(content: Any, shape: Shape, name: str, way_out: str) -> None:
    """Raises JsonError, which starts with `name`, unless the content has this shape. Types are not converted."""
    try:
        if isinstance(shape, TypeAdapter):
            shape.validate_python(content, strict=True)
        else:
            shape.model_validate(content, strict=True)
    except ValidationError as error:
        mistake = error.errors()[0]
        place = ".".join(map(str, mistake["loc"]))
        message = mistake["msg"][0].lower() + mistake["msg"][1:]
        raise JsonError(f"{name}: {place}{': ' if place else ''}{message}; {way_out}") from None
