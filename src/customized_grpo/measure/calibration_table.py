"""The part of `check-rewards` about calibration: its table, its findings and the file for training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from customized_grpo.calibration.file import Level, MeasuredReward
from customized_grpo.calibration.levels import Levels, known_levels, measured_rewards
from customized_grpo.calibration.scored_pictures import Judged
from customized_grpo.rewards.settings import RewardSettings


@dataclass(frozen=True)
class CalibrationTable:
    """What the identity and prompt rewards of a recipe give to bad and to good pictures of its data."""

    judged: Sequence[Judged]  # trained rewards and others
    rewards: Mapping[str, RewardSettings]  # those for identity and prompt, by key

    @cached_property
    def levels(self) -> dict[str, Levels]:
        by_key = {judged.candidate.key: judged for judged in self.judged}
        return {key: known_levels(by_key[key]) for key in self.rewards}

    @cached_property
    def measured(self) -> dict[str, MeasuredReward]:
        """What the file holds: the rewards of which the data tells both levels."""
        return measured_rewards(self.levels, self.rewards)

    def findings(self) -> Iterator[str]:
        for key, reward in self.measured.items():
            if not reward.told_apart:
                yield (
                    f"rewards.{key}: cannot tell good pictures ({reward.good}) from bad ones ({reward.bad}): the "
                    "intervals overlap, and training refuses to calibrate with it; choose another reward or encoder, "
                    "or measure on more pictures"
                )

    def lines(self) -> Iterator[str]:
        """Two rows and the gap for each reward, and what the data does not tell. Fits into 80 columns."""
        if not self.rewards:
            return
        yield "\nCalibration: what bad and good pictures get, with 95 % intervals"
        width = max(len(key) for key in self.rewards) + len("rewards.")
        for key, levels in self.levels.items():
            yield f"  {f'rewards.{key}':<{width}}  bad   {_cell(levels.bad)}"
            yield f"  {'':<{width}}  good  {_cell(levels.good)}"
            if measured := self.measured.get(key):
                yield f"  {'':<{width}}  gap   {measured.good.mean - measured.bad.mean:z.3f}"
        if unknown := [f"rewards.{key}" for key in self.rewards if key not in self.measured]:
            yield (
                f"  {', '.join(unknown)}: the data does not tell;\n"
                "  `train` measures it on pictures of the base, if the run needs it"
            )


def _cell(level: Level | None) -> str:
    if level is None or level.interval is None:
        return "-"
    numbers = f"{level.mean:z.3f} [{level.interval[0]:z.3f}, {level.interval[1]:z.3f}]"
    return f"{numbers:<24}{level.what or ''}".rstrip()
