"""The types of settings, and the base class of the sections that hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from customized_grpo.inputs import LARGEST, LARGEST_NUMBER, LARGEST_SEED, PathError, expand_user

CRITTERS, CRITTERS_DYE = "critters", "critters-dye"
BUILT_IN = (CRITTERS, CRITTERS_DYE)  # name the built-in worlds as a model, an encoder or a data source


def _refuse_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"write a number, not {str(value).lower()}")  # Python takes true for 1
    return value


Number = BeforeValidator(_refuse_bool)
Positive = Annotated[float, Number, Field(gt=0, le=LARGEST_NUMBER)]
NonNegative = Annotated[float, Number, Field(ge=0, le=LARGEST_NUMBER)]
NoiseLevel = Annotated[float, Number, Field(ge=0.001, le=100)]  # less is lost in float32 rounding
Shift = Annotated[float, Number, Field(ge=0.01, le=100)]  # of the sigma grid; beyond, steps become equal by rounding
Share = Annotated[float, Number, Field(ge=0, le=1)]
Decay = Annotated[float, Number, Field(ge=0, lt=1)]  # share of a moving average that stays
Count = Annotated[int, Number, Field(ge=1, le=LARGEST)]
Index = Annotated[int, Number, Field(ge=0, le=LARGEST)]
Seed = Annotated[int, Number, Field(ge=0, le=LARGEST_SEED)]
Pixels = Annotated[
    int, Number, Field(ge=1, le=8192)
]  # one side of a picture; no supported generator makes larger ones
Tokens = Annotated[int, Number, Field(ge=1, le=512)]  # T5 was trained with 512, the limit of FLUX pipelines
Rank = Annotated[int, Number, Field(ge=1, le=4096)]  # FLUX's layers are 3072 wide
GroupSize = Annotated[int, Number, Field(ge=2, le=4096)]  # a single image cannot be compared
Steps = Annotated[int, Number, Field(ge=2, le=1000)]  # denoising steps


def _path_text(value: Any) -> Any:
    """A `Path` is a path already: the folder `Path("~")` becomes "./~", which stays what it is when read again."""
    if isinstance(value, Path):
        return f"./{value}" if str(value).startswith("~") else str(value)
    try:
        return expand_user(value) if isinstance(value, str) else value
    except PathError as error:
        raise ValueError(str(error)) from None  # for pydantic, which adds the key


OF_USER = BeforeValidator(_path_text)  # marks a path: `~` at its beginning is the user's folder
PathText = Annotated[str, OF_USER]  # a path, or the name of something that is used like one, such as a hub id


class Section(BaseModel):
    """A set of keys in a configuration file. Refuses unknown keys and infinite numbers; values cannot be changed.

    The docstring under each field is its description: docs/configuration.md.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
