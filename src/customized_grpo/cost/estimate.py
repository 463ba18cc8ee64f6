"""What an update of a recipe costs: images, passes, FLOPs, and the memory of one process by part and by phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from customized_grpo.config import RunConfig
from customized_grpo.cost.measured import Measured, Settings, measured
from customized_grpo.cost.passes import Passes, passes
from customized_grpo.cost.rewards import reward_memory
from customized_grpo.cost.simulated import Pass
from customized_grpo.policies.encoder import REMEMBERED

FLOAT32 = 4  # bytes
GATHERED = 2  # sharded blocks that a pass has in memory as a whole: one at work, the next on its way


@dataclass(frozen=True)
class Work:
    """Images or images times steps, and their floating-point operations, in one update of one process.

    phase  "rollout", "update" or "evaluation"
    """

    phase: str
    what: str
    count: float
    flops: float


@dataclass(frozen=True)
class Estimate:
    """An update of one process.

    work      by phase
    resident  bytes that are in memory all the time, by part
    phases    bytes that come on top in each phase, by part
    unknown   rewards whose size is not known
    """

    config: RunConfig
    measured: Measured
    passes: Passes
    processes: int
    work: Sequence[Work]
    resident: Mapping[str, int]
    phases: Mapping[str, Mapping[str, int]]
    unknown: Sequence[str]

    @property
    def flops(self) -> float:
        return sum(part.flops for part in self.work)

    def flops_of(self, phase: str) -> float:
        return sum(part.flops for part in self.work if part.phase == phase)

    @property
    def peak(self) -> int:
        """The memory of the largest phase, in bytes."""
        return sum(self.resident.values()) + max(sum(parts.values()) for parts in self.phases.values())


def estimate(config: RunConfig, *, references: int = 1, processes: int = 1, costs: Measured | None = None) -> Estimate:
    """The costs of a recipe in each of so many processes; loads no weights.

    costs  of its passes; None: they are measured

    Raises ModelError like `measured`.
    """
    costs = measured(Settings.of(config, references)) if costs is None else costs
    images = passes(config) / processes
    rewards, unknown = reward_memory(config)
    return Estimate(
        config=config,
        measured=costs,
        passes=images,
        processes=processes,
        work=_work(config, costs, images),
        resident=_resident(config, costs, rewards, processes),
        phases=_phases(config, costs, images),
        unknown=unknown,
    )


def _work(config: RunConfig, costs: Measured, images: Passes) -> list[Work]:
    rollout, update = config.groups.rollout_batch, config.groups.update_batch

    def work(phase: str, what: str, count: float, cost: Pass, batch: int) -> Work:
        return Work(phase, what, count, count * cost.flops / batch)

    parts = [
        work("rollout", "denoising steps, rollout", images.sampled, costs.sampling, rollout),
        work("rollout", "pictures decoded", images.images, costs.decoding, rollout),
        work("update", "trained steps, forward and backward", images.trained, costs.training, update),
        work("update", "steps of the old or base policy", images.extra, costs.sampling, rollout),
        work("evaluation", "denoising steps, evaluations", images.evaluation, costs.evaluation, rollout),
        work("evaluation", "pictures decoded, evaluations", images.evaluated, costs.showing, rollout),
    ]
    return [part for part in parts if part.count]


def _resident(config: RunConfig, costs: Measured, rewards: Mapping[str, int], processes: int) -> dict[str, int]:
    names = dict(costs.weights)
    if config.model.shard:
        names["transformer"] += costs.blocks // processes - costs.blocks
    readers = {name: names.pop(name) for name in costs.text_encoders}
    adapter = costs.adapter * FLOAT32
    copies = [config.adapter.ema.decay is not None, config.objective.kind == "nft"]
    parts = {
        "transformer": names.pop("transformer"),
        "VAE": names.pop("vae"),
        **names,
        "text encoders": 0 if config.model.offload_text_encoders else sum(readers.values()),
        "adapter": adapter,
        "AdamW": 2 * adapter,
        "copies of the adapter (ema, nft)": sum(copies) * adapter,
        **{f"reward {name}": size for name, size in rewards.items()},
    }
    return {name: size for name, size in parts.items() if size}


def _phases(config: RunConfig, costs: Measured, images: Passes) -> dict[str, dict[str, int]]:
    """What comes on top of the resident parts. Activations are those of one batch."""
    trained = config.window.size or config.sampling.num_steps - 1
    kept = 3 if config.objective.kind == "nft" or config.objective.trust != "clip" else 2  # tensors of a transition
    remembered = {"encoded samples": REMEMBERED * costs.condition}
    rollout = {"latents of the rollout": round(images.images * trained * kept) * costs.latents, **remembered}
    gathered = {}
    if config.model.shard:
        gathered = {"gathered blocks": GATHERED * costs.largest_block}
    readers = sum(costs.weights[name] for name in costs.text_encoders)
    phases = {
        "rollout": {**rollout, **gathered, "activations": _peak(costs.sampling, costs.decoding)},
        "update": {
            **rollout,
            **gathered,
            "gradients": costs.adapter * FLOAT32,
            "activations": round(costs.training.memory),
        },
    }
    if config.evaluation.every:
        phases["evaluation"] = {**remembered, **gathered, "activations": _peak(costs.evaluation, costs.showing)}
    if config.model.offload_text_encoders:
        phases["encoding of prompts"] = {**remembered, "text encoders": readers}
    return phases


def _peak(*passes: Pass) -> int:
    return round(max(cost.memory for cost in passes))
