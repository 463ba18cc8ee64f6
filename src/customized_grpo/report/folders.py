"""From folders to the parts of a report: which kind a folder is, and what it holds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from customized_grpo.config import CONFIG
from customized_grpo.measure.intervals import Estimate, estimate
from customized_grpo.measure.rows import EvaluationRow, read_rows
from customized_grpo.report.cases import (
    BASE,
    TUNED,
    ReportError,
    evaluated_cases,
    film_of,
    kept_cases,
    read_estimate,
    read_json,
    wall_of,
    wall_of_film,
)
from customized_grpo.report.comparisons import comparison_part
from customized_grpo.report.content import Arm, History, MetricRow, Part, Rows, Table
from customized_grpo.report.learning import at_end, at_start
from customized_grpo.report.probes import PROBE, probe_part
from customized_grpo.run.logs import read_log

# --- which kind of folder --------------------------------------------------------------------------------------------


def read_parts(folders: Sequence[Path]) -> list[Part]:
    """One part per demo, comparison and probe, one of all runs, one of all evaluations (a run's own included).

    Raises ReportError for a folder that is none of these.
    """
    kinds = {folder: _kind(folder) for folder in dict.fromkeys(folders)}
    named: dict[str, list[Path]] = {kind: [f for f, each in kinds.items() if each == kind] for kind in KINDS}
    runs = named["run"]
    evaluations = named["evaluation"]
    for run in runs:
        found = sorted(path for path in run.glob("evaluation-*") if KINDS["evaluation"](path))
        evaluations += [path for path in found if path not in evaluations]
    parts = [_demo(folder) for folder in named["demo"]]
    parts += [comparison_part(folder) for folder in named["comparison"]]
    parts += [probe_part(folder) for folder in named["probe"]]
    if len(runs) == 1 and evaluations and all(path.parent == runs[0] for path in evaluations):
        return [*parts, _joined(_runs(runs), _evaluations(evaluations))]
    parts += [_evaluations(evaluations)] if evaluations else []
    parts += [_runs(runs)] if runs else []
    return parts


def _joined(run: Part, tested: Part) -> Part:
    """A run with its own evaluations, whose cases say more than the run's."""
    tables, files = [*tested.tables, *run.tables], {**run.files, **tested.files}
    return replace(run, tables=tables, wall=tested.wall or run.wall, files=files)


KINDS: dict[str, Callable[[Path], bool]] = {
    "comparison": lambda folder: (folder / "comparison.json").is_file(),
    "evaluation": lambda folder: all((folder / name).is_file() for name in ("settings.json", "rows.jsonl")),
    "probe": lambda folder: (folder / PROBE).is_file(),
    "demo": lambda folder: (folder / "summary.json").is_file() and (folder / "run").is_dir(),
    "run": lambda folder: all((folder / name).is_file() for name in (CONFIG, "environment.json")),
}


def _kind(folder: Path) -> str:
    if not folder.is_dir():
        raise ReportError(f"there is no folder {folder}")
    for kind, holds in KINDS.items():
        if holds(folder):
            return kind
    raise ReportError(
        f"{folder} is no run (config.yaml and environment.json), no evaluation (settings.json and rows.jsonl), no "
        "comparison (comparison.json), no probe (probe.json) and no demo (summary.json and run/)"
    )


def distinct(folders: Sequence[Path]) -> list[str]:
    """A name for each folder: as many of its last parts as tell it from the others."""
    whole = [folder.resolve().parts for folder in folders]
    shortest = 2 if any(parts[-1] == "run" for parts in whole) else 1  # "run" alone says nothing
    for length in range(shortest, max(map(len, whole)) + 1):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


# --- one part of each kind -------------------------------------------------------------------------------------------


def _demo(folder: Path) -> Part:
    summary = read_json(folder / "summary.json")
    history, files = _history(folder / "run", TUNED)
    arms = [Arm(TUNED, [history])]
    seen, unseen = summary["cases"], summary["cases_unseen_combinations"]
    titles = {
        "": f"{seen} held-out cases: subjects that neither base, encoders nor RL have seen",
        "_unseen_combinations": f"{unseen} more, with combinations of scene, place and hat new to RL as well",
    }
    tables = [
        _before_and_after(title, summary[f"{BASE}{part}"], summary[f"{TUNED}{part}"]) for part, title in titles.items()
    ]
    columns = [(name, kept_cases(folder / "cases", name)) for name in (BASE, TUNED)]
    facts = [*_facts(files), f"{summary['seconds']['install_excluded_total']:.0f} s in all"]
    film, wall = film_of(arms), wall_of(columns, seen)
    return Part("Demo", "Base and tuned", facts, tables, arms=arms, film=film, wall=wall, files=files)


def _before_and_after(title: str, base: Mapping[str, Any], tuned: Mapping[str, Any]) -> Table:
    rows = []
    for metric, before in base.items():
        figures = [Estimate(**before), Estimate(**tuned[metric])]
        change = Estimate(figures[1].mean - figures[0].mean, float("nan"), float("nan"))
        rows.append(MetricRow(metric, metric.endswith("_reward"), figures, change))
    return Table(title, (BASE, TUNED), rows, ["Intervals: 95 %, over cases."])


def _runs(folders: Sequence[Path]) -> Part:
    read = [_history(folder, name) for folder, name in zip(folders, distinct(folders), strict=True)]
    arms = [Arm(history.name, [history]) for history, _ in read]
    film = film_of(arms)
    single = len(read) == 1
    files = read[0][1] if single else {f"{h.name}: {name}": text for h, each in read for name, text in each.items()}
    return Part(
        "Run" if single else "Runs",
        arms[0].name if single else f"{len(arms)} runs",
        _facts(read[0][1]) if single else (),
        [table for table in [_run_table(arms)] if table],
        arms=arms,
        film=film,
        wall=wall_of_film(film),
        files=files,
    )


def _run_table(arms: Sequence[Arm]) -> Table | None:
    """Held-out cases before the first and after the last update; None where nothing was evaluated."""
    evaluated = [arm for arm in arms if arm.runs[0].held_out]
    if not evaluated:
        return None
    held_out = [arm.runs[0].held_out for arm in evaluated]
    metrics = dict.fromkeys(
        name for rows in held_out for name in rows[0] if name not in ("update", "spread", "scored")
    )
    alike = all(_begin_alike(held_out[0], each, metrics) for each in held_out)
    rows = []
    for metric in metrics:
        if alike:
            figures = [at_start(held_out[0], metric), *(at_end(each, metric) for each in held_out)]
        else:
            figures = [figure for each in held_out for figure in (at_start(each, metric), at_end(each, metric))]
        first, last = figures[0], figures[-1]
        change = None
        if len(figures) == 2 and first and last:
            change = Estimate(last.mean - first.mean, float("nan"), float("nan"))
        rows.append(MetricRow(metric, metric.endswith("_reward"), figures, change))
    last = [rows[-1]["update"] for rows in held_out]
    if len(evaluated) == 1:
        columns = [f"update {held_out[0][0]['update']}", f"update {last[0]}"]
    elif alike:
        columns = [BASE, *(f"{arm.name}, update {update}" for arm, update in zip(evaluated, last, strict=True))]
    else:
        ends = [(rows[0]["update"], rows[-1]["update"]) for rows in held_out]
        columns = [f"{arm.name}, update {end}" for arm, both in zip(evaluated, ends, strict=True) for end in both]
    notes = ["The run's own held-out cases. Intervals: 95 %, over cases, where the run kept their spread."]
    notes += [] if alike else ["The runs have other cases, rewards or models: compare each with its own beginning."]
    return Table("Held-out cases, before and after", columns, rows, notes)


def _begin_alike(one: Rows, other: Rows, metrics: Iterable[str]) -> bool:
    """Whether two runs have the same figures before their first update, up to rounding, as far as both have them."""
    first, second = ({metric: at_start(rows, metric) for metric in metrics} for rows in (one, other))
    pairs = [(a.mean, b.mean) for metric in metrics if (a := first[metric]) and (b := second[metric])]
    return all(math.isclose(a, b, abs_tol=1e-3) for a, b in pairs)


def _evaluations(folders: Sequence[Path]) -> Part:
    found = [_evaluation(folder) for folder in folders]
    found.sort(key=lambda each: not each.is_base)  # what the others are compared with stands first
    kinds = [BASE if each.is_base else TUNED for each in found]
    names = kinds if len(set(kinds)) == len(kinds) else distinct([each.folder for each in found])
    named = list(zip(names, found, strict=True))
    first = found[0]
    columns = [(name, evaluated_cases(each.folder, each.rows)) for name, each in named]
    return Part(
        "Evaluation",
        " and ".join(names),
        [f"{first.settings['model']} on {first.settings['data']}", f"{first.summary['images']} images"],
        [_evaluation_table(named)],
        wall=wall_of(columns, max(len(each.rows) for each in found)),
        files={f"{name}: settings": json.dumps(each.settings, indent=2) for name, each in named},
    )


@dataclass(frozen=True)
class _Evaluation:
    folder: Path
    settings: Mapping[str, Any]
    summary: Mapping[str, Any]
    rows: Sequence[EvaluationRow]

    @property
    def is_base(self) -> bool:
        return self.settings["adapter"] is None


def _evaluation(folder: Path) -> _Evaluation:
    if not (folder / "summary.json").is_file():
        raise ReportError(f"{folder} holds no summary.json: the evaluation was stopped; run it again and it goes on")
    settings, summary = (read_json(folder / name) for name in ("settings.json", "summary.json"))
    return _Evaluation(folder, settings, summary, read_rows(folder / "rows.jsonl"))


def _evaluation_table(named: Sequence[tuple[str, _Evaluation]]) -> Table:
    names, summaries = [name for name, _ in named], [each.summary for _, each in named]
    rows = [each.rows for _, each in named]
    metrics = dict.fromkeys(metric for summary in summaries for metric in summary["metrics"])
    lines = []
    for metric in metrics:
        found = [summary["metrics"].get(metric) for summary in summaries]
        change = _paired(rows[0], rows[1], metric) if len(rows) == 2 else None
        trained = any(figure and figure["trained_on"] for figure in found)
        lines.append(MetricRow(metric, trained, [read_estimate(figure) for figure in found], change))
    images, subjects = summaries[0]["images"], summaries[0]["subjects"]
    several = subjects > 1
    notes = [
        f"{images} images of {subjects} subject{'s' if several else ''}. Intervals: 95 %, over "
        f"{'subjects' if several else 'its images'}."
    ]
    notes += _sampled_otherwise(named)
    if len(rows) == 2:
        notes.append("Change: mean over the cases that both could score, paired.")
    for name, summary in zip(names, summaries, strict=True):
        missing = {metric: figure["unscored"] for metric, figure in summary["metrics"].items() if figure["unscored"]}
        notes += [f"{name}: {count} images could not be scored by {metric}." for metric, count in missing.items()]
        if "dominance" in summary:
            found = summary["dominance"]
            better, worse = (f"{found[side]['mean']:.0%}" for side in ("better", "worse"))
            notes.append(
                f"{name} against its base on {' and '.join(found['rewards'])} at once: {better} of "
                f"{found['compared']} images better, {worse} worse."
            )
    return Table("Every case by every metric", names, lines, notes)


def _sampled_otherwise(named: Sequence[tuple[str, _Evaluation]]) -> list[str]:
    """A sentence where the evaluations did not draw their pictures alike."""
    (first, reference), *others = named
    different = [name for name, each in others if each.settings["sampling"] != reference.settings["sampling"]]
    if not different:
        return []
    return [f"{', '.join(different)}: sampled with other steps, schedule, guidance or size than {first}."]


def _paired(base: Sequence[EvaluationRow], tuned: Sequence[EvaluationRow], metric: str) -> Estimate | None:
    """Change over the cases that both evaluations scored, with its interval over subjects."""
    known = {row.key: row.scores[metric] for row in base if metric in row.scores}
    pairs = [(row, known[row.key]) for row in tuned if row.key in known and metric in row.scores]
    changes = torch.tensor([row.scores[metric] - before for row, before in pairs], dtype=torch.float64)
    return None if changes.isnan().all() else estimate(changes, [row.subject for row, _ in pairs])


# --- what a run holds ------------------------------------------------------------------------------------------------


def _history(folder: Path, name: str) -> tuple[History, dict[str, str]]:
    """A run's rows and its settings as text. Paths and the command line stay out: a report is passed around."""
    config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    environment = read_json(folder / "environment.json")
    config.pop("output", None)
    environment.pop("command", None)
    files = {
        "settings": yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        "environment": json.dumps(environment, indent=2),
    }
    updates, held_out = (read_log(folder / log) for log in ("metrics.jsonl", "evaluations.jsonl"))
    return History(name, updates, held_out, folder / "images"), files


def _facts(files: Mapping[str, str]) -> list[str]:
    config = yaml.safe_load(files["settings"])
    rule, kind = config["shaping"]["rule"], config["weighting"]["kind"]
    groups, adapter = config["groups"], config["adapter"]
    images = config["updates"] * groups["prompts"] * groups["size"]
    return [
        f"{config['model']['path']} on {config['data']['source']}",
        f"{rule.upper()} + {'TDW' if kind == 'tdw' else f'{kind} weights'}",
        f"{config['updates']} updates, {images:,} images",
        f"LoRA rank {adapter['rank']}",
        f"seed {config['seed']}",
    ]
