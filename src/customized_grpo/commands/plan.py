"""`plan`: what an update costs and which cards it fits, and what to change where it does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from customized_grpo.config import RunConfig, load_config
from customized_grpo.cost.batches import Choice, choose, planned, with_batch
from customized_grpo.cost.cards import MEMORIES, fits, remedies
from customized_grpo.cost.estimate import Estimate, estimate
from customized_grpo.cost.measured import Settings
from customized_grpo.cost.text import described, gigabytes


def plan(
    recipe: str, overrides: Sequence[str], *, references: int, processes: int, utilisation: float
) -> Iterator[str]:
    """The lines of the plan, each as soon as it is known.

    Raises ConfigError, UsageError and ModelError like `train --dry-run`.
    """
    config = load_config(recipe, overrides)
    auto = config.groups.batch is not None
    choice = planned(config, references=references, processes=processes) if auto else None

    def costs(config: RunConfig, batch: int = 1) -> Estimate:
        config = with_batch(config, batch) if auto else config  # remedies are those of the smallest batch
        return estimate(config, references=references, processes=processes)

    first = costs(config, choice.batch if choice else 1)
    yield from described(first, utilisation)
    if auto:
        yield from _by_card(config, choice, references, processes)
    missing = [memory for memory in reversed(MEMORIES) if not fits(first, memory)]
    smaller = first
    for changes in _changes(recipe, overrides, first):
        if not missing:
            return
        smaller = costs(load_config(recipe, [*overrides, *changes]))
        while missing and fits(smaller, missing[0]):
            yield f"To fit {missing.pop(0)} GB ({gigabytes(smaller.peak)}): {' '.join(changes)}"
    if missing:
        cards = " and ".join(f"{memory} GB" for memory in missing)
        yield f"No change that is tried here fits {cards}; {gigabytes(smaller.peak)} with all of them"


def _by_card(config: RunConfig, choice: Choice | None, references: int, processes: int) -> Iterator[str]:
    """What `auto` chooses here, if the device is here, and on empty cards."""
    yield str(choice or "groups.batch=auto: one image per pass above, the least that a card needs")
    for memory in MEMORIES:
        on_card = choose(config, memory * 2**30, references=references, processes=processes)
        yield f"  {memory} GB: {on_card.batch} per pass, {on_card.reason}"


def _changes(recipe: str, overrides: Sequence[str], first: Estimate) -> Iterator[list[str]]:
    """What to try: each change that leaves the passes as they are, alone; then one more after the other."""
    offered = [
        [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in settings]
        for settings in remedies(first.config, first)
    ]
    passes = Settings.of(first.config)
    yield from (each for each in offered if Settings.of(load_config(recipe, [*overrides, *each])) == passes)
    for count in range(1, len(offered) + 1):
        yield [change for settings in offered[:count] for change in settings]
