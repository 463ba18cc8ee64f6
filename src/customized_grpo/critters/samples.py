"""Samples of critters for RL and its evaluation, with identities that no built-in model was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from customized_grpo.critters import world
from customized_grpo.data import Sample

# Disjoint ranges of integers. Base and encoders were trained on 0 to 999,999 and checked on 4,000,000 to 4,999,999.
TRAINING_CRITTERS = range(1_000_000, 2_000_000)
DEVELOPMENT_CRITTERS = range(2_000_000, 3_000_000)  # watched during training
TEST_CRITTERS = range(3_000_000, 4_000_000)  # seen once, by final evaluations


def _is_unseen(situation: world.Situation) -> bool:
    """True for the fifth of all situations that RL never sees: an even share of every scene, place and hat."""
    scene = list(world.SCENES).index(situation.scene)
    place = list(world.PLACES).index(situation.place)
    hat = list(world.HATS).index(situation.hat)
    return (scene + place + 2 * hat) % 5 == 0


UNSEEN_SITUATIONS = tuple(situation for situation in world.SITUATIONS if _is_unseen(situation))
SEEN_SITUATIONS = tuple(situation for situation in world.SITUATIONS if not _is_unseen(situation))


def draw_samples(
    count: int, critters: range, seed: int, situations: Sequence[world.Situation] = SEEN_SITUATIONS
) -> list[Sample]:
    """`count` random samples, each with a critter of the range and one of the situations.

    The reference shows the critter in a second scene, the other view in a third.
    """
    rng = np.random.default_rng([seed, critters.start])
    samples = []
    for index in range(count):
        critter = int(rng.integers(critters.start, critters.stop))
        wanted = situations[int(rng.integers(len(situations)))]
        reference_scene, view_scene = rng.choice([s for s in world.SCENES if s != wanted.scene], 2, replace=False)
        view = world.Situation(str(view_scene), *rng.choice(list(world.PLACES), 1), *rng.choice(list(world.HATS), 1))
        reference = world.Situation(str(reference_scene), "centre", "no")
        samples.append(
            Sample(
                id=f"{critters.start}-{seed}-{index:05d}",
                subject=f"critter-{critter}",
                prompt=wanted.prompt,
                references=(world.picture(critter, reference),),
                other_views=(world.picture(critter, view),),
                class_word="critter",
                extra={"critter": critter, "scene": wanted.scene, "place": wanted.place, "hat": wanted.hat},
            )
        )
    return samples
