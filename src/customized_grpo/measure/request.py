"""What is evaluated: model and adapter, samples, metrics; made from what a user types."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from customized_grpo.algorithm import Calibration
from customized_grpo.calibration.file import (
    CALIBRATION,
    calibrated_rewards,
    calibration_problems,
    check_calibration,
    read_calibration,
)
from customized_grpo.calibration.named_metrics import named_metrics, trained_names
from customized_grpo.config import CONFIG, JOINT_CALIBRATED, Override, RunConfig, key_of, load_config, recipes
from customized_grpo.critters import samples as critters
from customized_grpo.data import Sample
from customized_grpo.data.digests import SampleDigest, digests
from customized_grpo.data.sources import unread_root
from customized_grpo.data.subsets import subset
from customized_grpo.errors import UsageError
from customized_grpo.fields import BUILT_IN
from customized_grpo.files.adapter_places import FOLDER as CHECKPOINTS
from customized_grpo.files.adapter_places import checkpoints_of, find_adapter, folder_of
from customized_grpo.measure import dreambench
from customized_grpo.policies.adapter_file import adapter_digest
from customized_grpo.rewards.mistakes import parse_metric
from customized_grpo.rewards.settings import RewardSettings
from customized_grpo.run.base_adapter import base_digest
from customized_grpo.run.own_samples import RESTORE, OwnSamples, read_data
from customized_grpo.run.sampling_settings import SamplingSettings
from customized_grpo.sections import Model
from customized_grpo.sharing.scores import BASE, TUNED

CRITTERS_CASES = 512
CONTENT = "content"  # the setting that tells whether texts and pictures of the samples are the same

OF_THE_BASE = ("family", "base_adapter", "quantise", "reference_size")  # settings that change the base if they are set


@dataclass(frozen=True)
class EvaluationRequest:
    """What is evaluated. `config` names model, data, rewards and schedule, as for training.

    adapter     folder or file of the adapter, as `find_adapter` gives it; None: the base model
    cases       number of samples, spread over the list; None: all (critters: 512)
    images      per sample, each with its own seed
    metrics     in addition to the rewards of `config` and its `evaluation.metrics`
    held_out    only the part of the list that the configured run does not train on
    own         the run's own samples, if `config` is that of a run: its held-out part is then as it was divided
    case_seed   which critters are drawn; has no effect on lists
    in_full     short names of metrics that do not tell which model measures, as arms of a comparison have several
    split       critters: "test" for final evaluations, "development" while settings are still being chosen
    protocol    DreamBench's: identity inside the mask is one more metric if there are masks
    calibrations  of the run's rewards by key, if it has any: the figure `joint_calibrated` is added
    """

    config: RunConfig
    adapter: Path | None = None
    cases: int | None = None
    images: int = 1
    metrics: tuple[RewardSettings, ...] = ()
    held_out: bool = False
    own: OwnSamples | None = None
    case_seed: int = 0
    in_full: frozenset[str] = frozenset()
    split: Literal["test", "development"] = "test"
    protocol: bool = False
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)

    @cached_property
    def samples(self) -> list[Sample]:
        """The samples. The data is read once, on first use; raises DataError, or DataChangedError."""
        data = self.config.data
        if data.source in BUILT_IN:
            split = critters.TEST_CRITTERS if self.split == "test" else critters.DEVELOPMENT_CRITTERS
            return critters.draw_samples(self.cases or CRITTERS_CASES, split, self.case_seed, source=data.source)
        if not self.held_out:
            return subset(read_data(data, 0)[0], self.cases)
        train, held_out = read_data(data, data.held_out_share, self.config.seed)
        if self.own is None:
            return subset(held_out, self.cases)
        _, held_out = self.own.pick([*train, *held_out])
        way_out = f"{RESTORE}, or add data.source=... to measure on all of it"
        self.own.check(digests(held_out), self.own.held_out, way_out)
        return subset(held_out, self.cases)

    @cached_property
    def digests(self) -> dict[str, SampleDigest]:
        """The digest of each sample by its id. Raises PictureError."""
        return digests(self.samples)

    def all_metrics(self) -> dict[str, RewardSettings]:
        """Every metric by the name that rows and tables show; the trained rewards come first."""
        masked = dreambench.mask_metrics(self.config, self.samples) if self.protocol else ()
        named = named_metrics(self.config, (*self.metrics, *masked), self.in_full)
        return {name: metric.settings for name, metric in named.items()}

    def rewards(self) -> list[str]:
        """Names of the metrics that the configuration trains on."""
        return list(dict.fromkeys(trained_names(self.config, self.in_full).values()))

    def trained_on(self) -> list[str]:
        """Names of the metrics that the adapter was rewarded for.

        Its run tells which; an adapter that came without its run is taken to be trained on the rewards of `config`.
        """
        if self.adapter is None:
            return []
        folder = folder_of(self.adapter)
        config = load_config(str(folder)) if (folder / CONFIG).is_file() else self.config
        rewarded = [reward.scoring for reward in config.trained().values()]
        return [name for name, metric in self.all_metrics().items() if metric.scoring in rewarded]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the rows, for settings.json; batch sizes, devices and servers do not."""
        model = self.config.model
        described = [(sample.id, sample.subject, sample.prompt, _reference_paths(sample)) for sample in self.samples]
        return {
            "model": model.path,
            "dtype": model.dtype,
            **_of_the_base(model),
            "adapter": None if self.adapter is None else adapter_digest(self.adapter),
            "sampling": asdict(SamplingSettings.of(self.config)),
            "data": self.config.data.source,
            "samples": f"{len(described)} ({hashlib.sha256(repr(described).encode()).hexdigest()[:16]})",
            CONTENT: hashlib.sha256(repr([*map(str, self.digests.values())]).encode()).hexdigest()[:16],
            "images": self.images,
            "metrics": {name: metric.scoring for name, metric in self.all_metrics().items()},
        }


