"""`customized-grpo evaluate`: any model, with or without adapter, on any list, by any metrics."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from customized_grpo.config import CONFIG, ConfigError, RunConfig, dump_config, load_config, parse_metric, recipes
from customized_grpo.critters import samples as critters
from customized_grpo.data import Sample
from customized_grpo.data.images import to_pictures
from customized_grpo.fields import BUILT_IN
from customized_grpo.files.durable import append_text, check_folder, make_folder, write_text
from customized_grpo.files.pictures import save_png
from customized_grpo.measure import dreambench
from customized_grpo.measure import rows as figures
from customized_grpo.measure.named_metrics import named_metrics, trained_names
from customized_grpo.measure.rows import EvaluationRow
from customized_grpo.policies import load_policy
from customized_grpo.policies.base import Policy
from customized_grpo.rewards import Reward
from customized_grpo.rewards.scoring import score
from customized_grpo.rewards.settings import RewardSettings
from customized_grpo.run.cases import keep_reference
from customized_grpo.run.checkpoints import FOLDER as CHECKPOINTS
from customized_grpo.run.checkpoints import checkpoints_of, find_adapter
from customized_grpo.run.sampling_settings import SamplingSettings
from customized_grpo.training.assemble import load_samples, read_data
from customized_grpo.training.evaluation import Case, generate_cases

ROWS, SETTINGS, SUMMARY = "rows.jsonl", "settings.json", "summary.json"
PICTURES, REFERENCES = "images", "references"
CRITTERS_CASES = 512


@dataclass(frozen=True)
class EvaluationRequest:
    """What is evaluated. `config` names model, data, rewards and schedule as for training.

    adapter     folder of the adapter; None: the base
    cases       so many samples, spread over the list; None: all (critters: 512)
    images      per sample, each from a seed of its own
    metrics     beside the config's rewards and its `evaluation.metrics`
    held_out    only the part of the list that the configured run does not train on
    case_seed   which critters are drawn; lists are what they are
    split       critters of final evaluations, or those that may be looked at while settings are still chosen
    """

    config: RunConfig
    adapter: Path | None = None
    cases: int | None = None
    images: int = 1
    metrics: tuple[RewardSettings, ...] = ()
    held_out: bool = False
    case_seed: int = 0
    split: Literal["test", "development"] = "test"

    def all_metrics(self) -> dict[str, RewardSettings]:
        """Every metric by the name that rows and tables show; the trained rewards come first."""
        return {name: metric.settings for name, metric in named_metrics(self.config, self.metrics).items()}

    def rewards(self) -> list[str]:
        """Names of the metrics that the configuration trains on."""
        return list(dict.fromkeys(trained_names(self.config).values()))

    def trained_on(self) -> list[str]:
        """Names of the metrics that the adapter was rewarded for."""
        return [] if self.adapter is None else self.rewards()

    def samples(self) -> list[Sample]:
        data = self.config.data
        if data.source == BUILT_IN:
            drawn = critters.TEST_CRITTERS if self.split == "test" else critters.DEVELOPMENT_CRITTERS
            return critters.draw_samples(self.cases or CRITTERS_CASES, drawn, self.case_seed)
        if self.held_out:
            everything = data.model_copy(update={"held_out_samples": 10**9})
            samples = load_samples(self.config.model_copy(update={"data": everything}))[1]
        else:
            samples, _ = read_data(data, 0)
        every = 1 if self.cases is None else max(len(samples) // self.cases, 1)
        return samples[::every][: self.cases]

    def settings(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """All that decides the rows, for the file beside them; batches and device do not."""
        config = self.config
        shown = [(sample.id, sample.subject, sample.prompt, _names(sample)) for sample in samples]
        return {
            "model": config.model.path,
            "dtype": config.model.dtype,
            "adapter": None if self.adapter is None else _digest(self.adapter),
            "sampling": asdict(SamplingSettings.of(config)),
            "data": config.data.source,
            "samples": f"{len(samples)} ({hashlib.sha256(repr(shown).encode()).hexdigest()[:16]})",
            "images": self.images,
            "metrics": ", ".join(str(metric) for metric in self.all_metrics().values()),
        }


def make_request(
    target: str,
    overrides: Sequence[str],
    *,
    adapter: Path | None = None,
    base: bool = False,
    cases: int | None = None,
    images: int | None = None,
    metrics: Sequence[str] = (),
) -> EvaluationRequest:
    """From what a user types. `target` is a recipe, a YAML file, a run, or an adapter's folder.

    A run is evaluated with its adapter, on the samples that it did not train on. An adapter brings the schedule and
    guidance that it was trained with; overrides win. DreamBench has 4 images per case, everything else 1.
    """
    of_a_run = _is_folder(target)
    if of_a_run and adapter is None and not base:
        adapter = Path(target)
    if adapter is not None:
        adapter = find_adapter(adapter)
    trained = None if adapter is None else SamplingSettings.read(adapter)
    config = load_config(target, [*(_as_overrides(trained) if trained else []), *overrides])
    protocol = config.data.source == dreambench.SOURCE
    request = EvaluationRequest(
        config=config,
        adapter=None if base else adapter,
        cases=cases,
        images=images or (dreambench.IMAGES if protocol else 1),
        metrics=tuple(parse_metric(line) for line in metrics),
        held_out=of_a_run and not any(each.startswith("data.source") for each in overrides),
    )
    if adapter is not None and not (base or of_a_run) and _is_trained_data(adapter, config):
        warnings.warn(
            f"the adapter was trained on samples of this data ({config.data.source}); what it was not trained on is "
            "measured by naming its run: customized-grpo evaluate RUN",
            stacklevel=2,
        )
    masked = dreambench.with_masks(config, request.samples()) if protocol else ()
    return replace(request, metrics=(*request.metrics, *masked))


def _is_trained_data(adapter: Path, config: RunConfig) -> bool:
    """Whether the data are those that the adapter says it was trained on; critters of evaluations are always new."""
    if config.data.source == BUILT_IN or not (adapter / CONFIG).is_file():
        return False
    trained = load_config(str(adapter)).data
    return (trained.source, trained.root) == (config.data.source, config.data.root)


def _is_folder(target: str) -> bool:
    return Path(target).is_dir() and target not in recipes()  # a recipe's name wins, as everywhere


def usual_output(request: EvaluationRequest, target: str) -> Path:
    """Where an evaluation of `target` goes if nobody says; of a checkpoint into its run, because it may be removed."""
    name = "evaluation-base" if request.adapter is None else "evaluation-tuned"
    if not _is_folder(target):
        return Path("evaluations") / name
    folder = Path(target)
    if folder.parent.name != CHECKPOINTS:
        folder = folder.absolute()  # it may be named from inside
    if folder.parent.name != CHECKPOINTS or folder not in checkpoints_of(folder.parents[1]):
        return Path(target) / name
    return folder.parents[1] / (name if request.adapter is None else f"evaluation-{folder.name}")


def _as_overrides(settings: SamplingSettings) -> list[str]:
    values = asdict(settings)
    of_sampling = ("num_steps", "shift")
    return [f"{'sampling' if name in of_sampling else 'model'}.{name}={value}" for name, value in values.items()]


def _names(sample: Sample) -> list[str]:
    """The reference's paths; pictures in memory belong to samples that their id describes."""
    return [str(source) for source in sample.references if isinstance(source, Path)]


