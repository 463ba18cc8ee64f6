"""Weights that follow what happens in training, so that no weight has to be known beforehand.

Both forms compare identity and prompt in units of each reward's own spread inside groups. A role with several rewards
counts as their mean. P and I are the roles prompt and identity; m, b and S are `RunningFigures`' mean, best mean and
spread of a reward, bad is its `Calibration`'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from .calibration import Calibration
from .running import RunningFigures

Balance = Literal["off", "dual", "proportional"]

KEPT, STEP, LARGEST = 0.98, 0.02, 0.25  # dual ascent: decay of the level, step size, bound
LOWEST, HIGHEST = 0.2, 0.8  # range of a weight that is balanced proportionally
SMALLEST_GAIN = 1e-3  # in spreads: a reward at its worst or below; any smaller number gives the same bounded weights


def dual_level(running: RunningFigures, roles: Mapping[str, str]) -> float:
    """lambda <- clip(.98 lambda + .02 [loss_P - loss_I], +-.25), loss = (b - m) / S: how far a role has fallen.

    Dual ascent on the constraint that no role falls below its best. running.level is the lambda before.
    """
    losses = {name: running.best[name] - mean for name, mean in running.means.items()}
    difference = _by_role(losses, running, roles, "prompt") - _by_role(losses, running, roles, "identity")
    return min(max(KEPT * running.level + STEP * difference, -LARGEST), LARGEST)


def proportional_shift(
    running: RunningFigures, roles: Mapping[str, str], calibrations: Mapping[str, Calibration]
) -> float:
    """log(g_I / g_P), g = (m - bad) / S, added to log-odds so that w_P : w_I = w_0 / g_P : (1 - w_0) / g_I.

    The gradient of the Nash product (m_P - bad_P) (m_I - bad_I): the role that has gained less so far weighs more.
    """
    gains = {name: mean - calibrations[name].bad for name, mean in running.means.items() if name in calibrations}
    prompt, identity = (_by_role(gains, running, roles, role) for role in ("prompt", "identity"))
    return math.log(max(identity, SMALLEST_GAIN) / max(prompt, SMALLEST_GAIN))


def shifted(weight: Tensor, shift: float) -> Tensor:
    """Prompt weights of any shape, with `shift` added to their log-odds, within [.2, .8]."""
    return torch.sigmoid(torch.logit(weight) + shift).clamp(LOWEST, HIGHEST)


def _by_role(figures: Mapping[str, float], running: RunningFigures, roles: Mapping[str, str], role: str) -> float:
    """Mean of the figures of a role's rewards, each in its own spreads; 0 if none has been scored with a spread."""
    members = [name for name in figures if roles[name] == role and running.spreads.get(name, 0) > 0]
    return sum(figures[name] / running.spreads[name] for name in members) / max(len(members), 1)