def _of_the_base(model: Model) -> dict[str, Any]:
    """The settings that change the base, if they are set. Raises ModelError or UsageError without its adapter."""
    found = {name: value for name in OF_THE_BASE if (value := getattr(model, name)) is not None}
    if model.base_adapter is not None:
        found["base_adapter"] = base_digest(model)
    return found


def _reference_paths(sample: Sample) -> list[str]:
    """Images in memory are left out: the sample's id describes them."""
    return [str(source) for source in sample.references if isinstance(source, Path)]


def make_request(
    target: str,
    overrides: Sequence[Override],
    *,
    adapter: Path | None = None,
    base: bool = False,
    cases: int | None = None,
    images: int | None = None,
    metrics: Sequence[str] = (),
) -> EvaluationRequest:
    """From what a user types. `target` is a recipe, a YAML file, a run, or an adapter's folder.

    A run is evaluated with its adapter, on the samples that it did not train on. An adapter brings the schedule and
    guidance that it is to be used with; overrides win. DreamBench has 4 images per case, everything else 1.
    """
    is_folder = _is_folder(target)
    if is_folder and adapter is None and not base:
        adapter = Path(target)
    if adapter is not None:
        adapter = find_adapter(adapter)
    trained_with = None if adapter is None else SamplingSettings.read(folder_of(adapter))
    brought = _as_overrides(trained_with) if trained_with else []
    config = load_config(target, [*brought, *overrides, *_own_steps(overrides)])
    protocol = config.data.source == dreambench.SOURCE
    held_out = is_folder and not any(key_of(override) == "data.source" for override in overrides)
    request = EvaluationRequest(
        config=config,
        adapter=None if base else adapter,
        cases=cases,
        images=images or (dreambench.IMAGES if protocol else 1),
        metrics=tuple(parse_metric(line) for line in metrics),
        held_out=held_out,
        own=OwnSamples.read(Path(target)) if held_out else None,
        protocol=protocol,
        calibrations=_calibrations(
            config, [*([Path(target)] if is_folder else []), *([folder_of(adapter)] if adapter else [])]
        ),
    )
    if unread := unread_root(config.data.source, config.data.root):
        warnings.warn(unread, stacklevel=2)
    if held_out:
        _refuse_another_split(config, load_config(target))
    elif request.adapter is not None:
        _warn_if_trained_on(request, request.adapter)
    return request


