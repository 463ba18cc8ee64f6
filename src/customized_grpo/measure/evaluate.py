"""`customized-grpo evaluate`: generate what is missing, score it, summarise the rows, write the files."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from customized_grpo.calibration.intervals import Estimate
from customized_grpo.calibration.joint import joint_quality
from customized_grpo.calibration.named_metrics import trained_names
from customized_grpo.config import CONFIG, JOINT_CALIBRATED, ConfigError, RunConfig, dump_config
from customized_grpo.data.images import to_pictures
from customized_grpo.files.adapter_places import folder_of
from customized_grpo.files.durable import append_text, check_folder, make_folder, write_text
from customized_grpo.files.pictures import save_png
from customized_grpo.measure import dreambench
from customized_grpo.measure.request import CONTENT, OF_THE_BASE, EvaluationRequest
from customized_grpo.measure.rows import (
    EvaluationRow,
    count_unscored,
    joint_dominance,
    mean_change,
    mean_scores,
    means_by,
    read_rows,
    scores_of,
)
from customized_grpo.policies import load_policy
from customized_grpo.policies.base import Policy
from customized_grpo.rewards import Reward
from customized_grpo.rewards.remote_settings import RemoteSettings
from customized_grpo.rewards.scoring import Reasons, RewardError, score
from customized_grpo.run.base_adapter import check_base_adapter
from customized_grpo.run.cases import keep_reference
from customized_grpo.runtime.device import usable_device
from customized_grpo.sharing.scores import SETTINGS, SUMMARY
from customized_grpo.training.evaluation import Case, generate_cases
from customized_grpo.wording import counted

ROWS = "rows.jsonl"
PICTURES, REFERENCES = "images", "references"


def write_evaluation(request: EvaluationRequest, output: Path, against: Path | None) -> str:
    """The whole command: evaluate, write config.yaml and summary.json, return the table."""
    base = None  # or the rows to compare with, read before any image is generated
    if against is not None:
        base = with_joint_quality(request, _comparable_rows(request, against))
    rows = with_joint_quality(request, evaluate(request, output))
    _check_answered(request, rows)
    summary = summarise(request, rows, base)
    texts = [table(summary)]
    if request.protocol:
        metrics = request.all_metrics()
        measured: dict[str, Mapping[str, Estimate | None]] = {} if base is None else {"base": mean_scores(base)}
        measured["base" if request.adapter is None else "tuned"] = mean_scores(rows)
        real = dreambench.real_photographs(request.config, metrics, request.samples)
        summary["real_photographs"] = {metric: estimate.as_dict() for metric, estimate in real.items()}
        texts.append(dreambench.customary_table(metrics, {**measured, "real photographs": real}))
        write_text(output / dreambench.TABLE, texts[-1] + "\n")
    write_text(output / CONFIG, dump_config(request.config))
    write_text(output / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return "\n\n".join(texts)


# --- generate and score ----------------------------------------------------------------------------------------------


def evaluate(request: EvaluationRequest, output: Path, *, keep_pictures: bool = True) -> list[EvaluationRow]:
    """Generate and score what `output` does not hold yet; returns all rows, in the order of the list.

    Images that a server did not score are among these: they are drawn once more, and it is asked again. Writes
    settings.json, rows.jsonl, images/ and references/. Raises ConfigError if `output` holds something else.
    """
    if not request.samples:
        raise ConfigError(f"{request.config.data.source} leaves nothing to evaluate on")
    _check_output(output, request.settings)
    _warn_of_unscorable(request)
    cases = [(sample, index) for sample in request.samples for index in range(request.images)]
    finished = {row.key: row for row in read_rows(output / ROWS)}
    for unanswered in _unanswered(request, list(finished.values())).values():
        for row in unanswered:
            finished.pop(row.key, None)
    pending = [(number, case) for number, case in enumerate(cases) if (case[0].id, case[1]) not in finished]
    loaded = _load(request) if pending else None  # before anything is written: loading can fail
    make_folder(output)
    write_text(output / SETTINGS, json.dumps(request.settings, indent=2) + "\n")
    write_text(output / ROWS, "".join(row.as_line() for row in finished.values()))  # drops a line that was cut short
    if loaded is not None:
        policy, metrics = loaded
        rows = score_cases(request.config, policy, metrics, pending, output if keep_pictures else None)
        settings, reasons = request.all_metrics(), Reasons()
        for (_, (sample, _)), row in zip(pending, rows, strict=True):
            append_text(output / ROWS, row.as_line())
            finished[row.key] = row
            for name, metric in metrics.items():
                if math.isnan(row.scores[name]) and not settings[name].lacking(sample):  # those are known already
                    reasons.tell(name, metric, "it gives no reason; check-rewards shows what it can score")
    return [finished[sample.id, index] for sample, index in cases]


def _unanswered(request: EvaluationRequest, rows: Sequence[EvaluationRow]) -> dict[str, list[EvaluationRow]]:
    """The rows that a reward behind a server should have scored and did not, by metric."""
    samples = {sample.id: sample for sample in request.samples}
    remote = {name: each for name, each in request.all_metrics().items() if isinstance(each, RemoteSettings)}
    return {
        name: [row for row in rows if math.isnan(row.scores[name]) and not metric.lacking(samples[row.sample])]
        for name, metric in remote.items()
    }


def _check_answered(request: EvaluationRequest, rows: Sequence[EvaluationRow]) -> None:
    """Raises RewardError if a server left more images without a score than `max_unscored` allows."""
    limit = request.config.max_unscored
    for name, unanswered in _unanswered(request, rows).items():
        if len(unanswered) > limit * len(rows):
            raise RewardError(
                f"{name} scored {len(rows) - len(unanswered)} of {len(rows)} images, and max_unscored is {limit:g}; "
                "the same command asks for the others again"
            )


def _warn_of_unscorable(request: EvaluationRequest) -> None:
    for name, metric in request.all_metrics().items():
        lacking = [what for sample in request.samples if (what := metric.lacking(sample))]
        if lacking:
            warnings.warn(
                f"{name} cannot score {len(lacking)} of {len(request.samples)} samples, which have no {lacking[0]}",
                stacklevel=2,
            )


def _load(request: EvaluationRequest) -> tuple[Policy, dict[str, Reward]]:
    device = usable_device(request.config.device)
    if request.adapter is not None:
        check_base_adapter(request.config.model, folder_of(request.adapter))
    policy = load_policy(request.config.evaluation_model, request.config.device)
    if request.adapter is not None:
        policy.load_adapter(request.adapter)
    return policy, {name: metric.make(device) for name, metric in request.all_metrics().items()}


def score_cases(
    config: RunConfig,
    policy: Policy,
    metrics: Mapping[str, Reward],
    cases: Sequence[tuple[int, Case]],
    pictures: Path | None,
) -> Iterator[EvaluationRow]:
    """Generate and score numbered cases in batches and yield their rows.

    PNG files go to `pictures`/images and, for a sample's first image, its reference to `pictures`/references; their
    names start with the number of the case.
    """
    sigmas = policy.sigmas(config.evaluation_steps, config.sampling.shift)
    size = config.groups.rollout_batch
    for start in tqdm(range(0, len(cases), size), desc="evaluating", unit="batch"):
        batch = cases[start : start + size]
        images = generate_cases(policy, sigmas, [case for _, case in batch])
        samples = [sample for _, (sample, _) in batch]
        scores = {name: score(name, metric, images, samples).tolist() for name, metric in metrics.items()}
        if pictures is not None:
            for folder in (PICTURES, REFERENCES):
                make_folder(pictures / folder)
            for (number, (sample, index)), picture in zip(batch, to_pictures(images), strict=True):
                name = f"{number:05d}-{_slug(sample.id)}"
                save_png(picture, pictures / PICTURES / f"{name}-{index}.png")
                if index == 0:
                    keep_reference(sample.reference_images()[0], pictures / REFERENCES / f"{name}.png")
        for position, (_, (sample, index)) in enumerate(batch):
            of_image = {name: values[position] for name, values in scores.items()}
            yield EvaluationRow(sample.id, sample.subject, sample.prompt, index, of_image)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:60]


def with_joint_quality(request: EvaluationRequest, rows: Sequence[EvaluationRow]) -> list[EvaluationRow]:
    """The rows with the figure `joint_calibrated`, if the run has calibrations; from the scores of its rewards."""
    if not request.calibrations:
        return list(rows)
    names = trained_names(request.config, request.in_full)
    roles = {key: str(reward.role) for key, reward in request.config.rewards.items()}
    scores = {key: scores_of(rows, names[key]) for key in request.calibrations}
    joint = joint_quality(scores, roles, request.calibrations).tolist()
    return [
        replace(row, scores={**row.scores, JOINT_CALIBRATED: value}) for row, value in zip(rows, joint, strict=True)
    ]


# --- folders that hold an evaluation already -------------------------------------------------------------------------


def _check_output(output: Path, settings: Mapping[str, Any]) -> None:
    """Raises ConfigError if `output` cannot take this evaluation: it holds another one, or something else."""
    check_folder(output)
    file = output / SETTINGS
    if file.exists():
        found = _read_settings(file, "choose another --output, or remove the folder")
        if differences := _differences({CONTENT: settings[CONTENT], **found}, settings):
            raise ConfigError(f"{output} holds another evaluation: {differences}. Choose another --output")
    elif output.exists() and any(output.iterdir()):
        raise ConfigError(f"{output} is not empty and is not an evaluation; choose another --output")


def _comparable_rows(request: EvaluationRequest, against: Path) -> list[EvaluationRow]:
    """The rows of `against`. Raises ConfigError if it differs from this evaluation by more than the adapter."""
    rows = read_rows(against / ROWS)
    if not rows:
        raise ConfigError(f"no evaluation in {against}: {ROWS} is missing or empty; name a finished one")
    settings = _read_settings(against / SETTINGS, "name another evaluation")
    try:
        base = _generation_settings(settings)
    except (LookupError, TypeError):
        raise ConfigError(
            f"{against / SETTINGS} does not tell how the images were generated; name another evaluation"
        ) from None
    differences = _differences(base, _generation_settings(request.settings))
    again = "Make it again with this command, but with --base instead of --against, and a new --output"
    if differences:
        raise ConfigError(f"{against} was generated with other settings: {differences}. {again}")
    if missing := [name for name in request.rewards() if name not in rows[0].scores]:
        raise ConfigError(f"{against} has no scores of {', '.join(missing)}. {again}")
    own = request.settings["metrics"]
    measured = _scorings(settings, own)
    if differences := _differences({"metrics": measured}, {"metrics": {name: own[name] for name in measured}}):
        raise ConfigError(f"{against} was measured otherwise: {differences}. {again}")
    prompts = {sample.id: sample.prompt for sample in request.samples}
    common = [row for row in rows if row.sample in prompts]
    if not common:
        raise ConfigError(f"{against} and this evaluation have no sample in common. {again}")
    changed = [row.sample for row in common if row.prompt != prompts[row.sample]]
    same_list = settings.get("samples") == request.settings["samples"]
    if changed or (same_list and settings.get(CONTENT, request.settings[CONTENT]) != request.settings[CONTENT]):
        what = f"sample {changed[0]} has another prompt" if changed else "its pictures or class words were others"
        raise ConfigError(f"{against} was made when the data was not what it is now: {what}. {again}")
    return rows


def _read_settings(file: Path, way_out: str) -> dict[str, Any]:
    """Raises ConfigError if settings.json is missing or is not what an evaluation writes."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{file} cannot be read ({reason}); {way_out}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{file} was not written by an evaluation: it holds a {type(settings).__name__}; {way_out}")
    return settings


