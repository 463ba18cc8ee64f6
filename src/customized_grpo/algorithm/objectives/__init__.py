"""What is minimised: one file per trust region, the KL divergence, and DiffusionNFT, which needs neither.

A trust region keeps the policy near the one that sampled the images. With one optimiser step per rollout the two are
the same, and all of them have the same gradient up to a factor per step.
"""

from typing import Literal, get_args

from .clip import clipped_objective
from .dppo import divergence_objective
from .guard import guarded_objective
from .kl import kl_to_base
from .nft import nft_objective, nft_pull, nft_scales

TrustRegion = Literal["clip", "dppo", "guard"]
TRUST_REGIONS: tuple[TrustRegion, ...] = get_args(TrustRegion)
NEED_OLD_MEAN: frozenset[TrustRegion] = frozenset({"dppo", "guard"})  # measure how far the mean has moved

__all__ = [
    "NEED_OLD_MEAN",
    "TRUST_REGIONS",
    "TrustRegion",
    "clipped_objective",
    "divergence_objective",
    "guarded_objective",
    "kl_to_base",
    "nft_objective",
    "nft_pull",
    "nft_scales",
]
