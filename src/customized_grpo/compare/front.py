"""The front: the line through arms that differ in one weight, and how far other arms lie beyond it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from customized_grpo.calibration.intervals import Estimate, over_seeds
from customized_grpo.compare.comparison import BASE, Comparison, Results

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
    """How much a point could lose in both figures before some point of the front is at least as good in both.

    front  corners of the line, in order; points between two corners count as attainable

    Above zero: no point of the line is as good in both figures. Below zero: some point of it is better in both, by
    that much. This is the additive epsilon indicator of the point against the line (Zitzler et al., IEEE Transactions
    on Evolutionary Computation 7, 2003). Raises ValueError if there are fewer than two corners.
    """
    if len(front) < 2:
        raise ValueError(f"a front needs at least two points, this one has {len(front)}")
    return min(_beyond_segment(point, start, end) for start, end in pairwise(front))


def _beyond_segment(point: Point, start: Point, end: Point) -> float:
    """The minimum along a segment of the larger of two linear differences: at an end, or at the point of equality."""
    (x_start, y_start), (x_end, y_end) = ((point[0] - x, point[1] - y) for x, y in (start, end))
    least = min(max(x_start, y_start), max(x_end, y_end))
    turn = (x_start - y_start) - (x_end - y_end)
    along = (x_start - y_start) / turn if turn else 0.0
    return min(least, x_start + along * (x_end - x_start)) if 0 < along < 1 else least


def beyond_fronts(comparison: Comparison, results: Results) -> list[Beyond]:
    """Every trained arm against the front in each plane, over the seeds that the complete front has too.

    Arms of the front itself, except its ends, are measured against the line through the others. A curved front lies
    beyond its own chords by that margin, so an arm that beats all weights must lie further out.
    """
    if not comparison.front or not {*comparison.front} <= {*results}:
        return []
    beyond = []
    ends = {comparison.front[0], comparison.front[-1]}
    tested = {arm: next(iter(by_seed.values()))["test"] for arm, by_seed in results.items()}
    for plane in planes(comparison, tested):
        for arm in (arm for arm in results if arm not in (BASE, *ends)):
            margins = [*margins_by_seed(comparison, results, arm, plane).values()]
            if margins:
                seeds_beyond = sum(margin > 0 for margin in margins)
                beyond.append(Beyond(arm, plane, over_seeds(margins), len(margins), seeds_beyond))
    return beyond


def margins_by_seed(comparison: Comparison, results: Results, arm: str, plane: tuple[str, str]) -> dict[int, float]:
    """`beyond_front` of an arm, for the seeds that it shares with every other arm of the front."""
    names = [corner for corner in comparison.front if corner != arm]
    corners = [_points(results.get(corner, {}), plane) for corner in names]
    points = _points(results.get(arm, {}), plane)
    seeds = [seed for seed in points if all(seed in corner for corner in corners)]
    return {seed: beyond_front(points[seed], [corner[seed] for corner in corners]) for seed in seeds}


def planes(comparison: Comparison, figures: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Identity and prompt reward of each arm, and the oracle's two figures: the pairs that all arms were tested on."""
    rewards = [comparison.rewarded(arm) for arm in figures if arm != BASE]
    pairs = dict.fromkeys([*((names["identity"], names["prompt"]) for names in rewards), ORACLES])
    return [pair for pair in pairs if all({*pair} <= {*of_arm} for of_arm in figures.values())]


def better_than_base(points: Mapping[str, Point]) -> dict[str, Point]:
    """The arms that beat the base in both figures, which often lie close together: a plot shows them enlarged.

    Empty if there are fewer than two distinct points, or no base.
    """
    if BASE not in points:
        return {}
    x, y = points[BASE]
    better = {arm: point for arm, point in points.items() if point[0] > x and point[1] > y}
    return better if len({*better.values()}) > 1 else {}


def _points(by_seed: Mapping[int, Mapping[str, Any]], plane: tuple[str, str]) -> dict[int, Point]:
    """By seed; seeds for which one of the figures is unknown are left out."""
    tests = {seed: [result["test"].get(metric) for metric in plane] for seed, result in by_seed.items()}
    return {seed: (x, y) for seed, (x, y) in tests.items() if x is not None and y is not None}
