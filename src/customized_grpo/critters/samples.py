"""Critters as samples for RL and for its evaluation, on identities that no built-in model was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from customized_grpo.critters import world
from customized_grpo.data import Sample

# Disjoint integers; the base and the encoders were trained on 0 to 999,999 and gated on 4,000,000 onwards.
TRAINING_CRITTERS = range(1_000_000, 2_000_000)
DEVELOPMENT_CRITTERS = range(2_000_000, 3_000_000)  # watched during training
TEST_CRITTERS = range(3_000_000, 4_000_000)  # seen once, by final evaluations


def _is_unseen(situation: world.Situation) -> bool:
    """A fifth of every scene's (place, hat) pairs, and of every place's and hat's others, is kept from RL."""
    scene = list(world.SCENES).index(situation.scene)
    place = list(world.PLACES).index(situation.place)
    hat = list(world.HATS).index(situation.hat)
    return (scene + place + 2 * hat) % 5 == 0


UNSEEN_SITUATIONS = tuple(s for s in world.SITUATIONS if _is_unseen(s))
SEEN_SITUATIONS = tuple(s for s in world.SITUATIONS if not _is_unseen(s))


def draw_samples(
    count: int, critters: range, seed: int, situations: Sequence[world.Situation] = SEEN_SITUATIONS
) -> list[Sample]:
    """`count` samples: a critter of the range, a situation, a reference in another scene, another view in a third."""
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
