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


def random_case(rng: np.random.Generator) -> tuple[int, world.Situation, world.Situation]:
    """A critter, the prompt's situation and the reference's."""
    critter, wanted = pics.random_critter(rng), pics.random_situation(rng)
    return critter, wanted, pics.reference_situation(rng, not_scene=wanted.scene)


# --- the four kinds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", VERDICTS)
def test_targets_are_of_their_kind(kind: str):
    rng = np.random.default_rng(0)
    for _ in range(100):
        critter, wanted, shown = random_case(rng)
        target = pics.target_of_kind(kind, critter, wanted, shown)
        assert oracle.judge(target, critter, wanted, identity_threshold()) == VERDICTS[kind]
        assert (target == world.draw(critter, shown)).all() == (kind == "copied")
        situation = wanted if VERDICTS[kind][1] else shown
        subject = critter if VERDICTS[kind][0] else pics.STOCK_CRITTERS[situation.scene]
        np.testing.assert_array_equal(target, world.draw(subject, situation))


def test_every_scene_has_a_stock_critter_of_its_own():
    assert {*pics.STOCK_CRITTERS} == {*world.SCENES}
    stock = list(pics.STOCK_CRITTERS.values())
    assert all(critter in pics.PRETRAINING_CRITTERS for critter in stock)
    situation = world.Situation("fabric", "left", "yellow")
    for one in stock:
        picture = world.draw(one, situation)
        close = [other for other in stock if oracle.identity_error(picture, other) <= identity_threshold()]
        assert close == [one]


def test_unknown_kinds_are_refused():
    shown = world.Situation("snow", "centre", "no")
    with pytest.raises(ValueError, match="kind of picture 'nice'; known: faithful, copied, drifted, wrong"):
        pics.target_of_kind("nice", 0, world.SITUATIONS[0], shown)


def test_quadruples_match_their_kinds():
    kinds = 50 * ["faithful", "copied", "drifted", "wrong"]
    data = pics.quadruples(np.random.default_rng(1), kinds)
    assert data.references.shape == data.targets.shape == (200, 3, 32, 32)
    assert data.kinds == kinds
    references, targets = to_uint8(data.references), to_uint8(data.targets)
    for reference, target, prompt, kind in zip(references, targets, data.prompts, kinds, strict=True):
        wanted, shown = BY_PROMPT[prompt], oracle.read(reference)
        assert (shown.place, shown.hat) == ("centre", "no")
        assert shown.scene != wanted.scene
        assert oracle.read(target).shows(wanted) == VERDICTS[kind][1]
        assert (target == reference).all() == (kind == "copied")


def test_quadruples_are_pure_functions_of_the_generator():
    kinds = 4 * ["faithful", "copied", "drifted", "wrong"]
    one, two, other = (pics.quadruples(np.random.default_rng(seed), kinds) for seed in (3, 3, 4))
    assert torch.equal(one.targets, two.targets)
    assert torch.equal(one.references, two.references)
    assert one.prompts == two.prompts
    assert not torch.equal(one.targets, other.targets)


# --- which kind starts from which noise ------------------------------------------------------------------------------


def noise_with(situation: float, subject: float, tokens: int = 64) -> Tensor:
    """Packed noise [1, tokens, 16] of these two standard normal coordinates, and none of any other.

    A pattern of ones c c c ... sums to 16 tokens c, over sqrt(16 tokens): a coordinate z is c = z / sqrt(16 tokens).
    """
    stripes, checks = torch.tensor([1.0, -1, 1, -1]), torch.tensor([1.0, -1, -1, 1])
    return ((situation * stripes + subject * checks) / (16 * tokens) ** 0.5).repeat(4).expand(1, tokens, 16)


@pytest.mark.parametrize(
    ("situation", "subject", "kind"),
    [
        # Prompt in .3 + .2 = .5 of all: below z = 0. Of these .3 / .5 = .6 with the subject: below z = .2533.
        (-0.01, 0.25, "faithful"),
        (-3.0, -3.0, "faithful"),
        (-0.01, 0.26, "drifted"),
        (-3.0, 3.0, "drifted"),
        # Of the other half .35 / .5 = .7 with the subject: below z = .5244.
        (0.01, 0.52, "copied"),
        (3.0, -3.0, "copied"),
        (0.01, 0.53, "wrong"),
        (3.0, 3.0, "wrong"),
    ],
)
def test_two_directions_of_the_noise_decide(situation: float, subject: float, kind: str):
    mixture = {"wrong": 0.15, "faithful": 0.3, "drifted": 0.2, "copied": 0.35}  # in any order
    for tokens in (64, 256):
        noise = noise_with(situation, subject, tokens)
        assert pics.kinds_of_noise(noise, mixture) == [kind]
        random = torch.randn(16, tokens, 16, generator=generator(4))
        other = torch.tensor([1.0, 1, -1, -1]).repeat(4) * random[..., :1]  # orthogonal to both directions
        assert pics.kinds_of_noise(noise + other, mixture) == [kind] * 16


@pytest.mark.parametrize("mixture", [Recipe().mixture, {"faithful": 1.0}, {"drifted": 0.25, "copied": 0.75}])
def test_kinds_follow_the_shares_of_the_mixture(mixture: dict[str, float]):
    """Within four standard deviations of a binomial draw."""
    assert sum(mixture.values()) == pytest.approx(1)
    count = 4000
    kinds = Counter(pics.kinds_of_noise(torch.randn(count, 64, 16, generator=generator(5)), mixture))
    assert {*kinds} == {*mixture}
    for kind, share in mixture.items():
        assert abs(kinds[kind] - count * share) <= 4 * (count * share * (1 - share)) ** 0.5


def test_the_kind_does_not_depend_on_the_batch():
    noise = torch.randn(50, 64, 16, generator=generator(6))
    together = pics.kinds_of_noise(noise, Recipe().mixture)
    assert together == [pics.kinds_of_noise(one[None], Recipe().mixture)[0] for one in noise]
    assert len(set(together)) == 4


@pytest.mark.parametrize("mixture", [{"faithful": 1.0}, {"copied": 1.0}, {"drifted": 0.5, "wrong": 0.5}])
def test_extreme_noise_makes_no_kind_that_the_mixture_lacks(mixture: dict[str, float]):
    """Six standard deviations have probability 1 in float32. They occur once in a billion draws, also in training."""
    for situation in (-40.0, -6.0, 6.0, 40.0):
        for subject in (-40.0, -6.0, 6.0, 40.0):
            assert {*pics.kinds_of_noise(noise_with(situation, subject), mixture)} <= {*mixture}


# --- drawing at random -----------------------------------------------------------------------------------------------


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
    assert views.mean(dim=-1).std(dim=1).max() > 0.02  # each colour is shifted separately


def test_blemishes_are_slight():
    images, situations = pics.renders(np.random.default_rng(9), 200)
    blemished = to_uint8(pics.blemish(images, generator(3)))
    right = [oracle.read(p).shows(s) for p, s in zip(blemished, situations, strict=True)]
    assert np.mean(right) > 0.95
