"""The configuration of a run: typed, one comment per field, every mistake reported at once.

YAML file or recipe name -> dotted overrides -> `RunConfig`. Unknown keys are refused with the nearest known one.
"""

from __future__ import annotations

import copy
import difflib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from customized_grpo.data.sources import contradictions
from customized_grpo.errors import InputError
from customized_grpo.fields import BUILT_IN, Count, Index, Section, Seed, Share
from customized_grpo.files.yaml_text import YamlError, parse_yaml, read_yaml
from customized_grpo.rewards.by_name import REWARDS, AnyReward, parse_reward
from customized_grpo.rewards.settings import RewardSettings, Role
from customized_grpo.sections import (
    Adapter,
    Data,
    Evaluation,
    Groups,
    Model,
    Noise,
    Objective,
    Optimizer,
    Sampling,
    Shaping,
    Weighting,
    Window,
)

CONFIG = "config.yaml"  # of a run or an adapter
_SHORT = reprlib.Repr()  # of values in messages: a file may hold anything
_SHORT.maxstring = _SHORT.maxother = 80


class ConfigError(InputError, ValueError):
    """A configuration that cannot run; the message has one line per mistake."""


def _with_roles(rewards: Any) -> Any:
    """`identity` and `prompt` are always there; a reward under a key that is a role has that role."""
    if not isinstance(rewards, Mapping):
        return rewards
    usual = {"identity": {"name": "dino"}, "prompt": {"name": "clip_t"}, "quality": {}}
    both = {"identity": {}, "prompt": {}}
    return {
        key: {**usual[key], "role": key, **value} if key in usual and isinstance(value, Mapping) else value
        for key, value in {**both, **rewards}.items()
    }


Rewards = Annotated[Mapping[str, AnyReward], BeforeValidator(_with_roles)]


