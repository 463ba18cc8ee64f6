"""The report of a comparison: comparison.json, table.md and plots, from the results of the finished arms.

The sentences under the tables are part of the published table.md files; tests/compare/test_published_results.py holds
them to that.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from customized_grpo.calibration.intervals import Difference, Estimate, holm, over_seeds, paired_difference
from customized_grpo.compare.cells import cell, p_cell
from customized_grpo.compare.comparison import BASE, OVER_TRAINING, SPREAD, Comparison, Results
from customized_grpo.compare.degradation import KINDS, ArmDegradation, Counts, degradation_of
from customized_grpo.compare.families import contrasts_of, family_table, scored
from customized_grpo.compare.front import Beyond, beyond_fronts
from customized_grpo.compare.plots import write_plots
from customized_grpo.compare.time_to import time_table, times_to
from customized_grpo.files.durable import write_text
from customized_grpo.wording import counted

WARNING_KEYS = ("update", "kind", "message")  # of a run's warnings in comparison.json; result.json has every field


@dataclass(frozen=True)
class ArmDifference:
    """One difference between two arms."""

    arm: str
    against: str
    metric: str
    primary: bool
    difference: Difference
    corrected: float | None  # p after Holm's correction over all differences that are not primary; None if primary

    def as_dict(self) -> dict[str, Any]:
        return {
            "arm": self.arm,
            "against": self.against,
            "metric": self.metric,
            "primary": self.primary,
            **self.difference.estimate.as_dict(),
            "p": self.difference.p_value,
            "p_holm": self.corrected,
            "seeds": self.difference.pairs,
        }


def write_report(comparison: Comparison, results: Results) -> str:
    """Write every file of the report for the finished arms; returns the table."""
    if not results:
        return "no arm is finished yet"
    content, table = tabulate(comparison, results)
    write_text(comparison.output / "comparison.json", json.dumps(content, indent=2) + "\n")
    write_text(comparison.output / "table.md", table + "\n")
    write_plots(comparison, results, _figures(results))
    return table


def tabulate(comparison: Comparison, results: Results) -> tuple[dict[str, Any], str]:
    """The contents of comparison.json and of table.md."""
    figures = _figures(results)
    tested = differences(comparison, results)
    families = contrasts_of(comparison, results)
    reached = times_to(comparison, results)
    beyond = beyond_fronts(comparison, results)
    degradation = [degradation_of(arm, by_seed) for arm, by_seed in results.items() if arm != BASE]
    content = {
        "arms": {
            arm: {
                "settings": comparison.lines(arm),
                "trained_on": _trained_on(comparison, arm),
                "seeds": {str(seed): result["test"] for seed, result in by_seed.items()},
                "figures": {metric: figure.as_dict() for metric, figure in figures[arm].items()},
                "warnings": {
                    str(seed): [{key: warning[key] for key in WARNING_KEYS} for warning in result["warnings"]]
                    for seed, result in by_seed.items()
                },
            }
            for arm, by_seed in results.items()
        },
        **({"families": [contrast.as_dict() for contrast in families]} if comparison.families else {}),
        **({"time_to": [arm.as_dict() for arm in reached]} if comparison.time_to else {}),
        "differences": [difference.as_dict() for difference in tested],
        "beyond_front": [arm.as_dict() for arm in beyond],
        "degradation": [arm.as_dict() for arm in degradation],
        "settings": comparison.model_dump(mode="json", exclude={"output"}),
        "finished": sum(map(len, results.values())),
        "runs": len(comparison.jobs),
    }
    tables = _arm_tables(comparison, figures, results)
    tables += [family_table(families)] if families else []
    tables.append(_difference_table(tested))
    tables += [time_table(reached)] if reached else []
    tables += [_front_table(comparison, beyond)] if beyond else []
    tables += [_degradation_table(degradation), *_note_on_commits(results), *_note_on_terms(comparison)]
    return _without_nan(content), "\n\n".join(tables)


def _figures(results: Results) -> dict[str, dict[str, Estimate]]:
    return {arm: _over_seeds(by_seed) for arm, by_seed in results.items()}


def _trained_on(comparison: Comparison, arm: str) -> list[str]:
    """Names of the test metrics that an arm is rewarded for, including those averaged over training."""
    rewarded = comparison.rewarded(arm)
    return [*rewarded.values(), *(f"{key}_reward{OVER_TRAINING}" for key in rewarded)]


def _over_seeds(by_seed: Mapping[int, Mapping[str, Any]]) -> dict[str, Estimate]:
    by_metric = {metric: scored(by_seed, metric) for metric in next(iter(by_seed.values()))["test"]}
    return {metric: over_seeds(list(values.values())) for metric, values in by_metric.items() if values}


def differences(comparison: Comparison, results: Results) -> list[ArmDifference]:
    """Differences between finished arms on every compared metric, paired by seed, the primary ones first.

    Every arm is compared with each reference arm, and the primary arm with every other. No two arms are compared
    twice: that would count twice in Holm's correction.
    """
    primary = comparison.primary
    paired: list[tuple[bool, str, str, str, Difference]] = []
    for arm, against in _pairs(comparison):
        if arm not in results or against not in results:
            continue
        tested = next(iter(results[arm].values()))["test"]
        for metric in compared_metrics(comparison, tested):
            first, second = (scored(results[name], metric) for name in (arm, against))
            if first.keys() & second.keys():
                is_primary = (arm, metric) == (primary.arm, primary.metric) and against in primary.against
                paired.append((is_primary, arm, against, metric, paired_difference(first, second)))
    corrected = iter(holm([difference.p_value for is_primary, *_, difference in paired if not is_primary]))
    arm_differences = [
        ArmDifference(arm, against, metric, is_primary, difference, None if is_primary else next(corrected))
        for is_primary, arm, against, metric, difference in paired
    ]
    return sorted(arm_differences, key=lambda tested: not tested.primary)


def _pairs(comparison: Comparison) -> list[tuple[str, str]]:
    """Pairs of arms to compare; of a pair that comes up in both orders only the first."""
    primary = comparison.primary
    pairs = [(arm, against) for against in primary.against for arm in comparison.arms if arm != against]
    pairs += [(primary.arm, other) for other in comparison.arms if other != primary.arm]
    unordered: dict[frozenset[str], tuple[str, str]] = {}
    for pair in pairs:
        unordered.setdefault(frozenset(pair), pair)
    return list(unordered.values())


def compared_metrics(comparison: Comparison, tested: Iterable[str]) -> list[str]:
    """The tested metrics that the file asks to compare, including the primary one; by default all test metrics."""
    wanted = {comparison.primary.metric, *comparison.compare_on}
    everything = not comparison.compare_on
    return [m for m in dict.fromkeys(tested) if m in wanted or (everything and not m.endswith(OVER_TRAINING))]


def _without_nan(value: Any) -> Any:
    """For JSON: NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- tables, in Markdown ---------------------------------------------------------------------------------------------


