"""Why training cannot go on: one sentence each, with the way out."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which update and sample, and what to do."""


def not_finite(what: str, update: int, where: str = "") -> TrainingError:
    return TrainingError(
        f"the {what} is not finite at update {update}{where}; lower optimizer.lr or use model.dtype=float32. What was "
        "saved before is whole."
    )


def ratio_is_off(worst: float, tolerance: float) -> TrainingError:
    return TrainingError(
        f"before the first update, replaying the rollout changes log-probabilities by {worst:.2e} (at most "
        f"{tolerance:.0e} is rounding), so the ratio of new to old policy would not be 1. Usual causes: "
        "dropout that is active in the update (call .eval()), weights changed between rollout and update, "
        "or another precision in one of the two."
    )
