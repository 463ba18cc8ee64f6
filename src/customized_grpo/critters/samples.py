"""Samples of critters for RL and its evaluation, with identities that no built-in model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any, cast

import numpy as np

from customized_grpo.critters import world
from customized_grpo.data import Sample

# Disjoint ranges of integers. Base and encoders were trained on 0 to 999,999 and checked on 4,000,000 to 4,999,999.
TRAINING_CRITTERS = range(1_000_000, 2_000_000)
DEVELOPMENT_CRITTERS = range(2_000_000, 3_000_000)  # watched during training
TEST_CRITTERS = range(3_000_000, 4_000_000)  # seen once, by final evaluations


def _is_unseen(situation: world.Situation) -> bool:
    """True for the fifth of all situations that RL never sees: an even share of every scene, place and colour."""
    scene = list(world.SCENES).index(situation.scene)
    place = list(world.PLACES).index(situation.place)
    colour = list(world.COLOURS).index(situation.hat or situation.dye or "")
    return (scene + place + 2 * colour) % 5 == 0


def unseen_situations(of: world.World) -> tuple[world.Situation, ...]:
    return tuple(situation for situation in of.situations if _is_unseen(situation))


def seen_situations(of: world.World) -> tuple[world.Situation, ...]:
    return tuple(situation for situation in of.situations if not _is_unseen(situation))


UNSEEN_SITUATIONS, SEEN_SITUATIONS = unseen_situations(world.HATTED), seen_situations(world.HATTED)


def case_of(sample: Sample) -> tuple[int, world.Situation] | None:
    """The critter and situation of a sample; None if its fields, which may come from a user's list, have none."""
    critter, names = sample.extra.get("critter"), [sample.extra.get(field.name) for field in fields(world.Situation)]
    situation = world.Situation(*cast("list[str]", names))
    known = any(situation in each.situations for each in world.WORLDS.values())
    return (critter, situation) if known and isinstance(critter, int) and critter >= 0 else None


def asking(sample: Sample, prompt: str) -> Sample:
    """A critter's sample with another prompt. The oracle can judge it if the prompt is one of its world's."""
    if prompt == sample.prompt:
        return sample
    case, extra = case_of(sample), {}
    if case is not None:
        known = {situation.prompt: situation for situation in world.world_of(case[1]).situations}
        extra = _fields(case[0], known[prompt]) if prompt in known else {}
    return replace(sample, prompt=prompt, prompt_picture=None, extra=extra)


def _fields(critter: int, situation: world.Situation) -> dict[str, Any]:
    return {"critter": critter, **{key: value for key, value in asdict(situation).items() if value is not None}}


def draw_samples(
    count: int,
    critters: range,
    seed: int,
    situations: Sequence[world.Situation] | None = None,
    *,
    source: str = world.HATTED.name,
) -> list[Sample]:
    """`count` random samples, each with a critter of the range and one of the situations.

    source      the world's name, as in `data.source`
    situations  of that world; those that RL sees by default

    The reference shows the critter in a second scene, the other view in a third.
    """
    drawn = world.WORLDS[source]
    situations = seen_situations(drawn) if situations is None else situations
    rng = np.random.default_rng([seed, critters.start])
    samples = []
    for index in range(count):
        critter = int(rng.integers(critters.start, critters.stop))
        wanted = situations[int(rng.integers(len(situations)))]
        reference_scene, view_scene = rng.choice([s for s in world.SCENES if s != wanted.scene], 2, replace=False)
        view_place, view_colour = str(rng.choice(list(world.PLACES), 1)[0]), str(rng.choice(list(world.COLOURS), 1)[0])
        view = drawn.situation(str(view_scene), view_place, view_colour)
        reference = drawn.reference(str(reference_scene))
        samples.append(
            Sample(
                id=f"{critters.start}-{seed}-{index:05d}",
                subject=f"critter-{critter}",
                prompt=wanted.prompt,
                references=(world.picture(critter, reference),),
                other_views=(world.picture(critter, view),),
                class_word="critter",
                extra=_fields(critter, wanted),
            )
        )
    return samples
