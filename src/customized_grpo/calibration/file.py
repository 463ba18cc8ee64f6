"""calibration.yaml: what each reward gives to bad and to good pictures, and how that was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import Field, RootModel, ValidationError, model_validator

from customized_grpo.algorithm import Calibration
from customized_grpo.config import RunConfig
from customized_grpo.errors import InputError
from customized_grpo.fields import LARGEST_NUMBER, Index, Number, Section
from customized_grpo.files.durable import write_text
from customized_grpo.files.yaml_text import YamlError, read_yaml
from customized_grpo.rewards.settings import RewardSettings
from customized_grpo.validation import describe_mistakes

CALIBRATION = "calibration.yaml"  # the file in the folder of a run
Score = Annotated[float, Number, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]


class CalibrationError(InputError, ValueError):
    """A calibration that cannot be used; one line for each reward, with the way out."""


class Level(Section):
    """The mean score of some pictures."""

    mean: Score
    interval: tuple[Score, Score] | None = None  # 95 %, of the mean
    pictures: Index | None = None
    what: str | None = None  # which pictures, in words


class RewardCalibration(Section):
    """What one reward gives to bad and to good pictures. `bad: 0.1` is short for `bad: {mean: 0.1}`."""

    reward: str | None = None  # its settings, as a line; None: not checked
    capped: bool  # whether a picture can be better than good
    bad: Level
    good: Level

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, values: object) -> object:
        if not isinstance(values, Mapping):
            return values
        short = {key: {"mean": values[key]} for key in ("bad", "good") if isinstance(values.get(key), int | float)}
        return {**values, **short}

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        low = self.good.mean if self.good.interval is None else self.good.interval[0]
        high = self.bad.mean if self.bad.interval is None else self.bad.interval[1]
        if not low > high:
            raise ValueError(
                f"it cannot tell good pictures ({_shown(self.good)}) from bad ones ({_shown(self.bad)}); choose "
                "another reward or encoder, or measure on more pictures"
            )
        return self

    def scale(self) -> Calibration:
        return Calibration(self.bad.mean, self.good.mean, self.capped)


class _Rewards(RootModel[Mapping[str, RewardCalibration]]):
    pass


def _shown(level: Level) -> str:
    interval = "" if level.interval is None else f" [{level.interval[0]:.3g}, {level.interval[1]:.3g}]"
    return f"{level.what or 'mean'}: {level.mean:.3g}{interval}"


def read_calibration(file: Path) -> dict[str, RewardCalibration]:
    """The calibrations of rewards by key. Raises CalibrationError."""
    try:
        values = read_yaml(file)
    except YamlError as error:
        raise CalibrationError(str(error)) from None
    try:
        return dict(_Rewards.model_validate(values).root)
    except ValidationError as error:
        raise CalibrationError("\n".join(f"{file}: {line}" for line in describe_mistakes(error, _Rewards))) from None


def write_calibration(calibrations: Mapping[str, RewardCalibration], file: Path) -> None:
    values = {key: of_reward.model_dump(mode="json", exclude_none=True) for key, of_reward in calibrations.items()}
    write_text(file, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def check_calibration(calibrations: Mapping[str, RewardCalibration], config: RunConfig, source: str) -> None:
    """Raises CalibrationError unless these are the calibrations of the run's identity and prompt rewards.

    source  where they come from, for the message
    """
    if problems := list(_problems(calibrations, config)):
        raise CalibrationError("\n".join(f"{source}: {problem}" for problem in problems))


def _problems(calibrations: Mapping[str, RewardCalibration], config: RunConfig) -> Iterator[str]:
    for key, reward in calibrated_rewards(config).items():
        if key not in calibrations:
            yield f"rewards.{key} is missing; measure it with check-rewards, or remove shaping.calibration"
            continue
        known, own = calibrations[key].reward, str(reward.as_metric())
        if known is not None and known != own:
            yield f"rewards.{key} was {known!r} and is {own!r}; measure again with check-rewards"


def calibrated_rewards(config: RunConfig) -> dict[str, RewardSettings]:
    """The rewards that a calibration is about, with their models: those for identity and prompt."""
    return {key: reward for key, reward in config.trained().items() if reward.role != "quality"}
