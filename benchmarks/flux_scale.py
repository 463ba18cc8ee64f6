"""How fast updates are at real size, on one GPU: seconds by phase, share of the card's matrix rate, memory.

    python benchmarks/flux_scale.py                                # on a GPU: all models at true size; takes hours
    python benchmarks/flux_scale.py --family klein --steps 10      # a part of it
    python benchmarks/flux_scale.py --family klein kontext         # without a GPU: slices, one block of each kind

Models have random weights, and prompts are random numbers, so nothing is downloaded. Rewards are the tiny encoders of
the built-in world: their seconds say nothing about those of a recipe. What the rows and columns mean:
docs/performance.md, "At real size". Prints tables; figures go to build/flux_scale.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import torch
from bench import processor
from scale_rows import RECIPES, ROWS, Scale, Setting, model_path, needed, refusal, setting
from scale_text import LEGEND, heading, lora_lines, row_line
from true_size import random_policy, random_sample, random_trainer

from customized_grpo.config import RunConfig
from customized_grpo.cost.estimate import estimate
from customized_grpo.cost.simulated import measure, size_of, tensors_of
from customized_grpo.data import Sample
from customized_grpo.errors import InputError
from customized_grpo.policies.diffusers_policy import DiffusersPolicy
from customized_grpo.run.environment import environment
from customized_grpo.runtime.device import usable_device
from customized_grpo.training.trainer import Trainer

PHASES = ("rollout", "reward", "update")


def free_memory(device: torch.device) -> int | None:
    """Free bytes of a GPU; None for a CPU, whose slices are small."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def forget(device: torch.device) -> None:
    """Free what earlier rows and models have left in reference cycles."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def synchronise(device: torch.device) -> None:
    """Wait for what a GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - start


def matrix_rate(device: torch.device) -> float:
    """FLOP/s of large products of bfloat16 matrices: the best of five times."""
    side, count = (8192, 50) if device.type == "cuda" else (256, 8)  # many CPUs have no such products
    left, right = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    flops = measure(lambda: left @ right, ()).flops

    def products() -> None:
        for _ in range(count):
            left @ right

    products()
    return count * flops / min(seconds_of(products, device) for _ in range(5))


def share(flops: float, seconds: float, rate: float) -> float:
    """The part of a rate of FLOP/s that so many operations in so many seconds are."""
    return flops / seconds / rate


def timed_update(trainer: Trainer, chosen: Setting) -> dict[str, float]:
    """The seconds of an update by phase, and "all".

    Rollout and rewards end with pictures and scores on the CPU; what a GPU still does at the end is "update".
    """
    device = trainer.policy.device
    synchronise(device)
    start = time.perf_counter()
    row = chosen.update(trainer)
    returned = time.perf_counter()
    synchronise(device)
    end = time.perf_counter()
    phases = {name: row["seconds"][name] for name in PHASES}
    return {**phases, "update": phases["update"] + end - returned, "all": end - start}


def warm_up(trainer: Trainer, chosen: Setting) -> int | None:
    """An update that does not count. On a CPU: its peak of memory, counted by following every tensor."""
    if trainer.policy.device.type == "cuda":
        chosen.update(trainer)
        return None
    rewards = [part for reward in trainer.rewards.values() for part in vars(reward).values()]
    modules = [
        trainer.policy.module,
        trainer.policy.pipe.vae,
        *(part.model for part in rewards if hasattr(part, "model")),
    ]
    before = [tensor for module in modules for tensor in tensors_of(module)]
    return size_of(before) + round(measure(lambda: chosen.update(trainer), before).memory)


def run_row(chosen: Setting, policy: DiffusersPolicy, sample: Sample, rounds: int, rate: float) -> dict[str, Any]:
    """What is measured of one row, and what `plan` says about it."""
    trainer, device = random_trainer(chosen.config, policy, sample), policy.device
    peak = warm_up(trainer, chosen)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = [timed_update(trainer, chosen) for _ in range(rounds)]
    if peak is None:
        peak = torch.cuda.max_memory_allocated(device)
    return {**figures(chosen, times, peak, rate), "halved": trainer.batches.halved}


