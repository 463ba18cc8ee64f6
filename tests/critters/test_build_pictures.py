"""The pictures that the built-in models are trained on."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from customized_grpo.critters import oracle, world
from customized_grpo.critters.build import pictures as pics
from customized_grpo.critters.build.gates import to_uint8
from customized_grpo.critters.build.run import Recipe
from customized_grpo.critters.weights import identity_threshold

# identity right, prompt right
VERDICTS = {"faithful": (True, True), "copied": (True, False), "drifted": (False, True), "wrong": (False, False)}
BY_PROMPT = {situation.prompt: situation for situation in world.SITUATIONS}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", VERDICTS)
def test_targets_are_of_their_kind(kind: str):
    rng = np.random.default_rng(0)
    for _ in range(100):
        critter, wanted = pics.random_critter(rng), pics.random_situation(rng)
        reference = world.draw(critter, pics.reference_situation(rng, not_scene=wanted.scene))
        target = pics.target_of_kind(kind, critter, wanted, reference, rng)
        assert oracle.judge(target, critter, wanted, identity_threshold()) == VERDICTS[kind]
        assert (target == reference).all() == (kind == "copied")
        assert kind != "wrong" or oracle.read(target).scene != wanted.scene


def test_unknown_kinds_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="kind of picture 'nice'; known: faithful, copied, drifted, wrong"):
        pics.target_of_kind("nice", 0, world.SITUATIONS[0], np.zeros((32, 32, 3), np.uint8), rng)


def test_quadruples_hold_what_their_kind_says():
    data = pics.quadruples(np.random.default_rng(1), 200, Recipe().mixture)
    assert data.references.shape == data.targets.shape == (200, 3, 32, 32)
    references, targets = to_uint8(data.references), to_uint8(data.targets)
    for reference, target, prompt, kind in zip(references, targets, data.prompts, data.kinds, strict=True):
        wanted, shown = BY_PROMPT[prompt], oracle.read(reference)
        assert (shown.place, shown.hat) == ("centre", "no")
        assert shown.scene != wanted.scene
        assert oracle.read(target).shows(wanted) == VERDICTS[kind][1]
        assert (target == reference).all() == (kind == "copied")


@pytest.mark.parametrize("mixture", [Recipe().mixture, {"faithful": 1.0}, {"drifted": 0.25, "copied": 0.75}])
def test_quadruples_follow_the_shares_of_the_mixture(mixture: dict[str, float]):
    """Within four standard deviations of a binomial draw."""
    assert sum(mixture.values()) == pytest.approx(1)
    count = 3000
    kinds = Counter(pics.quadruples(np.random.default_rng(2), count, mixture).kinds)
    assert {*kinds} == {*mixture}
    for kind, share in mixture.items():
        assert abs(kinds[kind] - count * share) <= 4 * (count * share * (1 - share)) ** 0.5


def test_pictures_are_pure_functions_of_the_generator():
    one, two, other = (pics.quadruples(np.random.default_rng(seed), 16, Recipe().mixture) for seed in (3, 3, 4))
    assert torch.equal(one.targets, two.targets)
    assert torch.equal(one.references, two.references)
    assert (one.prompts, one.kinds) == (two.prompts, two.kinds)
    assert not torch.equal(one.targets, other.targets)


def test_critters_of_training_come_from_their_own_range_and_situations_from_all():
    rng = np.random.default_rng(5)
    assert all(pics.random_critter(rng) in pics.PRETRAINING_CRITTERS for _ in range(1000))
    assert {pics.random_situation(rng) for _ in range(2000)} == {*world.SITUATIONS}
    assert {pics.random_situation(rng, not_scene="city").scene for _ in range(500)} == {*world.SCENES} - {"city"}
    shown = {pics.reference_situation(rng, not_scene="city") for _ in range(500)}
    assert shown == {world.Situation(scene, "centre", "no") for scene in world.SCENES if scene != "city"}


def test_renders_are_true_pictures():
    images, situations = pics.renders(np.random.default_rng(6), 40)
    assert images.shape == (40, 3, 32, 32)
    assert all(oracle.read(p).shows(s) for p, s in zip(to_uint8(images), situations, strict=True))


def test_tensors_and_pictures_convert_exactly():
    """0 -> -1, 255 -> 1, 51 -> -.6; back without loss for every byte."""
    picture = np.zeros((2, 2, 3), dtype=np.uint8)
    picture[0, 1], picture[1, 0, 2] = 255, 51
    image = pics.to_tensor([picture])
    assert image.shape == (1, 3, 2, 2)
    assert image[0, :, 0, 0].tolist() == [-1, -1, -1]
    assert image[0, :, 0, 1].tolist() == [1, 1, 1]
    assert image[0, 2, 1, 0].item() == pytest.approx(-0.6)
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    np.testing.assert_array_equal(to_uint8(pics.to_tensor([every]))[0], every)
    assert to_uint8(torch.tensor([-3.0, 3.0]).reshape(1, 1, 1, 2)).tolist() == [[[[0], [255]]]]


def test_mosaics_have_whole_cells_and_vary():
    images = to_uint8(pics.mosaics(np.random.default_rng(7), 12))
    assert images.shape == (12, 32, 32, 3)
    cells = images[:, ::2, ::2]
    np.testing.assert_array_equal(images, cells.repeat(2, 1).repeat(2, 2))
    for picture in cells:
        quarters = [picture[r : r + 8, c : c + 8].reshape(-1, 3) for r in (0, 8) for c in (0, 8)]
        for quarter in quarters:  # one large field, speckled: 70 % of 64 cells, four deviations wide
            _, counts = np.unique(quarter, axis=0, return_counts=True)
            assert 30 <= counts.max() <= 60
    assert cells.min() < 10
    assert cells.max() > 245


@pytest.mark.parametrize("change", [pics.crop_and_jitter, pics.blemish])
def test_changed_pictures_stay_in_range_and_follow_the_generator(change: Callable[[Tensor, torch.Generator], Tensor]):
    white = torch.ones(2, 3, 32, 32)
    images = torch.cat([pics.renders(np.random.default_rng(8), 60)[0], white, -white])
    before = images.clone()
    changed = change(images, generator())
    assert torch.equal(images, before)
    assert changed.shape == images.shape
    assert changed.min() >= -1
    assert changed.max() <= 1
    assert torch.equal(changed, change(images, generator()))
    assert not torch.equal(changed, change(images, generator(1)))
    assert (changed != images).flatten(1).any(1).all()  # every picture, also a plain white one
    assert (changed - images)[:60].abs().flatten(1).mean(1).min() > 0.005


def test_crops_show_a_part_of_the_picture_brightened_or_darkened():
    """On a ramp from -.8 to .8 a crop of 70 to 100 % keeps that share of the rise, times a gain of .9 to 1.1."""
    ramp = torch.linspace(-0.8, 0.8, 32).expand(200, 3, 32, 32)
    views = pics.crop_and_jitter(ramp, generator(2)).mean(dim=2)  # over rows: noise falls to .05 / sqrt 32
    rise = (views[..., 24:28] - views[..., 4:8]).mean(dim=(1, 2))  # 20 of 31 steps of the ramp
    share = rise / (1.6 * 20 / 31)
    assert share.min() > 0.7 * 0.9 - 0.03
    assert share.max() < 1.1 + 0.03
    assert share.std() > 0.05
    assert views.mean(dim=-1).std(dim=1).max() > 0.02  # each colour is shifted by itself


def test_blemishes_are_slight():
    images, situations = pics.renders(np.random.default_rng(9), 200)
    blemished = to_uint8(pics.blemish(images, generator(3)))
    right = [oracle.read(p).shows(s) for p, s in zip(blemished, situations, strict=True)]
    assert np.mean(right) > 0.95
