"""How tables write figures and p-values."""

from __future__ import annotations

import math

from customized_grpo.calibration.intervals import Estimate


def cell(figure: Estimate, sign: str = "") -> str:
    """A figure with its interval, if it has one; sign "+" for differences."""
    if math.isnan(figure.low):
        return f"{figure.mean:{sign}.3f}"
    return f"{figure.mean:{sign}.3f} [{figure.low:{sign}.3f}, {figure.high:{sign}.3f}]"


def p_cell(value: float) -> str:
    return "-" if math.isnan(value) else "<.001" if value < 0.001 else f"{value:.3f}"
