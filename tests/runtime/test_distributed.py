"""Two processes train the model that one process trains."""

import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from torch.distributed.tensor import DTensor

from customized_grpo.config import ConfigError, RunConfig
from customized_grpo.runtime import distributed
from customized_grpo.runtime.distributed import DistributedError, Processes
from customized_grpo.training.assemble import assemble
from customized_grpo.training.trainer import Trainer
from gradients import gradients_of
from processes import in_processes

MakeConfig = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def alone():
    """Every test starts as a process that was started by itself."""
    PartialState._reset_state()
    yield
    PartialState._reset_state()


def three_updates(trainer: Trainer) -> dict[str, Any]:
    """Rows, gradient of the first update, and the adapter after three SGD updates.

    Later gradients differ by more: rewards see pictures of 8 bits, and a pixel that rounds the other way is a step.
    """
    trainer.optimizer = torch.optim.SGD(trainer.parameters, lr=1.0)  # pyright: ignore[reportAttributeAccessIssue]
    start = torch.cat([p.detach().flatten() for p in trainer.parameters])
    with gradients_of(trainer) as gradients:
        rows = [trainer.step() for _ in range(3)]
    adapter = torch.cat([p.detach().flatten() for p in trainer.parameters])
    return {"start": start, "rows": rows, "gradient": gradients[0], "adapter": adapter}


# One image a pass: matrix products round by the size of the batch, and here only the sharing should show.
SINGLY = (
    *("groups.rollout_batch=1", "groups.update_batch=1"),
    *("rewards.identity.batch=1", "rewards.prompt.batch=1"),
)
SETTINGS = ("evaluation.every=0", "optimizer.max_grad_norm=1e9", "optimizer.lr=2", "optimizer.warmup=0", *SINGLY)


@pytest.mark.parametrize(
    "more",
    [
        ("groups.prompts=4",),
        ("groups.prompts=3",),  # two groups in one process, one in the other
        ("groups.prompts=3", "shaping.rule=gdpo", "weighting.kind=constant", "objective.kl=0.1"),
    ],
)
def test_two_processes_equal_one(more: tuple[str, ...], make_config: MakeConfig, tmp_path: Path):
    def run(name: str) -> None:
        trainer = assemble(make_config(*SETTINGS, *more, f"output={tmp_path / name}"))
        done = three_updates(trainer)
        torch.save(done, tmp_path / f"{name}-{trainer.processes.index}.pt")

    run("one")
    in_processes(2, lambda: run("two"), tmp_path)
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("one-0", "two-0", "two-1"))
    alone, together = one["gradient"], first["gradient"]
    assert ((alone - together).norm() / alone.norm()).item() <= 1e-6
    assert (one["adapter"] - first["adapter"]).abs().max().item() <= 1e-6
    assert (one["adapter"] - one["start"]).abs().max() > 1e-3  # or everything would be equal for want of training
    assert torch.equal(first["adapter"], second["adapter"])
    # Of later rows the figures of pictures differ by a pixel's rounding, those of gradients accordingly.
    close = ({"rel": 1e-4, "abs": 1e-5}, {"rel": 1e-3, "abs": 1e-3}, {"rel": 1e-3, "abs": 1e-3})
    for within, expected, *found in zip(close, one["rows"], first["rows"], second["rows"], strict=True):
        for row in found:
            assert figures(row) == pytest.approx(figures(expected), **within, nan_ok=True)


def held(trainer: Trainer) -> int:
    """How many weights of the transformer lie in this process."""
    weights = trainer.policy.module.parameters()
    return sum((w.to_local() if isinstance(w, DTensor) else w).numel() for w in weights)