def figures(chosen: Setting, times: Sequence[Mapping[str, float]], peak: int, rate: float) -> dict[str, Any]:
    """A row of the results.

    Shares of the rate are those of the operations that the model needs, and of all that are executed: checkpointing
    repeats the forward pass within the update.
    """
    config = chosen.config
    plan = estimate(config)
    whole = config.model_copy(update={"model": config.model.model_copy(update={"gradient_checkpointing": False})})
    seconds = {name: median(each[name] for each in times) for name in times[0]}
    executed = {phase: plan.flops_of(phase) for phase in ("rollout", "update")}
    needs = {phase: estimate(whole).flops_of(phase) for phase in executed}
    return {
        **{"family": chosen.family, "rank": chosen.rank, "steps": chosen.steps, "row": chosen.row},
        "seconds": seconds,
        "seconds_per_image": seconds["all"] / config.groups.size,
        "flops": {"model": needs, "executed": executed},
        "share": {phase: share(needs[phase], seconds[phase], rate) for phase in needs},
        "executed_share": {phase: share(executed[phase], seconds[phase], rate) for phase in executed},
        "peak": peak,
        "planned_peak": needed(plan),
        "rounds": list(times),
        "config": config.model_dump(mode="json"),
    }


def lora_overhead(config: RunConfig, policy: DiffusersPolicy, sample: Sample, repeats: int) -> dict[str, Any]:
    """How much longer passes take with the adapter than without it, and how many operations more they have.

    The latents get a gradient, so that a pass forward and backward exists without the adapter, too.
    """
    batch, device = config.groups.update_batch, policy.device
    condition = policy.encode([sample]).repeat(batch)
    latents = policy.noise(condition, range(batch)).requires_grad_()

    @torch.no_grad()
    def forward() -> None:
        policy.velocity(latents, 0.5, condition)

    def backward() -> None:
        policy.velocity(latents, 0.5, condition).square().mean().backward()

    def without(call: Callable[[], None]) -> Callable[[], None]:
        def base() -> None:
            with policy.base_policy():
                call()

        return base

    overhead = {}
    for name, call in (("forward", forward), ("forward and backward", backward)):
        calls = {"with": call, "without": without(call)}
        flops = {kind: measure(each, ()).flops for kind, each in calls.items()}  # warms up, too
        rounds = [{kind: seconds_of(each, device) for kind, each in calls.items()} for _ in range(repeats)]
        seconds = {kind: median(each[kind] for each in rounds) for kind in calls}
        more_time, more_flops = (values["with"] / values["without"] - 1 for values in (seconds, flops))
        overhead[name] = {
            "seconds": seconds,
            "flops": flops,
            "time": more_time,
            "operations": more_flops,
            "points": 100 * (more_time - more_flops),
        }
    for weight in policy.trainable_parameters().values():
        weight.grad = None
    return overhead


def measure_model(settings: Sequence[Setting], rounds: int, repeats: int) -> dict[str, Any]:
    """The rows of one family and rank, and the adapter's overhead. Prints each row as soon as it is known."""
    first = settings[0]
    forget(usable_device(first.config.device))  # the model before
    policy, sample = random_policy(first.config), random_sample(first.config.model.width)
    rate = matrix_rate(policy.device)
    print(heading(first.family, first.rank, first.config, policy, rate), flush=True)
    rows: list[dict[str, Any]] = []
    for chosen in settings:
        row = run_row(chosen, policy, sample, rounds, rate)
        rows.append(row)
        same_work = [each["seconds_per_image"] for each in rows if (each["row"], each["steps"]) == ("a", row["steps"])]
        row["times_release"] = same_work[0] / row["seconds_per_image"] if same_work else None
        print(row_line(row), flush=True)
        forget(policy.device)
    lora = lora_overhead(settings[-1].config, policy, sample, repeats)
    print("\n".join(lora_lines(lora)), flush=True)
    return {"family": first.family, "rank": first.rank, "matrix_rate": rate, "rows": rows, "lora": lora}


