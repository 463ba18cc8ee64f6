"""Tables of a comparison that count seeds: with degradation, with hacking, beyond the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from customized_grpo.compare.degradation import KINDS
from customized_grpo.report.labels import label, number


@dataclass(frozen=True)
class Verdicts:
    """One row per arm; `note` explains the cells."""

    caption: str
    heads: Sequence[str]
    lines: Sequence[tuple[str, Sequence[str]]]
    note: str


def degradation_verdicts(arms: Sequence[Mapping[str, Any]]) -> Verdicts | None:
    """How many seeds show each kind at the end and on the way, and how many warned of it; None if none was judged."""
    if not arms:
        return None
    return Verdicts(
        "Degradation and hacking: in how many seeds",
        ["seeds", *(kind.title for kind in KINDS)],
        [(arm["arm"], [str(arm["seeds"]), *(_counts_cell(arm.get(kind.name)) for kind in KINDS)]) for arm in arms],
        "Degradation: on held-out cases, one reward is above the base while the other reward and its oracle figure "
        "are below. Hacking: a reward is above the base while the oracle's figure of the same quality is below. Both "
        "are judged by sign alone, at the end (mean of the last three evaluations) and at any evaluation on the way; "
        "a warning requires clear trends.",
    )


def front_verdicts(beyond: Sequence[Mapping[str, Any]], front: Sequence[str]) -> Verdicts | None:
    """By how much, and in how many seeds, each arm lies beyond the front in each plane; None without a front."""
    if not beyond:
        return None
    planes = list(dict.fromkeys(tuple(row["plane"]) for row in beyond))
    cells = {(row["arm"], tuple(row["plane"])): _margin_cell(row) for row in beyond}
    return Verdicts(
        "Beyond the front: by how much, in how many seeds",
        [f"{label(identity)} and {label(prompt)}" for identity, prompt in planes],
        [
            (f"{arm} (of the front)" if arm in front else arm, [cells.get((arm, plane), "–") for plane in planes])
            for arm in dict.fromkeys(row["arm"] for row in beyond)
        ],
        f"The front is the line through {', '.join(front)}, drawn for each seed. The margin is how much an arm could "
        "lose in both figures before some point of the line, corners or between them, is as good in both. Arms of the "
        "front are measured against the line through its other arms, and a curved line lies beyond its own chords by "
        "that much. Means over seeds with 95 % t intervals.",
    )


def _margin_cell(row: Mapping[str, Any]) -> str:
    mean, low, high = (number(row.get(name), "+") for name in ("mean", "low", "high"))
    interval = "" if row.get("low") is None else f" [{low}, {high}]"
    return f"{mean}{interval}, {row['beyond']} of {row['seeds']}"


def _counts_cell(counts: Mapping[str, Any] | None) -> str:
    if counts is None or not counts["judged"]:
        return "–"
    if not counts["updates"] and not counts["warned"]:
        return "none"
    updates = "–".join(str(update) for update in dict.fromkeys((counts["first_update"], counts["last_update"])))
    on_the_way = f"on the way {counts['on_the_way']}" + (f" (updates {updates})" if counts["updates"] else "")
    warned = [f"warned {counts['warned']}"] if counts["warned"] else []
    return ", ".join([f"at the end {counts['at_end']}", on_the_way, *warned])
