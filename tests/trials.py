"""The table of trials in docs/method.md, from the rows in docs/results/tuning2.

python tests/trials.py --write
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "method.md"
BEGIN, END = "<!-- begin: python tests/trials.py --write -->\n", "<!-- end -->"
WEIGHTS = ("0.3", "0.4", "0.5", "0.6", "0.7")
RULES = {  # name of an arm, without its starting weight -> what it is
    "base": "the base, untrained",
    "naive": "`linear`: naive GRPO",
    "sars_tdw": "`sars` + `tdw`: the paper's method",
    "pooled_kappa.3": "`linear`, `normalise: pooled`, `kappa` .3",
    "pooled_kappa1": "`linear`, `normalise: pooled`, `kappa` 1",
    "dual": "`linear`, `balance: dual`",
    "proportional": "`linear`, `balance: proportional`",
    "gated": "`gated`",
    "nft": "`linear`, `objective.kind: nft`",
    "nft_joint": "`joint`, `objective.kind: nft`",
    "joint": "`joint`",
    "joint_tdw": "`joint` + `tdw`",
    "joint_share.3": "`joint`, `joint_share` .3",
    "joint_share.8": "`joint`, `joint_share` .8",
    "joint_pooled_kappa1": "`joint`, `normalise: pooled`, `kappa` 1",
    "joint_pooled_kappa.3": "`joint`, `normalise: pooled`, `kappa` .3",
}


def joint_success(part: str) -> dict[str, dict[int, float]]:
    """By arm and seed, on the development cases after the last update."""
    found: dict[str, dict[int, float]] = {}
    for file in sorted((DOCS / "results" / "tuning2" / part / "arms").glob("*/*/result.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        found.setdefault(result["arm"], {})[result["seed"]] = result["test"]["joint_success"]
    return found


def _split(arm: str) -> tuple[str, str]:
    """(rule, starting weight of the prompt) of an arm of the first part."""
    rule, _, weight = arm.partition("_prompt.")
    return rule, f"0.{weight or 5}"


def table() -> str:
    """One row per rule: joint success by starting weight (first part), and the mean of three seeds (second part)."""
    first = {**joint_success("screening"), **{a: v for a, v in joint_success("nft").items() if a != "base"}}
    by_rule: dict[str, dict[str, float]] = {}
    for arm, by_seed in first.items():
        rule, weight = _split(arm)
        by_rule.setdefault(rule, {})[weight] = mean(by_seed.values())
    final = joint_success("final")
    starts = {_split(f"joint_pooled_kappa.3_{arm}"): v for arm, v in joint_success("weights").items() if arm != "base"}
    lines = [
        f"| rule | {' | '.join(f'from {weight[1:]}' for weight in WEIGHTS)} | 250 updates |",
        "| --- " * (len(WEIGHTS) + 2) + "|",
    ]
    for rule in sorted(by_rule, key=lambda name: list(RULES).index(name)):
        cells = [_number(by_rule[rule].get(weight)) for weight in WEIGHTS]
        last = _number(mean(final[rule].values())) if rule in final else ""
        others = [f"from {w[1:]} {_number(mean(v.values()))}" for (name, w), v in starts.items() if name == rule]
        lines.append(f"| {RULES[rule]} | {' | '.join(cells)} | {', '.join([last, *others]) if others else last} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}".removeprefix("0")


if __name__ == "__main__" and "--write" in sys.argv:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2], encoding="utf-8")
