"""`plan`: what an update costs and which cards it fits, and what to change where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from customized_grpo.config import load_config
from customized_grpo.cost.cards import MEMORIES, fits, remedies
from customized_grpo.cost.estimate import Estimate, estimate
from customized_grpo.cost.text import described, gigabytes


def plan(
    recipe: str, overrides: Sequence[str], *, references: int, processes: int, utilisation: float
) -> Iterator[str]:
    """The lines of the plan, each as soon as it is known.

    Raises ConfigError, UsageError and ModelError like `train --dry-run`.
    """
    costs = partial(estimate, references=references, processes=processes)
    config = load_config(recipe, overrides)
    first = costs(config)
    yield from described(first, utilisation)
    yield from _smaller(recipe, overrides, first, costs)


def _smaller(recipe: str, overrides: Sequence[str], first: Estimate, costs: Callable[..., Estimate]) -> Iterator[str]:
    """For each card that the run does not fit, the changes with which it would: one more at a time."""
    missing = [memory for memory in reversed(MEMORIES) if not fits(first, memory)]
    changes: list[str] = []
    smaller = first
    for settings in remedies(first.config, first):
        if not missing:
            return
        changes += [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in settings]
        smaller = costs(load_config(recipe, [*overrides, *changes]))
        while missing and fits(smaller, missing[0]):
            yield f"To fit {missing.pop(0)} GB ({gigabytes(smaller.peak)}): {' '.join(changes)}"
    if missing:
        with_all = f" with {' '.join(changes)}" if changes else ""
        cards = " and ".join(f"{memory} GB" for memory in missing)
        yield f"No change that is tried here fits {cards}: {gigabytes(smaller.peak)}{with_all}"
