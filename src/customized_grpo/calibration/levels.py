"""What a reward gives to bad and to good pictures: of the data where it has them, else of the base's own groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from customized_grpo.calibration.file import Level, MeasuredReward, is_capped
from customized_grpo.calibration.intervals import estimate
from customized_grpo.calibration.scored_pictures import Judged
from customized_grpo.rewards.settings import RewardSettings
from customized_grpo.wording import counted

UPPER = 0.9  # decile of a group of the base that counts as good; 1 - UPPER: as bad
DIGITS = 6  # significant ones in the file; the run calculates with what it writes

STRANGER, OTHER_VIEW, REFERENCE = "other subjects", "other views", "references"
RIGHT, WRONG = "right prompts", "wrong prompts"
BASE_UPPER, BASE_LOWER = "upper decile of the base's groups", "lower decile of the base's groups"
BASE_WRONG = "the base's pictures with wrong prompts"


@dataclass(frozen=True)
class Levels:
    """What is known of a reward's levels; None: the data has no such pictures, or none could be scored."""

    bad: Level | None = None
    good: Level | None = None

    @property
    def complete(self) -> bool:
        return self.bad is not None and self.good is not None

    def or_else(self, other: Levels) -> Levels:
        """The levels, with those of `other` where they are unknown."""
        return Levels(self.bad or other.bad, self.good or other.good)

    def measured(self, settings: RewardSettings) -> MeasuredReward | None:
        """For the file; None unless both levels are known."""
        if self.bad is None or self.good is None:
            return None
        reward, capped = str(settings.as_metric()), is_capped(settings)
        return MeasuredReward(reward=reward, capped=capped, bad=self.bad, good=self.good)


def level(values: Tensor, subjects: Sequence[str], what: str, pictures: int | None = None) -> Level | None:
    """The mean of values [N] with its interval over subjects [N]; NaN is left out. None if all are NaN.

    pictures  how many were scored, if several of them share a value
    """
    scored = int((~values.isnan()).sum())
    if scored == 0:
        return None
    found = estimate(values, subjects)
    mean, low, high = (float(f"{number:.{DIGITS}g}") for number in (found.mean, found.low, found.high))
    return Level(mean=mean, interval=(low, high), pictures=scored if pictures is None else pictures, what=what)


# --- pictures of the data --------------------------------------------------------------------------------------------


def known_levels(judged: Judged) -> Levels:
    """Of pictures that the data has. An identity reward: another subject, and another real view of the same one. A
    prompt reward: a picture that follows its prompt, with a wrong prompt and with its own.
    """
    scores, cases = judged.scores, judged.cases
    if judged.candidate.quality == "identity":
        what, view = OTHER_VIEW, scores["other_view"]
        if judged.candidate.against == "other_view":  # a view can only be compared with views other than itself
            view = view.where(cases.third_view, torch.nan)
            if view.isnan().all():  # with a single other view, the reference is another view than that one
                what, view = REFERENCE, scores["copy"]
        return Levels(
            bad=level(scores["other_subject"], cases.subjects, STRANGER), good=level(view, cases.subjects, what)
        )
    if not cases.prompt_known:
        return Levels()
    both = ~(scores["right_prompt"].isnan() | scores["wrong_prompt"].isnan())  # the same pictures
    wrong, right = (scores[row].where(both, torch.nan) for row in ("wrong_prompt", "right_prompt"))
    return Levels(bad=level(wrong, cases.subjects, WRONG), good=level(right, cases.subjects, RIGHT))


# --- the base's own groups -------------------------------------------------------------------------------------------


def base_levels(quality: str, own: Tensor, wrong: Tensor, subjects: Sequence[str]) -> Levels:
    """Of the base's pictures: P groups of G images, of samples with these subjects [P].

    own    [P, G]: scores with the sample's own prompt
    wrong  [P, G]: scores with a prompt that the pictures do not follow; NaN if there is none

    Good is the mean over groups of their upper decile. Bad is what the pictures get for a wrong prompt; for identity,
    or if all prompts are the same, the mean over groups of their lower decile.
    """
    scored = int((~own.isnan()).sum())
    upper, lower = (own.double().nanquantile(share, dim=1) for share in (UPPER, 1 - UPPER))
    of_images = [subject for subject in subjects for _ in range(own.shape[1])]
    bad = None if quality == "identity" else level(wrong.flatten(), of_images, BASE_WRONG)
    return Levels(
        bad=bad or level(lower, subjects, BASE_LOWER, scored), good=level(upper, subjects, BASE_UPPER, scored)
    )


def describe(key: str, levels: Levels) -> str:
    """What was found about a reward, on one line."""
    parts = [f"{side} {_shown(each)}" for side, each in (("bad", levels.bad), ("good", levels.good)) if each]
    return f"calibration of rewards.{key}: {'; '.join(parts) or 'nothing could be scored'}"


def _shown(found: Level) -> str:
    assert found.pictures is not None  # only what this program measured is shown
    low, high = found.interval or (found.mean, found.mean)
    return f"{found.mean:.3g} [{low:.3g}, {high:.3g}] ({found.what}, {counted(found.pictures, 'picture')})"


def measured_rewards(levels: Mapping[str, Levels], rewards: Mapping[str, RewardSettings]) -> dict[str, MeasuredReward]:
    """Those rewards of which both levels are known."""
    known = {key: each.measured(rewards[key]) for key, each in levels.items()}
    return {key: each for key, each in known.items() if each is not None}
