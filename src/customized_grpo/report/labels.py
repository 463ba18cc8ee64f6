"""Names and numbers for people."""

from __future__ import annotations

import math

LABELS = {
    "identity_reward": "identity reward",
    "prompt_reward": "prompt reward",
    "oracle_identity": "identity right",
    "oracle_prompt": "prompt right",
    "copy_paste": "copy-paste index",
    "dino": "DINO identity",
    "clip_t": "CLIP prompt",
}
SHORT = {
    **dict.fromkeys(("identity_reward", "dino", "oracle_identity"), "identity"),
    **dict.fromkeys(("prompt_reward", "clip_t", "oracle_prompt"), "prompt"),
    "copy_paste": "copying",
}
OVER_TRAINING = "_over_training"  # what a comparison adds to held-out figures, averaged over a run
RIGHT, WRONG = "✓", "✗"
YES_OR_NO = ("oracle_identity", "oracle_prompt", "joint_success")
MEANINGS = {
    "oracle_identity": "share of pictures in which an exact oracle, reading pixels, finds the subject right",
    "oracle_prompt": "share of pictures in which an exact oracle, reading pixels, finds the prompt right",
    "joint_success": "share of pictures with subject and prompt right at once, by an exact oracle",
    "copy_paste": "1 for the reference itself, -1 for another view of the subject: lower means less copying",
}


def label(metric: str) -> str:
    """A metric's name in words; names with settings ("dino against=other_view") keep them."""
    name, _, settings = metric.removesuffix(OVER_TRAINING).partition(" ")
    words = LABELS.get(name, name.replace("_", " "))
    words += f" ({settings.replace('_', ' ')})" if settings else ""
    return f"{words}, mean over training" if metric.endswith(OVER_TRAINING) else words


def short(metric: str) -> str:
    """For the little room under a picture."""
    name, space, settings = metric.partition(" ")
    return f"{SHORT.get(name, label(name))}{space}{settings.replace('_', ' ')}"


def number(value: float | None, sign: str = "", digits: int = 3) -> str:
    """With a real minus; a dash for what does not exist."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:{sign}z.{digits}f}".replace("-", "−")


def score(metric: str, value: float | None) -> str:
    """One picture's score; the oracle's is a verdict."""
    if metric in YES_OR_NO and value in (0, 1):
        return RIGHT if value else WRONG
    return number(value, digits=2)


def p_value(value: float | None) -> str:
    return "–" if value is None else "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0")
