"""The files of the built-in worlds' trained models: `generator`, `dino`, `clip` and `provenance.json`."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Literal

from customized_grpo.errors import UsageError
from customized_grpo.fields import BUILT_IN, CRITTERS, CRITTERS_DYE
from customized_grpo.files.paths import is_file, is_folder

FOLDER = Path(__file__).parent
FOLDERS = {CRITTERS: FOLDER, CRITTERS_DYE: FOLDER / "dye"}


def resolve(model: str | Path, part: Literal["generator", "dino", "clip"]) -> str | Path:
    """The folder of a built-in part if `model` is "critters" or "critters-dye"; any other folder or hub id unchanged.

    Raises UsageError for a path that does not exist; the libraries would take it for a hub id.
    """
    path = Path(model)
    if str(model).startswith(("/", ".", "~")) and not is_folder(path) and not is_file(path):
        raise UsageError(f"no model in {model}; name a folder in the library's format, or a hub id")
    return FOLDERS[str(model)] / part if model in BUILT_IN else model


@lru_cache
def identity_threshold(world: str = CRITTERS) -> float:
    """The largest identity error that the oracle accepts as the same critter, fixed when the weights were built."""
    provenance = json.loads((FOLDERS[world] / "provenance.json").read_text(encoding="utf-8"))
    return provenance["gates"]["oracle"]["identity_threshold"]
