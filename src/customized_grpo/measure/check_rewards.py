"""`customized-grpo check-rewards`: how rewards score pictures of known quality, before anything is trained."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from customized_grpo.algorithm import group_advantages
from customized_grpo.calibration.file import CALIBRATION, as_text, calibrated_rewards
from customized_grpo.calibration.intervals import Estimate, estimate
from customized_grpo.calibration.known_pictures import ROWS, Cases, load_cases
from customized_grpo.calibration.scored_pictures import (
    Judged,
    RowStatistics,
    correlation,
    judge,
    load_candidates,
    row_statistics,
)
from customized_grpo.config import RunConfig
from customized_grpo.fields import BUILT_IN
from customized_grpo.files.durable import make_folder, write_text
from customized_grpo.measure.calibration_table import CalibrationTable
from customized_grpo.rewards.mistakes import parse_metric
from customized_grpo.rewards.settings import RewardSettings
from customized_grpo.wording import counted

# Thresholds. The whole 95 % interval of a share must lie beyond its threshold, so that chance does not cross it.
COPY_WINS = 2 / 3  # of pairs (copy, honest picture) in which the copy scores higher; 1/2 if both are worth the same
RANKED_RIGHT = 0.9  # of pairs (right, wrong); below, more than one comparison in ten pulls a group the wrong way
NO_SIGNAL = 0.5  # of cases with one score for all pictures: training skips such groups, here more than half
SATURATED = 0.02  # of a reward's range: spread of right pictures, and distance to the ceiling; only noise is left
DUPLICATE = 0.95  # correlation r; r^2 = .9: all but a tenth of one reward's variance is in the other
CONFLICT = -0.5  # correlation r; the sum of two z-scores then has spread sqrt(2 + 2r) = 1, and 1.41 if independent

PHOTOGRAPH_ENCODERS = {"dino": "facebook/dinov2-base", "clip": "openai/clip-vit-large-patch14"}


# --- findings --------------------------------------------------------------------------------------------------------


def findings_of(judged: Judged) -> Iterator[str]:
    """What is wrong with one reward: a sentence for each problem, with the numbers and the way out."""
    yield from _unscored(judged)
    if no_signal := list(_no_signal(judged)):  # the other findings would only repeat it
        yield from no_signal
        return
    yield from _copying(judged)
    yield from _confused(judged, "identity", judged.same_subject, judged.scores["other_subject"])
    yield from _confused(judged, "prompt", judged.scores["right_prompt"], judged.scores["wrong_prompt"])
    yield from _saturated(judged)


def _unscored(judged: Judged) -> Iterator[str]:
    candidate, cases = judged.candidate, judged.cases
    unscored = {row: cases.shown(row) - int((~judged.scores[row].isnan()).sum()) for row in ROWS}
    if not any(unscored.values()):
        return
    count, total = sum(unscored.values()), sum(map(cases.shown, ROWS))
    by_row = ", ".join(f"{_name(row)} {number}" for row, number in unscored.items() if number)
    by_row = "" if count == total else f" ({by_row})"
    viewless = len(cases.samples) - cases.shown("other_view")
    remedy = "an image with NaN is dropped from its group; find out why, or leave this reward out"
    if error := getattr(candidate.reward, "last_error", None):
        remedy = error
    if candidate.measures == "copying":
        remedy = "it needs another view that differs from the reference; list some under other_views"
    if viewless and (candidate.against == "other_view" or candidate.measures == "copying"):
        remedy = f"{viewless} samples have no other view to compare with; list some under other_views"
        if candidate.against == "other_view":
            remedy += f", or set {candidate.set_to('against', 'reference')}"
    yield f"{candidate.label}: {count} of {total} pictures could not be scored{by_row}: {remedy}"


def _no_signal(judged: Judged) -> Iterator[str]:
    """Training's own rule for groups without signal, with all pictures of a case as one group."""
    several = (~judged.table.isnan()).sum(dim=1) > 1
    if not several.any():
        return
    flat = (group_advantages(judged.table[several]).nan_to_num() == 0).all(dim=1).double()
    subjects = [subject for subject, keep in zip(judged.cases.subjects, several.tolist(), strict=True) if keep]
    share, (floor, ceiling) = estimate(flat, subjects), judged.range
    if share.low > NO_SIGNAL:
        scores = _number(floor) if floor == ceiling else f"from {_number(floor)} to {_number(ceiling)}"
        yield (
            f"{judged.candidate.label}: all pictures of a case get the same score ({scores}) in {_percent(share)} "
            f"of {len(flat)} cases: such a group has no signal and is skipped; use another reward, or a finer scale"
        )


