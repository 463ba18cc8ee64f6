"""Training and held-out samples, divided by subject."""

import hashlib
import math
import warnings
from collections.abc import Iterable

from customized_grpo.data.sample import Sample
from customized_grpo.errors import UsageError


def split_by_subject(samples: Iterable[Sample], held_out_share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """(train, held_out): no subject is in both, and each part keeps the order of the list.

    Subjects are ranked by a hash of seed and subject; the first round(share * subjects), at least one and never
    all, are held out. So the split depends only on the seed and the set of subjects, not on the order of the list or
    on the number of prompts per subject, and a larger share holds out a superset.

    If all samples are of one subject, its prompts are split in the same way; if they also share the prompt, the
    samples are. A warning reports this. A single sample stays in training; a share of 0 holds out nothing.

    Raises:
        UsageError: the share is outside [0, 1), or ids repeat.
    """
    samples = list(samples)
    if not 0 <= held_out_share < 1:
        raise UsageError(f"held_out_share = {held_out_share} must be in [0, 1); 0.1 holds out a tenth")
    if len({sample.id for sample in samples}) < len(samples):
        raise UsageError("samples to split share an id; give each its own")
    if held_out_share == 0 or len(samples) < 2:
        return samples, []
    levels = ("subject", "prompt", "id")
    level = next(level for level in levels if len({getattr(sample, level) for sample in samples}) > 1)
    if level != "subject":
        warnings.warn(
            f"all {len(samples)} samples are of one subject ({samples[0].subject}), so they are held out by {level}, "
            "which tells nothing about new subjects; if there are several subjects, name them in the list",
            stacklevel=2,
        )
    names = {getattr(sample, level) for sample in samples}
    ranked = sorted(names, key=lambda name: _hash(f"{seed}:{name}"))
    count = min(max(1, math.floor(held_out_share * len(names) + 0.5)), len(names) - 1)
    held_out = set(ranked[:count])
    train = [sample for sample in samples if getattr(sample, level) not in held_out]
    return train, [sample for sample in samples if getattr(sample, level) in held_out]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