def choices() -> argparse.Namespace:
    """The command line; what is left open depends on the device."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--family", nargs="+", choices=RECIPES, default=list(RECIPES))
    options.add_argument("--row", nargs="+", choices=ROWS, default=list(ROWS))
    options.add_argument("--steps", nargs="+", type=int, help="T; 25 and 10, or on a CPU 3")
    options.add_argument("--rank", nargs="+", help='numbers, or "paper" for the published adapter; 64 and paper')
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--blocks", type=int, help="of each kind; all, or on a CPU 1")
    options.add_argument("--size", type=int, help="pixels of a side; 512, or on a CPU 64")
    options.add_argument("--group", type=int, help="images; 12, or on a CPU 2")
    options.add_argument("--text", type=int, help="tokens of a prompt; the recipe's, or on a CPU 32")
    options.add_argument("--batch", type=int, help="images per pass in rows b to d; the recipe's, in d as many as fit")
    options.add_argument("--lever", nargs="+", default=[], metavar="KEY=VALUE", help="further settings of row d")
    options.add_argument("--model", help="another model of the family: a hub id or a folder")
    options.add_argument("--memory", type=float, help="GB that may be used; what is free on the card")
    options.add_argument("--rounds", type=int, help="updates of a row that count; 2, or on a CPU 1")
    options.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    options.add_argument("--output", type=Path, default=Path("build/flux_scale"))
    chosen = options.parse_args()
    if chosen.model and len(chosen.family) > 1:
        options.error(f"--model is one model, and --family names {len(chosen.family)} families; name one")
    large = usable_device(chosen.device).type == "cuda"
    usual = {
        **{"steps": [25, 10] if large else [3], "rank": ["64", "paper"] if large else ["64"]},
        **{"blocks": None if large else 1, "size": 512 if large else 64, "group": 12 if large else 2},
        **{"text": None if large else 32, "rounds": 2 if large else 1},
    }
    for name, value in usual.items():
        if getattr(chosen, name) is None:
            setattr(chosen, name, value)
    return chosen


def planned(chosen: argparse.Namespace, folder: Path) -> list[list[Setting]]:
    """The settings to measure, by family and rank. Says what they need, and exits if that is more than there is."""
    free = free_memory(usable_device(chosen.device)) if chosen.memory is None else int(chosen.memory * 1e9)
    scale = Scale(
        **{name: getattr(chosen, name) for name in ("device", "blocks", "size", "group", "batch", "model", "text")},
        levers=chosen.lever,
        free=free,
    )
    models, needs = [], {}
    for family in chosen.family:
        path = model_path(family, scale, folder)
        for rank in chosen.rank:
            rows = [setting(family, rank, steps, row, scale, path) for steps in chosen.steps for row in chosen.row]
            models.append(rows)
            peaks = {each.label: needed(estimate(each.config)) for each in rows}
            needs |= peaks
            print(f"{family}, rank {rank}: needs {max(peaks.values()) / 1e9:.2f} GB by `plan`", flush=True)
    if problem := refusal(needs, free):
        raise SystemExit(problem)
    return models


def main() -> None:
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            chosen = choices()
            models = planned(chosen, Path(folder))
        except InputError as error:
            raise SystemExit(str(error)) from None
        torch.set_num_threads(chosen.threads)
        print(f"\n{LEGEND}", flush=True)
        repeats = 10 if usable_device(chosen.device).type == "cuda" else chosen.rounds
        measured = [measure_model(settings, chosen.rounds, repeats) for settings in models]
    machine = {"processor": processor(), "cores": os.cpu_count(), "date": date.today().isoformat()}
    results = {"models": measured, "environment": environment() | machine, "seconds": time.monotonic() - start}
    chosen.output.mkdir(parents=True, exist_ok=True)
    (chosen.output / "flux_scale.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\n{results['seconds']:.0f} s in all; figures in {chosen.output / 'flux_scale.json'}")


if __name__ == "__main__":
    main()
