"""What an adapter was trained with and has to be used with; a file beside it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from customized_grpo.config import RunConfig
from customized_grpo.errors import UsageError
from customized_grpo.fields import NonNegative, Pixels, Shift, Steps, Tokens

SAMPLING = "sampling.json"


@dataclass(frozen=True)
class SamplingSettings:
    """What an adapter was trained with and must be used with; written beside it."""

    num_steps: Steps
    shift: Shift | Literal["checkpoint"]
    guidance: NonNegative
    height: Pixels
    width: Pixels
    max_sequence_length: Tokens

    @classmethod
    def of(cls, config: RunConfig) -> SamplingSettings:
        """Those of a configuration."""
        model, sampling = config.model, config.sampling
        return cls(
            num_steps=sampling.num_steps,
            shift=sampling.shift,
            guidance=model.guidance,
            height=model.height,
            width=model.width,
            max_sequence_length=model.max_sequence_length,
        )

    def of_the_model(self) -> dict[str, Any]:
        """Those that stand in the section `model`, by field."""
        return {name: value for name, value in asdict(self).items() if name not in ("num_steps", "shift")}

    @classmethod
    def read(cls, adapter: Path) -> SamplingSettings | None:
        """The settings beside an adapter; None where there are none (an adapter from elsewhere)."""
        file = adapter / SAMPLING
        if not file.is_file():
            return None
        try:
            return TypeAdapter(cls).validate_json(file.read_bytes())
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            raise UsageError(f"{file} is not what training writes ({wrong}); copy it again, or remove it") from None
