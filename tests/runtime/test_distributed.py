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
import torch.distributed as dist
from accelerate import PartialState
from torch.distributed.tensor import DTensor

from customized_grpo.commands.guarded import guarded
from customized_grpo.config import ConfigError, RunConfig
from customized_grpo.runtime import distributed
from customized_grpo.runtime.distributed import DistributedError, Processes, _collective
from customized_grpo.runtime.memory import MemoryExhaustedError
from customized_grpo.training.assemble import assemble
from customized_grpo.training.trainer import Trainer
from gradients import gradients_of
from processes import in_processes
from runs import REMEMBERING, SMALL

MakeConfig = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def alone():
    """Every test starts as a single process."""
    PartialState._reset_state()
    yield
    PartialState._reset_state()


def two_updates(trainer: Trainer) -> dict[str, Any]:
    """Rows, gradient of the first update, and the adapter before and after two SGD updates.

    The gradient of the second update differs by more: rewards see 8-bit pictures, and a pixel may round differently.
    """
    trainer.learner.optimizer = torch.optim.SGD(trainer.learner.parameters, lr=1.0)  # pyright: ignore[reportAttributeAccessIssue]
    start = torch.cat([p.detach().flatten() for p in trainer.learner.parameters])
    with gradients_of(trainer) as gradients:
        rows = [trainer.step() for _ in range(2)]
    adapter = torch.cat([p.detach().flatten() for p in trainer.learner.parameters])
    return {"start": start, "rows": rows, "gradient": gradients[0], "adapter": adapter}


# One image per pass: matrix products round depending on the batch size, and only the sharing should be tested here.
SINGLY = (
    *("groups.rollout_batch=1", "groups.update_batch=1"),
    *("rewards.identity.batch=1", "rewards.prompt.batch=1"),
)
SCATTERED = ("sampling.num_steps=5", "window.last=3", "window.strategy=scattered")  # two of four steps per image
GUARD = ("objective.trust=guard", "objective.step_scale=none")
SETTINGS = (*SMALL, "window.size=2", "optimizer.max_grad_norm=1e9", "optimizer.lr=2", *SINGLY)


@pytest.mark.parametrize(
    "more",
    [
        ("groups.prompts=2",),
        ("groups.prompts=3",),  # two groups in one process, one in the other
        ("groups.prompts=3", "shaping.rule=gdpo", "weighting.kind=constant", "objective.kl=0.1"),
        ("groups.prompts=3", *REMEMBERING),
        ("groups.prompts=3", *SCATTERED, "objective.minibatches=2", "objective.trust=dppo"),
        ("groups.prompts=3", *SCATTERED, "noise.steps=all", "objective.minibatches=3", *GUARD),
        ("groups.prompts=3", *SCATTERED, "objective.kind=nft", "objective.minibatches=2", "optimizer.lr=.2"),
    ],
)
def test_two_processes_equal_one(more: tuple[str, ...], make_config: MakeConfig, tmp_path: Path):
    def run(name: str) -> None:
        trainer = assemble(make_config(*SETTINGS, *more, f"output={tmp_path / name}"))
        torch.save(two_updates(trainer), tmp_path / f"{name}-{trainer.processes.index}.pt")

    run("one")
    in_processes(2, lambda: run("two"), tmp_path)
    one, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("one-0", "two-0", "two-1"))
    alone, together = one["gradient"], first["gradient"]
    assert ((alone - together).norm() / alone.norm()).item() <= 1e-6
    assert (one["adapter"] - first["adapter"]).abs().max().item() <= 1e-6
    assert (one["adapter"] - one["start"]).abs().max() > 1e-3  # otherwise an untrained adapter would pass
    assert torch.equal(first["adapter"], second["adapter"])
    # In the second row a pixel may have rounded differently, which shows in all figures.
    tolerances = ({"rel": 1e-4, "abs": 1e-5}, {"rel": 1e-3, "abs": 1e-3})
    for tolerance, expected, *rows in zip(tolerances, one["rows"], first["rows"], second["rows"], strict=True):
        for row in rows:
            assert figures(row) == pytest.approx(figures(expected), **tolerance, nan_ok=True)


def held(trainer: Trainer) -> int:
    """How many weights of the transformer this process holds."""
    weights = trainer.policy.module.parameters()
    return sum((w.to_local() if isinstance(w, DTensor) else w).numel() for w in weights)


