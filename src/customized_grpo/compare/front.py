"""The front: the line through arms that differ in one weight, and how far other arms lie beyond it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from customized_grpo.compare.comparison import BASE, Comparison, Results
from customized_grpo.measure.intervals import Estimate, over_seeds

ORACLES = ("oracle_identity", "oracle_prompt")

Point = tuple[float, float]  # identity, prompt


@dataclass(frozen=True)
class Beyond:
    """An arm against the front of the same seeds, in the plane of two test metrics."""

    arm: str
    plane: tuple[str, str]
    margin: Estimate
    seeds: int
    beyond: int  # seeds with a margin above zero

    def as_dict(self) -> dict[str, Any]:
        return {
            "arm": self.arm,
            "plane": list(self.plane),
            "seeds": self.seeds,
            "beyond": self.beyond,
            **self.margin.as_dict(),
        }


def beyond_front(point: Point, front: Sequence[Point]) -> float:
    """By how much a point could lose in both figures before some point of the front is at least as good in both.

    front  corners of the line, in its order; what lies between two of them counts as if it could be had.

    Above zero: nothing on the line matches the point in both figures. Below zero: something on it is better in both,
    by that much. It is the additive epsilon indicator of the point against the line (Zitzler et al., IEEE Transactions
    on Evolutionary Computation 7, 2003). Raises ValueError where fewer than two corners make no line.
    """
    if len(front) < 2:
        raise ValueError(f"a front needs at least two points, this one has {len(front)}")
    return min(_beyond_segment(point, start, end) for start, end in pairwise(front))


def _beyond_segment(point: Point, start: Point, end: Point) -> float:
    """The larger of two differences that are linear along a segment is least at an end or where the two cross."""
    (x_start, y_start), (x_end, y_end) = ((point[0] - x, point[1] - y) for x, y in (start, end))
    least = min(max(x_start, y_start), max(x_end, y_end))
    turn = (x_start - y_start) - (x_end - y_end)
    along = (x_start - y_start) / turn if turn else 0.0
    return min(least, x_start + along * (x_end - x_start)) if 0 < along < 1 else least


def beyond_fronts(comparison: Comparison, results: Results) -> list[Beyond]:
    """Every trained arm in each plane, over the seeds that the whole front has too.

    Arms of the front itself, but for its ends, meet the line through the others: a curved front lies beyond its own
    chords, and an arm that is better than all weights must lie further out than that.
    """
    if not comparison.front or not {*comparison.front} <= {*results}:
        return []
    found = []
    ends = {comparison.front[0], comparison.front[-1]}
    for plane in planes(comparison, {arm: next(iter(each.values()))["test"] for arm, each in results.items()}):
        for arm in (arm for arm in results if arm not in (BASE, *ends)):
            line = [_points(results[corner], plane) for corner in comparison.front if corner != arm]
            points = _points(results[arm], plane)
            seeds = [seed for seed in points if all(seed in corner for corner in line)]
            margins = [beyond_front(points[seed], [corner[seed] for corner in line]) for seed in seeds]
            if margins:
                beyond = sum(margin > 0 for margin in margins)
                found.append(Beyond(arm, plane, over_seeds(margins), len(margins), beyond))
    return found


def planes(comparison: Comparison, figures: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Identity and prompt reward of each arm, as they are tested, and the oracle's two; those that all arms have."""
    rewards = [comparison.rewarded(arm) for arm in figures if arm != BASE]
    pairs = dict.fromkeys([*((each["identity"], each["prompt"]) for each in rewards), ORACLES])
    return [pair for pair in pairs if all({*pair} <= {*found} for found in figures.values())]


def crowd(points: Mapping[str, Point]) -> dict[str, Point]:
    """The arms that better the base in both figures: in the whole plane they crowd in a corner.

    Empty where they are fewer than two, or the base is not known: there is nothing to enlarge.
    """
    if BASE not in points:
        return {}
    x, y = points[BASE]
    better = {arm: point for arm, point in points.items() if point[0] > x and point[1] > y}
    return better if len({*better.values()}) > 1 else {}


def _points(by_seed: Mapping[int, Mapping[str, Any]], plane: tuple[str, str]) -> dict[int, Point]:
    """By seed, where both figures are known."""
    tests = {seed: [result["test"].get(metric) for metric in plane] for seed, result in by_seed.items()}
    return {seed: (x, y) for seed, (x, y) in tests.items() if x is not None and y is not None}
