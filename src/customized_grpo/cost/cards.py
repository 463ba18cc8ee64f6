"""Which cards a run fits, how long an update takes on them, and what makes a run smaller."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from customized_grpo.config import RunConfig
from customized_grpo.cost.estimate import Estimate

LARGE_REWARD = 2e9  # bytes of a reward's model that is worth a card of its own
SMALL_RANK = 16
SMALL_SIDE = 256  # pixels


@dataclass(frozen=True)
class Card:
    """A graphics card.

    memory  in GB, as its name says
    rate    of dense bfloat16 matrix products in FLOP/s, by NVIDIA's data sheets
    """

    name: str
    memory: int
    rate: float


CARDS = (
    Card("RTX 4080", 16, 97.5e12),
    Card("RTX 4090", 24, 165.2e12),
    Card("RTX A6000", 48, 154.8e12),
    Card("A100", 80, 312e12),
    Card("H100", 80, 989e12),
    Card("H200", 141, 989e12),
)
MEMORIES = sorted({card.memory for card in CARDS})


def fits(estimate: Estimate, memory: int) -> bool:
    """Whether the peak is below the memory of a card in 10^9 bytes.

    Cards are named after 2^30 bytes: the difference, 7 %, is left for CUDA itself and for gaps between tensors.
    """
    return estimate.peak <= memory * 10**9


def remedies(config: RunConfig, estimate: Estimate) -> Iterator[list[tuple[str, object]]]:
    """Settings that make a run smaller, those first that change its result least."""
    model, groups, adapter = config.model, config.groups, config.adapter
    if not model.gradient_checkpointing:
        yield [("model.gradient_checkpointing", True)]
    if "text encoders" in estimate.resident:
        yield [("model.offload_text_encoders", True)]
    if max(groups.rollout_batch, groups.update_batch) > 1:
        yield [("groups.rollout_batch", 1), ("groups.update_batch", 1)]
    if model.quantise is None and model.dtype == "bfloat16" and not model.shard:
        yield [("model.quantise", "int8")]
    if large := [key for key, reward in config.trained().items() if _size(reward.name, estimate) >= LARGE_REWARD]:
        yield [(f"rewards.{key}.device", "cuda:1") for key in large]
    if adapter.rank > SMALL_RANK:
        yield [("adapter.rank", SMALL_RANK), ("adapter.alpha", adapter.alpha * SMALL_RANK / adapter.rank)]
    if min(config.evaluation_size) > SMALL_SIDE:
        sides = [f"{section}.{side}" for section in ("model", "evaluation") for side in ("height", "width")]
        yield [(side, SMALL_SIDE) for side in sides]


def _size(reward: str, estimate: Estimate) -> int:
    return sum(size for name, size in estimate.resident.items() if name.startswith(f"reward {reward} "))