def _digest(adapter: Path) -> str:
    """Of the adapter's weights: a folder may hold another adapter tomorrow."""
    files = sorted(adapter.glob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def evaluate(request: EvaluationRequest, output: Path, *, keep_pictures: bool = True) -> list[EvaluationRow]:
    """Generate and score what `output` does not hold yet; returns all rows, in the order of the list.

    Writes settings.json, rows.jsonl, images/ and references/. A folder of another evaluation is refused with
    ConfigError.
    """
    samples = request.samples()
    if not samples:
        raise ConfigError(f"{request.config.data.source} leaves nothing to evaluate on")
    settings = request.settings(samples)
    _check(output, settings)
    cases = [(sample, index) for sample in samples for index in range(request.images)]
    known = {row.key: row for row in figures.read_rows(output / ROWS)}
    pending = [(n, case) for n, case in enumerate(cases) if (case[0].id, case[1]) not in known]
    loaded = _load(request) if pending else None  # before anything is written: it may not be possible
    make_folder(output)
    write_text(output / SETTINGS, json.dumps(settings, indent=2) + "\n")
    write_text(output / ROWS, "".join(row.as_line() for row in known.values()))  # without a line cut short
    if loaded is not None:
        policy, metrics = loaded
        for row in score_cases(request.config, policy, metrics, pending, output if keep_pictures else None):
            append_text(output / ROWS, row.as_line())
            known[row.key] = row
    return [known[sample.id, index] for sample, index in cases]


def _load(request: EvaluationRequest) -> tuple[Policy, dict[str, Reward]]:
    policy = load_policy(request.config.model, request.config.device)
    if request.adapter is not None:
        policy.load_adapter(request.adapter)
    return policy, _load_metrics(request)


def _check(output: Path, settings: Mapping[str, Any]) -> None:
    """Raises ConfigError where `output` is no folder for this evaluation."""
    check_folder(output)
    file = output / SETTINGS
    if file.exists():
        others = _differences(json.loads(file.read_text(encoding="utf-8")), json.loads(json.dumps(settings)))
        if others:
            raise ConfigError(f"{output} holds another evaluation: {others}. Choose another --output")
    elif output.exists() and any(output.iterdir()):
        raise ConfigError(f"{output} is not empty and holds no evaluation; choose another --output")


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{key} {found.get(key)} instead of {wanted.get(key)}"
        for key in {**found, **wanted}
        if found.get(key) != wanted.get(key)
    )


