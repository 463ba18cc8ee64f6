"""The configuration of a run: a recipe or YAML file, then dotted overrides, validated as a `RunConfig`.

Every mistake is reported at once. The docstrings of the fields are their descriptions in docs/configuration.md.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from customized_grpo.data.sources import contradictions
from customized_grpo.fields import BUILT_IN, CRITTERS, Count, Index, PathText, Section, Seed, Share
from customized_grpo.files.kinds import at_keys
from customized_grpo.files.paths import display
from customized_grpo.files.text import is_utf8
from customized_grpo.files.yaml_text import YamlError, parse_value, read_yaml
from customized_grpo.rewards.by_name import AnyReward, from_line
from customized_grpo.rewards.mistakes import ConfigError, describe_mistakes, nearest, shorten
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
    window_problems,
)

CONFIG = "config.yaml"  # the file in the folder of a run or an adapter
JOINT_CALIBRATED = "joint_calibrated"  # held-out figure of runs with calibrated rewards: mean of q_prompt q_identity
OF_AVERAGE = "_ema"  # ending of held-out figures of the adapter's moving average


Override = str | tuple[str, Any]  # "optimizer.lr=1e-4" as a user writes it, or a dotted key with its value


def _with_defaults(rewards: Any) -> Any:
    """Add `identity` and `prompt` if they, or only their names, are missing."""
    if not isinstance(rewards, Mapping):
        return rewards
    defaults = {"identity": {"name": "dino"}, "prompt": {"name": "clip_t"}}
    return {
        key: {**defaults.get(key, {}), **value} if isinstance(value, Mapping) else value
        for key, value in {"identity": {}, "prompt": {}, **rewards}.items()
    }


def _with_roles(rewards: Mapping[str, RewardSettings]) -> Mapping[str, RewardSettings]:
    """A reward without a role whose key is a role has that one."""
    return {
        key: reward.model_copy(update={"role": key}) if reward.role is None and key in get_args(Role) else reward
        for key, reward in rewards.items()
    }


Rewards = Annotated[Mapping[str, AnyReward], BeforeValidator(_with_defaults), AfterValidator(_with_roles)]


class RunConfig(Section):
    """Everything that decides a run."""

    output: PathText = "runs/critters"
    """Folder of the run, which holds everything that it writes."""
    tracking: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers that also get the run's figures and pictures. Each needs the extra of its name: docs/installing.md."""
    seed: Seed = 0
    """Seed of everything random."""
    device: str = "cpu"
    """Where the model runs: `cpu`, `cuda`, `cuda:1` and so on."""
    updates: Index = 60
    """Number of rollouts, each followed by its optimiser steps."""
    save_every: Count = 20
    """Number of updates between checkpoints."""
    keep_last: Count | None = 3
    """Number of checkpoints to keep, the newest ones. `null` keeps all."""
    keep_best: str | None = None
    """Held-out figure, such as `joint_success`, whose best adapter is kept too. With `_ema`: the moving average's."""
    on_degradation: Literal["say", "stop", "balance"] = "say"
    """When a reward falls while another rises: say it, stop, or let the weights follow as with `balance: dual`."""
    model: Model = Model()
    adapter: Adapter = Adapter()
    data: Data = Data()
    rewards: Rewards = Field(default_factory=lambda: {}, validate_default=True)
    """Any number of rewards under keys of your choice. `identity` and `prompt` are always among them."""
    max_unscored: Share = 0.5
    """Share of an update's images that may lack the score of some reward. Above it the run stops."""
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
    def _default_device(cls, values: Any) -> Any:
        model = values.get("model") if isinstance(values, Mapping) else None
        built_in = not isinstance(model, Mapping) or model.get("path", CRITTERS) in BUILT_IN
        return values if built_in else {"device": "cuda", **values}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = list(window_problems(self.window, self.sampling.num_steps))
        if self.sampling.finish_steps is not None and self.noise.steps == "all":
            problems.append(
                "sampling.finish_steps: with noise.steps=all only the last step has no noise; set "
                "sampling.finish_steps=null, or noise.steps=trained"
            )
        if not is_utf8(self.output):
            problems.append(f"output: the name {display(self.output)} is not UTF-8; give the folder another one")
        if self.shaping.rule == "gdpo" and self.weighting.kind == "tdw":
            problems.append('shaping.rule: "gdpo" needs static weights; add weighting.kind=constant')
        if self.weighting.kind == "tdw" and self.weighting.prompt != Weighting().prompt:
            problems.append(
                f"weighting.prompt: {self.weighting.prompt:g} is a constant weight, which tdw ignores; add "
                "weighting.kind=constant, or set weighting.high and weighting.low"
            )
        if not self.weighting.start <= self.weighting.centre <= self.weighting.end:
            start, centre, end = self.weighting.start, self.weighting.centre, self.weighting.end
            problems.append(f"weighting: start {start:g}, centre {centre:g} and end {end:g} must be in this order")
        if self.noise.dynamics == "cps" and self.noise.level > 1:
            problems.append(f'noise.level: must be at most 1 with "cps", not {self.noise.level}')
        if self.data.source in BUILT_IN and self.data.train_samples is None:
            problems.append("data.train_samples: critters are drawn without limit; set a number, for instance 2000")
        problems += self._objective_problems()
        problems += contradictions(self.data.source, self.data.root, self.data.class_word)
        problems += self._reward_problems()
        problems += self._best_problems()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _objective_problems(self) -> Iterator[str]:
        objective, size = self.objective, self.groups.size
        if objective.minibatches > size:
            yield (
                f"objective.minibatches: must be at most {size}, the images of a group (groups.size), not "
                f"{objective.minibatches}"
            )
        if objective.trust == "guard" and objective.step_scale != "none":
            yield (
                'objective.step_scale: "guard" scales the ratio of each step by its own noise, and two scales would '
                "undo each other; set objective.step_scale=none, or objective.trust=clip"
            )
        if objective.kind == "nft":
            yield from self._nft_problems()
        per_image = self.window.strategy == "scattered" and self.window.per == "image"
        if self.weighting.progress == "position" and not per_image:
            yield (
                'weighting.progress: "position" is the order in which each image draws its steps; add '
                "window.strategy=scattered window.per=image"
            )

    def _nft_problems(self) -> Iterator[str]:
        if self.objective.kl > 0:
            yield (
                f"objective.kl: {self.objective.kl:g} needs noisy steps, and nft has none; set objective.kl=0, and a "
                "larger objective.beta to keep the policy nearer"
            )
        if self.objective.trust != "clip":
            yield (
                f'objective.trust: "{self.objective.trust}" limits a ratio of probabilities, and nft has none; set '
                "objective.trust=clip, which nft does not read"
            )
        if self.noise.steps == "all":
            yield "noise.steps: nft samples without noise; set noise.steps=trained, or objective.kind=grpo"

    def _reward_problems(self) -> Iterator[str]:
        for key, reward in self.rewards.items():
            if not key.isidentifier():
                yield f"rewards.{key}: the key becomes part of file names; use letters, digits and _"
            if reward.role is None:
                yield f"rewards.{key}.role: is missing; set it to identity, prompt or quality"
            elif key in get_args(Role) and reward.role != key:
                yield f"rewards.{key}.role: must be {key} under this key, not {reward.role}; choose another key"
            elif reward.role == "quality" and reward.weight is None:
                yield f"rewards.{key}.weight: is missing; a quality reward needs a weight, for instance 0.2"
            elif reward.role != "quality" and reward.weight is not None:
                yield f"rewards.{key}.weight: only for quality rewards; the section `weighting` weighs the others"
        for metric in self.evaluation.metrics:
            if metric.role is not None or metric.weight is not None:
                yield f"evaluation.metrics: {metric.name} is not trained on; remove its role and weight"

    def _best_problems(self) -> Iterator[str]:
        if self.keep_best is None:
            return
        figure = self.keep_best.removesuffix(OF_AVERAGE)
        metrics = {str(metric): metric.measures for metric in self.evaluation.metrics}
        if not self.evaluation.every:
            yield "keep_best: needs evaluations; set evaluation.every"
        if figure != self.keep_best and self.adapter.ema.decay is None:
            yield f"keep_best: {self.keep_best} needs a moving average; set for instance adapter.ema.decay=0.9"
        if figure.removesuffix("_reward") in self.rewards:
            yield f"keep_best: {figure} is trained on, so it rises in any case; choose one of evaluation.metrics"
        elif metrics.get(figure) == "copying":
            yield f"keep_best: {figure} is best when it is low; choose another of evaluation.metrics"
        elif figure not in {*metrics, JOINT_CALIBRATED}:
            hint = nearest(figure, [*metrics, JOINT_CALIBRATED])
            yield f"keep_best: {figure!r} is not among evaluation.metrics{hint}; add it there"

    @property
    def evaluation_steps(self) -> int:
        """Number of denoising steps with which the adapter is evaluated and used."""
        return self.evaluation.num_steps or self.sampling.num_steps

    @property
    def evaluation_size(self) -> tuple[int, int]:
        """Height and width of the pictures with which the adapter is evaluated and used, in pixels."""
        return self.evaluation.height or self.model.height, self.evaluation.width or self.model.width

    @property
    def evaluation_model(self) -> Model:
        """The section `model` with the size of the pictures with which the adapter is evaluated and used."""
        height, width = self.evaluation_size
        return self.model.model_copy(update={"height": height, "width": width})

    @classmethod
    def from_recipe(cls, recipe: str | Path, *overrides: Override) -> RunConfig:
        """The configuration of a recipe, a YAML file, or the folder of a run or adapter, with changed settings.

        overrides  such as "optimizer.lr=1e-4", or ("optimizer.lr", 1e-4); later ones win

        Raises ConfigError, an InputError, with a line for every mistake.
        """
        return load_config(str(recipe), overrides)

    def with_settings(self, *overrides: Override) -> RunConfig:
        """A copy with changed settings, as in `from_recipe`."""
        return _configured(self.model_dump(mode="json"), overrides)

    # --- rewards and their models ------------------------------------------------------------------------------------

    def trained(self) -> dict[str, RewardSettings]:
        """The rewards with their models. The default is the built-in one for critters, otherwise the reward's own."""
        built_in = self._built_in()
        return {
            key: reward.with_model(built_in if built_in and reward.encoder else reward.usual_model)
            for key, reward in self.rewards.items()
        }

    def resolve(self, metric: RewardSettings) -> RewardSettings:
        """A metric with its model. The default is that of a trained reward with the same kind of encoder."""
        trained = self.trained().values()
        shared = [reward.own_model for reward in trained if metric.encoder and reward.encoder == metric.encoder]
        built_in = self._built_in() if metric.encoder else None
        return metric.with_model(next(iter(shared), built_in or metric.usual_model))

    def _built_in(self) -> str | None:
        """The built-in world of data or model, if one of them is: its encoders are the usual ones then."""
        return next((name for name in (self.data.source, self.model.path) if name in BUILT_IN), None)


