"""Base and tuned pictures from the same noise, what the model expects at every denoising step, and all scores."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from customized_grpo.commands.generate import Generator, ModelChoice
from customized_grpo.config import RunConfig
from customized_grpo.data import Sample
from customized_grpo.data.images import to_pictures
from customized_grpo.errors import InputError, RunError
from customized_grpo.files.adapter_places import ADAPTER_FILE
from customized_grpo.policies.base import Condition
from customized_grpo.rewards import Reward
from customized_grpo.rewards.scoring import score
from customized_grpo.rewards.settings import OracleSettings, RewardSettings
from customized_grpo.run.sampling_settings import SamplingSettings
from customized_grpo.runtime.memory import raise_if_exhausted
from customized_grpo.sections import Model
from customized_grpo.studio.opened import Opened, stamp

Draw = Callable[[Condition, int, Callable[[Tensor], None]], Tensor]


@dataclass(frozen=True)
class Made:
    """A generated picture.

    frames  the picture that the model expects at each denoising step; at the last one it is the picture itself
    scores  by reward or metric; NaN: could not be scored
    """

    frames: tuple[Image.Image, ...]
    scores: Mapping[str, float]

    @property
    def picture(self) -> Image.Image:
        return self.frames[-1]


@dataclass
class Trial:
    """One reference, prompt and seed, and what was made of them. `tuned` has the checkpoints that were looked at."""

    opened: Opened
    sample: Sample
    seed: int
    base: Made
    trained_on: frozenset[str]  # those of the scores
    tuned: dict[str, Made] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # why a score is missing


@dataclass
class Studio:
    """Holds one loaded model at a time. Not for several threads at once: the page lets one generation in."""

    device: str
    _of: str | None = None  # the name of what is loaded
    _generator: Generator | None = None
    _adapter: Any = None  # its folder, and the stamp of its weights
    _rewards: dict[str, Reward] = field(default_factory=dict)
    _notes: dict[str, str] = field(default_factory=dict)

    def begin(self, opened: Opened, sample: Sample, seed: int) -> Trial:
        """The base's picture, and that of the last checkpoint if there is one."""
        self._notes = {}
        checkpoints = opened.checkpoints()
        last = next(reversed(checkpoints), None)
        generator = self._load(opened, None if last is None else checkpoints[last])
        base = self._make(opened, sample, seed, generator.image if last is None else generator.untuned_image)
        trial = Trial(opened, sample, seed, base, frozenset(_trained(opened.config)))
        if last is not None:  # it is loaded, so it does not matter whether the run has removed it meanwhile
            trial.tuned[last] = self._make(opened, sample, seed, generator.image)
        trial.notes = tuple(dict.fromkeys(self._notes.values()))
        return trial

    def tune(self, trial: Trial, checkpoint: str) -> None:
        """The picture of a checkpoint, unless it is there already. Raises RunError if the checkpoint is gone."""
        if checkpoint in trial.tuned:
            return
        saved = trial.opened.checkpoints()
        if checkpoint not in saved:
            raise CheckpointGoneError(f"{checkpoint} has been removed; the run keeps only its last checkpoints")
        generator = self._load(trial.opened, saved[checkpoint])
        trial.tuned[checkpoint] = self._make(trial.opened, trial.sample, trial.seed, generator.image)

    def _load(self, opened: Opened, adapter: Path | None) -> Generator:
        generator = self._generator if self._of == opened.name else None
        wanted = None if adapter is None else (adapter, stamp(adapter / ADAPTER_FILE))
        if generator is None:
            self._generator, self._of, self._adapter = None, None, None  # frees the memory of the one before
            self._rewards = {}
            generator = Generator.load(_choice(opened, adapter, self.device))
        elif adapter is not None and wanted != self._adapter:
            generator.policy.load_adapter(adapter)
        self._generator, self._of, self._adapter = generator, opened.name, wanted
        return generator

    def _make(self, opened: Opened, sample: Sample, seed: int, draw: Draw) -> Made:
        assert self._generator is not None
        policy = self._generator.policy
        condition = policy.encode([sample])
        expected: list[Tensor] = []
        with torch.no_grad():
            image = draw(condition, seed, expected.append)
            frames = [policy.decode(latents, condition) for latents in expected[:-1]]  # the last is the image
        pictures = to_pictures(torch.cat([*frames, image]).cpu())
        return Made(tuple(pictures), self._score(opened, image.cpu(), sample))

    def _score(self, opened: Opened, image: Tensor, sample: Sample) -> dict[str, float]:
        scores = {}
        for name, settings in _scorers(opened.config).items():
            try:
                if name not in self._rewards:
                    self._rewards[name] = settings.make(torch.device(self.device))
                scores[name] = score(name, self._rewards[name], image, [sample]).item()
            except (InputError, RunError) as error:  # the others can still be shown; the page says what is missing
                self._notes[name] = f"{settings.name}: {error}"
                continue
            if scores[name] != scores[name]:
                if isinstance(settings, OracleSettings):
                    self._notes["oracle"] = "The oracle judges only subjects and prompts of the built-in world."
                    continue
                lacking = settings.lacking(sample)
                failed = getattr(self._rewards[name], "last_error", None) or "cannot score this"
                reason = f"needs the {lacking}, which this subject does not have" if lacking else failed
                self._notes[name] = f"{settings.name} {reason}"
        return scores


def _choice(opened: Opened, adapter: Path | None, device: str) -> ModelChoice:
    if opened.run is None:
        return ModelChoice(model=opened.config.model.path, adapter=None, device=device)
    if adapter is None:
        return _Untrained(model=None, adapter=None, device=device, config=opened.config)
    return ModelChoice(model=None, adapter=adapter, device=device)


@dataclass(frozen=True, kw_only=True)
class _Untrained(ModelChoice):
    """The model of a run that has saved no adapter yet, with the settings that its adapters will have."""

    config: RunConfig

    def base(self) -> Model:
        return self.config.model

    def settings(self) -> SamplingSettings:
        return SamplingSettings.of(self.config)


class CheckpointGoneError(RunError, RuntimeError):
    """A checkpoint that the page offered has been removed since by the run."""


def _trained(config: RunConfig) -> dict[str, RewardSettings]:
    return {f"{key}_reward": reward for key, reward in config.trained().items()}


def _scorers(config: RunConfig) -> dict[str, RewardSettings]:
    """What pictures are scored with: as in the run's evaluations."""
    return _trained(config) | {str(metric): config.resolve(metric) for metric in config.evaluation.metrics}


def told(error: Exception) -> str:
    """The one line about a generation that failed. The traceback of a bug is printed where the server runs."""
    if isinstance(error, RuntimeError):
        try:
            raise_if_exhausted(error)
        except RunError as exhausted:
            error = exhausted
    if isinstance(error, InputError | RunError):
        return str(error)
    traceback.print_exception(error)
    return f"a bug: {type(error).__name__}: {error} (the traceback is where the studio was started)"
