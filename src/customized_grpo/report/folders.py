"""From folders to the parts of a report: the kind of each folder, and its content."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from customized_grpo.calibration.intervals import Estimate
from customized_grpo.config import CONFIG
from customized_grpo.files.adapter_places import find_adapter
from customized_grpo.files.pretrained import ModelError
from customized_grpo.measure.rows import EvaluationRow, mean_change, read_rows
from customized_grpo.policies.adapter_file import adapter_digest
from customized_grpo.report import formats
from customized_grpo.report.cases import (
    BASE,
    TUNED,
    evaluated_cases,
    film_of,
    kept_cases,
    read_estimate,
    wall_of,
    wall_of_film,
)
from customized_grpo.report.comparisons import comparison_part
from customized_grpo.report.content import Arm, History, MetricRow, Part, Rows, Table
from customized_grpo.report.formats import ReportError
from customized_grpo.report.labels import is_trained
from customized_grpo.report.learning import at_end, at_start
from customized_grpo.report.probes import PROBE, probe_part
from customized_grpo.sharing.public import public
from customized_grpo.sharing.scores import TUNED as EVALUATION_TUNED
from customized_grpo.training.rules import UNWEIGHTED
from customized_grpo.wording import counted

# --- the kind of a folder --------------------------------------------------------------------------------------------


def read_parts(folders: Sequence[Path]) -> list[Part]:
    """One part per demo, comparison and probe, one of all runs, one of all evaluations (including those in runs).

    Raises ReportError for a folder that is none of these, another InputError for a damaged file.
    """
    by_kind: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    for folder in dict.fromkeys(folders):
        by_kind[kind_of(folder)].append(folder)
    runs, evaluations = by_kind["run"], by_kind["evaluation"]
    for run in runs:
        evaluations += [path for path in _own_evaluations(run) if path not in evaluations]
    parts = [_demo(folder) for folder in by_kind["demo"]]
    parts += [comparison_part(folder) for folder in by_kind["comparison"]]
    parts += [probe_part(folder) for folder in by_kind["probe"]]
    if len(runs) == 1 and evaluations and all(path.parent == runs[0] for path in evaluations):
        return [*parts, _joined(_runs(runs), _evaluations(evaluations))]
    parts += [_evaluations(evaluations)] if evaluations else []
    parts += [_runs(runs)] if runs else []
    return parts


def _own_evaluations(run: Path) -> list[Path]:
    """The evaluations in a run's folder that are finished and of the adapter that it has now."""
    found = []
    for path in sorted(path for path in run.glob("evaluation-*") if KINDS["evaluation"](path)):
        if not (path / "summary.json").is_file():
            warnings.warn(f"{path} is not finished, and left out; `evaluate` goes on with it", stacklevel=3)
        elif path.name == EVALUATION_TUNED and not _is_of_adapter(path, run):
            warnings.warn(f"{path} is of an earlier adapter of the run, and left out; evaluate again", stacklevel=3)
        else:
            found.append(path)
    return found


def _is_of_adapter(evaluation: Path, run: Path) -> bool:
    """Whether an evaluation measured the adapter that the run has now."""
    try:
        adapter = find_adapter(run)
    except ModelError:  # the run goes on and has no final adapter
        return False
    files = adapter.glob("*") if adapter.is_dir() else [adapter]
    state = tuple(sorted((file.name, file.stat().st_mtime_ns) for file in files if file.is_file()))
    measured = formats.read_json(evaluation / "settings.json", formats.SettingsShape)["adapter"]
    return measured == _digest(adapter, state)


@lru_cache(maxsize=64)
def _digest(adapter: Path, state: object) -> str:  # noqa: ARG001 - what the studio asks for again and again
    return adapter_digest(adapter)


def _joined(run: Part, tested: Part) -> Part:
    """A run with its own evaluations, which have more cases than the run."""
    tables, files = [*tested.tables, *run.tables], {**run.files, **tested.files}
    return replace(run, tables=tables, wall=tested.wall or run.wall, files=files)


