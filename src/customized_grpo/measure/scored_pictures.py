"""Rewards under test, and what they say of the pictures of `known_pictures`."""

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
from customized_grpo.config import RunConfig
from customized_grpo.data import Sample, fit, load_image
from customized_grpo.data.images import Source
from customized_grpo.errors import UsageError
from customized_grpo.measure.intervals import Estimate, estimate
from customized_grpo.measure.known_pictures import ROWS, Cases
from customized_grpo.measure.named_metrics import named_metrics
from customized_grpo.rewards import Reward
from customized_grpo.rewards.settings import RewardSettings
from customized_grpo.runtime.device import usable_device

# --- rewards under test ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A reward under test. `key` is its place in `rewards` of the configuration; None: it is only a metric."""

    label: str  # its name and what sets it apart from others of that name; unique
    reward: Reward
    measures: str  # as in RewardSettings
    key: str | None = None
    against: str = "reference"
    encoder: str | None = None  # kind, as in RewardSettings
    model: str | None = None
    role: str | None = None  # None: the key says it

    def judges(self, quality: Literal["identity", "prompt"]) -> bool:
        """Whether it must tell good from bad in this respect: it says so, or it is trained for it."""
        return self.measures in (quality, "both") or (self.role or self.key) == quality

    def set_to(self, key: str, value: str) -> str:
        """What a user writes to change one of its settings."""
        if self.key:
            return f"rewards.{self.key}.{key}={value}"
        changed = {"name": self.label.split()[0], "against": self.against, key: value}
        if key == "name" or changed["against"] == "reference":
            del changed["against"]
        name = changed.pop("name")
        return f'--metric "{" ".join([name, *(f"{key}={text}" for key, text in changed.items())])}"'


def load_candidates(config: RunConfig, further: Sequence[RewardSettings] = ()) -> list[Candidate]:
    """The trained rewards and every metric, each once; ValueError for an unknown name, model or device."""
    device = usable_device(config.device)
    named = named_metrics(config, further).values()
    wanted: list[tuple[str | None, RewardSettings, str]]
    wanted = [(key, reward, reward.label) for key, reward in config.trained().items()]
    wanted += [(None, metric.settings, metric.written) for metric in named if not metric.keys]
    candidates: dict[str, Candidate] = {}
    for key, chosen, short in wanted:
        label = next(name for name in (short, f"{chosen}", f"{chosen} ({key})") if name not in candidates)
        against = getattr(chosen, "against", "reference")
        candidates[label] = Candidate(
            label, chosen.make(device), chosen.measures, key, against, chosen.encoder, chosen.own_model, chosen.role
        )
    return list(candidates.values())


# --- scoring ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """What a reward says: scores [N] in float64 by row, NaN where it could not score or nothing was shown."""

    candidate: Candidate
    cases: Cases
    scores: Mapping[str, Tensor]

    @cached_property
    def table(self) -> Tensor:
        """[N, rows]"""
        return torch.stack([self.scores[row] for row in ROWS], dim=1)

    @property
    def range(self) -> tuple[float, float]:
        """(floor, ceiling): the least and the most that was given; NaN where nothing was."""
        scored = self.table[~self.table.isnan()]
        return (scored.min().item(), scored.max().item()) if len(scored) else (math.nan, math.nan)

    @property
    def honest(self) -> Tensor:
        """[N]: a picture of the subject that is neither its reference nor what the reward compares with, else NaN.

        What gives credit for the prompt as well has to be shown a picture that follows it.
        """
        if self.cases.truth_known:
            return self.scores["right_prompt"]
        view = self.scores["other_view"]
        if self.candidate.measures == "both":
            return torch.full_like(view, math.nan)
        return view if self.candidate.against == "reference" else view.where(self.cases.third_view, math.nan)

    @property
    def same_subject(self) -> Tensor:
        """[N]: an honest picture, and where there is none the reference."""
        if self.candidate.measures == "both":
            return self.honest
        return self.honest.where(~self.honest.isnan(), self.scores["copy"])

    def pairs(self, first: Tensor, second: Tensor) -> Pairs | None:
        """Two scores [N] of the same cases compared; None without a case that has both."""
        both = ~(first.isnan() | second.isnan())
        if not both.any():
            return None
        first, second = first[both], second[both]
        subjects = [s for s, kept in zip(self.cases.subjects, both.tolist(), strict=True) if kept]
        higher = (first > second).double() + (first == second).double() / 2
        return Pairs(estimate(higher, subjects), first.mean().item(), second.mean().item(), len(higher))


