"""From the rewards of an update to its advantages: rule, weights, and what both remember of earlier updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from customized_grpo.algorithm import (
    OWN,
    Calibration,
    RunningFigures,
    dual_level,
    own_quantity,
    proportional_shift,
    shifted,
    step_advantages,
)
from customized_grpo.config import RunConfig
from customized_grpo.training.plan import Plan


@dataclass
class Shaper:
    """Shapes the rewards of all processes together: every process gets the same advantages and remembers the same."""

    config: RunConfig
    plan: Plan
    calibrations: Mapping[str, Calibration]  # of the identity and prompt rewards, if the run needs them
    running: RunningFigures = field(default_factory=RunningFigures)  # of all finished updates

    def __post_init__(self) -> None:
        self.balance = self.config.weighting.balance  # `on_degradation` may turn it on

    def observe(self, scores: Mapping[str, Tensor], steps: Sequence[int]) -> RunningFigures:
        """The running figures with this update's rewards [P, G] by key, which are trained at `steps`.

        The caller keeps them in `running` once the update is finished: one that ran out of memory is repeated.
        """
        running = self.running.after(scores)
        if self.balance == "dual":
            running = replace(running, level=dual_level(running, self.plan.roles))
        quantity = own_quantity(
            self.plan.rule,
            scores,
            self.column_weight(steps, running),
            roles=self.plan.roles,
            calibrations=self.calibrations,
            threshold=self.config.shaping.threshold,
            least_spreads=self._least_spreads(running),
        )
        return running if quantity is None else running.with_spreads({OWN: quantity})

    def prompt_weight(self, steps: Sequence[int], running: RunningFigures) -> Tensor:
        """Weight of the prompt rewards at each step [len(steps)]; identity gets the rest."""
        return self._balanced(self.plan.prompt_weight(steps), running)

    def column_weight(self, steps: Sequence[int], running: RunningFigures) -> Tensor:
        """The same for each column of `advantages`: `Plan.column_weight`."""
        return self._balanced(self.plan.column_weight(steps), running)

    def _balanced(self, weight: Tensor, running: RunningFigures) -> Tensor:
        match self.balance:
            case "dual":
                return (weight + running.level).clamp(0, 1)
            case "proportional":
                return shifted(weight, proportional_shift(running, self.plan.roles, self.calibrations))
            case _:
                return weight

    def figures(self, running: RunningFigures) -> dict[str, float]:
        """For metrics.jsonl: the mean weight of the prompt over all steps that can be trained, if it is balanced."""
        if self.balance == "off":
            return {}
        return {"level": self.prompt_weight(self.plan.reachable, running).mean().item()}

    def advantages(self, scores: Mapping[str, Tensor], prompt_weight: Tensor, running: RunningFigures) -> Tensor:
        """Shaped advantages [P, G, C] from rewards [P, G] by key, in columns with these prompt weights [C]."""
        shaping, rewards = self.config.shaping, self.config.rewards
        quality = {key: reward.weight for key, reward in rewards.items() if reward.weight is not None}
        return step_advantages(
            self.plan.rule,
            scores,
            prompt_weight,
            roles=self.plan.roles,
            quality_weights=quality,
            gamma=shaping.gamma,
            recentre=shaping.recentre,
            scale=shaping.scale,
            clip=shaping.clip,
            calibrations=self.calibrations,
            joint_share=shaping.joint_share,
            threshold=shaping.threshold,
            least_spreads=self._least_spreads(running),
        )

    def _least_spreads(self, running: RunningFigures) -> dict[str, float]:
        if self.config.shaping.normalise == "group":
            return {}
        return {name: self.config.shaping.kappa * spread for name, spread in running.spreads.items()}
