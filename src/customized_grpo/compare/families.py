"""Families of questions that were fixed before the runs: few, tested together, corrected inside each family alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from customized_grpo.calibration.intervals import Difference, holm, paired_difference
from customized_grpo.compare.cells import cell, p_cell
from customized_grpo.compare.comparison import FRONT, Comparison, Contrast, Results
from customized_grpo.compare.front import ORACLES, margins_by_seed

BySeed = dict[int, float]


@dataclass(frozen=True)
class Tested:
    """One contrast of a family, paired by seed."""

    family: str
    name: str
    metric: str
    difference: Difference
    corrected: float  # p of the t-test after Holm's correction inside the family
    wilcoxon: float  # p of the signed-rank test, exact for few seeds; NaN if no seed differs
    bound: float | None  # of equivalence, if the family states one
    equivalence: float | None  # p of the two one-sided t-tests against the bound

    def as_dict(self) -> dict[str, Any]:
        return {
            "family": self.family,
            "contrast": self.name,
            "metric": self.metric,
            **self.difference.estimate.as_dict(),
            "p": self.difference.p_value,
            "p_holm": self.corrected,
            "p_wilcoxon": self.wilcoxon,
            "bound": self.bound,
            "p_equivalence": self.equivalence,
            "seeds": self.difference.pairs,
        }


def contrasts_of(comparison: Comparison, results: Results) -> list[Tested]:
    """Every contrast whose arms share a finished seed, family by family."""
    found = []
    for name, family in comparison.families.items():
        pairs = {c: _sides(comparison, results, c, family.metric) for c in family.contrasts}
        ready = {contrast: pair for contrast, pair in pairs.items() if pair[0].keys() & pair[1].keys()}
        differences = [paired_difference(*pair) for pair in ready.values()]
        corrected = holm([difference.p_value for difference in differences])
        for (contrast, pair), difference, p_value in zip(ready.items(), differences, corrected, strict=True):
            values = [pair[0][seed] - pair[1][seed] for seed in sorted(pair[0].keys() & pair[1].keys())]
            bound = family.equivalent_within
            metric = f"margin in ({', '.join(ORACLES)})" if contrast.against == (FRONT,) else family.metric
            equal = None if bound is None else equivalence(values, bound)
            found.append(Tested(name, str(contrast), metric, difference, p_value, signed_rank(values), bound, equal))
    return found


def _sides(comparison: Comparison, results: Results, contrast: Contrast, metric: str) -> tuple[BySeed, BySeed]:
    """Figures of both sides by seed. The margin beyond the front is a figure of one arm, compared with 0."""
    if contrast.against == (FRONT,):
        margins = margins_by_seed(comparison, results, contrast.arm[0], ORACLES)
        return margins, dict.fromkeys(margins, 0.0)
    return _worst(results, contrast.arm, metric), _worst(results, contrast.against, metric)


def _worst(results: Results, arms: Sequence[str], metric: str) -> BySeed:
    """The lowest figure of these arms, for the seeds that all of them have."""
    by_arm = [scored(results.get(arm, {}), metric) for arm in arms]
    seeds = set.intersection(*({*values} for values in by_arm))
    return {seed: min(values[seed] for values in by_arm) for seed in sorted(seeds)}


def scored(by_seed: Mapping[int, Mapping[str, Any]], metric: str) -> BySeed:
    """A test metric by seed; seeds that could not be scored are left out."""
    return {seed: run["test"][metric] for seed, run in by_seed.items() if run["test"].get(metric) is not None}


def signed_rank(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test: an outlier counts by its rank alone. NaN if nothing differs."""
    values = np.asarray(differences, dtype=float)
    if not values.any():
        return float("nan")
    _, p_value = map(float, stats.wilcoxon(values))
    return p_value


def equivalence(differences: Sequence[float], bound: float) -> float:
    """p of the claim that the true mean difference lies within +-bound: the larger of two one-sided t-tests.

    Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15 (1987). NaN for a single pair; 0 or 1 if all pairs
    differ by the same amount, which then is the mean.
    """
    values = np.asarray(differences, dtype=float)
    if len(values) == 1:
        return float("nan")
    if np.ptp(values) == 0:
        return float(abs(values[0]) >= bound)
    _, above = map(float, stats.ttest_1samp(values, -bound, alternative="greater"))
    _, below = map(float, stats.ttest_1samp(values, bound, alternative="less"))
    return max(above, below)


def family_table(tested: Sequence[Tested]) -> str:
    """In Markdown, with what each column means."""
    lines = [
        "| family | difference | metric | mean [95 %] | p | Holm | Wilcoxon | within the bound | seeds |",
        "| --- " * 9 + "|",
    ]
    for one in tested:
        within = "" if one.bound is None or one.equivalence is None else f"+-{one.bound:g}: {p_cell(one.equivalence)}"
        cells = (
            *(one.family, one.name, one.metric, cell(one.difference.estimate, "+")),
            *(p_cell(one.difference.p_value), p_cell(one.corrected), p_cell(one.wilcoxon), within),
            str(one.difference.pairs),
        )
        lines.append(f"| {' | '.join(cells)} |")
    note = (
        "The families of questions that the file names. Paired by seed: t-test, Holm's correction inside the family, "
        "Wilcoxon's signed-rank test. Within the bound: p of the claim that the true difference is no larger than "
        "that, by two one-sided t-tests. Of several arms the worst counts, seed by seed."
    )
    return "\n".join([*lines, "", note])