def _copying(judged: Judged) -> Iterator[str]:
    candidate = judged.candidate
    pairs = judged.pairs(judged.scores["copy"], judged.honest)
    if not candidate.judges("identity") or pairs is None or pairs.share.low <= COPY_WINS:
        return
    if candidate.measures == "copying":
        remedy = f"it measures copying; use {candidate.set_to('name', 'dino')} with against=other_view"
    elif candidate.against == "reference":
        remedy = f"compare with another view: {candidate.set_to('against', 'other_view')}"
    else:
        remedy = "watch it with copy_paste in evaluation.metrics, or choose another encoder"
    yield (
        f"{candidate.label}: copying the reference scores higher ({_number(pairs.first)}) than another picture of "
        f"the subject ({_number(pairs.second)}), in {_percent(pairs.share)} of {pairs.count} cases: copying will pay; "
        f"{remedy}"
    )


def _confused(judged: Judged, quality: Literal["identity", "prompt"], right: Tensor, wrong: Tensor) -> Iterator[str]:
    candidate, pairs = judged.candidate, judged.pairs(right, wrong)
    if not candidate.judges(quality) or pairs is None or pairs.share.high >= RANKED_RIGHT:
        return
    what = "the subject from another one" if quality == "identity" else "the right prompt from a wrong one"
    remedy = f"try another reward: {candidate.set_to('name', '...')}"
    if candidate.encoder:
        remedy = f"try another encoder, {candidate.set_to('model', '...')}, or another reward"
    yield (
        f"{candidate.label}: cannot tell {what}: {_percent(pairs.share)} of {pairs.count} pairs are ranked right, "
        f"where chance is 50 % ({_number(pairs.first)} against {_number(pairs.second)}); {remedy}"
    )


def _saturated(judged: Judged) -> Iterator[str]:
    """For trained rewards only: a metric is meant to give full marks to right pictures."""
    candidate, (floor, ceiling) = judged.candidate, judged.range
    good = judged.scores["right_prompt"] if candidate.judges("prompt") else judged.honest
    good = good[~good.isnan()]
    if candidate.key is None or len(good) < 2:
        return
    mean, spread = good.mean().item(), good.std().item()
    if spread <= SATURATED * (ceiling - floor) and ceiling - mean <= SATURATED * (ceiling - floor):
        yield (
            f"{candidate.label}: saturated on good pictures: {_number(mean)} with a spread of {_number(spread)}, on a "
            f"scale from {_number(floor)} to {_number(ceiling)}: it cannot rank them, and normalising a group "
            "amplifies the noise; make the prompts harder, or choose a finer reward: "
            f"{candidate.set_to('name', '...')}"
        )


def _critters_encoders(judged: Sequence[Judged]) -> Iterator[str]:
    """Rewards that use the encoders of the built-in world on other pictures, by encoder."""
    for encoder, instead in PHOTOGRAPH_ENCODERS.items():
        candidates = [j.candidate for j in judged if j.candidate.encoder == encoder and j.candidate.model in BUILT_IN]
        if candidates and not judged[0].cases.truth_known:
            labels = ", ".join(candidate.label for candidate in candidates)
            yield (
                f"{labels}: the built-in encoder has only seen critters; use one trained on photographs, for "
                f"instance {candidates[0].set_to('model', instead)}"
            )


