"""Rewards under test, and their scores for the pictures of `known_pictures`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from customized_grpo.algorithm import group_advantages
from customized_grpo.calibration.intervals import Estimate, estimate
from customized_grpo.calibration.known_pictures import ROWS, Cases
from customized_grpo.calibration.named_metrics import named_metrics
from customized_grpo.config import RunConfig
from customized_grpo.data import fit, load_image
from customized_grpo.data.images import Source
from customized_grpo.rewards import Reward
from customized_grpo.rewards.scoring import score
from customized_grpo.rewards.settings import RewardSettings
from customized_grpo.runtime.device import usable_device

# --- rewards under test ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A reward under test. `key` is its key in `rewards` of the configuration; None: only a metric."""

    label: str  # its name and the options that tell it from others of that name; unique
    reward: Reward
    measures: str  # as in RewardSettings
    key: str | None = None
    against: str = "reference"
    encoder: str | None = None  # kind, as in RewardSettings
    model: str | None = None
    role: str | None = None  # None: the key is the role

    @classmethod
    def of(cls, label: str, reward: Reward, settings: RewardSettings, key: str | None) -> Candidate:
        return cls(
            label=label,
            reward=reward,
            measures=settings.measures,
            key=key,
            against=getattr(settings, "against", "reference"),
            encoder=settings.encoder,
            model=settings.own_model,
            role=settings.role,
        )

    @property
    def quality(self) -> str | None:
        """What it is trained for, if it is: identity, prompt or quality."""
        return self.key and (self.role or self.key)

    def judges(self, quality: Literal["identity", "prompt"]) -> bool:
        """Whether it must tell good from bad in this quality: it claims to measure it, or is trained for it."""
        return self.measures in (quality, "both") or (self.role or self.key) == quality

    def set_to(self, key: str, value: str) -> str:
        """The override or option that changes one of its settings."""
        if self.key:
            return f"rewards.{self.key}.{key}={value}"
        settings = {"name": self.label.split()[0], "against": self.against, key: value}
        if key == "name" or settings["against"] == "reference":
            del settings["against"]
        name = settings.pop("name")
        return f'--metric "{" ".join([name, *(f"{option}={text}" for option, text in settings.items())])}"'


def load_candidates(config: RunConfig, further: Sequence[RewardSettings] = ()) -> list[Candidate]:
    """The trained rewards and every metric, each once.

    Raises ConfigError, ModelError or UsageError for an unknown name, model or device.
    """
    device = usable_device(config.device)
    named = named_metrics(config, further).values()
    wanted: list[tuple[str | None, RewardSettings, str]]
    wanted = [(key, reward, reward.label) for key, reward in config.trained().items()]
    wanted += [(None, metric.settings, metric.written) for metric in named if not metric.keys]
    candidates: dict[str, Candidate] = {}
    for key, settings, short in wanted:
        label = next(name for name in (short, f"{settings}", f"{settings} ({key})") if name not in candidates)
        candidates[label] = Candidate.of(label, settings.make(device), settings, key)
    return list(candidates.values())


# --- scoring ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """A reward's scores [N] by row, in float64; NaN if it could not score a picture or there was none."""

    candidate: Candidate
    cases: Cases
    scores: Mapping[str, Tensor]

    @cached_property
    def table(self) -> Tensor:
        """[N, rows]"""
        return torch.stack([self.scores[row] for row in ROWS], dim=1)

    @property
    def range(self) -> tuple[float, float]:
        """(floor, ceiling): the lowest and the highest score; NaN if nothing was scored."""
        scored = self.table[~self.table.isnan()]
        return (scored.min().item(), scored.max().item()) if len(scored) else (math.nan, math.nan)

    @property
    def honest(self) -> Tensor:
        """[N]: scores of a picture of the subject that is neither its reference nor what the reward compares with.

        NaN if there is none. A reward that also judges the prompt needs a picture that follows the prompt.
        """
        if self.cases.truth_known:
            return self.scores["right_prompt"]
        view = self.scores["other_view"]
        if self.candidate.measures == "both":
            return torch.full_like(view, math.nan)
        return view if self.candidate.against == "reference" else view.where(self.cases.third_view, math.nan)

    @property
    def same_subject(self) -> Tensor:
        """[N]: scores of an honest picture; of the reference if there is none."""
        if self.candidate.measures == "both":
            return self.honest
        return self.honest.where(~self.honest.isnan(), self.scores["copy"])

    def pairs(self, first: Tensor, second: Tensor) -> Pairs | None:
        """Compare two scores [N] of the same cases; None if no case has both."""
        both = ~(first.isnan() | second.isnan())
        if not both.any():
            return None
        first, second = first[both], second[both]
        subjects = [subject for subject, keep in zip(self.cases.subjects, both.tolist(), strict=True) if keep]
        higher = (first > second).double() + (first == second).double() / 2
        return Pairs(estimate(higher, subjects), first.mean().item(), second.mean().item(), len(higher))


