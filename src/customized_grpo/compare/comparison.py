"""What a comparison file says: arms that differ in a few lines, over seeds, on equal terms."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from customized_grpo.config import ConfigError, RunConfig, load_config
from customized_grpo.fields import Seed
from customized_grpo.files.yaml_text import YamlError, read_yaml
from customized_grpo.measure.named_metrics import trained_names
from customized_grpo.measure.request import EvaluationRequest

BASE = "base"  # the arm that is always there: the model without adapter
OVER_TRAINING = "_over_training"  # a held-out figure's mean over a run's evaluations; compared like a test metric
SPREAD = (  # said below every table of figures
    "Means over seeds with 95 % t intervals. Where cases are drawn (critters), every seed has test cases of its own; "
    "the held-out cases of figures over training are the same in all seeds."
)

Seeds = Annotated[tuple[Seed, ...], Field(min_length=1)]
_SEEDS: TypeAdapter[tuple[int, ...]] = TypeAdapter(Seeds)
# An arm's lines: dotted settings; `seeds` if it has others than the rest.
ArmLines = Mapping[str, Any]
Results = dict[str, dict[int, dict[str, Any]]]  # arm -> seed -> its result.json


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Primary(_Section):
    """The one question that is asked before looking: is `metric` of `arm` above that of each of `against`?"""

    arm: str
    against: Annotated[tuple[str, ...], Field(min_length=1)]
    metric: str = "joint_success"


class Test(_Section):
    """How a finished arm is measured: an arm's result is the mean over its last checkpoints."""

    cases: Annotated[int, Field(ge=1)] | None = None  # null: all held-out samples; of critters 512
    checkpoints: Annotated[int, Field(ge=1)] = 1  # so many of the last ones, `save_every` updates apart
    split: Literal["test", "development"] = "test"  # of critters; settings are chosen on development cases