@pytest.mark.parametrize(
    "further",
    [
        (),
        ("model.gradient_checkpointing=true", "objective.kl=0.1"),
        (*SCATTERED, "objective.minibatches=2"),  # at a step the processes have different numbers of images
    ],
)
def test_sharded_weights_train_like_whole_ones(further: tuple[str, ...], make_config: MakeConfig, tmp_path: Path):
    """FSDP2 over two processes: each holds a part of the base before and after every pass; the adapter stays whole."""

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
        trainer.check_ratio(rollout)  # a forward pass with gradients but no backward pass
        parts.append(held(trainer))
        done = two_updates(trainer)
        done["held"] = [*parts, held(trainer)]
        torch.save(done, tmp_path / f"{name}-{trainer.processes.index}.pt")

    run("one")
    in_processes(2, lambda: run("two", "model.shard=true"), tmp_path)
    (whole, *_), *held_parts = (torch.load(tmp_path / f"{n}.pt")["held"] for n in ("one-0", "two-0", "two-1"))
    assert all(part < 0.7 * whole for parts in held_parts for part in parts), (whole, held_parts)
    one, first = (torch.load(tmp_path / f"{name}.pt") for name in ("one-0", "two-0"))
    # Gathered weights have another alignment in memory, and matrix products round depending on it.
    assert ((one["gradient"] - first["gradient"]).norm() / one["gradient"].norm()).item() <= 1e-5
    assert (one["adapter"] - first["adapter"]).abs().max().item() <= 1e-6
    assert (one["adapter"] - one["start"]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("groups.prompts=3",), "groups.prompts=3 is not a multiple of 2 processes"),
        (
            ("groups.prompts=2", "evaluation.every=1", "data.held_out_samples=3"),
            "3 cases are not a multiple of 2 processes",
        ),
    ],
)
def test_sharded_weights_need_equal_shares(
    settings: tuple[str, ...], message: str, make_config: MakeConfig, tmp_path: Path
):
    def work() -> None:
        with pytest.raises(ConfigError, match=message):
            assemble(make_config(*settings, "model.shard=true", f"output={tmp_path / 'run'}"))

    in_processes(2, work, tmp_path)


def test_sharding_needs_several_processes(make_config: MakeConfig):
    with pytest.raises(ConfigError, match="there is one; start them with torchrun"):
        assemble(make_config("model.shard=true"))


def figures(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, int | float)}


def test_shares_cover_everything_and_differ_by_at_most_one():
    processes = Processes("cpu")
    for count in range(1, 6):
        for total in range(12):
            parts = []
            for index in range(count):
                processes.index, processes.count = index, count
                parts.append(list(range(total))[processes.share(total)])
            assert [item for part in parts for item in part] == list(range(total))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_parts_of_unequal_length_are_gathered_in_order(tmp_path: Path):
    def work() -> None:
        processes = Processes("cpu")
        for total in (1, 2, 5):
            everything = torch.arange(total * 3.0).reshape(total, 3)
            everything[0, 0] = math.nan
            assert torch.equal(
                processes.gather(everything[processes.share(total)], total).nan_to_num(7), everything.nan_to_num(7)
            )

    in_processes(3, work, tmp_path)


