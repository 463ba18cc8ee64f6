"""Real processes that start quickly: forked from a server that has imported everything and computed nothing.

pytest's own process is not forked: torch can refuse a backward pass in the fork of a process that did one.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOADED = (
    "customized_grpo.training.assemble",
    "customized_grpo.critters.metrics",
    "customized_grpo.rewards.clip",
    "customized_grpo.rewards.dino",
    "peft",
    "diffusers.loaders.peft",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.transformers.transformer_flux",
    "diffusers.pipelines.flux.pipeline_flux_kontext",
    "transformers.models.clip.modeling_clip",
    "transformers.models.dinov2.modeling_dinov2",
    "transformers.models.t5.modeling_t5",
)
# When a process kills itself: owner (module:class, or module), the function called there, before or after the call.
MOMENTS = {
    "rollout": ("customized_grpo.rewards.scoring:Scorer", "begin", "before"),
    "update": ("torch.optim:AdamW", "step", "after"),
    "saving": ("customized_grpo.run.directory", "write_state", "after"),
    "saved": ("customized_grpo.run.checkpoints", "remove_folder", "before"),
    "pictures": ("customized_grpo.run.cases", "keep_reference", "after"),
    "finishing": ("customized_grpo.run.directory:RunDirectory", "finish", "before"),
}


def start_training(arguments: Sequence[object], log: Path, moment: str | None = None, at: int = 1) -> BaseProcess:
    """`customized-grpo train` with these arguments; it sends itself SIGKILL at the `at`-th of these moments."""
    return start_program(["train", *arguments], log, moment, at)


def start_program(arguments: Sequence[object], log: Path, moment: str | None = None, at: int = 1) -> BaseProcess:
    """`customized-grpo` with these arguments, as `start_training`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    process = context.Process(target=_run, args=(list(map(str, arguments)), str(log), moment, at))
    process.start()
    return process


def train(arguments: Sequence[object], log: Path, moment: str | None = None, at: int = 1) -> int:
    """Start training and wait for its end; returns the exit code, -9 for SIGKILL."""
    process = start_training(arguments, log, moment, at)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _run(arguments: list[str], log: str, moment: str | None, at: int) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    import torch

    from customized_grpo import cli

    torch.set_num_threads(1)  # as in pytest's process
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored if the tests run in the background
    if {"device=card", "card"} & {*arguments}:
        import simulated_card

        simulated_card.insert()
    if moment is not None:
        _die_at(*MOMENTS[moment], at)
    sys.argv = ["customized-grpo", *arguments]
    cli.main()


def _die_at(place: str, name: str, when: str, at: int) -> None:
    module, _, attribute = place.partition(":")
    owner: Any = __import__(module, fromlist=["_"])
    owner = getattr(owner, attribute) if attribute else owner
    real: Callable[..., Any] = getattr(owner, name)
    calls = iter(range(1, at))

    def deadly(*args: Any, **named: Any) -> Any:
        last = next(calls, None) is None
        if last and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **named)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)
