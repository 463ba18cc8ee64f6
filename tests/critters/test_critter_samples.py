import json
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from customized_grpo.critters import oracle, world
from customized_grpo.critters.build.gates import GATE_CRITTERS
from customized_grpo.critters.build.pictures import PRETRAINING_CRITTERS
from customized_grpo.critters.samples import (
    DEVELOPMENT_CRITTERS,
    SEEN_SITUATIONS,
    TEST_CRITTERS,
    TRAINING_CRITTERS,
    UNSEEN_SITUATIONS,
    draw_samples,
)


def test_no_critter_belongs_to_two_uses():
    uses = [PRETRAINING_CRITTERS, TRAINING_CRITTERS, DEVELOPMENT_CRITTERS, TEST_CRITTERS, GATE_CRITTERS]
    for one, other in combinations(uses, 2):
        assert max(one.start, other.start) >= min(one.stop, other.stop)
    assert all(len(use) == 1_000_000 for use in uses)


def test_rl_never_sees_a_fifth_of_the_situations():
    assert len(UNSEEN_SITUATIONS) == 32
    assert len(SEEN_SITUATIONS) == 128
    assert {*SEEN_SITUATIONS, *UNSEEN_SITUATIONS} == {*world.SITUATIONS}


@pytest.mark.parametrize(("field", "values"), [("scene", world.SCENES), ("place", world.PLACES), ("hat", world.HATS)])
def test_every_value_occurs_among_seen_and_unseen_evenly(field: str, values: dict):
    """Only the combination is new: of 8 scenes each is unseen 4 times, of 5 places 6 or 7 times, of 4 hats 8 times."""
    unseen = Counter(getattr(situation, field) for situation in UNSEEN_SITUATIONS)
    seen = Counter(getattr(situation, field) for situation in SEEN_SITUATIONS)
    assert {*unseen} == {*seen} == {*values}
    even = len(UNSEEN_SITUATIONS) / len(values)
    assert all(abs(count - even) < 1 for count in unseen.values())


def test_samples_are_deterministic_and_longer_lists_begin_with_shorter_ones():
    samples = draw_samples(20, TEST_CRITTERS, 3)
    assert samples == draw_samples(20, TEST_CRITTERS, 3)
    assert samples[:5] == draw_samples(5, TEST_CRITTERS, 3)
    others = draw_samples(20, TEST_CRITTERS, 4) + draw_samples(20, DEVELOPMENT_CRITTERS, 3)
    assert not {s.extra["critter"] for s in samples} & {s.extra["critter"] for s in others}
    assert len({s.id for s in samples + others}) == 60


@pytest.mark.parametrize("critters", [TRAINING_CRITTERS, DEVELOPMENT_CRITTERS, TEST_CRITTERS])
def test_pictures_match_their_samples(critters: range):
    for sample in draw_samples(100, critters, 0):
        number = sample.extra["critter"]
        wanted = world.Situation(sample.extra["scene"], sample.extra["place"], sample.extra["hat"])
        assert number in critters
        assert sample.subject == f"critter-{number}"
        assert wanted in SEEN_SITUATIONS
        assert sample.prompt == wanted.prompt
        assert (sample.class_word, sample.mask) == ("critter", None)
        (reference,), (view,) = (map(np.asarray, s) for s in (sample.reference_images(), sample.other_view_images()))
        shown, elsewhere = oracle.read(reference), oracle.read(view)
        assert (shown.place, shown.hat) == ("centre", "no")
        assert len({shown.scene, elsewhere.scene, wanted.scene}) == 3
        assert oracle.identity_error(reference, number) == oracle.identity_error(view, number) == 0
        assert json.loads(json.dumps(sample.extra)) == sample.extra


def test_other_views_vary_in_place_and_hat():
    views = [np.asarray(sample.other_view_images()[0]) for sample in draw_samples(200, TEST_CRITTERS, 1)]
    readings = [oracle.read(view) for view in views]
    assert {r.place for r in readings} == {*world.PLACES}
    assert {r.hat for r in readings} == {*world.HATS}
    assert {r.scene for r in readings} == {*world.SCENES}


@pytest.mark.parametrize("situations", [SEEN_SITUATIONS, UNSEEN_SITUATIONS])
def test_all_given_situations_are_drawn_and_no_others(situations: tuple[world.Situation, ...]):
    prompts = {sample.prompt for sample in draw_samples(1500, TEST_CRITTERS, 2, situations)}
    assert prompts == {situation.prompt for situation in situations}