def _generation_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of an evaluation's settings those that decide how a model draws a case."""
    base = {name: settings.get(name) for name in OF_THE_BASE}
    return {"model": settings["model"], "dtype": settings["dtype"], **base, **settings["sampling"]}


def _scorings(settings: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """What measured each of these metrics; those that an evaluation does not have, or does not tell, are left out."""
    told = settings.get("metrics")
    return {name: told[name] for name in names if name in told} if isinstance(told, Mapping) else {}


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    found, wanted = _flat(found), _flat(wanted)
    return "; ".join(
        f"{key} {found.get(key)} instead of {wanted.get(key)}"
        for key in {**found, **wanted}
        if found.get(key) != wanted.get(key)
    )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """With an entry for each of several metrics and each setting of the sampling."""
    several = {key: value for key, value in settings.items() if isinstance(value, Mapping)}
    inside = {f"{key}.{name}": each for key, values in several.items() for name, each in values.items()}
    return {key: value for key, value in settings.items() if key not in several} | inside


# --- summarise -------------------------------------------------------------------------------------------------------


def summarise(
    request: EvaluationRequest, rows: Sequence[EvaluationRow], base: Sequence[EvaluationRow] | None = None
) -> dict[str, Any]:
    """All statistics as JSON: overall, per subject, per prompt; with a base, change and joint dominance."""
    unscored, trained_on = count_unscored(rows), request.trained_on()
    trained_on += [JOINT_CALIBRATED] if trained_on else []  # made of them
    summary: dict[str, Any] = {
        "images": len(rows),
        "subjects": len({row.subject for row in rows}),
        "metrics": {
            name: {
                **({"mean": None} if estimate is None else estimate.as_dict()),
                "unscored": unscored[name],
                "trained_on": name in trained_on,
            }
            for name, estimate in mean_scores(rows).items()
        },
        "per_subject": means_by(rows, lambda row: row.subject),
        "per_prompt": means_by(rows, lambda row: row.prompt),
    }
    if base is not None:
        for name, metric in summary["metrics"].items():
            change = mean_change(rows, base, name)
            metric["change"] = None if change is None else change.as_dict()
        rewards = request.rewards()
        summary["dominance"] = {"rewards": rewards, **joint_dominance(rows, base, rewards).as_dict()}
    return summary


def table(summary: Mapping[str, Any]) -> str:
    """The overall scores for the terminal."""
    width = max(len(name) for name in summary["metrics"]) + 2
    images, subjects = counted(summary["images"], "image"), counted(summary["subjects"], "subject")
    over = "subjects" if summary["subjects"] > 1 else "images"
    lines = [f"{images} of {subjects}; 95 % intervals over {over}"]
    if "dominance" in summary:
        lines.append("last column: change since the base, image by image")
    lines.append("")
    for name, metric in summary["metrics"].items():
        label = f"{name} *" if metric["trained_on"] else name
        value = "could not be scored" if metric["mean"] is None else _with_interval(metric)
        if metric.get("change"):
            value = f"{value:<22} {_signed(metric['change'])}"
        unscored = f"   {metric['unscored']} unscored" if metric["unscored"] else ""
        lines.append(f"{label:<{width}} {value}{unscored}")
    if any(metric["trained_on"] for metric in summary["metrics"].values()):
        lines += ["", "* the adapter was trained on this: a rise here proves nothing on its own"]
    if "dominance" in summary:
        dominance = summary["dominance"]
        rewards = " and ".join(dominance["rewards"])
        lines += [
            "",
            f"against the base, on {rewards} at once ({dominance['compared']} images),",
            "counting every change, however small:",
            f"  better on all  {_with_interval(dominance['better'])}",
            f"  worse on all   {_with_interval(dominance['worse'])}",
        ]
    return "\n".join(lines)


def _signed(change: Mapping[str, float]) -> str:
    return f"{change['mean']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}]"


def _with_interval(estimate: Mapping[str, Any]) -> str:
    return str(Estimate(estimate["mean"], estimate["low"], estimate["high"]))
