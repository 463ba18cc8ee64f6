"""joint_calibrated: how good pictures are at identity and prompt together, on the scales of a calibration."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from customized_grpo.algorithm import Calibration, own_quantity


def joint_quality(
    scores: Mapping[str, Tensor], roles: Mapping[str, str], calibrations: Mapping[str, Calibration]
) -> Tensor:
    """q_prompt q_identity of N pictures [N], what the rule `joint` shapes; NaN if a reward could not score one.

    scores, calibrations  of each identity and prompt reward by key; scores [N]
    roles                 "identity" or "prompt" of each

    0 is a picture that is bad at one of them, 1 one that is good at both. Identity counts as good at most; the prompt,
    whose rewards have no upper bound, may lift the product above 1.
    """
    groups = {key: scores[key].double()[None] for key in calibrations}
    quality = own_quantity("joint", groups, torch.full((1,), 0.5), roles=roles, calibrations=calibrations)
    assert quality is not None
    return quality[0]