def _related(first: Judged, second: Judged) -> Iterator[str]:
    value = correlation(first.table, second.table)
    pair = f"{first.candidate.label} and {second.candidate.label}"
    if value is not None and value >= DUPLICATE:
        yield f"{pair}: correlation {value:.2f}: they reward nearly the same thing twice; replace one of them"
    elif value is not None and value <= CONFLICT:
        yield (
            f"{pair}: correlation {value:.2f}: they pull against each other, and in a static sum they cancel; "
            "use shaping.rule=sars and weighting.kind=tdw, or compare identity with another view"
        )


def _number(value: float) -> str:
    return f"{value:z.2f}" if value == 0 or abs(value) >= 0.1 else f"{value:.2g}"


def _percent(share: Estimate) -> str:
    return f"{100 * share.mean:.0f} %"


def _name(row: str) -> str:
    return row.replace("_", " ")


# --- the report ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """The result of a check: `text` for people, `as_dict` for JSON."""

    source: str
    cases: Cases
    judged: Sequence[Judged]
    rewards: Mapping[str, RewardSettings] = field(default_factory=dict)  # for identity and prompt, by key

    @cached_property
    def calibration(self) -> CalibrationTable:
        return CalibrationTable(self.judged, self.rewards)

    @cached_property
    def findings(self) -> list[str]:
        trained = [judged for judged in self.judged if judged.candidate.key]
        related = [line for pair in combinations(trained, 2) for line in _related(*pair)]
        own = [line for judged in self.judged for line in findings_of(judged)]
        return [*_critters_encoders(self.judged), *own, *related, *self.calibration.findings()]

    @cached_property
    def notes(self) -> list[str]:
        """What could not be checked."""
        compared = [j.candidate.label for j in self.judged if j.candidate.against == "other_view"]
        single = sum(len(sample.other_views) == 1 for sample in self.cases.samples)
        notes = list(self.cases.gaps())
        if compared and single and not self.cases.truth_known:
            notes.append(
                f"{', '.join(compared)}: {single} of {len(self.cases.samples)} samples have only the other view that "
                "is compared with: whether copying pays is not checked for them; list a second one"
            )
        return notes

    def statistics(self, judged: Judged) -> dict[str, RowStatistics]:
        count, cases = len(self.cases.samples), self.cases
        rows = {
            row: row_statistics(values, cases.subjects, count - cases.shown(row))
            for row, values in judged.scores.items()
        }
        return rows | ({"faithful": rows["right_prompt"]} if cases.truth_known else {})

    def as_dict(self) -> dict[str, Any]:
        """For JSON: null instead of NaN."""
        return {
            "data": self.source,
            "cases": len(self.cases.samples),
            "subjects": len({*self.cases.subjects}),
            "rewards": {judged.candidate.label: self._reward_as_dict(judged) for judged in self.judged},
            "correlation": {
                a.candidate.label: {b.candidate.label: correlation(a.table, b.table) for b in self.judged}
                for a in self.judged
            },
            "findings": self.findings,
            "notes": self.notes,
        }

    def _reward_as_dict(self, judged: Judged) -> dict[str, Any]:
        candidate, scores, (floor, ceiling) = judged.candidate, judged.scores, judged.range
        shares = {
            "copy_above_honest": judged.pairs(scores["copy"], judged.honest),
            "subject_above_other": judged.pairs(judged.same_subject, scores["other_subject"]),
            "right_above_wrong_prompt": judged.pairs(scores["right_prompt"], scores["wrong_prompt"]),
        }
        return {
            "role": candidate.role or candidate.key,
            "measures": candidate.measures,
            "against": candidate.against,
            "model": candidate.model,
            "floor": None if math.isnan(floor) else floor,
            "ceiling": None if math.isnan(ceiling) else ceiling,
            "rows": {row: asdict(statistics) for row, statistics in self.statistics(judged).items()},
            **{name: None if pairs is None else pairs.as_dict() for name, pairs in shares.items()},
        }

    def text(self) -> str:
        """Legend, a table per reward, correlations, calibration, findings and notes."""
        count, subjects = len(self.cases.samples), len({*self.cases.subjects})
        data = f"{counted(count, 'case')} of {self.source}, {counted(subjects, 'subject')}"
        lines = [f"{data}. Scored as if they had been generated:"]
        lines += [f"  {_name(row):<14} {words}" for row, words in self.cases.legend().items()]
        for judged in self.judged:
            lines += ["", *self._table(judged)]
        lines += ["", *self._correlations(), *self.calibration.lines(), ""]
        if self.findings:
            lines += ["What is wrong:", *map(_item, self.findings)]
        else:
            as_checked = ", as far as could be checked" if self.notes else ""
            lines.append(f"Nothing is wrong with these rewards{as_checked}.")
        if self.notes:
            lines += ["", "What could not be checked:", *map(_item, self.notes)]
        return "\n".join(lines)

    def _table(self, judged: Judged) -> Iterator[str]:
        candidate = judged.candidate
        kind = f"rewards.{candidate.key}" if candidate.key else "a metric"
        yield f"{candidate.label} ({kind}, measures {candidate.measures})"
        if judged.table.isnan().all():
            yield "  no picture could be scored"
            return
        heads = "".join(f"{head:>9}" for head in ("spread", "floor", "ceiling", "unscored"))
        yield f"  {'':<14} {'mean':>8}  {'95 % interval':<18}{heads}"
        statistics = self.statistics(judged)
        for row in ROWS:
            of_row = statistics[row]
            if of_row.missing == len(self.cases.samples):
                yield f"  {_name(row):<14}    no such picture"
                continue
            interval = "" if of_row.low is None else f"[{of_row.low:z.3f}, {of_row.high:z.3f}]"
            numbers = (of_row.mean, of_row.spread, of_row.min, of_row.max)
            mean, *cells = ("-" if number is None else f"{number:z.3f}" for number in numbers)
            rest = "".join(f"{cell:>9}" for cell in (*cells, of_row.unscored))
            yield f"  {_name(row):<14} {mean:>8}  {interval:<18}{rest}"

    def _correlations(self) -> Iterator[str]:
        scored = [judged for judged in self.judged if not judged.table.isnan().all()]
        width = max((len(judged.candidate.label) for judged in scored), default=0)
        yield "Correlation over all scored pictures"
        yield f"  {'':<{width + 3}}" + "".join(f"{number:>7}" for number in range(1, len(scored) + 1))
        for number, judged in enumerate(scored, start=1):
            values = [correlation(judged.table, earlier.table) for earlier in scored[:number]]
            cells = "".join(f"{'-' if value is None else f'{value:z.2f}':>7}" for value in values)
            yield f"  {number:>2} {judged.candidate.label:<{width}}{cells}"


