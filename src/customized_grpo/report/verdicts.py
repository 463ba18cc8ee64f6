"""Tables of a comparison that say in how many seeds something held: degradation, hacking, being beyond the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from customized_grpo.compare.degradation import KINDS
from customized_grpo.report.labels import label, number


@dataclass(frozen=True)
class Verdicts:
    """A line per arm; `note` says how the cells are judged."""

    caption: str
    heads: Sequence[str]
    lines: Sequence[tuple[str, Sequence[str]]]
    note: str


def degradation_verdicts(found: Sequence[Mapping[str, Any]]) -> Verdicts | None:
    """Of how many seeds each kind held at the end, on the way, and was warned of; None where nothing was judged."""
    if not found:
        return None
    return Verdicts(
        "Degradation and hacking: in how many seeds",
        ["seeds", *(kind.title for kind in KINDS)],
        [(each["arm"], [str(each["seeds"]), *(_seen(each[kind.name]) for kind in KINDS)]) for each in found],
        "Degradation: one reward of the held-out cases above the base, the other and the oracle's figure of it below. "
        "Hacking: a reward above the base, the oracle's figure of the same thing below. At the end (mean of the last "
        "three evaluations) and on the way both are judged by sign alone; a warning asks for clear trends.",
    )


def front_verdicts(found: Sequence[Mapping[str, Any]], front: Sequence[str]) -> Verdicts | None:
    """By how much, and in how many seeds, each arm lies beyond the front, in each plane; None without a front."""
    if not found:
        return None
    planes = list(dict.fromkeys(tuple(each["plane"]) for each in found))
    margins = {(each["arm"], tuple(each["plane"])): _margin(each) for each in found}
    return Verdicts(
        "Beyond the front: by how much, in how many seeds",
        [f"{label(identity)} and {label(prompt)}" for identity, prompt in planes],
        [
            (f"{arm} (of the front)" if arm in front else arm, [margins.get((arm, plane), "–") for plane in planes])
            for arm in dict.fromkeys(each["arm"] for each in found)
        ],
        f"The front is the line through {', '.join(front)} of the same seed. Beyond it by so much: what an arm could "
        "lose in both figures before some point of the line, between two arms too, is as good in both. Arms of the "
        "line are measured against the line through the others: so far a curved line lies beyond its own chords. "
        "Means over seeds with 95 % t intervals.",
    )


def _margin(found: Mapping[str, Any]) -> str:
    mean, low, high = (number(found[name], "+") for name in ("mean", "low", "high"))
    interval = "" if found["low"] is None else f" [{low}, {high}]"
    return f"{mean}{interval}, {found['beyond']} of {found['seeds']}"


def _seen(found: Mapping[str, Any]) -> str:
    if not found["judged"]:
        return "–"
    if not found["updates"] and not found["warned"]:
        return "none"
    updates = "–".join(str(update) for update in dict.fromkeys((found["first_update"], found["last_update"])))
    said = [f"at the end {found['at_end']}", f"on the way {found['on_the_way']}"]
    said[1] += f" (updates {updates})" if found["updates"] else ""
    return ", ".join([*said, *([f"warned {found['warned']}"] if found["warned"] else [])])
