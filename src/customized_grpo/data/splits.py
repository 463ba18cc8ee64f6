"""Training and held-out samples, divided by subject."""

import hashlib
import math
import warnings
from collections.abc import Iterable

from customized_grpo.data.sample import Sample
from customized_grpo.errors import UsageError


def split_by_subject(samples: Iterable[Sample], held_out_share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """(train, held_out): no subject is in both, and each part keeps the order of the list.

    Subjects are ranked by a hash of subject and seed; the first round(share * subjects) of them, at least one
    and never all, are held out. So the split depends on the set of subjects alone, not on the order of the
    list or on how many prompts each has, and a larger share holds out a superset.

    If all samples are of one subject, its prompts are divided in the same way, and if they share the prompt
    too, the samples; a warning says so. One sample alone stays in training; a share of 0 holds out nothing.

    Raises:
        ValueError: a share outside [0, 1), or ids that repeat.
    """
    samples = list(samples)
    if not 0 <= held_out_share < 1:
        raise UsageError(f"held_out_share = {held_out_share} must be in [0, 1); .1 holds out a tenth")
    if len({sample.id for sample in samples}) < len(samples):
        raise UsageError("samples to split share an id; give each its own")
    if held_out_share == 0 or len(samples) < 2:
        return samples, []
    levels = ("subject", "prompt", "id")
    level = next(level for level in levels if len({getattr(sample, level) for sample in samples}) > 1)
    if level != "subject":
        warnings.warn(
            f"all {len(samples)} samples are of one subject ({samples[0].subject}): held out by {level} "
            "instead, which says nothing about new subjects; if there are several, name them in the list",
            stacklevel=2,
        )
    names = {getattr(sample, level) for sample in samples}
    ranked = sorted(names, key=lambda name: _hash(f"{seed}:{name}"))
    count = min(max(1, math.floor(held_out_share * len(names) + 0.5)), len(names) - 1)
    chosen = set(ranked[:count])
    train = [sample for sample in samples if getattr(sample, level) not in chosen]
    return train, [sample for sample in samples if getattr(sample, level) in chosen]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
