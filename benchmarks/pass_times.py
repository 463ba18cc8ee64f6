"""The floor of an update: its passes, each timed alone at the batch size that is best for it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch

from customized_grpo.cost.passes import Passes
from customized_grpo.cost.simulated import measure
from customized_grpo.training.trainer import Trainer

IMAGES = 24  # of each measurement at least, in as many calls as that takes

Times = Mapping[str, Mapping[int, float]]  # seconds per image, by kind of pass and by batch size


def time_passes(trainer: Trainer, batches: Sequence[int], images: int = IMAGES) -> Times:
    """How long passes of a trainer's policy and rewards take, without anything around them."""
    times = {
        kind: {batch: _seconds(call, batch, images) for batch, call in calls.items()}
        for kind, calls in _calls(trainer, batches).items()
    }
    trainer.learner.optimizer.zero_grad(set_to_none=True)  # the trainer's next update must not begin with them
    return times


def _calls(trainer: Trainer, batches: Sequence[int]) -> dict[str, dict[int, Callable[[], object]]]:
    policy, sample, size = trainer.policy, trainer.samples[0], trainer.config.groups.size
    fresh = iter(random.sample(trainer.samples, len(trainer.samples)))  # rewards remember samples
    calls: dict[str, dict[int, Callable[[], object]]] = {
        name: {} for name in ("sampled", "trained", "images", "scored")
    }
    for batch in batches:
        condition = policy.encode([sample]).repeat(batch)
        latents = policy.noise(condition, range(batch))
        pictures = policy.decode(latents, condition)

        def forward(latents=latents, condition=condition):
            with torch.no_grad():
                policy.velocity(latents, 0.5, condition)

        def backward(latents=latents, condition=condition):
            policy.velocity(latents, 0.5, condition).square().mean().backward()

        def decode(latents=latents, condition=condition):
            policy.decode(latents, condition)

        def score(pictures=pictures):
            groups = [next(fresh) for _ in range(-(-len(pictures) // size))]
            samples = [each for each in groups for _ in range(size)][: len(pictures)]
            new = pictures.clone()  # and the latest pictures
            for reward in trainer.rewards.values():
                reward(new, samples)

        for kind, call in zip(calls, (forward, backward, decode, score), strict=True):
            calls[kind][batch] = call
    return calls


def _seconds(call: Callable[[], object], batch: int, images: int) -> float:
    """Per image, after one call that does not count."""
    call()
    count = max(1, images // batch)
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count / batch


def between(before: Times, after: Times) -> Times:
    """The means of two measurements: what passes took at a time between them, if the machine's load drifts."""
    return {
        kind: {batch: (seconds + after[kind][batch]) / 2 for batch, seconds in times.items()}
        for kind, times in before.items()
    }


def forwards_per_training_pass(trainer: Trainer) -> float:
    """FLOPs of a pass forward and backward, in units of a forward pass."""
    calls = _calls(trainer, (1,))
    forward, backward = (measure(calls[kind][1], ()).flops for kind in ("sampled", "trained"))
    trainer.learner.optimizer.zero_grad(set_to_none=True)
    return backward / forward


def best_batches(rounds: Sequence[Times]) -> dict[str, int]:
    """The batch size with the smallest median, by kind."""
    return {
        kind: min(times, key=lambda batch, kind=kind: median(each[kind][batch] for each in rounds))
        for kind, times in rounds[0].items()
    }


def floor(passes: Passes, times: Times, batches: Mapping[str, int]) -> dict[str, float]:
    """Seconds that an update's passes take at these batch sizes, by phase; every image is scored once."""
    of = {kind: times[kind][batch] for kind, batch in batches.items()}
    return {
        "rollout": passes.sampled * of["sampled"] + passes.images * of["images"],
        "reward": passes.images * of["scored"],
        "update": passes.trained * of["trained"] + passes.extra * of["sampled"],
    }
