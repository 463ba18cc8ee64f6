"""calibration.yaml: what each reward gives to bad and to good pictures, and how that was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from customized_grpo.config import RunConfig
from customized_grpo.errors import InputError
from customized_grpo.fields import Index, Number, Section
from customized_grpo.files.yaml_text import YamlError, read_yaml
from customized_grpo.inputs import LARGEST_NUMBER
from customized_grpo.rewards.by_name import parse_reward
from customized_grpo.rewards.mistakes import describe_mistakes, nearest, shorten
from customized_grpo.rewards.settings import RewardSettings

if TYPE_CHECKING:
    from customized_grpo.algorithm import Calibration

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

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.interval is not None and self.interval[0] > self.interval[1]:
            raise ValueError(f"interval: {list(self.interval)} begins above its end; write the lower number first")
        return self

    def __str__(self) -> str:
        interval = "" if self.interval is None else f" [{self.interval[0]:.3g}, {self.interval[1]:.3g}]"
        return f"{self.what or 'mean'}: {self.mean:.3g}{interval}"


class MeasuredReward(Section):
    """What one reward gives to bad and to good pictures, whether or not it can tell them apart.

    `bad: 0.1` is short for `bad: {mean: 0.1}`.
    """

    reward: str | None = None  # its settings, as a line; None: not checked
    capped: bool | None = None  # whether what is better than good counts as good; None: only identity's is
    bad: Level
    good: Level

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, values: object) -> object:
        if not isinstance(values, Mapping):
            return values
        written = {key: values[key] for key in ("bad", "good") if key in values}
        short = {key: {"mean": v} for key, v in written.items() if not isinstance(v, Mapping | Level)}
        return {**values, **short}

    @property
    def told_apart(self) -> bool:
        """Whether good is clearly above bad: their intervals, if they are known, do not overlap."""
        low = self.good.mean if self.good.interval is None else self.good.interval[0]
        high = self.bad.mean if self.bad.interval is None else self.bad.interval[1]
        return low > high


class RewardCalibration(MeasuredReward):
    """A reward that training can be calibrated with: it can tell good pictures from bad ones."""

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        if not self.told_apart:
            raise ValueError(
                f"it cannot tell good pictures ({self.good}) from bad ones ({self.bad}); choose another reward or "
                "encoder, or measure on more pictures: check-rewards with a larger --cases"
            )
        return self

    def scale(self) -> Calibration:
        """For the algorithm; `check_calibration` has decided whether it is capped."""
        from customized_grpo.algorithm import Calibration

        return Calibration(self.bad.mean, self.good.mean, capped=bool(self.capped))


def as_calibrations(values: object, source: object) -> dict[str, RewardCalibration]:
    """The calibrations of rewards by key. Raises CalibrationError with a line for each mistake.

    source  where they come from, for the message
    """
    if not isinstance(values, Mapping) or not values:
        problem = f"write a key for each reward, such as identity: {{bad: 0.1, good: 0.8}}, not {shorten(values)}"
        raise CalibrationError(f"{source}: {problem}")
    known, problems = dict[str, RewardCalibration](), list[str]()
    for key, of_reward in values.items():
        try:
            known[str(key)] = RewardCalibration.model_validate(of_reward)
        except ValidationError as error:
            problems += [f"{source}: rewards.{key}: {line}" for line in describe_mistakes(error, RewardCalibration)]
    if problems:
        raise CalibrationError("\n".join(problems))
    return known


def read_calibration(file: Path) -> dict[str, RewardCalibration]:
    """The calibrations of rewards by key. Raises CalibrationError."""
    try:
        values = read_yaml(file, Mapping[str, RewardCalibration])
    except YamlError as error:
        raise CalibrationError(str(error)) from None
    return as_calibrations(values, file)


def as_text(calibrations: Mapping[str, MeasuredReward]) -> str:
    """The content of the file that `read_calibration` reads."""
    values = {key: of_reward.model_dump(mode="json", exclude_none=True) for key, of_reward in calibrations.items()}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=119)


def check_calibration(
    calibrations: Mapping[str, RewardCalibration], config: RunConfig, source: object
) -> dict[str, RewardCalibration]:
    """The calibrations with `capped` set: identity's are, where nothing else is written.

    source  where they come from, for the message

    Raises CalibrationError if one of them is not that of an identity or prompt reward of the run.
    """
    if problems := list(calibration_problems(calibrations, config)):
        raise CalibrationError("\n".join(f"{source}: {problem}" for problem in problems))
    rewards = calibrated_rewards(config)
    return {
        key: each if each.capped is not None else each.model_copy(update={"capped": is_capped(rewards[key])})
        for key, each in calibrations.items()
    }


def is_capped(reward: RewardSettings) -> bool:
    """Whether better than good counts as good: for identity, where more than another view has means copying."""
    return reward.role == "identity"


def calibration_problems(calibrations: Mapping[str, RewardCalibration], config: RunConfig) -> Iterator[str]:
    """Calibrations that are not those of the run's rewards, one line each."""
    rewards = calibrated_rewards(config)
    for key, calibration in calibrations.items():
        if key not in rewards:
            hint = nearest(key, rewards) or f"; they are {', '.join(rewards)}"
            yield f"rewards.{key}: the run has no identity or prompt reward under this key{hint}"
            continue
        known, own = calibration.reward, str(rewards[key].as_metric())
        if known is not None and _scoring(known) != rewards[key].scoring:
            yield f"rewards.{key} was {known!r} and is {own!r}; measure again with check-rewards"


def _scoring(line: str) -> str:
    """Of a reward's line what decides its scores; the line itself if it is no reward's."""
    try:
        return parse_reward(line).scoring
    except ValidationError:
        return line


def calibrated_rewards(config: RunConfig) -> dict[str, RewardSettings]:
    """The rewards that a calibration is about, with their models: those for identity and prompt."""
    return {key: reward for key, reward in config.trained().items() if reward.role != "quality"}
