"""Names of metrics and formats of numbers, as the page shows them."""

from __future__ import annotations

import math

from customized_grpo.compare.comparison import OVER_TRAINING
from customized_grpo.config import JOINT_CALIBRATED, OF_AVERAGE

LABELS = {
    "identity_reward": "identity reward",
    "prompt_reward": "prompt reward",
    "oracle_identity": "identity right",
    "oracle_prompt": "prompt right",
    "joint_calibrated": "joint quality, calibrated",
    "copy_paste": "copy-paste index",
    "dino": "DINO identity",
    "clip_t": "CLIP prompt",
}
SHORT = {
    **dict.fromkeys(("identity_reward", "dino", "oracle_identity"), "identity"),
    **dict.fromkeys(("prompt_reward", "clip_t", "oracle_prompt"), "prompt"),
    "copy_paste": "copying",
}
RIGHT, WRONG = "✓", "✗"
YES_OR_NO = ("oracle_identity", "oracle_prompt", "joint_success")
MEANINGS = {
    "oracle_identity": "share of pictures with the right subject, judged by an exact oracle that reads the pixels",
    "oracle_prompt": "share of pictures that follow the prompt, judged by an exact oracle that reads the pixels",
    "joint_success": "share of pictures that get both subject and prompt right, judged by an exact oracle",
    "joint_calibrated": "identity times prompt, each 0 for what bad and 1 for what good pictures get: for identity at "
    "most 1, for the prompt without a bound",
    "copy_paste": "1 for a copy of the reference, −1 for another view of the subject: lower means less copying",
}


def is_trained(metric: str) -> bool:
    """Whether a held-out figure of a run is a reward that it was trained on, or is made of them."""
    name = metric.removesuffix(OF_AVERAGE)
    return name.endswith("_reward") or name == JOINT_CALIBRATED


def label(metric: str) -> str:
    """A metric's name in words, with its settings if it has any ("dino against=other_view")."""
    name, _, settings = metric.removesuffix(OVER_TRAINING).partition(" ")
    words = LABELS.get(name, name.replace("_", " "))
    words += f" ({settings.replace('_', ' ')})" if settings else ""
    return f"{words}, mean over training" if metric.endswith(OVER_TRAINING) else words


def short(metric: str) -> str:
    """A short name, for the small space under a picture."""
    name, space, settings = metric.partition(" ")
    return f"{SHORT.get(name, label(name))}{space}{settings.replace('_', ' ')}"


def number(value: float | None, sign: str = "", digits: int = 3) -> str:
    """With a real minus sign; a dash if there is no number."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:{sign}z.{digits}f}".replace("-", "−")


def score(metric: str, value: float | None) -> str:
    """One picture's score; a tick or a cross for the oracle's."""
    if metric in YES_OR_NO and value in (0, 1):
        return RIGHT if value else WRONG
    return number(value, digits=2)


def p_value(value: float | None) -> str:
    return "–" if value is None else "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0")
