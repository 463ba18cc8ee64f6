"""A comparison file: arms that differ in a few settings, over seeds, on equal terms."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from customized_grpo.calibration.named_metrics import named_metrics, trained_names
from customized_grpo.config import ConfigError, RunConfig, load_config
from customized_grpo.fields import OF_USER, PathText, Seed
from customized_grpo.files.kinds import DottedKeysOf
from customized_grpo.files.yaml_text import YamlError, read_yaml
from customized_grpo.measure.request import OF_THE_BASE, EvaluationRequest
from customized_grpo.run.sampling_settings import SamplingSettings

BASE = "base"  # the arm that every comparison has: the model without an adapter
FRONT = "front"  # in place of an arm: the line through the arms of `front`
OVER_TRAINING = "_over_training"  # a held-out figure's mean over a run's evaluations; compared like a test metric
SPREAD = (  # the note under every table of figures
    "Means over seeds with 95 % t intervals. Where cases are drawn (critters), every seed has test cases of its own; "
    "the held-out cases of figures over training are the same in all seeds."
)

Seeds = Annotated[tuple[Seed, ...], Field(min_length=1)]
_SEEDS: TypeAdapter[tuple[int, ...]] = TypeAdapter(Seeds)
Lines = Annotated[Mapping[str, Any], DottedKeysOf(RunConfig)]  # settings; of an arm also `seeds`, if it has its own
Results = dict[str, dict[int, dict[str, Any]]]  # arm -> seed -> its result.json


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Primary(_Section):
    """The question fixed before looking at results: is `metric` of `arm` higher than that of each arm in `against`?"""

    arm: str
    against: Annotated[tuple[str, ...], Field(min_length=1)]
    metric: str = "joint_success"


Arms = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(lambda x: (x,) if isinstance(x, str) else x)]


class Contrast(_Section):
    """`arm` minus `against`, seed by seed; of several arms the worst. `against: front` is the margin beyond it."""

    arm: Arms
    against: Arms

    def __str__(self) -> str:
        sides = (arms[0] if len(arms) == 1 else f"worst of {', '.join(arms)}" for arms in (self.arm, self.against))
        return " - ".join(sides)


class Family(_Section):
    """Contrasts that were fixed before the runs. Holm's correction is made inside the family."""

    contrasts: Annotated[tuple[Contrast, ...], Field(min_length=1)]
    metric: str = "joint_success"
    equivalent_within: Annotated[float, Field(gt=0)] | None = None  # bound of an equivalence test, stated beforehand


class Test(_Section):
    """How a trained arm is tested: its result is the mean over its last checkpoints."""

    cases: Annotated[int, Field(ge=1)] | None = None  # null: all held-out samples; 512 for critters
    checkpoints: Annotated[int, Field(ge=1)] = 1  # the last ones, `save_every` updates apart
    split: Literal["test", "development"] = "test"  # of the critters; choose settings on development


