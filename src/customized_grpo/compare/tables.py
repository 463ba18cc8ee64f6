"""What a comparison shows: comparison.json, tables and plots, from the results of the finished arms."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from customized_grpo.compare.comparison import BASE, OVER_TRAINING, SPREAD, Comparison, Results
from customized_grpo.compare.degradation import KINDS, ArmDegradation, Found, degradation_of
from customized_grpo.compare.front import Beyond, beyond_fronts
from customized_grpo.compare.plots import write_plots
from customized_grpo.files.durable import write_text
from customized_grpo.measure.intervals import Difference, Estimate, holm, over_seeds, paired_difference


@dataclass(frozen=True)
class Tested:
    """One difference between two arms; `corrected` is Holm's p among all that are not primary."""

    arm: str
    against: str
    metric: str
    primary: bool
    difference: Difference
    corrected: float | None

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
    """Write every file of the report for the arms that are finished; returns the table."""
    if not results:
        return "no arm is finished yet"
    content, table = tabulate(comparison, results)
    write_text(comparison.output / "comparison.json", json.dumps(content, indent=2) + "\n")
    write_text(comparison.output / "table.md", table + "\n")
    write_plots(comparison, results, _figures(results))
    return table


def tabulate(comparison: Comparison, results: Results) -> tuple[dict[str, Any], str]:
    """What comparison.json and table.md hold."""
    figures = _figures(results)
    tests = differences(comparison, results)
    beyond = beyond_fronts(comparison, results)
    degradation = [degradation_of(arm, by_seed) for arm, by_seed in results.items() if arm != BASE]
    content = {
        "arms": {
            arm: {
                "settings": comparison.lines(arm),
                "trained_on": _trained_on(comparison, arm),
                "seeds": {str(seed): result["test"] for seed, result in by_seed.items()},
                "figures": {metric: figure.as_dict() for metric, figure in figures[arm].items()},
                "warnings": {str(seed): result["warnings"] for seed, result in by_seed.items()},
            }
            for arm, by_seed in results.items()
        },
        "differences": [test.as_dict() for test in tests],
        "beyond_front": [each.as_dict() for each in beyond],
        "degradation": [each.as_dict() for each in degradation],
        "settings": comparison.model_dump(mode="json", exclude={"output"}),
        "finished": sum(map(len, results.values())),
        "runs": len(comparison.jobs),
    }
    tables = [*_arm_tables(comparison, figures, results), _test_table(tests)]
    tables += [_front_table(comparison, beyond)] if beyond else []
    tables += [_degradation_table(degradation), *_of_several_commits(results)]
    return _without_nan(content), "\n\n".join(tables)


def _figures(results: Results) -> dict[str, dict[str, Estimate]]:
    return {arm: _over_seeds(by_seed) for arm, by_seed in results.items()}


def _trained_on(comparison: Comparison, arm: str) -> list[str]:
    """Names of the test metrics that an arm is rewarded for, those averaged over training included."""
    rewarded = comparison.rewarded(arm)
    return [*rewarded.values(), *(f"{key}_reward{OVER_TRAINING}" for key in rewarded)]


def _over_seeds(by_seed: Mapping[int, Mapping[str, Any]]) -> dict[str, Estimate]:
    columns = {metric: _column(by_seed, metric) for metric in next(iter(by_seed.values()))["test"]}
    return {metric: over_seeds(list(values.values())) for metric, values in columns.items() if values}


def _column(by_seed: Mapping[int, Mapping[str, Any]], metric: str) -> dict[int, float]:
    return {seed: each["test"][metric] for seed, each in by_seed.items() if each["test"].get(metric) is not None}


def differences(comparison: Comparison, results: Results) -> list[Tested]:
    """Every finished arm minus each reference arm, and the primary arm minus every other, on every metric, paired by
    seed; the primary ones come first. No two arms meet twice: that would count twice in Holm's family."""
    primary = comparison.primary
    pairs = [(arm, against) for against in primary.against for arm in comparison.arms if arm != against]
    pairs += [(primary.arm, other) for other in comparison.arms if other != primary.arm]
    met: dict[frozenset[str], tuple[str, str]] = {}
    for pair in pairs:
        met.setdefault(frozenset(pair), pair)
    found: list[tuple[bool, str, str, str, Difference]] = []
    for arm, against in met.values():
        if arm not in results or against not in results:
            continue
        tested = list(next(iter(results[arm].values()))["test"])
        for metric in shown(comparison, tested):
            first, second = (_column(results[name], metric) for name in (arm, against))
            if {*first} & {*second}:
                is_primary = (arm, metric) == (primary.arm, primary.metric) and against in primary.against
                found.append((is_primary, arm, against, metric, paired_difference(first, second)))
    others = [difference.p_value for is_primary, *_, difference in found if not is_primary]
    corrected = iter(holm(others))
    tests = [
        Tested(arm, against, metric, is_primary, difference, None if is_primary else next(corrected))
        for is_primary, arm, against, metric, difference in found
    ]
    return sorted(tests, key=lambda test: not test.primary)


def shown(comparison: Comparison, metrics: Iterable[str]) -> list[str]:
    """Those metrics that the file wants to be compared, the primary one among them; without a wish: all tested."""
    wanted = {comparison.primary.metric, *comparison.compare_on}
    everything = not comparison.compare_on
    return [m for m in dict.fromkeys(metrics) if m in wanted or (everything and not m.endswith(OVER_TRAINING))]


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- tables, in Markdown ---------------------------------------------------------------------------------------------