@dataclass(frozen=True)
class Pairs:
    """Share of pairs in which the first score is higher (a tie counts half), both means, and the number of pairs."""

    share: Estimate
    first: float
    second: float
    count: int

    def as_dict(self) -> dict[str, float]:
        return self.share.as_dict() | {"pairs": self.count}


def judge(
    cases: Cases, candidates: Sequence[Candidate], size: tuple[int, int], batch: int, rows: Sequence[str] = ROWS
) -> list[Judged]:
    """Score every picture of these rows by every reward, `batch` at a time, fitted to (width, height) like a
    generated image.

    Raises RewardError if a reward returns anything but one finite number or NaN per picture.
    """
    count = len(cases.samples)
    scores = [{row: torch.full((count,), math.nan, dtype=torch.float64) for row in ROWS} for _ in candidates]
    pictures = [(row, i, shown) for row in rows for i, shown in enumerate(cases.rows[row]) if shown is not None]
    for start in tqdm(range(0, len(pictures), batch), desc="scoring", leave=False):
        part = pictures[start : start + batch]
        images = torch.stack([as_image(shown.picture, size) for _, _, shown in part])
        samples = [shown.sample for _, _, shown in part]
        for candidate, values in zip(candidates, scores, strict=True):
            given = score(candidate.label, candidate.reward, images, samples)
            for (row, i, _), value in zip(part, given, strict=True):
                values[row][i] = value
    return [Judged(candidate, cases, values) for candidate, values in zip(candidates, scores, strict=True)]


def as_image(picture: Source, size: tuple[int, int]) -> Tensor:
    """A picture as if it had been generated: [3, H, W] in [0, 1], cropped and scaled to (width, height)."""
    fitted = fit(load_image(picture), *size)
    pixels = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
    return pixels.reshape(fitted.height, fitted.width, 3).permute(2, 0, 1) / 255


# --- statistics ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowStatistics:
    """A row of the table; None if nothing was scored, or for the spread of a single case."""

    mean: float | None
    low: float | None  # 95 % interval of the mean
    high: float | None
    spread: float | None  # standard deviation, ddof = 1
    min: float | None
    max: float | None
    scored: int
    unscored: int  # cases without a score, including those without a picture
    missing: int  # cases without a picture


def row_statistics(values: Tensor, subjects: Sequence[str], missing: int = 0) -> RowStatistics:
    """Statistics of one row from its scores [N], NaN for unscored, and the subject of each."""
    kept = values[~values.isnan()]
    unscored = len(values) - len(kept)
    if len(kept) == 0:
        return RowStatistics(None, None, None, None, None, None, 0, unscored, missing)
    mean = estimate(values, subjects)
    spread = kept.std().item() if len(kept) > 1 else None
    return RowStatistics(
        mean=mean.mean,
        low=mean.low,
        high=mean.high,
        spread=spread,
        min=kept.min().item(),
        max=kept.max().item(),
        scored=len(kept),
        unscored=unscored,
        missing=missing,
    )


def correlation(first: Tensor, second: Tensor) -> float | None:
    """Pearson's, over the pictures that both scored; None if one of them does not vary."""
    both = torch.stack([first.flatten(), second.flatten()])
    both = both[:, ~both.isnan().any(dim=0)]
    if both.shape[1] < 2 or (group_advantages(both) == 0).all(dim=1).any():
        return None
    return torch.corrcoef(both)[0, 1].item()