class Comparison(_Section):
    """A comparison file."""

    output: Path
    recipe: str
    overrides: Mapping[str, Any] = {}  # settings that all arms share
    seeds: Seeds
    test: Test = Test()
    primary: Primary
    compare_on: tuple[str, ...] = ()  # metrics of the table and the further differences; none: all of the recipe's
    front: tuple[str, ...] = ()  # arms that differ in one weight, in its order: joined by a line in the plane
    selections: Mapping[str, tuple[str, ...]] = {}  # name -> arms that share plots of curves; none: all arms do
    arms: Annotated[Mapping[str, ArmLines | None], Field(min_length=1)]

    @classmethod
    def read(cls, file: Path, output: Path | None = None) -> Comparison:
        """From YAML. Raises ConfigError with every mistake of the file and of the arms' settings."""
        if not file.is_file():
            raise ConfigError(f"no comparison in {file}; name a YAML file")
        try:
            values = read_yaml(file)
        except YamlError as error:
            raise ConfigError(str(error)) from None
        if not isinstance(values, dict):
            raise ConfigError(f"{file} holds a {type(values).__name__}; a comparison is a mapping of keys to values")
        try:
            found = cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError("\n".join(f"{file}: {_readable(each)}" for each in error.errors())) from None
        if output is not None:
            found = found.model_copy(update={"output": output})
        problems = found._problems()
        if problems:
            raise ConfigError("\n".join(f"{file}: {problem}" for problem in problems))
        return found

    @cached_property
    def jobs(self) -> list[tuple[str, int]]:
        """Every arm with every seed. First the primary question's arms, seed by seed, then the others: what is there
        after a stop answers the main question for whole seeds."""
        asked = {BASE, self.primary.arm, *self.primary.against}
        names = [BASE, *self.arms]
        first = [name for name in names if name in asked]
        return [*self._seed_by_seed(first), *self._seed_by_seed([name for name in names if name not in asked])]

    def _seed_by_seed(self, names: Sequence[str]) -> list[tuple[str, int]]:
        seeds = dict.fromkeys(seed for name in names for seed in self.seeds_of(name))
        return [(name, seed) for seed in seeds for name in names if seed in self.seeds_of(name)]

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        """Raises ConfigError where an arm's own seeds are none."""
        if arm == BASE:
            return self.seeds
        try:
            return _SEEDS.validate_python((self.arms[arm] or {}).get("seeds", self.seeds))
        except ValidationError as error:
            raise ConfigError("\n".join(_readable(each, "seeds") for each in error.errors())) from None

    def folder(self, arm: str, seed: int) -> Path:
        return self.output / "arms" / arm / f"seed-{seed}"

    def lines(self, arm: str) -> dict[str, Any]:
        """What an arm changes."""
        changed = {} if arm == BASE else dict(self.arms[arm] or {})
        return {key: value for key, value in changed.items() if key != "seeds"}

    def config(self, arm: str, seed: int, device: str | None = None) -> RunConfig:
        """The whole configuration of one run. Raises ConfigError."""
        settings = {**self.overrides, **self.lines(arm), "seed": seed, "output": str(self.folder(arm, seed) / "run")}
        if device is not None:
            settings["device"] = device
        found = load_config(self.recipe, [f"{key}={_as_yaml(value)}" for key, value in settings.items()])
        if found.keep_last is None or found.keep_last >= self.test.checkpoints:
            return found
        return found.model_copy(update={"keep_last": self.test.checkpoints})  # what is tested has to be there

    def rewarded(self, arm: str) -> dict[str, str]:
        """The name that each reward of an arm has among the test metrics, by the reward's key; none of the base."""
        if arm == BASE:
            return {}
        return trained_names(self.config(arm, self.seeds_of(arm)[0]))

    def _problems(self) -> list[str]:
        problems, configs = [], {}
        for arm in dict.fromkeys((BASE, *self.arms)):
            if arm in self.arms and (arm == BASE or "/" in arm or arm.startswith(".")):
                problems.append(f"arms.{arm}: this name is taken or no name for a folder")
                continue
            try:
                configs[arm] = self.config(arm, self.seeds_of(arm)[0])
            except ConfigError as error:
                problems += [f"arms.{arm}: {line}" for line in str(error).splitlines()]
        for arm in (self.primary.arm, *self.primary.against):
            if arm not in self.arms:
                problems.append(f"primary: no arm is named {arm!r}; arms: {', '.join(self.arms)}")
        problems += self._of_the_plots()
        return problems + ([] if problems else self._unequal(configs))

    def _of_the_plots(self) -> Iterator[str]:
        """Arms that there are not, lines of one point, plots without arms or without a name for a file."""
        if len(self.front) == 1:
            yield "front: one arm makes no line; name at least two, or leave `front` out"
        for name, arms in self.selections.items():
            if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
                yield f"selections: {name!r} becomes part of a file's name; use letters, digits, _, - and ."
            if not arms:
                yield f"selections.{name}: it names no arm; name some, or leave it out"
        for where, arms in (
            ("front", self.front),
            *((f"selections.{name}", a) for name, a in self.selections.items()),
        ):
            for arm in dict.fromkeys(arms):
                if arm == BASE:
                    yield f"{where}: {BASE} is not trained and has neither weight nor curves; leave it out"
                elif arm not in self.arms:
                    yield f"{where}: no arm is named {arm!r}; arms: {', '.join(self.arms)}"
                elif arms.count(arm) > 1:
                    yield f"{where}: {arm} is named {arms.count(arm)} times; name it once"

    def _unequal(self, configs: Mapping[str, RunConfig]) -> list[str]:
        """Arms on unequal terms, arms that leave too few checkpoints, metrics that no arm is tested on."""
        base = configs[BASE]
        tested = list(EvaluationRequest(base).all_metrics())
        watched = [f"{key}_reward" for key in base.rewards] + [str(m) for m in base.evaluation.metrics]
        tested += [f"{name}{OVER_TRAINING}" for name in watched] if base.evaluation.every else []
        problems = [
            f"{where}: {metric} is not tested; tested: {', '.join(tested)} (more with evaluation.metrics)"
            for where, metrics in (("primary.metric", (self.primary.metric,)), ("compare_on", self.compare_on))
            for metric in metrics
            if metric not in tested
        ]
        images = {arm: config.updates * config.groups.prompts * config.groups.size for arm, config in configs.items()}
        if len(set(images.values())) > 1:
            counts = ", ".join(f"{arm} {count}" for arm, count in images.items() if arm != BASE)
            problems.append(f"arms generate different numbers of images while training ({counts}); equal them")
        for arm, config in configs.items():
            saved = -(-config.updates // config.save_every)
            if saved < self.test.checkpoints:
                problems.append(
                    f"arms.{arm}: {config.updates} updates with save_every={config.save_every} leave {saved} "
                    f"checkpoints, test.checkpoints asks for {self.test.checkpoints}"
                )
            if config.data != configs[BASE].data:
                problems.append(f"arms.{arm}: arms share their data; it changes the section `data`")
        return problems


def _readable(mistake: ErrorDetails, *section: str) -> str:
    where = ".".join(map(str, (*section, *mistake["loc"])))
    line = f"{where}: {mistake['msg'].lower()}"
    if where == "seeds" and mistake["type"] == "tuple_type":
        line += f", not {mistake['input']!r}; write a list such as [0, 1, 2]"
    return line


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()