def _arm_tables(comparison: Comparison, figures: Mapping[str, Mapping[str, Estimate]], results: Results) -> list[str]:
    """The metrics that are compared, and those that were only measured."""
    measured = list(dict.fromkeys(metric for each in figures.values() for metric in each))
    compared = shown(comparison, measured)
    others = [metric for metric in measured if metric not in compared and not metric.endswith(OVER_TRAINING)]
    tables = [_arm_table(metrics, figures, results) for metrics in (compared, others) if metrics]
    return [*tables, SPREAD]


def _arm_table(metrics: Sequence[str], figures: Mapping[str, Mapping[str, Estimate]], results: Results) -> str:
    lines = [f"| arm | seeds | {' | '.join(metrics)} |", "| --- " * (len(metrics) + 2) + "|"]
    for arm, found in figures.items():
        cells = [_cell(found[metric]) if metric in found else "" for metric in metrics]
        lines.append(f"| {arm} | {len(results[arm])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _test_table(tests: Sequence[Tested]) -> str:
    if not tests:
        return "No two arms share a finished seed yet."
    lines = ["| difference | metric | mean [95 %] | p | Holm | seeds |", "| --- | --- | --- | --- | --- | --- |"]
    for test in tests:
        corrected = "primary" if test.corrected is None else _p(test.corrected)
        found = test.difference
        values = f"{_cell(found.estimate, '+')} | {_p(found.p_value)} | {corrected} | {found.pairs}"
        lines.append(f"| {test.arm} - {test.against} | {test.metric} | {values} |")
    return "\n".join([*lines, "", "Paired by seed, t-test; Holm's correction over everything that is not primary."])


def _front_table(comparison: Comparison, found: Sequence[Beyond]) -> str:
    planes = list(dict.fromkeys(each.plane for each in found))
    by_place = {(each.arm, each.plane): each for each in found}
    titles = " | ".join(f"beyond in ({', '.join(plane)})" for plane in planes)
    lines = [f"| arm | {titles} |", "| --- " * (len(planes) + 1) + "|"]
    for arm in dict.fromkeys(each.arm for each in found):
        cells = [_beyond(by_place.get((arm, plane))) for plane in planes]
        name = f"{arm} (of the front)" if arm in comparison.front else arm
        lines.append(f"| {name} | {' | '.join(cells)} |")
    said = (
        f"The front is the line {', '.join(comparison.front)} of the same seed. Beyond it by so much, in so many "
        "seeds: what an arm could lose in both figures before some point of the line, between two arms too, is as "
        "good in both. Arms of the line are measured against the line through the others: so far a curved line lies "
        "beyond its own chords."
    )
    return "\n".join([*lines, "", said])


def _beyond(found: Beyond | None) -> str:
    return f"{_cell(found.margin, '+')} in {found.beyond} of {found.seeds}" if found else ""


def _degradation_table(arms: Sequence[ArmDegradation]) -> str:
    if not arms:
        return "No trained arm is finished yet."
    lines = [
        f"| arm | seeds | {' | '.join(kind.title for kind in KINDS)} |",
        "| --- " * (len(KINDS) + 2) + "|",
        *(
            f"| {each.arm} | {each.seeds} | {' | '.join(_seen(each.found[kind.name]) for kind in KINDS)} |"
            for each in arms
        ),
    ]
    said = (
        "Numbers of seeds: at the end / on the way (first to last update) / warned (first update); - where metrics "
        "are missing. The first two are judged by sign alone against a run's first evaluation, the end by the mean "
        "of its last three; the third are the run's own warnings, which ask for significant trends over five "
        "evaluations, of degradation in the rewards alone."
    )
    others = [f"{each.arm} {each.other_warnings}" for each in arms if each.other_warnings]
    if others:
        said += f" Warnings of these kinds about other metrics: {', '.join(others)}; comparison.json has them."
    return "\n".join([*lines, "", said])


def _of_several_commits(results: Results) -> list[str]:
    """A sentence where the runs were not all made with the same code."""
    made = Counter(str(run.get("code") or "unknown") for by_seed in results.values() for run in by_seed.values())
    if len(made) < 2:
        return []
    return [f"Not one code made all runs: {', '.join(f'{code} ({count} runs)' for code, count in made.items())}."]


def _seen(found: Found) -> str:
    if not found.judged:
        return "-"
    if not found.updates and not found.warned:
        return "none"
    on_the_way, warned = str(found.on_the_way), str(found.warned)
    if found.updates:
        updates = dict.fromkeys((found.first_update, found.last_update))
        on_the_way += f" ({' to '.join(map(str, updates))})"
    if found.warned:
        warned += f" ({found.first_warning})"
    return f"{found.at_end} / {on_the_way} / {warned}"


def _cell(figure: Estimate, sign: str = "") -> str:
    if math.isnan(figure.low):
        return f"{figure.mean:{sign}.3f}"
    return f"{figure.mean:{sign}.3f} [{figure.low:{sign}.3f}, {figure.high:{sign}.3f}]"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "<.001" if value < 0.001 else f"{value:.3f}"
