"""Customized-GRPO (arXiv 2510.18263), top to bottom.

    for each update:  rollout -> rewards -> advantages per denoising step -> clipped objective, or NFT -> AdamW

What differs from the authors' release, and why:
 1. Time-aware weights belong to the true step, which the trajectory stores. The release looks them up by loop position
    after permuting the steps, so a step gets the weight of another.
 2. The prompt weight is a function of progress, so it works for any number of steps and any shift. At T = 25 and
    shift 3 it equals the published table.
 3. All shaping rules run through the same code (`step_advantages`). In the release all baselines but four give NaN.
 4. The model gets the exact sigma as its time. The release truncates it to thousandths.
 5. Groups are sampled in batches; the deterministic steps before the first noise are computed once per group.
 6. Noise and training can be restricted to a window of steps (MixGRPO, arXiv 2507.21802).
 7. `step_scale: equal` makes all steps pull equally on the model, also KL, and be clipped equally, so that the weight
    schedule alone decides.
 8. A run compares the log-probabilities of rollout and update before its first updates: their ratio must be 1.
 9. Evaluation uses the shift and guidance of training, and the sampler and the number of steps that users run.
10. All randomness is derived from (seed, epoch, sample, member), so a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from customized_grpo.algorithm import NEED_OLD_MEAN, Calibration, RunningFigures
from customized_grpo.config import OF_AVERAGE, RunConfig
from customized_grpo.data import Sample
from customized_grpo.policies.base import Policy
from customized_grpo.policies.shadow import Shadow
from customized_grpo.rewards import Reward
from customized_grpo.rewards.scoring import Scorer
from customized_grpo.run.checkpoints import EMA, OLD, Best
from customized_grpo.run.follower import RunFiles
from customized_grpo.run.logs import LogRow
from customized_grpo.run.state import Position
from customized_grpo.runtime.distributed import Processes
from customized_grpo.runtime.memory import MicroBatches
from customized_grpo.runtime.stopping import StopRequest
from customized_grpo.training.advice import advice, restraint
from customized_grpo.training.evaluation import HeldOut, evaluation_sigmas
from customized_grpo.training.forward import ForwardSampler
from customized_grpo.training.learner import Learner
from customized_grpo.training.plan import Plan
from customized_grpo.training.record import Highest, clock, progress_line, reward_figures, spread
from customized_grpo.training.rollout import Rollout, Sampler
from customized_grpo.training.saving import Saver
from customized_grpo.training.shaper import Shaper
from customized_grpo.training.undo import Before
from customized_grpo.training.watch import DEGRADATION, TrainingError, Watch, degradation, refuse_ratio

RATIO_CHECKS = 2  # per process: a new adapter changes nothing before the first update, so the second is checked, too


@dataclass
class Trainer:
    """One training run."""

    config: RunConfig
    policy: Policy  # with a new adapter
    rewards: dict[str, Reward]  # by their keys in the configuration
    samples: Sequence[Sample]  # to train on
    held_out: HeldOut
    directory: RunFiles
    processes: Processes
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)  # of the rewards, if the run needs them

    def __post_init__(self) -> None:
        config = self.config
        sigmas = self.policy.sigmas(config.sampling.num_steps, config.sampling.shift)
        self.evaluation_sigmas = evaluation_sigmas(self.policy, config)
        self.sampler = Sampler(
            sigmas,
            config.noise.dynamics,
            config.noise.level,
            config.groups.rollout_batch,
            noise_everywhere=config.noise.steps == "all",
            keep_means=config.objective.trust in NEED_OLD_MEAN,
            finish_steps=config.sampling.finish_steps,
        )
        self.plan = Plan(config, self.samples, sigmas)
        self.shaper = Shaper(config, self.plan, self.calibrations)
        self.update = self.ratio_checks = 0
        self.batches = MicroBatches(config.groups.rollout_batch, config.groups.update_batch)
        ema = config.adapter.ema
        self.shadows = {} if ema.decay is None else {EMA: Shadow(self.policy, ema.decay, ema.every, warm_up=True)}
        self.learner = Learner(
            config, self.policy, self.sampler, self.plan, self.batches, self.processes, tuple(self.shadows.values())
        )
        self.saver = Saver(self.directory, self.policy, self.learner, self.shadows)
        self.forward = None  # samples in place of the other one with nft
        if config.objective.kind == "nft":
            self.shadows[OLD] = old = Shadow(self.policy, config.objective.old_decay)
            self.forward = ForwardSampler(sigmas, config.groups.rollout_batch, old, config.sampling.finish_steps)
        self.best = Highest(config.keep_best, config.max_unscored)
        self.scorer = Scorer(self.rewards)
        measures = {str(metric): metric.measures for metric in config.evaluation.metrics}
        trained = {key: f"{key}_reward" for key in self.rewards}
        self.watch = Watch(trained, self.plan.roles, measures, partial(advice, self.plan), restraint(self.plan))

    # --- the algorithm -----------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train from the last checkpoint to the last update; save and exit on SIGTERM or SIGINT. Raises RunError."""
        config, directory, learner, every = self.config, self.directory, self.learner, self.config.evaluation.every
        with closing(directory), self.scorer.abort_remote_on_error(), StopRequest() as stop:
            with self.processes.main_first():
                degraded = self._resume(self.saver.restore(), *directory.logs())
            self.processes.check_position(self.update, learner.steps)
            if degraded:
                raise degraded
            if every and self.update % every == 0 and not self.watch.has_evaluated(self.update):
                self._evaluate()
            stopping = self.processes.any(stop.requested)
            with tqdm(initial=self.update, total=config.updates, disable=not self.processes.main) as bar:
                while self.update < config.updates and not stopping:
                    row = self.step()
                    bar.update()
                    bar.set_postfix_str(progress_line(row, self.rewards))
                    if every and self.update % every == 0:
                        self._evaluate(partial(self.watch.annotate, row))
                    row = self.watch.annotate(row)
                    directory.log(row)
                    degraded = self._act_on(row.get("warnings", ()))
                    stopping = self.processes.any(stop.requested)  # asked once: every process acts on one answer
                    if stopping or degraded or self.update % config.save_every == 0 or self.update == config.updates:
                        self.saver.save(self._position)
                    if degraded:
                        raise self.processes.at_once(degraded)
            if self.update < config.updates:
                with self.processes.main_first():  # an exiting rank makes the launcher kill the rest: 0 saves first
                    message = directory.pause(self.update)
                stop.exit(message)
            directory.finish(self.policy, self.shadows)

    @property
    def _position(self) -> Position:
        return Position(self.update, self.learner.steps, self.shaper.running.as_dict(), self.batches.as_dict())

    def _resume(self, position: Position, rows: Sequence[LogRow], held_out: Sequence[LogRow]) -> TrainingError | None:
        """Go on from a position, with the logs up to it; returns the error if a warning in them ends the run."""
        self.update, self.learner.steps, running, batches = position
        self.batches.resume(batches)
        self.shaper.running = RunningFigures(**running)
        self.watch.replay(rows, held_out)
        for row in held_out:
            self.best.beaten_by(row)
        return self._act_on([warning for row in rows for warning in row.get("warnings", ())])

    def _act_on(self, warnings: Sequence[Mapping[str, Any]]) -> TrainingError | None:
        """Do what `on_degradation` says about these warnings; returns the error that ends the run, if it should."""
        degraded = [warning for warning in warnings if warning["kind"] == DEGRADATION]
        if degraded and self.config.on_degradation == "balance" and self.shaper.balance == "off":
            self.shaper.balance = "dual"
        if degraded and self.config.on_degradation == "stop":
            return degradation(degraded[0], self.directory.path)
        return None

    def step(self) -> dict[str, Any]:
        """One update; returns its row of metrics. If memory runs out, it is repeated in smaller batches."""
        if self.processes.count > 1:  # the others wait for this one
            return self.batches.run(self._step, self.scorer.discard, can_repeat=False)
        before, counts = Before(self.learner, [*self.shadows.values()]), (self.update, self.ratio_checks)

        def undo() -> None:
            self.update, self.ratio_checks = counts
            before.restore()
            self.scorer.discard()

        return self.batches.run(self._step, undo)

    def _step(self) -> dict[str, Any]:
        config, size = self.config, self.config.groups.size
        batch, steps = self.plan.batch(self.update), self.plan.window(self.update)
        trained = self.plan.trained(self.update)  # by image; None: every image trains all steps
        own = self.processes.share(len(batch))  # the groups of this process
        samples = batch[own]
        samples_by_image = [sample for sample in samples for _ in range(size)]
        seconds: dict[str, float] = {}
        self.scorer.start()
        with clock(seconds, "rollout"):
            rollout = replace(self.forward or self.sampler, batch=self.batches.rollout).rollout(
                self.policy,
                self.policy.encode(samples),
                size,
                steps,
                lambda group, member: self.plan.seed(self.update, own.start + group, member),
                lambda images, part: self.scorer.begin(images, samples_by_image[part]),
                None if trained is None else trained[own.start * size : own.stop * size],
            )
        with clock(seconds, "reward"), self.saver.before_error(self._position, main=self.processes.main):
            scores = {  # [P, G] of all processes: each of them computes the advantages of the whole update
                key: self.processes.gather(values.unflatten(0, (-1, size)), len(batch))
                for key, values in self.scorer.finish(rollout.images, samples_by_image).items()
            }
            self.scorer.check(scores, config.max_unscored)
        running = self.shaper.observe(scores, steps)
        advantages = self.shaper.advantages(scores, self.shaper.column_weight(steps, running), running)
        advantages = self.plan.at_trained_steps(self.update, advantages)  # [P G, T]
        with clock(seconds, "update"):
            if self.forward is None and self.ratio_checks < RATIO_CHECKS:
                self.check_ratio(rollout)
            diagnostics = self.learner.optimise(self.update + 1, rollout, advantages, samples, own.start * size)
        self.update += 1
        if self.forward is not None:
            self.forward.old.follow(self.update)
        self.shaper.running = running
        return {
            "update": self.update,
            **reward_figures(scores, self.plan.roles),
            "advantage_std": spread(advantages),
            **self.shaper.figures(running),
            **self.scorer.unscored_by_remote(self.processes),
            "steps": self.plan.step_rows(steps, self.shaper.prompt_weight(steps, running)),
            **diagnostics,
            "lr": self.learner.optimizer.param_groups[0]["lr"],
            "seconds": seconds,
        }

    def check_ratio(self, rollout: Rollout) -> None:
        """Raise TrainingError unless replaying a rollout, as the update does, gives its log-probabilities."""
        steps = [point.step for point in rollout.trajectory]
        changes = self.sampler.worst_changes(self.policy, rollout, torch.arange(self.batches.update)).tolist()
        refuse_ratio(changes, self.plan.ratio_limits(steps).tolist(), steps, self.config.model.dtype, self.update + 1)
        self.ratio_checks += 1

    # --- evaluation --------------------------------------------------------------------------------------------------

    def _evaluate(self, last: Callable[[], dict[str, Any]] | None = None) -> None:
        grid, average = self.config.evaluation.grid, self.shadows.get(EMA)
        with self.saver.before_error(self._position, main=self.processes.main, row=last):
            figures, shown = self.held_out.report(self.policy, self.evaluation_sigmas, grid=grid, average=average)
        row = {"update": self.update, **figures}
        self.directory.log_evaluation(row, shown)
        self.watch.observe_evaluation(row)
        self._keep_best(row)

    def _keep_best(self, row: Mapping[str, Any]) -> None:
        """Save the adapter that this evaluation measured, if it is the best so far."""
        if not self.best.beaten_by(row) or (figure := self.best.figure) is None:
            return
        with self.shadows[EMA].in_place() if figure.endswith(OF_AVERAGE) else nullcontext():
            self.directory.save_best(Best(self.update, figure, self.best.value), self.policy)
