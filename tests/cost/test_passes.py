"""The passes and FLOPs that are planned are those that a run makes."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop

from customized_grpo.config import RunConfig
from customized_grpo.cost.estimate import estimate
from customized_grpo.cost.passes import blank_sample, passes
from customized_grpo.training import evaluation
from customized_grpo.training.evaluation import generate_cases
from customized_grpo.training.plan import Plan
from customized_grpo.training.rollout import Sampler
from customized_grpo.training.trainer import Trainer

UPDATES = 3
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop(grad, q, k, v)
    ),
}
CASES = {
    "a window at a random place": ("sampling.num_steps=5", "window.strategy=random", "window.size=2"),
    "all steps": ("window.strategy=all", "window.size=null"),
    "noise everywhere": ("noise.steps=all", "window.strategy=random", "window.size=1"),
    "steps of each image's own": ("sampling.num_steps=5", "window.strategy=scattered", "window.size=2"),
    "several passes over a rollout": ("objective.updates_per_rollout=2",),
    "KL": ("objective.kl=0.1",),
    "fewer steps of second order": ("sampling.num_steps=10", "window.last=8", "sampling.finish_steps=2"),
    "the same, of each image's own": (
        *("sampling.num_steps=10", "window.last=8", "sampling.finish_steps=2"),
        *("window.strategy=scattered", "window.size=2"),
    ),
    "DiffusionNFT with them": ("objective.kind=nft", "window.size=2", "sampling.finish_steps=3"),
    "DiffusionNFT": ("objective.kind=nft", "window.size=2", "window.strategy=random"),
}


@pytest.fixture
def make_run(make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trainer]:
    """A trainer whose images all have a gradient, and that does not replay its first rollout to check the ratio."""
    monkeypatch.setattr(Trainer, "check_ratio", lambda *_: None)

    def make(*overrides: str) -> Trainer:
        trainer = make_trainer("evaluation.every=0", f"updates={UPDATES}", *overrides)
        monkeypatch.setattr(trainer.learner, "_active", lambda advantages: ~advantages.isnan())
        return trainer

    return make


def wrapped(owner: Any, method: str, monkeypatch: pytest.MonkeyPatch, around: Callable[..., Any]) -> None:
    original = getattr(owner, method)
    monkeypatch.setattr(owner, method, lambda *args, **kwargs: around(original, *args, **kwargs))


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES)
def test_a_run_makes_the_planned_passes(
    make_run: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
):
    trainer, images = make_run(*overrides), Counter()

    def velocity(original: Callable[..., Tensor], latents: Tensor, *args: Any) -> Tensor:
        images["trained" if torch.is_grad_enabled() else "others"] += len(latents)
        return original(latents, *args)

    def decode(original: Callable[..., Tensor], latents: Tensor, *args: Any) -> Tensor:
        images["finished"] += len(latents)
        return original(latents, *args)

    wrapped(trainer.policy, "velocity", monkeypatch, velocity)
    wrapped(trainer.policy, "decode", monkeypatch, decode)
    trainer.train()
    planned = passes(trainer.config)
    assert images["trained"] == UPDATES * planned.trained > 0
    # Images that draw their own steps: other samples draw others, so that the first and the last of all differ.
    tolerance = 0.2 if trainer.config.window.strategy == "scattered" else 1e-9
    assert images["others"] == pytest.approx(UPDATES * (planned.sampled + planned.extra), rel=tolerance)
    assert images["finished"] == UPDATES * planned.images


@pytest.mark.parametrize(
    "overrides",
    [(), ("model.gradient_checkpointing=true",), ("adapter.targets=attention", "objective.updates_per_rollout=2")],
)
def test_a_run_takes_the_planned_operations(
    make_run: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
):
    trainer, flops = make_run(*overrides), []

    def counted(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            result = original(*args, **kwargs)
        flops.append(counter.get_total_flops())
        return result

    wrapped(trainer.learner, "optimise", monkeypatch, counted)
    rollout = Sampler.rollout
    monkeypatch.setattr(Sampler, "rollout", lambda *args, **kwargs: counted(rollout, *args, **kwargs))
    trainer.train()
    assert sum(flops) == pytest.approx(UPDATES * estimate(trainer.config).flops, rel=1e-9)


@pytest.mark.parametrize("average", [(), ("adapter.ema.decay=0.9",)], ids=["", "with an average"])
def test_a_run_makes_the_planned_evaluations(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, average: tuple[str, ...]
):
    """By hand: 4 cases in 7 steps, before the first of 3 updates and after the second; twice with an average."""
    trainer, images = make_trainer("evaluation.every=2", "evaluation.num_steps=7", "updates=3", *average), Counter()

    def generate(policy: Any, sigmas: Tensor, cases: Sequence[Any]) -> Tensor:
        images["finished"] += len(cases)
        images["steps"] += len(cases) * (len(sigmas) - 1)
        return generate_cases(policy, sigmas, cases)

    monkeypatch.setattr(evaluation, "generate_cases", generate)
    trainer.train()
    planned = passes(trainer.config)
    assert 3 * planned.evaluated == pytest.approx(images["finished"])
    assert 3 * planned.evaluation == pytest.approx(images["steps"])
    assert images["steps"] == 4 * 7 * 2 * (2 if average else 1)


def test_the_steps_before_the_window_are_taken_once_per_group(make_config: Callable[..., RunConfig]):
    """By hand: 2 groups of 3 images in 4 steps, of which the first 2 are shared."""
    planned = passes(make_config("window.strategy=fixed", "window.start=2", "window.size=1"))
    assert (planned.shared, planned.own, planned.trained) == (2 * 2, 6 * 2, 6)


def test_passes_can_be_those_of_some_updates(make_config: Callable[..., RunConfig]):
    config = make_config("updates=40", "sampling.num_steps=6", "window.last=4", "window.size=2")
    plan = Plan(config, [blank_sample()], torch.linspace(1, 0, 7))
    chosen = [update for update in range(40) if plan.window(update) == (2, 3)]
    assert len(chosen) > 1
    counted = passes(config, chosen)  # 2 groups of 3 images: two steps shared, four of each image's own
    assert (counted.shared, counted.own) == (2 * 2, 6 * 4)
    assert passes(config, range(40)) == passes(config)