KINDS: dict[str, Callable[[Path], bool]] = {
    "comparison": lambda folder: (folder / "comparison.json").is_file(),
    "evaluation": lambda folder: all((folder / name).is_file() for name in ("settings.json", "rows.jsonl")),
    "probe": lambda folder: (folder / PROBE).is_file(),
    "demo": lambda folder: (folder / "summary.json").is_file() and (folder / "run").is_dir(),
    "run": lambda folder: all((folder / name).is_file() for name in (CONFIG, "environment.json")),
}


def kind_of(folder: Path) -> str:
    """The key of `KINDS` for a folder. Raises ReportError if it is none of them."""
    if not folder.is_dir():
        raise ReportError(f"{folder} is not a folder; name the folder of a run, evaluation, comparison, probe or demo")
    for kind, matches in KINDS.items():
        if matches(folder):
            return kind
    raise ReportError(
        f"{folder} is not a run (config.yaml and environment.json), evaluation (settings.json and rows.jsonl), "
        "comparison (comparison.json), probe (probe.json) or demo (summary.json and run/); name one of those"
    )


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """A name for each folder: as many of its last parts as it takes to tell them apart."""
    paths = [folder.resolve().parts for folder in folders]
    shortest = 2 if any(parts[-1] == "run" for parts in paths) else 1  # "run" alone tells nothing
    for length in range(shortest, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


# --- one part of each kind -------------------------------------------------------------------------------------------


def _demo(folder: Path) -> Part:
    summary = formats.read_json(folder / "summary.json", formats.DemoShape)
    history, files = _history(folder / "run", TUNED)
    arms = [Arm(TUNED, [history])]
    seen, unseen = summary["cases"], summary["cases_unseen_combinations"]
    titles = {
        "": f"{seen} held-out cases: subjects that the base, the encoders and RL have never seen",
        "_unseen_combinations": f"{unseen} more, whose combinations of scene, place and hat are new to RL too",
    }
    tables = [
        _before_and_after(title, summary[f"{BASE}{part}"], summary[f"{TUNED}{part}"]) for part, title in titles.items()
    ]
    columns = [(name, kept_cases(folder / "cases", name)) for name in (BASE, TUNED)]
    facts = [*_facts(files, history.updates), f"{summary['seconds']['install_excluded_total']:.0f} s in all"]
    film, wall = film_of(arms), wall_of(columns, seen)
    return Part("Demo", "Base and tuned", facts, tables, arms=arms, film=film, wall=wall, files=files)


def _before_and_after(title: str, base: Mapping[str, Any], tuned: Mapping[str, Any]) -> Table:
    rows = []
    for metric, before in base.items():
        figures = [read_estimate(before), read_estimate(tuned.get(metric))]
        rows.append(MetricRow(metric, is_trained(metric), figures, _change(figures)))
    return Table(title, (BASE, TUNED), rows, ["Intervals: 95 %, over cases."])


def _change(figures: Sequence[Estimate | None]) -> Estimate | None:
    """Last minus first of two figures, without an interval."""
    first, last = figures[0], figures[-1]
    if len(figures) != 2 or first is None or last is None:
        return None
    return Estimate(last.mean - first.mean, float("nan"), float("nan"))


def _runs(folders: Sequence[Path]) -> Part:
    read = [_history(folder, name) for folder, name in zip(folders, distinct_names(folders), strict=True)]
    arms = [Arm(history.name, [history]) for history, _ in read]
    film = film_of(arms)
    single = len(read) == 1
    files = read[0][1] if single else {f"{h.name}: {name}": text for h, own in read for name, text in own.items()}
    return Part(
        "Run" if single else "Runs",
        arms[0].name if single else f"{len(arms)} runs",
        _facts(read[0][1], read[0][0].updates) if single else (),
        [table for table in [_run_table(arms)] if table],
        arms=arms,
        film=film,
        wall=wall_of_film(film),
        files=files,
    )


def _run_table(arms: Sequence[Arm]) -> Table | None:
    """Held-out cases before the first and after the last update; None if no run evaluated any."""
    evaluated = [arm for arm in arms if arm.runs[0].held_out]
    if not evaluated:
        return None
    held_out = [arm.runs[0].held_out for arm in evaluated]
    metrics = dict.fromkeys(
        name for rows in held_out for name in rows[0] if name not in ("update", "spread", "scored")
    )
    same_start = all(_start_equal(held_out[0], own, metrics) for own in held_out)
    rows = []
    for metric in metrics:
        if same_start:
            figures = [at_start(held_out[0], metric), *(at_end(own, metric) for own in held_out)]
        else:
            figures = [figure for own in held_out for figure in (at_start(own, metric), at_end(own, metric))]
        rows.append(MetricRow(metric, is_trained(metric), figures, _change(figures)))
    ends = [(own[0]["update"], own[-1]["update"]) for own in held_out]
    if len(evaluated) == 1:
        columns = [f"update {update}" for update in ends[0]]
    elif same_start:
        columns = [BASE, *(f"{arm.name}, update {last}" for arm, (_, last) in zip(evaluated, ends, strict=True))]
    else:
        columns = [f"{arm.name}, update {end}" for arm, both in zip(evaluated, ends, strict=True) for end in both]
    notes = ["The run's own held-out cases. Intervals: 95 %, over cases, if the run recorded their spread."]
    if not same_start:
        notes.append("The runs differ in cases, rewards or models: compare each with its own first evaluation.")
    return Table("Held-out cases, before and after", columns, rows, notes)


def _start_equal(one: Rows, other: Rows, metrics: Iterable[str]) -> bool:
    """Whether two runs have the same figures before their first update, up to rounding, for metrics that both have."""
    first, second = ({metric: at_start(rows, metric) for metric in metrics} for rows in (one, other))
    pairs = [(a.mean, b.mean) for metric in metrics if (a := first[metric]) and (b := second[metric])]
    return all(math.isclose(a, b, abs_tol=1e-3) for a, b in pairs)


def _evaluations(folders: Sequence[Path]) -> Part:
    evaluations = [_evaluation(folder) for folder in folders]
    evaluations.sort(key=lambda evaluation: not evaluation.is_base)  # the base first: others are compared with it
    kinds = [BASE if evaluation.is_base else TUNED for evaluation in evaluations]
    names = kinds if len(set(kinds)) == len(kinds) else distinct_names([e.folder for e in evaluations])
    named = list(zip(names, evaluations, strict=True))
    first, about = evaluations[0], public(evaluations[0].settings)
    columns = [(name, evaluated_cases(evaluation.folder, evaluation.rows)) for name, evaluation in named]
    return Part(
        "Evaluation",
        " and ".join(names),
        [f"{about['model']} on {about['data']}", f"{first.summary['images']} images"],
        [_evaluation_table(named)],
        wall=wall_of(columns, max(len(evaluation.rows) for evaluation in evaluations)),
        files={f"{name}: settings": json.dumps(public(e.settings), indent=2) for name, e in named},
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
        raise ReportError(f"{folder} has no summary.json: the evaluation was stopped; run it again to finish it")
    settings = formats.read_json(folder / "settings.json", formats.SettingsShape)
    summary = formats.read_json(folder / "summary.json", formats.EvaluationShape)
    return _Evaluation(folder, settings, summary, read_rows(folder / "rows.jsonl"))


def _evaluation_table(named: Sequence[tuple[str, _Evaluation]]) -> Table:
    names, summaries = [name for name, _ in named], [evaluation.summary for _, evaluation in named]
    rows = [evaluation.rows for _, evaluation in named]
    metrics = dict.fromkeys(metric for summary in summaries for metric in summary["metrics"])
    lines, otherwise = [], _measured_otherwise(named)
    for metric in metrics:
        figures = [summary["metrics"].get(metric) for summary in summaries]
        change = mean_change(rows[1], rows[0], metric) if len(rows) == 2 and metric not in otherwise else None
        trained = any(figure and figure["trained_on"] for figure in figures)
        lines.append(MetricRow(metric, trained, [read_estimate(figure) for figure in figures], change))
    images, subjects = summaries[0]["images"], summaries[0]["subjects"]
    over = "subjects" if subjects > 1 else "its images"
    notes = [f"{counted(images, 'image')} of {counted(subjects, 'subject')}. Intervals: 95 %, over {over}."]
    notes += _note_on_sampling(named)
    notes += [f"{metric} is not the same measurement in all: {of_each}." for metric, of_each in otherwise.items()]
    if len(rows) == 2:
        notes.append("Change: mean paired difference over the cases that both could score.")
    for name, summary in zip(names, summaries, strict=True):
        unscored = {metric: figure["unscored"] for metric, figure in summary["metrics"].items() if figure["unscored"]}
        notes += [
            f"{name}: {counted(count, 'image')} could not be scored by {metric}." for metric, count in unscored.items()
        ]
        if dominance := summary.get("dominance"):
            better, worse = (f"{dominance[side]['mean']:.0%}" for side in ("better", "worse"))
            notes.append(
                f"{name} against its base, on {' and '.join(dominance['rewards'])} at once: {better} of "
                f"{dominance['compared']} images are better, {worse} worse."
            )
    return Table("All cases, all metrics", names, lines, notes)


def _measured_otherwise(named: Sequence[tuple[str, _Evaluation]]) -> dict[str, str]:
    """Metrics that share a name but not the model or settings that measure: what each evaluation measured with."""
    told = {name: metrics for name, each in named if isinstance(metrics := each.settings.get("metrics"), Mapping)}
    found = dict[str, str]()
    for metric in dict.fromkeys(metric for metrics in told.values() for metric in metrics):
        scorings = {name: metrics[metric] for name, metrics in told.items() if metric in metrics}
        if len(set(scorings.values())) > 1:
            found[metric] = ", ".join(f"{name} has {scoring}" for name, scoring in scorings.items())
    return found


def _note_on_sampling(named: Sequence[tuple[str, _Evaluation]]) -> list[str]:
    """A sentence if the evaluations sampled their pictures differently."""
    (first, reference), *others = named
    different = [name for name, other in others if other.settings["sampling"] != reference.settings["sampling"]]
    if not different:
        return []
    return [f"{', '.join(different)}: steps, schedule, guidance or size of the sampling differ from {first}."]


# --- the content of a run --------------------------------------------------------------------------------------------


def _history(folder: Path, name: str) -> tuple[History, dict[str, str]]:
    """A run's rows and its settings as text, without paths and command line: reports are passed around."""
    config = public(formats.read_yaml(folder / CONFIG, formats.ConfigShape))
    environment = formats.read_json(folder / "environment.json", formats.ENVIRONMENT)
    config.pop("output", None)
    environment.pop("command", None)
    files = {
        "settings": yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        "environment": json.dumps(environment, indent=2),
    }
    updates = formats.read_rows(folder / "metrics.jsonl", formats.UPDATES)
    held_out = formats.read_rows(folder / "evaluations.jsonl", formats.HELD_OUT)
    warnings = [warning for row in updates for warning in row.get("warnings", ())]
    return History(name, updates, held_out, warnings, folder / "images"), files


def _facts(files: Mapping[str, str], updates: Rows) -> list[str]:
    config = yaml.safe_load(files["settings"])
    rule, kind = config["shaping"]["rule"], config["weighting"]["kind"]
    groups, adapter = config["groups"], config["adapter"]
    done, planned = int(updates[-1]["update"]) if updates else 0, config["updates"]
    images = done * groups["prompts"] * groups["size"]
    return [
        f"{config['model']['path']} on {config['data']['source']}",
        rule.upper() if rule in UNWEIGHTED else f"{rule.upper()} + {'TDW' if kind == 'tdw' else f'{kind} weights'}",
        f"{done if done == planned else f'{done} of {planned}'} updates, {images:,} images",
        f"LoRA rank {adapter['rank']}",
        f"seed {config['seed']}",
    ]