class RunConfig(Section):
    output: str = "runs/critters"  # the run directory
    tracking: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()  # beside the run's own files; extras
    seed: Seed = 0
    device: str = "cpu"  # "cpu", "cuda", "cuda:1", ...; of other models than the built-in one "cuda"
    updates: Index = 60  # rollouts, each followed by its optimiser steps
    save_every: Count = 20  # updates between checkpoints
    keep_last: Count | None = 3  # so many of the newest checkpoints stay; null: all
    model: Model = Model()
    adapter: Adapter = Adapter()
    data: Data = Data()
    rewards: Rewards = Field(default_factory=lambda: {}, validate_default=True)  # any number, each in its role
    max_unscored: Share = 0.5  # share of an update's images that lack some reward's score before the run stops
    sampling: Sampling = Sampling()
    noise: Noise = Noise()
    window: Window = Window()
    shaping: Shaping = Shaping()
    weighting: Weighting = Weighting()
    objective: Objective = Objective()
    optimizer: Optimizer = Optimizer()
    groups: Groups = Groups()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="before")
    @classmethod
    def _usual_device(cls, values: Any) -> Any:
        model = values.get("model") if isinstance(values, Mapping) else None
        built_in = not isinstance(model, Mapping) or model.get("path", BUILT_IN) == BUILT_IN
        return values if built_in else {"device": "cuda", **values}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = list(self._window_problems())
        if self.shaping.rule == "gdpo" and self.weighting.kind == "tdw":
            problems.append('shaping.rule: "gdpo" has static weights; add weighting.kind=constant')
        if self.weighting.kind == "tdw" and self.weighting.prompt != Weighting().prompt:
            problems.append(
                f"weighting.prompt: {self.weighting.prompt:g} is a constant weight; add weighting.kind=constant, or "
                "set weighting.high and weighting.low"
            )
        if not self.weighting.start <= self.weighting.centre <= self.weighting.end:
            problems.append("weighting: start <= centre <= end does not hold")
        if self.noise.dynamics == "cps" and self.noise.level > 1:
            problems.append(f'noise.level: "cps" takes at most 1, not {self.noise.level}')
        if self.data.source == "critters" and self.data.train_samples is None:
            problems.append("data.train_samples: critters never run out; say how many to draw, for instance 2000")
        problems += contradictions(self.data.source, self.data.root, self.data.class_word)
        problems += self._reward_problems()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _reward_problems(self) -> Iterator[str]:
        for key, reward in self.rewards.items():
            if not key.isidentifier():
                yield f"rewards.{key}: this key names figures and files; use letters, digits and _"
            if reward.role is None:
                yield f"rewards.{key}.role: say what it is for: identity, prompt or quality"
            elif key in get_args(Role) and reward.role != key:
                yield f"rewards.{key}.role: the key says {key}, not {reward.role}; choose another key"
            elif reward.role == "quality" and reward.weight is None:
                yield f"rewards.{key}.weight: a quality reward has a weight of its own, for instance 0.2"
            elif reward.role != "quality" and reward.weight is not None:
                yield f"rewards.{key}.weight: only quality has one; the section `weighting` divides the other roles"
        for metric in self.evaluation.metrics:
            if metric.role is not None or metric.weight is not None:
                yield f"evaluation.metrics: {metric.name} is only looked at; it has no role and no weight"

    # --- rewards and the models that they run on ---------------------------------------------------------------------

    def trained(self) -> dict[str, RewardSettings]:
        """The rewards, each with its model: where none is named the built-in one for critters, else the usual."""
        built_in = BUILT_IN in (self.data.source, self.model.path)
        return {
            key: reward.with_model(BUILT_IN if built_in and reward.encoder else reward.usual_model)
            for key, reward in self.rewards.items()
        }

    def resolve(self, metric: RewardSettings) -> RewardSettings:
        """A metric with its model: where none is named, that of the trained reward with the same kind of encoder."""
        trained = self.trained().values()
        shared = [reward.own_model for reward in trained if metric.encoder and reward.encoder == metric.encoder]
        built_in = BUILT_IN if BUILT_IN in (self.data.source, self.model.path) and metric.encoder else None
        return metric.with_model(next(iter(shared), built_in or metric.usual_model))

    def _window_problems(self) -> Iterator[str]:
        window, final = self.window, self.sampling.num_steps - 2
        last = final if window.last is None else window.last
        size = 1 if window.size is None else window.size
        first, latest = window.first, last - size + 1  # where a window may begin
        if last > final:
            yield f"window.last: steps 0 to {final} can be stochastic with num_steps={final + 2}, not {last}"
        elif first > last:
            yield f"window.first: {first} lies behind the last step, {last}"
        elif first > latest:
            yield f"window.size: steps {first} to {last} hold windows of at most {last - first + 1}, not {size}"
        elif window.start is not None and not first <= window.start <= latest:
            steps = f"windows of {size} within steps {first} to {last}"
            yield f"window.start: {steps} start at {first} to {latest}, not {window.start}"