def recipes() -> dict[str, Path]:
    """The recipes of the package, by name."""
    folder = Path(str(files("customized_grpo") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_config(recipe: str, overrides: Sequence[Override] = ()) -> RunConfig:
    """The configuration of a recipe (its name or path), or of a run or an adapter (its folder).

    overrides  such as "optimizer.lr=1e-4", or ("optimizer.lr", 1e-4), whose value is taken as it is; later ones win

    Raises ConfigError with every mistake.
    """
    return _configured(_read_recipe(recipe), overrides)


def _configured(values: dict[str, Any], overrides: Sequence[Override]) -> RunConfig:
    problems = list(_dropped(overrides))
    for override in overrides:
        try:
            _apply(override, values)
        except ConfigError as error:
            problems.append(str(error))
    config = None
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        problems += [*describe_mistakes(error, RunConfig), *_hidden_contradictions(values, error)]
    if problems or config is None:
        raise ConfigError("\n".join(problems))
    return config


def _dropped(overrides: Sequence[Override]) -> Iterator[str]:
    """A line for each override that a later one of its whole section would silently drop."""
    keys = [key_of(override) for override in overrides]
    for number, key in enumerate(keys):
        if whole := next((later for later in keys[number + 1 :] if key.startswith(f"{later}.")), None):
            yield f"{key}: {whole}, which comes later, would replace it; write {whole} first"


def _read_recipe(recipe: str) -> dict[str, Any]:
    known = recipes()
    path = known.get(recipe) or Path(recipe)
    try:
        if path.is_dir():
            path = path / CONFIG
        if not path.is_file():
            raise ConfigError(
                f"no recipe {recipe!r}{nearest(recipe, known)}; recipes: {', '.join(known)}, or the path of a YAML "
                "file or a run"
            )
        values = read_yaml(path, RunConfig)
    except YamlError as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        raise ConfigError(f"recipe {shorten(recipe)} cannot be read: {error.strerror}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; a recipe is a mapping of keys to values")
    return values


def _apply(override: Override, values: dict[str, Any]) -> None:
    """Set the value of an override. Raises ConfigError."""
    if isinstance(override, str):
        key, value = _parse(override)
    else:
        key, value = override[0], copy.deepcopy(override[1])  # further overrides may change what is in it
    *sections, last = key.split(".")
    rewards = values.get("rewards")
    for section in sections:
        parent, values = values, values.setdefault(section, {})
        if parent is rewards and isinstance(values, str):
            values = parent[section] = _as_section(key, values)
        if not isinstance(values, dict):
            raise ConfigError(
                f"{override if isinstance(override, str) else key}: {section} is a value, not a section of keys"
            )
    values[last] = value


def _as_section(key: str, line: str) -> dict[str, Any]:
    """The settings of a reward that is written as a line, so that one of them can be set. Raises ConfigError."""
    try:
        return from_line(line)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None


def key_of(override: Override) -> str:
    """The dotted key that an override sets."""
    return override.partition("=")[0] if isinstance(override, str) else override[0]


def _parse(override: str) -> tuple[str, Any]:
    """Key and value of "optimizer.lr=1e-4". Raises ConfigError."""
    key, equals, text = override.partition("=")
    *sections, last = key.split(".")
    if not (equals and last and all(sections)):
        hint = "; put quotes around a value with spaces" if override.endswith((",", "]", "}")) else ""
        raise ConfigError(f"{override}: an override is written key=value, for instance optimizer.lr=1e-4{hint}")
    try:
        return key, parse_value(text, at_keys(RunConfig, [*sections, last]))
    except YamlError as error:
        raise ConfigError(f"{key}: {shorten(text)} is not YAML: {error}") from None


def _hidden_contradictions(values: dict[str, Any], error: ValidationError) -> Iterator[str]:
    """Contradictions between sections, which pydantic checks only if each section is valid on its own.

    They are looked for with the defaults in the place of the invalid values.
    """
    corrected: dict[Any, Any] = copy.deepcopy(values)
    for mistake in error.errors():
        parent, key, value = corrected, None, corrected
        for part in mistake["loc"]:  # which also names branches of unions
            if isinstance(value, dict) and part in value:
                parent, key, value = value, part, value.get(part)
        parent.pop(key, None)
    try:
        RunConfig.model_validate(corrected)
    except ValidationError as remaining:
        if error.errors()[0]["loc"] and not remaining.errors()[0]["loc"]:
            yield from describe_mistakes(remaining, RunConfig)


def dump_config(config: RunConfig) -> str:
    """The complete configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