def _arm_tables(comparison: Comparison, figures: Mapping[str, Mapping[str, Estimate]], results: Results) -> list[str]:
    """One table of the compared metrics, one of those that were only measured."""
    measured = list(dict.fromkeys(metric for of_arm in figures.values() for metric in of_arm))
    compared = compared_metrics(comparison, measured)
    others = [metric for metric in measured if metric not in compared and not metric.endswith(OVER_TRAINING)]
    tables = [_arm_table(metrics, figures, results) for metrics in (compared, others) if metrics]
    return [*tables, SPREAD]


def _arm_table(metrics: Sequence[str], figures: Mapping[str, Mapping[str, Estimate]], results: Results) -> str:
    lines = [f"| arm | seeds | {' | '.join(metrics)} |", "| --- " * (len(metrics) + 2) + "|"]
    for arm, of_arm in figures.items():
        cells = [cell(of_arm[metric]) if metric in of_arm else "" for metric in metrics]
        lines.append(f"| {arm} | {len(results[arm])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference_table(differences: Sequence[ArmDifference]) -> str:
    if not differences:
        return "No two arms share a finished seed yet."
    lines = ["| difference | metric | mean [95 %] | p | Holm | seeds |", "| --- | --- | --- | --- | --- | --- |"]
    for tested in differences:
        corrected = "primary" if tested.corrected is None else p_cell(tested.corrected)
        paired = tested.difference
        cells = (cell(paired.estimate, "+"), p_cell(paired.p_value), corrected, str(paired.pairs))
        lines.append(f"| {tested.arm} - {tested.against} | {tested.metric} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "Paired by seed, t-test; Holm's correction over everything that is not primary."])


def _front_table(comparison: Comparison, beyond: Sequence[Beyond]) -> str:
    planes = list(dict.fromkeys(margin.plane for margin in beyond))
    margins = {(margin.arm, margin.plane): margin for margin in beyond}
    titles = " | ".join(f"beyond in ({', '.join(plane)})" for plane in planes)
    lines = [f"| arm | {titles} |", "| --- " * (len(planes) + 1) + "|"]
    for arm in dict.fromkeys(margin.arm for margin in beyond):
        cells = [_margin_cell(margins.get((arm, plane))) for plane in planes]
        name = f"{arm} (of the front)" if arm in comparison.front else arm
        lines.append(f"| {name} | {' | '.join(cells)} |")
    note = (
        f"The front is the line {', '.join(comparison.front)} of the same seed. Beyond it by so much, in so many "
        "seeds: what an arm could lose in both figures before some point of the line, between two arms too, is as "
        "good in both. Arms of the line are measured against the line through the others: so far a curved line lies "
        "beyond its own chords."
    )
    return "\n".join([*lines, "", note])


def _margin_cell(margin: Beyond | None) -> str:
    return f"{cell(margin.margin, '+')} in {margin.beyond} of {margin.seeds}" if margin else ""


def _degradation_table(arms: Sequence[ArmDegradation]) -> str:
    if not arms:
        return "No trained arm is finished yet."
    lines = [
        f"| arm | seeds | {' | '.join(kind.title for kind in KINDS)} |",
        "| --- " * (len(KINDS) + 2) + "|",
        *(
            f"| {arm.arm} | {arm.seeds} | {' | '.join(_counts_cell(arm.counts[kind.name]) for kind in KINDS)} |"
            for arm in arms
        ),
    ]
    note = (
        "Numbers of seeds: at the end / on the way (first to last update) / warned (first update); - where metrics "
        "are missing. The first two are judged by sign alone against a run's first evaluation, the end by the mean "
        "of its last three; the third are the run's own warnings, which ask for significant trends over five "
        "evaluations, of degradation in the rewards alone."
    )
    others = [f"{arm.arm} {arm.other_warnings}" for arm in arms if arm.other_warnings]
    if others:
        note += f" Warnings of these kinds about other metrics: {', '.join(others)}; comparison.json has them."
    return "\n".join([*lines, "", note])


def _counts_cell(counts: Counts) -> str:
    if not counts.judged:
        return "-"
    if not counts.updates and not counts.warned:
        return "none"
    on_the_way, warned = str(counts.on_the_way), str(counts.warned)
    if counts.updates:
        updates = dict.fromkeys((counts.first_update, counts.last_update))
        on_the_way += f" ({' to '.join(map(str, updates))})"
    if counts.warned:
        warned += f" ({counts.first_warning})"
    return f"{counts.at_end} / {on_the_way} / {warned}"


def _note_on_terms(comparison: Comparison) -> list[str]:
    """A sentence if arms were not tested alike: their differences are not those of training alone."""
    unequal = comparison.tested_otherwise()
    return [f"Not tested alike: {'; '.join(unequal)}."] if unequal else []


def _note_on_commits(results: Results) -> list[str]:
    """A sentence if the runs were not all made with the same code."""
    commits = Counter(str(run.get("code") or "unknown") for by_seed in results.values() for run in by_seed.values())
    if len(commits) < 2:
        return []
    made_by = ", ".join(f"{code} ({counted(count, 'run')})" for code, count in commits.items())
    return [f"The runs were made with different code: {made_by}."]