def _load_metrics(request: EvaluationRequest) -> dict[str, Reward]:
    device = torch.device(request.config.device)
    return {name: metric.make(device) for name, metric in request.all_metrics().items()}


def score_cases(
    config: RunConfig,
    policy: Policy,
    metrics: Mapping[str, Reward],
    cases: Sequence[tuple[int, Case]],
    pictures: Path | None,
):
    """Generate and score numbered cases in batches and yield their rows.

    PNG files go to `pictures`/images and, for a sample's first image, its reference to `pictures`/references; their
    names start with the number of the case.
    """
    sigmas = policy.sigmas(config.sampling.num_steps, config.sampling.shift)
    size = config.groups.rollout_batch
    for start in tqdm(range(0, len(cases), size), desc="evaluating", unit="batch"):
        part = cases[start : start + size]
        images = generate_cases(policy, sigmas, [case for _, case in part])
        samples = [sample for _, (sample, _) in part]
        scores = {name: score(name, metric, images, samples).tolist() for name, metric in metrics.items()}
        if pictures is not None:
            for folder in (PICTURES, REFERENCES):
                make_folder(pictures / folder)
            for (number, (sample, index)), picture in zip(part, to_pictures(images), strict=True):
                name = f"{number:05d}-{_slug(sample.id)}"
                save_png(picture, pictures / PICTURES / f"{name}-{index}.png")
                if index == 0:
                    keep_reference(sample.reference_images()[0], pictures / REFERENCES / f"{name}.png")
        for position, (_, (sample, index)) in enumerate(part):
            row = {name: values[position] for name, values in scores.items()}
            yield EvaluationRow(sample.id, sample.subject, sample.prompt, index, row)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:60]


# --- what is said about the rows -------------------------------------------------------------------------------------


