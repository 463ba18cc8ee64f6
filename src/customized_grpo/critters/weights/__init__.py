"""The files of the built-in world's trained models: `generator`, `dino`, `clip` and `provenance.json`."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Literal

from customized_grpo.errors import UsageError
from customized_grpo.fields import BUILT_IN
from customized_grpo.files.paths import is_folder

FOLDER = Path(__file__).parent


def resolve(model: str | Path, part: Literal["generator", "dino", "clip"]) -> str | Path:
    """The folder of a built-in part if `model` is "critters"; any other folder or hub id unchanged.

    Raises UsageError for a path to a folder that does not exist; the libraries would take it for a hub id.
    """
    if str(model).startswith(("/", ".", "~")) and not is_folder(Path(model)):
        raise UsageError(f"no model in {model}; name a folder in the library's format, or a hub id")
    return FOLDER / part if model == BUILT_IN else model


@lru_cache
def identity_threshold() -> float:
    """The largest identity error that the oracle accepts as the same critter, fixed when the weights were built."""
    provenance = json.loads((FOLDER / "provenance.json").read_text(encoding="utf-8"))
    return provenance["gates"]["oracle"]["identity_threshold"]