@pytest.mark.parametrize("further", [(), ("model.gradient_checkpointing=true", "objective.kl=0.1")])
def test_sharded_weights_train_as_whole_ones(further: tuple[str, ...], make_config: MakeConfig, tmp_path: Path):
    """FSDP2 over two processes: each holds a part of the base, before and after a pass; the adapter stays whole."""

    def run(name: str, *more: str) -> None:
        trainer = assemble(make_config(*SETTINGS, "groups.prompts=2", *further, *more, f"output={tmp_path / name}"))
        parts = [held(trainer)]
        rollout = trainer.sampler.rollout(
            trainer.policy,
            trainer.policy.encode(trainer.plan.batch(0)[:1]),
            1,
            trainer.plan.window(0),
            lambda group, member: group if member is None else member,
        )
        parts.append(held(trainer))
        trainer.check_ratio(rollout)  # a pass that builds a graph and never goes back
        parts.append(held(trainer))
        done = three_updates(trainer)
        done["held"] = [*parts, held(trainer)]
        torch.save(done, tmp_path / f"{name}-{trainer.processes.index}.pt")

    run("one")
    in_processes(2, lambda: run("two", "model.shard=true"), tmp_path)
    (whole, *_), *parts = (torch.load(tmp_path / f"{n}.pt")["held"] for n in ("one-0", "two-0", "two-1"))
    assert [[part < 0.7 * whole for part in each] for each in parts] == [[True] * 4] * 2, (whole, parts)
    one, first = (torch.load(tmp_path / f"{name}.pt") for name in ("one-0", "two-0"))
    # Gathered weights begin elsewhere in memory, and matrix products round by that.
    assert ((one["gradient"] - first["gradient"]).norm() / one["gradient"].norm()).item() <= 1e-5
    assert (one["adapter"] - first["adapter"]).abs().max().item() <= 1e-5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("groups.prompts=3",), "groups.prompts=3 is not a multiple of 2 processes"),
        (
            ("groups.prompts=2", "evaluation.every=1", "data.held_out_samples=3"),
            "3 cases are not a multiple of 2 processes",
        ),
    ],
)
def test_sharded_weights_need_equal_shares(
    settings: tuple[str, ...], said: str, make_config: MakeConfig, tmp_path: Path
):
    def work() -> None:
        with pytest.raises(ConfigError, match=said):
            assemble(make_config(*settings, "model.shard=true", f"output={tmp_path / 'run'}"))

    in_processes(2, work, tmp_path)


def test_sharding_needs_several_processes(make_config: MakeConfig):
    with pytest.raises(ConfigError, match="there is one; start them with torchrun"):
        assemble(make_config("model.shard=true"))


def figures(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, int | float)}


def test_shares_differ_by_one_at_most_and_are_everything():
    processes = Processes("cpu")
    for count in range(1, 6):
        for total in range(12):
            parts = []
            for index in range(count):
                processes.index, processes.count = index, count
                part = processes.share(total)
                parts.append(list(range(total))[part])
            assert [each for part in parts for each in part] == list(range(total))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_parts_of_unequal_length_come_together_in_order(tmp_path: Path):
    def work() -> None:
        processes = Processes("cpu")
        for total in (1, 2, 5):
            everything = torch.arange(total * 3.0).reshape(total, 3)
            everything[0, 0] = math.nan
            assert torch.equal(
                processes.gather(everything[processes.share(total)], total).nan_to_num(7), everything.nan_to_num(7)
            )

    in_processes(3, work, tmp_path)


def test_only_what_is_shown_of_held_out_cases_leaves_its_process(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A hundred pictures of a megapixel are 1.2 GB on every card; scores of all of them are nothing."""
    settings = ("groups.prompts=2", "data.held_out_samples=5", "evaluation.every=1")
    sent: list[int] = []
    for name in ("gather", "reduce"):
        real = getattr(distributed, name)

        def counted(values: torch.Tensor, real: Callable[..., Any] = real, **named: Any) -> torch.Tensor:
            sent.append(values.numel())
            return real(values, **named)

        monkeypatch.setattr(distributed, name, counted)

    def run(name: str, grid: int) -> None:
        trainer = assemble(make_config(*settings, f"output={tmp_path / name}"))
        _, shown = trainer.held_out.report(trainer.policy, trainer.sampler.sigmas, grid=grid)
        pictures = [torch.frombuffer(bytearray(each.picture.tobytes()), dtype=torch.uint8) for each in shown]
        torch.save(pictures, tmp_path / f"{name}-{trainer.processes.index}.pt")
        assert sum(count > 100 for count in sent) == (grid if trainer.processes.count > 1 else 0)
        assert max(sent, default=0) <= 3 * 32 * 32

    run("one", 5)
    in_processes(2, lambda: run("two", 4), tmp_path)  # the fourth is the second process's
    one, *two = (torch.load(tmp_path / f"{name}.pt") for name in ("one-0", "two-0", "two-1"))
    for found in two:
        assert len(found) == 4
        for expected, picture in zip(one, found, strict=False):
            assert (expected.int() - picture.int()).abs().max() <= 1  # a pixel that rounds the other way


def test_gradients_are_summed_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In buckets of at most so many numbers, unless one weight has more; one that a process has not is zero there."""
    monkeypatch.setattr(distributed, "BUCKET", 6)
    reduced: list[int] = []
    all_reduce = torch.distributed.all_reduce

    def counted(values: torch.Tensor) -> None:
        reduced.append(values.numel())
        all_reduce(values)

    monkeypatch.setattr(torch.distributed, "all_reduce", counted)

    def work() -> None:
        processes = Processes("cpu")
        weights = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 2), (2,), (3, 4), (1,), (5,))]
        for number, weight in enumerate(weights):
            if not (processes.index == 1 and number in (0, 4)):
                weight.grad = torch.full_like(weight, 10.0**number * (1 + processes.index))
        places = [weight.grad if weight.grad is None else weight.grad.data_ptr() for weight in weights]
        processes.sum_gradients(weights)
        for number, (weight, place) in enumerate(zip(weights, places, strict=True)):
            assert weight.grad is not None
            assert torch.equal(weight.grad, torch.full_like(weight, 10.0**number * (1 if number in (0, 4) else 3)))
            assert place in (None, weight.grad.data_ptr())
        assert reduced == [6, 12, 6]

    in_processes(2, work, tmp_path)


