"""The settings of benchmarks/flux_scale.py: what each of its rows trains, and the memory that it needs by `plan`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import PUBLISHED
from release_loop import release_update
from true_size import write_slice

from customized_grpo.config import RunConfig, load_config
from customized_grpo.cost.estimate import Estimate
from customized_grpo.policies import planned_family
from customized_grpo.policies.diffusers_policy import DiffusersPolicy
from customized_grpo.training.trainer import Trainer

RECIPES = {"kontext": "kontext", "klein": "klein", "uno": "uno-paper", "qwen-edit": "qwen-edit"}
BATCH = {"qwen-edit": 2}  # images per pass as in the recipes; the others take 4
PAPER = ("adapter.rank=512", "adapter.alpha=512", "adapter.targets=attention_and_output", "adapter.share_qkv=true")
COMMON = (
    *("updates=1000", "evaluation.every=0", "evaluation.metrics=[]", "keep_best=null", "data.source=list.json"),
    *("evaluation.height=null", "evaluation.width=null", "groups.prompts=1", "adapter.ema.decay=null"),
    *("model.dtype=bfloat16", "model.quantise=null", "model.condition_cache=null", "model.base_adapter=null"),
    *("model.offload_text_encoders=true", "sampling.shift=3", "window.first=0", "window.last=null"),
    *("rewards.identity.model=critters", "rewards.identity.against=reference", "rewards.identity.region=frame"),
    *("rewards.prompt.name=clip_t", "rewards.prompt.model=critters"),
    *("shaping.rule=sars", "shaping.normalise=group", "weighting.kind=constant"),
)
WINDOWED = (  # the sampling of the recipe kontext
    *("noise.dynamics=flow", "noise.level=0.9", "noise.steps=trained", "window.strategy=fixed"),
    *("objective.step_scale=equal",),
)
ROWS = ("a", "b", "c", "d")
FREE = 0.07  # of the memory, as `plan` leaves it for CUDA and for gaps between tensors


@dataclass(frozen=True)
class Scale:
    """What decides the work, apart from family, rank, steps and row.

    blocks  of each kind; None: all
    """

    device: str
    blocks: int | None
    size: int
    group: int
    batch: int | None
    model: str | None
    text: int | None
    levers: Sequence[str]


@dataclass(frozen=True)
class Setting:
    """One row of the tables."""

    family: str
    rank: str
    steps: int
    row: str
    config: RunConfig

    @property
    def update(self) -> Callable[[Trainer], Mapping[str, Any]]:
        return release_update if self.row == "a" else Trainer.step

    @property
    def label(self) -> str:
        return f"{self.family}, rank {self.rank}, T {self.steps}, row {self.row}"


def adapter(rank: str) -> Sequence[str]:
    """The adapter of the paper, or of the recipes with this rank."""
    return PAPER if rank == "paper" else (f"adapter.rank={rank}", f"adapter.alpha={2 * int(rank)}")


def row_settings(row: str, steps: int, group: int, batch: int) -> Iterator[str]:
    """What distinguishes the rows.

    The window stands in the middle of its possible places, all in the first four tenths of the steps, where an update
    takes as many passes as it does on average.
    """
    images = 1 if row == "a" else batch
    yield from (f"groups.rollout_batch={images}", f"groups.update_batch={images}", f"sampling.num_steps={steps}")
    if row in "ab":
        scattered = max(round(14 / 24 * (steps - 1)), 1)
        yield from (*PUBLISHED, f"window.size={scattered}", f"objective.minibatches={min(3, group)}")
        return
    last = max(4 * steps // 10, 1) if steps > 2 else 0
    size = min(3, max(last - 1, 1))
    yield from (*WINDOWED, f"window.size={size}", f"window.start={(last - size + 1) // 2}")
    yield f"objective.minibatches={min(2, group)}"
    if row == "d":
        yield f"sampling.finish_steps={6 if steps > 16 else 4}"


def setting(family: str, rank: str, steps: int, row: str, scale: Scale, path: str | None) -> Setting:
    """path  of the model; None: the recipe's"""
    own = [] if path is None else [f"model.path={path}"]
    if family != "kontext":  # references in the size of the picture; Kontext's are always
        own.append(f"model.reference_size={scale.size}")
    if scale.text is not None:
        own.append(f"model.max_sequence_length={scale.text}")
    config = load_config(
        RECIPES[family],
        [
            *COMMON,
            *own,
            *adapter(rank),
            *(f"device={scale.device}", f"groups.size={scale.group}"),
            *(f"model.height={scale.size}", f"model.width={scale.size}"),
            *row_settings(row, steps, scale.group, min(scale.batch or BATCH.get(family, 4), scale.group)),
            *(scale.levers if row == "d" else ()),
        ],
    )
    return Setting(family, rank, steps, row, config)


def model_path(family: str, scale: Scale, folder: Path) -> str | None:
    """A slice in the folder, or else what was asked for."""
    if scale.blocks is None:
        return scale.model
    model = load_config(RECIPES[family], [f"model.path={scale.model}"] if scale.model else []).model
    model = model.model_copy(update={"base_adapter": None})
    policy = planned_family(model)
    assert policy is not None
    assert issubclass(policy, DiffusersPolicy)
    return str(write_slice(model.path, policy, scale.blocks, folder / family))


def needed(plan: Estimate) -> int:
    """Bytes at the peak by `plan`, without what is not there: text encoders, and the encoded samples of a long run."""
    phases = [plan.phases[phase] for phase in ("rollout", "update")]
    peaks = [sum(size for part, size in parts.items() if part != "encoded samples") for parts in phases]
    return sum(plan.resident.values()) + max(peaks)


def refusal(needs: Mapping[str, int], free: float) -> str | None:
    """Why a device with so many free bytes cannot run all of these; None if it can.

    needs  bytes by label
    """
    label = max(needs, key=lambda name: needs[name])
    if needs[label] <= (1 - FREE) * free:
        return None
    return (
        f"{label} needs {needs[label] / 1e9:.1f} GB and {FREE:.0%} to spare, and {free / 1e9:.1f} GB are free; choose "
        "another --family, --rank or --row, or a smaller --batch or --size"
    )