def summarise(
    request: EvaluationRequest, rows: Sequence[EvaluationRow], against: Path | None = None
) -> dict[str, Any]:
    """All figures of an evaluation as JSON: overall, per subject, per prompt, and dominance over a base's rows."""
    overall, missing, trained = figures.overall(rows), figures.unscored(rows), request.trained_on()
    summary: dict[str, Any] = {
        "images": len(rows),
        "subjects": len({row.subject for row in rows}),
        "metrics": {
            name: {
                **({"mean": None} if figure is None else figure.as_dict()),
                "unscored": missing[name],
                "trained_on": name in trained,
            }
            for name, figure in overall.items()
        },
        "per_subject": figures.means_by(rows, lambda row: row.subject),
        "per_prompt": figures.means_by(rows, lambda row: row.prompt),
    }
    if against is not None:
        base = _rows_of(against)
        rewards = request.rewards()
        summary["dominance"] = {"rewards": rewards, **figures.joint_dominance(rows, base, rewards).as_dict()}
    return summary


def _rows_of(evaluation: Path) -> list[EvaluationRow]:
    rows = figures.read_rows(evaluation / ROWS)
    if not rows:
        raise ConfigError(f"no evaluation in {evaluation}: {ROWS} is missing or empty; name a finished one")
    return rows


def _check_comparable(request: EvaluationRequest, against: Path) -> None:
    """Raises ConfigError where `against` is no evaluation, or its pictures differ by more than the adapter."""
    _rows_of(against)
    file = against / SETTINGS
    try:
        found = _sampled(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{file} does not say how the pictures were made ({error!r}); name another evaluation"
        ) from None
    others = _differences(found, _sampled(request.settings(samples=[])))
    if others:
        raise ConfigError(
            f"{against} was sampled otherwise: {others}. Make it again by this command with --base in the place of "
            "--against, and a new --output: the base is then sampled as the adapter is"
        )


def _sampled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of an evaluation's settings those that decide what a model makes of a case."""
    return {"model": settings["model"], "dtype": settings["dtype"], **settings["sampling"]}


def table(summary: Mapping[str, Any]) -> str:
    """The overall figures for the terminal."""
    width = max(len(name) for name in summary["metrics"]) + 2
    subjects = f"{summary['subjects']} subject{'' if summary['subjects'] == 1 else 's'}"
    over = "subjects" if summary["subjects"] > 1 else "images"
    lines = [f"{summary['images']} images of {subjects}; 95 % intervals over {over}", ""]
    for name, figure in summary["metrics"].items():
        label = f"{name} *" if figure["trained_on"] else name
        value = (
            "could not be scored"
            if figure["mean"] is None
            else f"{figure['mean']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
        )
        lost = f"   {figure['unscored']} unscored" if figure["unscored"] else ""
        lines.append(f"{label:<{width}} {value}{lost}")
    if any(figure["trained_on"] for figure in summary["metrics"].values()):
        lines += ["", "* what the adapter was trained on: a rise here is no evidence by itself"]
    if "dominance" in summary:
        found = summary["dominance"]
        better, worse = (
            f"{found[side]['mean']:.3f} [{found[side]['low']:.3f}, {found[side]['high']:.3f}]"
            for side in ("better", "worse")
        )
        lines += ["", f"against the base, on {' and '.join(found['rewards'])} at once ({found['compared']} images):"]
        lines += [f"  better on all  {better}", f"  worse on all   {worse}"]
    return "\n".join(lines)


def write_evaluation(request: EvaluationRequest, output: Path, against: Path | None) -> str:
    """The whole command: evaluate, write config.yaml and summary.json, return the table."""
    if against is not None:
        _check_comparable(request, against)  # now, and not after all pictures are made
    rows = evaluate(request, output)
    summary = summarise(request, rows, against)
    said = [table(summary)]
    if request.config.data.source == dreambench.SOURCE:
        name, metrics = "base" if request.adapter is None else "tuned", request.all_metrics()
        measured = {name: summary["metrics"]}
        if against is not None:
            measured = {"base": json.loads((against / SUMMARY).read_text(encoding="utf-8"))["metrics"], **measured}
        real = dreambench.real_photographs(request.config, metrics, request.samples())
        summary["real_photographs"] = {metric: figure.as_dict() for metric, figure in real.items()}
        said.append(dreambench.customary_table(metrics, measured, real))
        write_text(output / dreambench.TABLE, said[-1] + "\n")
    write_text(output / "config.yaml", dump_config(request.config))
    write_text(output / SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return "\n\n".join(said)
