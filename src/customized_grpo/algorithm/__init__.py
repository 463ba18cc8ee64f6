"""Customized-GRPO (arXiv 2510.18263) as pure functions on tensors. Imports torch and nothing else of this package.

Conventions, everywhere in the package:
    sigma      1 is noise, 0 is the image; x_sigma = (1 - sigma) x_0 + sigma eps; grids fall from 1 to 0
    velocity   v = eps - x_0, so x0^ = x - sigma v, x1^ = x + (1 - sigma) v, and dt = sigma' - sigma < 0
    step       the true index t of a denoising step, 0 at pure noise; never a position in a loop or tensor
    log_prob   the full Gaussian log-density, mean (not sum) over all non-batch dimensions
    advantage  relative to the group: the images made for one prompt from the same initial noise
    NaN        the image could not be scored: it is left out of its group's statistics and of the loss

Choices where the paper is silent or its release differs: weights belong to the true step, for any number of
steps; an image that one reward could not score is masked for all; groups without spread give zeros; every rule works.
"""

from .balance import Balance, dual_level, proportional_shift, shifted
from .calibration import Calibration
from .groups import group_advantages, group_spread, mask_unscored, weighted_sum
from .objectives import (
    NEED_OLD_MEAN,
    TRUST_REGIONS,
    TrustRegion,
    clipped_objective,
    divergence_objective,
    guarded_objective,
    kl_to_base,
    nft_objective,
    nft_pull,
    nft_scales,
)
from .rules import SHAPING_RULES, Rule, ScoredGroups
from .rules.sars import synergy_bonus
from .running import RunningFigures
from .schedule import (
    ProgressReading,
    WindowStrategy,
    progress,
    progress_from_sigma,
    scattered_steps,
    sigma_schedule,
    step_progress,
    stochastic_steps,
)
from .sde import Dynamics, StepScaleMode, log_prob, step_distribution, step_gradient_factor, step_scales
from .shaping import (
    OWN,
    combine_advantages,
    conflict_diagnostics,
    own_quantity,
    reward_advantages,
    role_advantages,
    step_advantages,
)
from .solver import coarse_steps, multistep
from .weighting import WEIGHTINGS, ConstantWeights, TimeAwareWeights

__all__ = [
    "NEED_OLD_MEAN",
    "OWN",
    "SHAPING_RULES",
    "TRUST_REGIONS",
    "WEIGHTINGS",
    "Balance",
    "Calibration",
    "ConstantWeights",
    "Dynamics",
    "ProgressReading",
    "Rule",
    "RunningFigures",
    "ScoredGroups",
    "StepScaleMode",
    "TimeAwareWeights",
    "TrustRegion",
    "WindowStrategy",
    "clipped_objective",
    "coarse_steps",
    "combine_advantages",
    "conflict_diagnostics",
    "divergence_objective",
    "dual_level",
    "group_advantages",
    "group_spread",
    "guarded_objective",
    "kl_to_base",
    "log_prob",
    "mask_unscored",
    "multistep",
    "nft_objective",
    "nft_pull",
    "nft_scales",
    "own_quantity",
    "progress",
    "progress_from_sigma",
    "proportional_shift",
    "reward_advantages",
    "role_advantages",
    "scattered_steps",
    "shifted",
    "sigma_schedule",
    "step_advantages",
    "step_distribution",
    "step_gradient_factor",
    "step_progress",
    "step_scales",
    "stochastic_steps",
    "synergy_bonus",
    "weighted_sum",
]
