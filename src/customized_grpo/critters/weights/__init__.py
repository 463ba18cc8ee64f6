"""The trained parts of the built-in world, as files: `generator`, `dino`, `clip` and `provenance.json`."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Literal

FOLDER = Path(__file__).parent
BUILT_IN = "critters"


def resolve(model: str | Path, part: Literal["generator", "dino", "clip"]) -> str | Path:
    """The folder of a built-in part where `model` is "critters"; anything else as it is."""
    return FOLDER / part if model == BUILT_IN else model


@lru_cache
def identity_threshold() -> float:
    """What the oracle accepts as the same critter, fixed when the weights were built."""
    return json.loads((FOLDER / "provenance.json").read_text())["gates"]["oracle"]["identity_threshold"]