def test_only_the_shown_held_out_pictures_are_sent(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A hundred pictures of a megapixel would take 1.2 GB on every card; all their scores take nearly nothing."""
    settings = (*SMALL, "groups.prompts=2", "data.held_out_samples=5", "evaluation.every=1")
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
        pictures = [torch.frombuffer(bytearray(case.picture.tobytes()), dtype=torch.uint8) for case in shown]
        torch.save(pictures, tmp_path / f"{name}-{trainer.processes.index}.pt")
        assert sum(count > 100 for count in sent) == (grid if trainer.processes.count > 1 else 0)
        assert max(sent, default=0) <= 3 * 32 * 32

    run("one", 5)
    in_processes(2, lambda: run("two", 4), tmp_path)  # the fourth belongs to the second process
    one, *two = (torch.load(tmp_path / f"{name}.pt") for name in ("one-0", "two-0", "two-1"))
    for pictures in two:
        assert len(pictures) == 4
        for expected, picture in zip(one, pictures, strict=False):
            assert (expected.int() - picture.int()).abs().max() <= 1  # a pixel may round differently


def test_gradients_are_summed_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In buckets of at most BUCKET numbers, unless one weight has more; a missing gradient counts as zero."""
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
        addresses = [None if weight.grad is None else weight.grad.data_ptr() for weight in weights]
        processes.sum_gradients(weights)
        for number, (weight, address) in enumerate(zip(weights, addresses, strict=True)):
            assert weight.grad is not None
            assert torch.equal(weight.grad, torch.full_like(weight, 10.0**number * (1 if number in (0, 4) else 3)))
            assert address in (None, weight.grad.data_ptr())
        assert reduced == [6, 12, 6]

    in_processes(2, work, tmp_path)


def test_a_run_of_two_processes_leaves_the_files_of_one(make_config: MakeConfig, tmp_path: Path):
    """Checkpoints, logs and held-out cases, counted once and written once."""
    settings = (*SMALL, "groups.prompts=3", "evaluation.every=1", "data.held_out_samples=3")

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
        for expected, row in zip(one, two, strict=True):
            assert figures(row) == pytest.approx(figures(expected), rel=1e-3, abs=1e-4, nan_ok=True)
            assert row.get("scored") == expected.get("scored")


def test_a_resumed_pair_equals_an_uninterrupted_one(make_config: MakeConfig, tmp_path: Path):
    settings = (*SMALL, "groups.prompts=2", "save_every=1")

    def run(name: str, updates: int, *, resume: bool = False) -> None:
        config = make_config(*settings, f"updates={updates}", f"output={tmp_path / name}")
        assemble(config, resume=resume).train()

    def run_both() -> None:
        run("whole", 2)
        run("halves", 1)

    in_processes(2, run_both, tmp_path)
    in_processes(2, lambda: run("halves", 2, resume=True), tmp_path)
    adapters = [
        (tmp_path / name / "adapter" / "pytorch_lora_weights.safetensors").read_bytes() for name in ("whole", "halves")
    ]
    assert adapters[0] == adapters[1]


def test_no_process_exits_before_the_first_one_has_saved(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """When one process exits, torchrun kills the others, and the first one may still be saving."""

    def work() -> None:
        trainer = assemble(make_config(*SMALL, "groups.prompts=2", "updates=2", f"output={tmp_path / 'run'}"))
        step, checkpoint = trainer.step, trainer.directory.checkpoint

        def stopped() -> dict[str, Any]:
            if trainer.processes.index == 1:
                signal.raise_signal(signal.SIGTERM)
            return step()

        def slow(*arguments: Any) -> None:
            time.sleep(0.5 if trainer.processes.main else 0)
            checkpoint(*arguments)

        monkeypatch.setattr(trainer, "step", stopped)
        monkeypatch.setattr(trainer.directory, "checkpoint", slow)
        with pytest.raises(SystemExit):
            trainer.train()
        assert (tmp_path / "run" / "checkpoints" / "step-00001").is_dir()

    in_processes(2, work, tmp_path)


def test_processes_with_different_folders_do_not_train_together(make_config: MakeConfig, tmp_path: Path):
    """Two nodes without a common file system: only the first has the checkpoint."""
    settings = (*SMALL, "groups.prompts=2", "updates=2", "save_every=1")
    assemble(make_config(*settings, "updates=1", f"output={tmp_path / 'node-0'}")).train()

    def work() -> None:
        trainer = assemble(make_config(*settings, f"output={tmp_path / 'node-'}{os.environ['RANK']}"), resume=True)
        with pytest.raises(DistributedError, match=r"need the same run folder") as refused:
            trainer.train()
        first, other = "update 1 (optimiser step 1)", "update 0 (optimiser step 0)"
        assert str(refused.value).startswith(f"process 0 resumes from {first}, process 1 from {other}: ")

    in_processes(2, work, tmp_path)


def test_processes_with_other_data_do_not_train_together(make_config: MakeConfig, tmp_path: Path):
    def work() -> None:
        with pytest.raises(DistributedError, match="process 1 has read other data than process 0"):
            assemble(make_config(f"seed={Processes('cpu').index}", "groups.prompts=2", f"output={tmp_path / 'run'}"))

    in_processes(2, work, tmp_path)


def test_every_process_needs_a_group(make_config: MakeConfig, tmp_path: Path):
    def work() -> None:
        with pytest.raises(ConfigError, match=r"groups\.prompts=1 leaves some of the 2 processes without a group"):
            assemble(make_config("groups.prompts=1", f"output={tmp_path / 'run'}"))

    in_processes(2, work, tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "blames_another"),
    [
        (RuntimeError("gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:62623"), True),
        (RuntimeError("gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation"), True),
        (dist.DistBackendError("NCCL error: remote process exited or there was a network error"), True),
        (dist.DistBackendError("NCCL error: Cuda failure 'out of memory'"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), False),
        (RuntimeError("gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 8 vs 4"), False),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
    ],
)
def test_only_a_lost_connection_is_blamed_on_another_process(error: RuntimeError, blames_another: bool):
    expected = DistributedError if blames_another else type(error)
    with pytest.raises(expected) as raised, _collective():
        raise error
    assert (raised.value is error) == (not blames_another)


def test_memory_that_runs_out_in_a_collective_is_one_line_about_memory(capsys: pytest.CaptureFixture[str]):
    """The command's own handler; a real allocation that no machine has."""

    @guarded()
    def command() -> None:
        with _collective():
            torch.empty(10**15)

    with pytest.raises(MemoryExhaustedError, match=r"out of memory \(.*can't allocate memory.*make pictures smaller"):
        command()
    assert not capsys.readouterr().err


def test_when_a_process_dies_the_others_end_with_one_line(tmp_path: Path):
    def work() -> None:
        processes = Processes("cpu")
        if processes.index == 1:
            os._exit(0)
        with pytest.raises(DistributedError, match=r"another process of the run has died.*--resume"):
            processes.sum(torch.ones(1000))

    in_processes(2, work, tmp_path)