@dataclass(frozen=True)
class Pairs:
    """Share of pairs in which the first is higher, ties counting half; the means; the number of pairs."""

    share: Estimate
    first: float
    second: float
    count: int

    def as_dict(self) -> dict[str, float]:
        return self.share.as_dict() | {"pairs": self.count}


def judge(cases: Cases, candidates: Sequence[Candidate], size: tuple[int, int], batch: int) -> list[Judged]:
    """Every picture by every reward, fitted to (width, height) as the generator's own would be, `batch` at a time."""
    count = len(cases.samples)
    scores = [{row: torch.full((count,), math.nan, dtype=torch.float64) for row in ROWS} for _ in candidates]
    shown = [(row, i, each) for row in ROWS for i, each in enumerate(cases.rows[row]) if each is not None]
    for start in tqdm(range(0, len(shown), batch), desc="scoring", leave=False):
        part = shown[start : start + batch]
        images = torch.stack([as_image(each.picture, size) for _, _, each in part])
        for candidate, values in zip(candidates, scores, strict=True):
            given = _scored(candidate, images, [each.sample for _, _, each in part])
            for (row, i, _), value in zip(part, given, strict=True):
                values[row][i] = value
    return [Judged(candidate, cases, values) for candidate, values in zip(candidates, scores, strict=True)]


def as_image(picture: Source, size: tuple[int, int]) -> Tensor:
    """A picture as if it had been generated: [3, H, W] in [0, 1], cut and scaled to (width, height)."""
    fitted = fit(load_image(picture), *size)
    pixels = torch.frombuffer(bytearray(fitted.tobytes()), dtype=torch.uint8)
    return pixels.reshape(fitted.height, fitted.width, 3).permute(2, 0, 1) / 255


def _scored(candidate: Candidate, images: Tensor, samples: Sequence[Sample]) -> Tensor:
    """[N] in float64; ValueError for what no training could use."""
    values = torch.as_tensor(candidate.reward(images, samples), dtype=torch.float64).cpu()
    if values.shape != (len(samples),):
        shape = list(values.shape)
        raise UsageError(f"{candidate.label} gives numbers of shape {shape} for {len(samples)} pictures; one each")
    if values.isinf().any():
        culprit = samples[int(values.isinf().nonzero()[0])].id
        raise UsageError(f"{candidate.label} gives an infinity for sample {culprit}; NaN says that it cannot score")
    return values


# --- figures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """A row of the table; None for a figure that does not exist: nothing was scored, or one case has no spread."""

    mean: float | None
    low: float | None  # 95 % interval of the mean
    high: float | None
    spread: float | None  # standard deviation, ddof = 1
    min: float | None
    max: float | None
    scored: int
    unscored: int  # cases without a score, those without a picture included
    missing: int  # cases without a picture


def row_figures(values: Tensor, subjects: Sequence[str], missing: int = 0) -> Figures:
    """Figures of one row from its scores [N], NaN for unscored, and the subject of each."""
    kept = values[~values.isnan()]
    unscored = len(values) - len(kept)
    if len(kept) == 0:
        return Figures(None, None, None, None, None, None, 0, unscored, missing)
    mean = estimate(values, subjects)
    spread = kept.std().item() if len(kept) > 1 else None
    return Figures(
        mean.mean, mean.low, mean.high, spread, kept.min().item(), kept.max().item(), len(kept), unscored, missing
    )


def correlation(first: Tensor, second: Tensor) -> float | None:
    """Pearson's, over what both have scored; None where one of them does not vary."""
    both = torch.stack([first.flatten(), second.flatten()])
    both = both[:, ~both.isnan().any(dim=0)]
    if both.shape[1] < 2 or (group_advantages(both) == 0).all(dim=1).any():
        return None
    return torch.corrcoef(both)[0, 1].item()