class Comparison(_Section):
    """A comparison file."""

    output: Annotated[Path, OF_USER]
    recipe: PathText
    overrides: Lines = {}  # settings of all arms
    seeds: Seeds
    test: Test = Test()
    primary: Primary
    compare_on: tuple[str, ...] = ()  # metrics in the table and in the other differences; empty: all of the recipe's
    front: tuple[str, ...] = ()  # arms that differ in one weight, in order of it; a line joins them in the plane
    families: Mapping[str, Family] = {}  # name -> questions fixed beforehand; tested apart from all other differences
    time_to: Mapping[str, float] = {}  # held-out figure -> level; a table says when each arm first reaches it
    selections: Mapping[str, tuple[str, ...]] = {}  # name -> arms drawn together in plots of curves; empty: all
    arms: Annotated[Mapping[str, Lines | None], Field(min_length=1)]

    @classmethod
    def read(cls, file: Path, output: Path | None = None) -> Comparison:
        """Read a YAML file. Raises ConfigError with every mistake in the file and in the settings of the arms."""
        try:
            values = read_yaml(file, cls)
        except YamlError as error:
            raise ConfigError(str(error)) from None
        if not isinstance(values, dict):
            raise ConfigError(f"{file} holds a {type(values).__name__}; a comparison is a mapping of keys to values")
        try:
            comparison = cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError("\n".join(f"{file}: {_readable(mistake)}" for mistake in error.errors())) from None
        if output is not None:
            comparison = comparison.model_copy(update={"output": output})
        problems = comparison._problems()
        if problems:
            raise ConfigError("\n".join(f"{file}: {problem}" for problem in problems))
        return comparison

    @cached_property
    def jobs(self) -> list[tuple[str, int]]:
        """Every arm with every seed: first the arms of the primary question, seed by seed, then the others.

        A comparison that is stopped early then answers the primary question for complete seeds.
        """
        primary = {BASE, self.primary.arm, *self.primary.against}
        names = [BASE, *self.arms]
        first = [name for name in names if name in primary]
        return [*self._seed_by_seed(first), *self._seed_by_seed([name for name in names if name not in primary])]

    def _seed_by_seed(self, names: Sequence[str]) -> list[tuple[str, int]]:
        seeds = dict.fromkeys(seed for name in names for seed in self.seeds_of(name))
        return [(name, seed) for seed in seeds for name in names if seed in self.seeds_of(name)]

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        """The arm's own seeds, or those of the file. Raises ConfigError if its own are not seeds."""
        if arm == BASE:
            return self.seeds
        try:
            return _SEEDS.validate_python((self.arms[arm] or {}).get("seeds", self.seeds))
        except ValidationError as error:
            raise ConfigError("\n".join(_readable(mistake, "seeds") for mistake in error.errors())) from None

    def folder(self, arm: str, seed: int) -> Path:
        return self.output / "arms" / arm / f"seed-{seed}"

    def lines(self, arm: str) -> dict[str, Any]:
        """The settings that an arm changes."""
        changed = {} if arm == BASE else dict(self.arms[arm] or {})
        return {key: value for key, value in changed.items() if key != "seeds"}

    def config(self, arm: str, seed: int, device: str | None = None) -> RunConfig:
        """The complete configuration of one run. Raises ConfigError."""
        settings = {**self.overrides, **self.lines(arm), "seed": seed, "output": self.folder(arm, seed) / "run"}
        if device is not None:
            settings["device"] = device
        config = load_config(self.recipe, [*settings.items()])
        if config.keep_last is None or config.keep_last >= self.test.checkpoints:
            return config
        return config.model_copy(update={"keep_last": self.test.checkpoints})  # keep every checkpoint to be tested

    def rewarded(self, arm: str) -> dict[str, str]:
        """Key of a reward of the arm -> its name among the test metrics; empty for the base."""
        if arm == BASE:
            return {}
        return trained_names(self.config(arm, self.seeds_of(arm)[0]), self.in_full)

    @cached_property
    def in_full(self) -> frozenset[str]:
        """Short names of metrics that would mean another model in another arm; their names tell the model instead."""
        meant: dict[str, set[str]] = {}
        for arm in (BASE, *self.arms):
            for name, metric in named_metrics(self.config(arm, self.seeds_of(arm)[0])).items():
                meant.setdefault(name, set()).add(metric.settings.measurement)
        return frozenset(name for name, measurements in meant.items() if len(measurements) > 1)

    def _problems(self) -> list[str]:
        problems, configs = [], {}
        for arm in dict.fromkeys((BASE, *self.arms)):
            if arm in self.arms and (arm == BASE or not is_folder_name(arm)):
                reason = "this name is taken" if arm == BASE else "this is not a name for a folder"
                problems.append(f"arms.{arm}: {reason}; choose another name")
                continue
            try:
                configs[arm] = self.config(arm, self.seeds_of(arm)[0])
            except ConfigError as error:
                problems += [f"arms.{arm}: {line}" for line in str(error).split("\n")]
        for arm in dict.fromkeys((self.primary.arm, *self.primary.against)):
            if arm not in self.arms:
                problems.append(f"primary: no arm is named {arm!r}; arms: {', '.join(self.arms)}")
        if self.primary.arm in self.primary.against and len(self.primary.against) > 1:
            problems.append(f"primary: {self.primary.arm} cannot be compared with itself; remove it from `against`")
        problems += [*self._plot_problems(), *self._family_problems()]
        return problems or [*self._metric_problems(configs), *self._unequal_arms(configs)]

    def _plot_problems(self) -> Iterator[str]:
        """Fronts of one arm; selections that are empty or cannot name a file; arms that do not exist or repeat."""
        if len(self.front) == 1:
            yield "front: a line needs at least two arms; name more, or leave `front` out"
        for name, arms in self.selections.items():
            if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
                yield f"selections: {name!r} becomes part of a file name; use letters, digits, _, - and ."
            if not arms:
                yield f"selections.{name}: the list of arms is empty; name some, or leave it out"
        for where, arms in (
            ("front", self.front),
            *((f"selections.{name}", selected) for name, selected in self.selections.items()),
        ):
            for arm in dict.fromkeys(arms):
                if arm == BASE:
                    yield f"{where}: {BASE} is not trained, so it has no weight and no curves; leave it out"
                elif arm not in self.arms:
                    yield f"{where}: no arm is named {arm!r}; arms: {', '.join(self.arms)}"
                elif arms.count(arm) > 1:
                    yield f"{where}: {arm} is named {arms.count(arm)} times; name it once"

    def _family_problems(self) -> Iterator[str]:
        """Contrasts with arms that do not exist, of an arm with itself, or with a front that is not there."""
        for name, family in self.families.items():
            for contrast in family.contrasts:
                named = dict.fromkeys((*contrast.arm, *(contrast.against if contrast.against != (FRONT,) else ())))
                for arm in named:
                    if arm != BASE and arm not in self.arms:
                        yield f"families.{name}: no arm is named {arm!r}; arms: {', '.join(self.arms)}"
                if {*contrast.arm} & {*contrast.against}:
                    yield f"families.{name}: {contrast} compares an arm with itself"
                if contrast.against == (FRONT,) and (not self.front or len(contrast.arm) > 1):
                    yield f"families.{name}: against the front goes one arm, and the file names the arms of `front`"

    def _metric_problems(self, configs: Mapping[str, RunConfig]) -> Iterator[str]:
        """Metrics that no arm is tested on, or that are not the same measurement in all arms."""
        base = configs[BASE]
        tested = list(EvaluationRequest(base, in_full=self.in_full).all_metrics())
        held_out = [f"{key}_reward" for key in base.rewards] + [str(m) for m in base.evaluation.metrics]
        held_out = held_out if base.evaluation.every else []
        tested += [f"{name}{OVER_TRAINING}" for name in held_out]
        rewards = {key: {config.trained()[key].measurement for config in configs.values()} for key in base.rewards}
        for where, metrics in (
            ("primary.metric", (self.primary.metric,)),
            ("compare_on", self.compare_on),
            *((f"families.{name}.metric", (family.metric,)) for name, family in self.families.items()),
        ):
            for metric in metrics:
                key = metric.removesuffix(f"_reward{OVER_TRAINING}")
                if metric in self.in_full:
                    way_out = "name one that all measure, with its model"
                    yield f"{where}: {metric} has another model in another arm; {way_out}"
                elif metric not in tested:
                    names = ", ".join(tested)
                    yield f"{where}: {metric} is not tested; tested: {names} (more with evaluation.metrics)"
                elif len(rewards.get(key, ())) > 1:
                    yield f"{where}: {metric} is not the same reward in all arms; choose one of evaluation.metrics"
        for figure in self.time_to:
            if figure not in held_out:
                evaluated = f"evaluated: {', '.join(held_out)}" if held_out else "set evaluation.every"
                yield f"time_to: {figure} is not evaluated while an arm trains; {evaluated}"

    def _unequal_arms(self, configs: Mapping[str, RunConfig]) -> list[str]:
        """Arms on unequal terms, or with too few checkpoints."""
        base, problems = configs[BASE], list[str]()
        images = {arm: config.updates * config.groups.prompts * config.groups.size for arm, config in configs.items()}
        if len(set(images.values())) > 1:
            counts = ", ".join(f"{arm} {count}" for arm, count in images.items() if arm != BASE)
            problems.append(f"arms generate different numbers of images while training ({counts}); make them equal")
        for arm, config in configs.items():
            saved = -(-config.updates // config.save_every)
            if saved < self.test.checkpoints:
                problems.append(
                    f"arms.{arm}: {config.updates} updates with save_every={config.save_every} leave {saved} "
                    f"checkpoints, but test.checkpoints asks for {self.test.checkpoints}; lower one of the two"
                )
            if config.data != base.data:
                problems.append(f"arms.{arm}: all arms share their data; move the changes to `data` into `overrides`")
        return problems

    def tested_otherwise(self) -> list[str]:
        """Arms whose tested pictures are sampled otherwise than the base's, or come from another model."""
        base, *configs = (self.config(arm, self.seeds_of(arm)[0]) for arm in (BASE, *self.arms))
        return [
            f"{arm} is tested with {key} {own}, and {BASE} with {of_base}"
            for arm, config in zip(self.arms, configs, strict=True)
            for (key, own), of_base in zip(_tested_with(config).items(), _tested_with(base).values(), strict=True)
            if own != of_base
        ]


def _tested_with(config: RunConfig) -> dict[str, Any]:
    of_model = {f"model.{key}": getattr(config.model, key) for key in ("path", "dtype", *OF_THE_BASE)}
    return {**of_model, **asdict(SamplingSettings.of(config))}


def is_folder_name(name: str) -> bool:
    """Whether a folder of this name, not hidden, can be made inside another."""
    return bool(name) and "/" not in name and not name.startswith(".") and name.isprintable()


def _readable(mistake: ErrorDetails, *section: str) -> str:
    where = ".".join(map(str, (*section, *mistake["loc"])))
    line = f"{where}: {mistake['msg'].lower()}"
    if where == "seeds" and mistake["type"] == "tuple_type":
        line += f", not {mistake['input']!r}; write a list such as [0, 1, 2]"
    return line