def _item(sentence: str) -> str:
    """Wrapped, but never inside quotes, which are there to be copied, or before a percent sign."""
    unbroken = re.sub(r'"[^"]*"| %', lambda match: match[0].replace(" ", "\N{NO-BREAK SPACE}"), sentence)
    lines = textwrap.wrap(
        unbroken, 110, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def check_rewards(config: RunConfig, metrics: Sequence[str], cases: int) -> Check:
    """The rewards of `config`, its metrics and `metrics` ("dino against=other_view") on at most `cases` samples.

    Raises DataError, ConfigError, ModelError or UsageError for a list, reward, model or device that cannot be used;
    RewardError for a reward that breaks its contract.
    """
    further = [parse_metric(line) for line in metrics]
    loaded = load_cases(config.data, cases)
    candidates = load_candidates(config, further)
    size = (config.model.width, config.model.height)
    judged = judge(loaded, candidates, size, config.groups.rollout_batch)
    return Check(config.data.source, loaded, judged, calibrated_rewards(config))


def write_check(check: Check, folder: Path) -> str:
    """Write check_rewards.json and calibration.yaml into the folder, which is made if it is missing.

    Returns a line for each file. If the data tells the levels of no reward, there is no calibration.yaml, and an older
    one is removed.
    """
    make_folder(folder)
    figures, calibration = folder / "check_rewards.json", folder / CALIBRATION
    write_text(figures, json.dumps(check.as_dict(), indent=2, allow_nan=False) + "\n")
    if not check.calibration.measured:
        calibration.unlink(missing_ok=True)
        return f"figures: {figures}"
    write_text(calibration, as_text(check.calibration.measured))
    return f"figures: {figures}\ncalibration: {calibration}"