def test_a_whole_run_leaves_what_one_process_leaves(make_config: MakeConfig, tmp_path: Path):
    """Through `train`: checkpoints, logs and held-out cases, counted once and written once."""
    settings = ("updates=2", "groups.prompts=3", "evaluation.every=1", "data.held_out_samples=3", "save_every=1")

    def run(name: str) -> None:
        assemble(make_config(*settings, f"output={tmp_path / name}")).train()

    run("one")
    in_processes(2, lambda: run("two"), tmp_path)
    names = [sorted(p.relative_to(tmp_path / n).as_posix() for p in (tmp_path / n).rglob("*")) for n in ("one", "two")]
    assert names[0] == names[1]
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        one, two = (
            [json.loads(line) for line in (tmp_path / n / log).read_text().splitlines()] for n in ("one", "two")
        )
        assert len(one) == len(two)
        for expected, found in zip(one, two, strict=True):
            assert figures(found) == pytest.approx(figures(expected), rel=1e-3, abs=1e-4, nan_ok=True)
            assert found.get("scored") == expected.get("scored")


def test_a_resumed_pair_goes_on_where_it_stopped(make_config: MakeConfig, tmp_path: Path):
    settings = ("groups.prompts=2", "evaluation.every=0", "save_every=1")

    def run(name: str, updates: int, *, resume: bool = False) -> None:
        config = make_config(*settings, f"updates={updates}", f"output={tmp_path / name}")
        assemble(config, resume=resume).train()

    in_processes(2, lambda: run("whole", 2), tmp_path)
    in_processes(2, lambda: run("halves", 1), tmp_path)
    in_processes(2, lambda: run("halves", 2, resume=True), tmp_path)
    adapters = [
        (tmp_path / name / "adapter" / "pytorch_lora_weights.safetensors").read_bytes() for name in ("whole", "halves")
    ]
    assert adapters[0] == adapters[1]


def test_nobody_leaves_before_the_first_process_has_saved(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """torchrun ends all processes once one of them has ended, and may kill the one that is still saving."""

    def work() -> None:
        trainer = assemble(make_config("groups.prompts=2", "updates=2", f"output={tmp_path / 'run'}"))
        step, checkpoint = trainer.step, trainer.directory.checkpoint

        def stopped() -> dict[str, Any]:
            if trainer.processes.index == 1:
                signal.raise_signal(signal.SIGTERM)
            return step()

        def slow(*given: Any) -> None:
            time.sleep(float(trainer.processes.main))
            checkpoint(*given)

        monkeypatch.setattr(trainer, "step", stopped)
        monkeypatch.setattr(trainer.directory, "checkpoint", slow)
        with pytest.raises(SystemExit):
            trainer.train()
        assert (tmp_path / "run" / "checkpoints" / "step-00001").is_dir()

    in_processes(2, work, tmp_path)


def test_processes_that_see_different_folders_do_not_train_together(make_config: MakeConfig, tmp_path: Path):
    """Two nodes without a common file system: only the first one has the checkpoint."""
    settings = ("groups.prompts=2", "updates=2", "save_every=1")
    assemble(make_config(*settings, "updates=1", f"output={tmp_path / 'node-0'}")).train()

    def work() -> None:
        trainer = assemble(make_config(*settings, f"output={tmp_path / 'node-'}{os.environ['RANK']}"), resume=True)
        with pytest.raises(DistributedError, match=r"need the same run folder") as refused:
            trainer.train()
        first, other = "from update 1 (optimiser step 1)", "from update 0 (optimiser step 0)"
        assert str(refused.value).startswith(f"process 0 goes on {first}, process 1 {other}: ")

    in_processes(2, work, tmp_path)


def test_every_process_needs_a_group(make_config: MakeConfig, tmp_path: Path):
    def work() -> None:
        with pytest.raises(ConfigError, match=r"groups\.prompts=1 leaves some of the 2 processes without a group"):
            assemble(make_config("groups.prompts=1", f"output={tmp_path / 'run'}"))

    in_processes(2, work, tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_process_that_dies_ends_the_others_in_one_line(tmp_path: Path):
    def work() -> None:
        processes = Processes("cpu")
        if processes.index == 1:
            os._exit(0)
        while_alone = torch.ones(1000)
        with pytest.raises(DistributedError, match=r"another process of the run has gone.*--resume"):
            processes.sum(while_alone)

    in_processes(2, work, tmp_path)
