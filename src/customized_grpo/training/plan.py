"""What each update does, as pure functions of its number: which samples, which steps, which weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from customized_grpo.algorithm import (
    SHAPING_RULES,
    ConstantWeights,
    TimeAwareWeights,
    step_gradient_factor,
    step_progress,
    step_scales,
    stochastic_steps,
)
from customized_grpo.config import JOINT_CALIBRATED, OF_AVERAGE, RunConfig
from customized_grpo.data import Sample
from customized_grpo.fields import BUILT_IN
from customized_grpo.sections import Shaping, Weighting
from customized_grpo.training.rollout import derive_seed


def needs_calibration(config: RunConfig) -> bool:
    """Whether a run has to know what its rewards give to bad and to good pictures."""
    figure = (config.keep_best or "").removesuffix(OF_AVERAGE)
    return (
        SHAPING_RULES[config.shaping.rule].uses_calibration
        or config.weighting.balance == "proportional"
        or figure == JOINT_CALIBRATED
    )


class Plan:
    """The plan of a run on the grid `sigmas` [T + 1]. It depends on nothing that training has done so far."""

    def __init__(self, config: RunConfig, samples: Sequence[Sample], sigmas: Tensor):
        self.config, self.samples, self.sigmas = config, samples, sigmas
        self._orders: dict[int, Tensor] = {}  # permutations of the latest epochs
        self.roles = {key: str(reward.role) for key, reward in config.rewards.items()}
        weighting = config.weighting
        self.weights = (
            ConstantWeights(weighting.prompt)
            if weighting.kind == "constant"
            else TimeAwareWeights(**weighting.model_dump(exclude={"kind", "prompt", "progress", "balance"}))
        )

    @property
    def _weighted(self) -> bool:
        return SHAPING_RULES[self.config.shaping.rule].uses_weights

    def batch(self, update: int) -> list[Sample]:
        """The samples of an update. Every epoch is a new permutation; a batch may continue into the next epoch."""
        return [self._place(update, group)[1] for group in range(self.config.groups.prompts)]

    def _place(self, update: int, group: int) -> tuple[int, Sample]:
        """Epoch and sample of a group."""
        epoch, index = divmod(update * self.config.groups.prompts + group, len(self.samples))
        if epoch not in self._orders:  # asked for every image of an update; two epochs are enough for a long list
            while len(self._orders) > 1:
                del self._orders[next(iter(self._orders))]
            self._orders[epoch] = torch.randperm(len(self.samples), generator=self._generator("epoch", epoch))
        return epoch, self.samples[int(self._orders[epoch][index])]

    def window(self, update: int) -> tuple[int, ...]:
        """The true indices of the steps that are stochastic and trained in an update, ascending."""
        window = self.config.window
        return stochastic_steps(
            window.strategy,
            self.config.sampling.num_steps,
            window.size,
            first=window.first,
            last=window.last,
            start=window.start,
            iteration=update,
            every=window.every,
            stride=window.stride,
            generator=self._generator("window", update),
        )

    def prompt_weight(self, steps: Sequence[int]) -> Tensor:
        """Weight of the prompt rewards at each step [len(steps)]; identity gets the rest."""
        progress = step_progress(steps, self.sigmas, self.config.weighting.progress)
        return self.weights.prompt_weight(progress)

    @property
    def reachable(self) -> range:
        """All steps that some window of the run can contain."""
        window = self.config.window
        if window.start is not None and window.size is not None:
            return range(window.start, window.start + window.size)
        return range(window.first, len(self.sigmas) - 2 if window.last is None else window.last + 1)

    def scales(self, steps: Sequence[int]) -> Tensor:
        """The factor `step_scale` on each step's loss [len(steps)], comparable between windows."""
        noise, kind = self.config.noise, self.config.objective.step_scale
        return step_scales(kind, noise.dynamics, self.sigmas, steps, noise.level, over=self.reachable)

    def pull(self, steps: Sequence[int]) -> Tensor:
        """How strongly each step's loss pulls on the velocity: `step_scale` times |d mean / d velocity| / std."""
        at, noise = torch.tensor(list(steps)), self.config.noise
        sigma, sigma_next = self.sigmas[at], self.sigmas[at + 1]
        return self.scales(steps) * step_gradient_factor(
            noise.dynamics, sigma, sigma_next, noise.level, self.sigmas[1]
        )

    def step_rows(self, steps: Sequence[int], prompt_weight: Tensor) -> list[dict[str, float]]:
        """For metrics.jsonl, one row per trained step: its pull, and how the weights divide it if the rule has any."""
        rows = []
        for step, weight, pull in zip(steps, prompt_weight.tolist(), self.pull(steps).tolist(), strict=True):
            parts = {"prompt_weight": weight, "prompt_pull": weight * pull, "identity_pull": (1 - weight) * pull}
            rows.append({"step": step, "pull": pull, **(parts if self._weighted else {})})
        return rows

    def seed(self, update: int, group: int, member: int | None) -> int:
        """Seed of one image of a group; member None: of the noise that the group starts from.

        It depends on the epoch, in which each sample has exactly one group, and not on the update, in which a sample
        of a short list may have several.
        """
        epoch, sample = self._place(update, group)
        return derive_seed(self.config.seed, epoch, sample.id, member)

    def lr(self, optimizer_step: int) -> float:
        """The learning rate of an optimiser step: linear warm-up over the first updates, then constant."""
        warmup = self.config.optimizer.warmup * self.config.objective.updates_per_rollout
        return self.config.optimizer.lr * min((optimizer_step + 1) / max(warmup, 1), 1)

    def advice(self, rising: str, falling: str) -> str:
        """What to set so that a reward of the role `falling` does not fall while one of `rising` rises."""
        weighting, rule = self.config.weighting, self.config.shaping.rule
        if {rising, falling} != {"identity", "prompt"}:
            return "train on one of the two, or give the quality reward another weight"
        choices = []
        if self._weighted:
            names = ("high", "low") if weighting.kind == "tdw" else ("prompt",)
            now = {name: getattr(weighting, name) for name in names}
            change = 0.1 if falling == "prompt" else -0.1
            new = " ".join(f"weighting.{name}={min(max(w + change, 0), 1):g}" for name, w in now.items())
            choices.append(f"{new} (now {' and '.join(f'{w:g}' for w in now.values())})")
        if rule != "joint":
            choices.append("shaping.rule=joint")
        elif weighting.balance == "off":
            choices.append("weighting.balance=proportional")
        return f"start again with {', or with '.join(choices)}"

    def notices(self) -> list[str]:
        """What a user should know before the run starts, one sentence each."""
        notices = list(self._unused_settings())
        if self._weighted and isinstance(self.weights, TimeAwareWeights):
            progress = step_progress(self.reachable, self.sigmas, self.config.weighting.progress)
            if not self.weights.in_final_phase(progress).any():
                notices.append(
                    f"with {self.config.sampling.num_steps} steps no trained step reaches the final phase of the "
                    f"time-aware weights (progress {self.weights.end} and later): the last is step "
                    f"{self.reachable[-1]}. Our experiments do without it; to reach it, use more steps or lower "
                    "weighting.end"
                )
        if self.config.model.path == BUILT_IN != self.config.data.source:
            notices.append(
                "the built-in model has seen nothing but critters: with other data a run shows that everything works, "
                "but its pictures mean nothing"
            )
        if len({sample.subject for sample in self.samples}) == 1:
            notices.append("all training samples show one subject: the adapter will overfit to it")
        return notices

    def _unused_settings(self) -> Iterator[str]:
        """Settings that this run's rule does not read: not an error, since a sweep over rules may keep them."""
        shaping, default = self.config.shaping, Shaping()
        if not self._weighted and self.config.weighting != Weighting(kind="constant"):
            yield f'the rule "{shaping.rule}" has no weights: the section `weighting` has no effect'
        if not self._weighted and self.config.on_degradation == "balance":
            yield f'the rule "{shaping.rule}" has no weights: on_degradation=balance has no effect'
        for name in ("gamma", "recentre"):
            if not SHAPING_RULES[shaping.rule].uses_bonus and getattr(shaping, name) != getattr(default, name):
                yield f'the rule "{shaping.rule}" has no bonus: shaping.{name} has no effect'
        for name, reader in (("joint_share", "joint"), ("threshold", "gated")):
            if shaping.rule != reader and getattr(shaping, name) != getattr(default, name):
                yield f'only the rule "{reader}" reads shaping.{name}: it has no effect'
        if shaping.normalise == "group" and shaping.kappa != default.kappa:
            yield "shaping.kappa has no effect without shaping.normalise=pooled"
        if shaping.calibration is not None and not needs_calibration(self.config):
            effect = f"shaping.calibration only adds the held-out figure {JOINT_CALIBRATED}"
            yield f'the rule "{shaping.rule}" needs no calibration: {effect}'

    def _generator(self, *parts: object) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.config.seed, *parts))
