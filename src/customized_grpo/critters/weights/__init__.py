"""The trained parts of the built-in world, as files: `generator`, `dino`, `clip` and `provenance.json`."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Literal

from customized_grpo.errors import UsageError
from customized_grpo.fields import BUILT_IN

FOLDER = Path(__file__).parent


def resolve(model: str | Path, part: Literal["generator", "dino", "clip"]) -> str | Path:
    """The folder of a built-in part where `model` is "critters"; a folder or hub id as it is.

    Raises ValueError for what can only be a folder and is not there: the libraries would take it for a hub id.
    """
    if str(model).startswith(("/", ".", "~")) and not Path(model).is_dir():
        raise UsageError(f"no model in {model}; name a folder in the library's format, or a hub id")
    return FOLDER / part if model == BUILT_IN else model


@lru_cache
def identity_threshold() -> float:
    """What the oracle accepts as the same critter, fixed when the weights were built."""
    return json.loads((FOLDER / "provenance.json").read_text())["gates"]["oracle"]["identity_threshold"]