def _calibrations(config: RunConfig, folders: Sequence[Path]) -> dict[str, Calibration]:
    """Of the first of these folders that has the file; none if it does not fit the rewards, with a warning."""
    file = next((file for folder in folders if (file := folder / CALIBRATION).is_file()), None)
    if file is None:
        return {}
    known = read_calibration(file)
    problems = list(calibration_problems(known, config))
    problems += [f"rewards.{key} is missing" for key in calibrated_rewards(config) if key not in known]
    if problems:
        warnings.warn(f"{JOINT_CALIBRATED} is left out: {file} is of other rewards: {problems[0]}", stacklevel=3)
        return {}
    return {key: calibration.scale() for key, calibration in check_calibration(known, config, file).items()}


def _refuse_another_split(config: RunConfig, run: RunConfig) -> None:
    """Raises UsageError if overrides divide a run's data in another way: samples to train on would be held out."""
    if run.data.source in BUILT_IN:  # evaluations draw critters of their own
        return
    own, wanted = ((each.seed, each.data.held_out_share) for each in (run, config))
    for key, value, new in zip(("seed", "data.held_out_share"), own, wanted, strict=True):
        if value != new:
            raise UsageError(
                f"{key}: the run divided its data with {key}={value}, and is evaluated on the samples that it held "
                f"out; remove {key}={new}, or name the data with data.source=... to measure on all of it"
            )


def _warn_if_trained_on(request: EvaluationRequest, adapter: Path) -> None:
    """Warn if the adapter was trained on some of the samples; the critters of evaluations are always new."""
    config = request.config
    if config.data.source in BUILT_IN:
        return
    remedy = "to measure it on samples that it was not trained on, name its run: customized-grpo evaluate RUN"
    folder = folder_of(adapter)
    own = OwnSamples.read(folder)
    if own is not None:
        if seen := own.trained_on(request.digests):
            message = f"the adapter was trained on {seen} of these {len(request.samples)} samples; {remedy}"
            warnings.warn(message, stacklevel=3)
    elif (folder / CONFIG).is_file():
        trained = load_config(str(folder)).data
        if (trained.source, trained.root) == (config.data.source, config.data.root):
            message = f"the adapter was trained on samples of this data ({config.data.source}); {remedy}"
            warnings.warn(message, stacklevel=3)


def _is_folder(target: str) -> bool:
    # A recipe's name wins, as everywhere. Path.is_dir() would raise for a name that is too long.
    return target not in recipes() and os.path.isdir(target)  # noqa: PTH112


def _as_overrides(settings: SamplingSettings) -> list[Override]:
    section = {"num_steps": "evaluation", "shift": "sampling"}  # sampling.num_steps, with its windows, is training's
    return [(f"{section.get(name, 'model')}.{name}", value) for name, value in asdict(settings).items()]


def _own_steps(overrides: Sequence[Override]) -> list[Override]:
    """A user who sets the steps of `sampling` alone means those of this evaluation."""
    keys = {key_of(override) for override in overrides}
    of_sampling = {"sampling.num_steps", "sampling"} & keys
    return (
        [("evaluation.num_steps", None)] if of_sampling and not {"evaluation.num_steps", "evaluation"} & keys else []
    )


def default_output(request: EvaluationRequest, target: str) -> Path:
    """The folder of an evaluation without --output.

    A checkpoint's evaluation goes into its run, because old checkpoints are removed.
    """
    name = BASE if request.adapter is None else TUNED
    if not _is_folder(target):
        return Path("evaluations") / name
    folder = Path(target)
    if folder.parent.name != CHECKPOINTS:
        folder = folder.absolute()  # the target may be "." or relative to the run
    if folder.parent.name != CHECKPOINTS or folder not in checkpoints_of(folder.parents[1]):
        return Path(target) / name
    return folder.parents[1] / (name if request.adapter is None else f"evaluation-{folder.name}")
