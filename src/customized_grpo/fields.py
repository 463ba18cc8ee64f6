"""What the sections of a configuration are made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

BUILT_IN = "critters"  # the built-in world, where a model, an encoder or a data source is named

LARGEST = 1_000_000  # of counts: what is above is a slip, and some would fill the memory before anything is said
LARGEST_NUMBER = 1e12  # of factors and bounds; in float32, products of much larger ones overflow to infinity and NaN
LARGEST_SEED = 2**63 - 1  # what torch and numpy both take


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"write a number, not {str(value).lower()}")  # to Python true is 1
    return value


Number = BeforeValidator(_no_truth)
Positive = Annotated[float, Number, Field(gt=0, le=LARGEST_NUMBER)]
NonNegative = Annotated[float, Number, Field(ge=0, le=LARGEST_NUMBER)]
NoiseLevel = Annotated[float, Number, Field(ge=0.001, le=100)]  # less is lost in float32 rounding
Shift = Annotated[float, Number, Field(ge=0.01, le=100)]  # of the sigma grid; beyond, steps become equal by rounding
Share = Annotated[float, Number, Field(ge=0, le=1)]
Count = Annotated[int, Number, Field(ge=1, le=LARGEST)]
Index = Annotated[int, Number, Field(ge=0, le=LARGEST)]
Seed = Annotated[int, Number, Field(ge=0, le=LARGEST_SEED)]
Pixels = Annotated[int, Number, Field(ge=1, le=8192)]  # of a side; no generator here makes larger pictures
Tokens = Annotated[int, Number, Field(ge=1, le=512)]  # what T5 was trained with, and FLUX pipelines take
Rank = Annotated[int, Number, Field(ge=1, le=4096)]  # FLUX's layers are 3072 wide
GroupSize = Annotated[int, Number, Field(ge=2, le=4096)]  # one image has nothing to be compared with
Steps = Annotated[int, Number, Field(ge=2, le=1000)]  # denoising steps


class Section(BaseModel):
    """Keys of a configuration file: unknown ones are refused, values do not change, numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)