def recipes() -> dict[str, Path]:
    """The recipes inside the package, by name."""
    folder = Path(str(files("customized_grpo") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_config(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """A recipe by name or path, or what a run or an adapter was trained with, by its folder.

    overrides  such as "optimizer.lr=1e-4"

    Raises ConfigError, which lists every mistake.
    """
    known = recipes()
    path = known.get(recipe) or Path(recipe)
    if path.is_dir():
        path = path / CONFIG
    if not path.is_file():
        hint = _nearest(recipe, known)
        raise ConfigError(
            f"no recipe {recipe!r}{hint}; recipes: {', '.join(known)}, or the path of a YAML file or a run"
        )
    try:
        values = read_yaml(path)
    except YamlError as error:
        raise ConfigError(str(error)) from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; a recipe is a mapping of keys to values")
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not (equals and all(key.split("."))):
            hint = "; quotes hold one with spaces together" if override.endswith((",", "]", "}")) else ""
            problems.append(f"{override}: an override is written key=value, for instance optimizer.lr=1e-4{hint}")
            continue
        try:
            _set(values, key.split("."), parse_yaml(text))
        except KeyError as error:
            problems.append(f"{override}: {error.args[0]} is a value, not a section of keys")
        except YamlError as error:
            problems.append(f"{key}: {_SHORT.repr(text)} is not YAML: {error}")
    config = None
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        problems += [*_readable(error), *_contradictions(values, error)]
    if problems or config is None:
        raise ConfigError("\n".join(problems))
    return config


def _set(values: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise KeyError(key)
    values[keys[-1]] = value


def _contradictions(values: dict[str, Any], error: ValidationError) -> Iterator[str]:
    """What is wrong between sections; pydantic looks for it only where every section is right by itself."""
    rest: dict[Any, Any] = copy.deepcopy(values)
    for problem in error.errors():
        parent, key, found = rest, None, rest
        for part in problem["loc"]:
            if isinstance(found, dict):
                parent, key, found = found, part, found.get(part)
        parent.pop(key, None)  # the default takes the place of the mistake
    try:
        RunConfig.model_validate(rest)
    except ValidationError as remaining:
        if error.errors()[0]["loc"] and not remaining.errors()[0]["loc"]:
            yield from _readable(remaining)


def parse_metric(line: str) -> RewardSettings:
    """From one line such as "dino against=other_view"; ConfigError says what is wrong with it."""
    try:
        return parse_reward(line)
    except ValidationError as error:
        raise ConfigError(
            f"metric {line!r}: {'; '.join(_readable(error))}; write for instance 'dino against=other_view'"
        ) from None


def _readable(error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        location = [str(part) for part in problem["loc"] if not str(part).startswith(("constrained", "literal"))]
        chosen = {"rewards": 2, "evaluation": 3}.get(location[0] if location else "", 0)
        # There pydantic puts the name that chose the reward's class.
        where = ".".join(part for n, part in enumerate(location) if n != chosen or part not in REWARDS)
        if problem["type"] == "extra_forbidden":
            instead = _nearest(location[-1], _fields(location[:-1]), all_keys=True)
            yield f"{where}: unknown key{instead}{'' if 'did you mean' in instead else _anew(location)}"
        elif problem["type"] == "union_tag_invalid":
            tag = problem.get("ctx", {})["tag"]
            yield f"{where}.name: no reward is named {tag!r}{_nearest(tag, REWARDS, all_keys=True)}".lstrip(".")
        elif problem["type"] == "union_tag_not_found":
            yield f"{where}: a reward needs its name; known: {', '.join(REWARDS)}"
        elif problem["type"] == "missing":
            yield f"{where}: is missing, and cannot be guessed; give it a value"
        elif problem["type"] == "value_error":
            prefix = f"{where}: " if where else ""
            yield from (prefix + line for line in problem["msg"].removeprefix("Value error, ").split("\n"))
        else:
            yield f"{where}: {_uncapitalised(problem['msg'])}, not {_SHORT.repr(problem['input'])}"


def _anew(location: Sequence[str]) -> str:
    """For a key that a recipe's reward has and the one chosen instead of it has not."""
    if location[0] != "rewards" or len(location) != 4 or location[2] not in REWARDS:
        return ""
    return f"; a reward without the recipe's settings is written 'rewards.{location[1]}={{name: {location[2]}}}'"


def _uncapitalised(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _fields(section: Sequence[str]) -> Mapping[str, Any]:
    """The known keys of a section, given by its path; a reward's class stands in the path by its name."""
    model: type[BaseModel] = RunConfig
    for key in section:
        if key in REWARDS:
            model = REWARDS[key]
        elif key in model.model_fields and (found := _section_in(model.model_fields[key].annotation)):
            model = found
    return model.model_fields


def _section_in(annotation: Any) -> type[Section] | None:
    """The section that a field is; None for lists and mappings, whose entries say themselves what they are."""
    plain = isinstance(annotation, type) and not get_args(annotation)
    return annotation if plain and issubclass(annotation, Section) else None


def _nearest(key: str, known: Mapping[str, Any], *, all_keys: bool = False) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known here: {', '.join(known)}" if all_keys else ""


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
