"""What is known of an adapter by the files next to it: its model, and the settings to sample with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from customized_grpo.config import CONFIG, RunConfig, load_config
from customized_grpo.errors import UsageError
from customized_grpo.fields import NonNegative, Pixels, Shift, Steps, Tokens
from customized_grpo.files.adapter_places import folder_of
from customized_grpo.files.durable import reason_of
from customized_grpo.sections import Model

SAMPLING = "sampling.json"


@dataclass(frozen=True)
class SamplingSettings:
    """What an adapter was evaluated with in training, and is to be used with. Training may take fewer steps."""

    num_steps: Steps
    shift: Shift | Literal["checkpoint"]
    guidance: NonNegative | None  # None: the family's usual one
    height: Pixels
    width: Pixels
    max_sequence_length: Tokens

    @classmethod
    def of(cls, config: RunConfig) -> SamplingSettings:
        """The sampling settings of a configuration."""
        return cls.of_model(config.evaluation_model, config.evaluation_steps, config.sampling.shift)

    @classmethod
    def of_model(cls, model: Model, num_steps: int, shift: float | Literal["checkpoint"]) -> SamplingSettings:
        """The sampling settings of the section `model` with a schedule."""
        return cls(
            num_steps=num_steps,
            shift=shift,
            guidance=model.guidance,
            height=model.height,
            width=model.width,
            max_sequence_length=model.max_sequence_length,
        )

    def of_the_model(self) -> dict[str, Any]:
        """Those that belong to the configuration's section `model`, by field."""
        return {name: value for name, value in asdict(self).items() if name not in ("num_steps", "shift")}

    @classmethod
    def read(cls, adapter: Path) -> SamplingSettings | None:
        """The settings next to an adapter; None if there are none (another program trained it). Raises UsageError."""
        file = adapter / SAMPLING
        try:
            return TypeAdapter(cls).validate_json(file.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsageError(f"{file} cannot be read: {reason_of(error)}") from None
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise UsageError(f"{file} is not what training writes ({problems}); copy it again, or remove it") from None


def model_of(adapter: Path) -> Model | None:
    """The section `model` of the run that an adapter is from; None if there is no configuration next to it.

    adapter  its folder or file, as `find_adapter` returns it

    Raises ConfigError if the configuration is damaged, or of another version.
    """
    folder = folder_of(adapter)
    return load_config(str(folder)).model if (folder / CONFIG).is_file() else None
