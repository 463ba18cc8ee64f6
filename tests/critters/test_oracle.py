"""The oracle on pictures with known answers: true ones, and failures of every kind."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from customized_grpo.critters import oracle, world
from customized_grpo.critters.oracle import Reading
from customized_grpo.critters.weights import identity_threshold
from customized_grpo.critters.world import Situation

Case = tuple[int, Situation]


def random_cases(seed: int, count: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    return [(int(rng.integers(4_000_000, 5_000_000)), world.SITUATIONS[rng.integers(160)]) for _ in range(count)]


def judge(picture: np.ndarray, case: Case) -> tuple[bool, bool]:
    return oracle.judge(picture, *case, identity_threshold())


def another(names: dict, name: str, step: int = 1) -> str:
    keys = list(names)
    return keys[(keys.index(name) + step) % len(keys)]


# --- true pictures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scene", world.SCENES)
@pytest.mark.parametrize("hat", world.HATS)
def test_every_situation_is_read_and_every_critter_known(scene: str, hat: str):
    for place in world.PLACES:
        for number in range(0, 1000, 111):
            picture = world.draw(number, Situation(scene, place, hat))
            assert oracle.read(picture) == Reading(scene, place, hat)
            assert oracle.identity_error(picture, number) == 0


def test_a_thousand_random_true_pictures_are_all_right():
    assert all(judge(world.draw(*case), case) == (True, True) for case in random_cases(0, 1000))


def test_critters_are_distinguished_from_the_scenes_nearest_to_them():
    """A colour may be 55 from a scene's (0 to 255, Euclidean); 4,000,188 is 55.05 from the grass."""
    assert oracle.TOLERANCE < 55 / 127.5 / 3**0.5
    for place in world.PLACES:
        for hat in world.HATS:
            case = (4_000_188, Situation("grass", place, hat))
            assert judge(world.draw(*case), case) == (True, True)


def test_a_little_noise_changes_no_verdict():
    rng = np.random.default_rng(1)
    for case in random_cases(1, 100):
        noisy = world.draw(*case) + rng.normal(0, 12, (32, 32, 3))
        assert judge(noisy.clip(0, 255).round().astype(np.uint8), case) == (True, True)


# --- failures: picture, what is read, verdict (identity, prompt) -----------------------------------------------------


def empty_scene(case: Case):
    return world.background(case[1].scene), Reading(case[1].scene, None, None), (False, False)


def wrong_scene(case: Case):
    number, wanted = case
    shown = Situation(another(world.SCENES, wanted.scene), wanted.place, wanted.hat)
    return world.draw(number, shown), Reading(shown.scene, shown.place, shown.hat), (True, False)


def wrong_place(case: Case):
    number, wanted = case
    shown = Situation(wanted.scene, another(world.PLACES, wanted.place), wanted.hat)
    return world.draw(number, shown), Reading(shown.scene, shown.place, shown.hat), (True, False)


def wrong_hat(case: Case):
    number, wanted = case
    hats = {hat: None for hat in world.HATS if hat != "no"}
    hat = another(hats, str(wanted.hat)) if wanted.hat != "no" else "yellow"  # a hat that the prompt does not have
    shown = Situation(wanted.scene, wanted.place, hat)
    return world.draw(number, shown), Reading(shown.scene, shown.place, hat), (True, False)


def missing_hat(case: Case):
    number, wanted = case
    shown = Situation(wanted.scene, wanted.place, "no")
    reading = Reading(shown.scene, shown.place, "no")
    return world.draw(number, shown), reading, (True, wanted.hat == "no")


def another_critter(case: Case):
    number, wanted = case
    return world.draw(number + 1, wanted), Reading(wanted.scene, wanted.place, wanted.hat), (False, True)


def copied_reference(case: Case):
    number, wanted = case
    shown = Situation(another(world.SCENES, wanted.scene, 3), "centre", "no")
    return world.draw(number, shown), Reading(shown.scene, "centre", "no"), (True, False)


def jointly_wrong(case: Case):
    number, wanted = case
    shown = Situation(another(world.SCENES, wanted.scene, 2), wanted.place, wanted.hat)
    return world.draw(number + 1, shown), Reading(shown.scene, shown.place, shown.hat), (False, False)


def noise(case: Case):
    picture = np.random.default_rng(case[0]).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return picture, Reading(oracle.read(picture).scene, None, None), (False, False)


def black(_: Case):
    picture = np.zeros((32, 32, 3), dtype=np.uint8)
    return picture, Reading(oracle.read(picture).scene, None, None), (False, False)  # one scene is always the nearest


def lower_half_erased(case: Case):
    picture, scene = world.draw(*case), world.background(case[1].scene)
    row, column = (world.CELL * cell for cell in world.PLACES[case[1].place])
    box = slice(row + 8, row + 16), slice(column, column + 16)
    picture[box] = scene[box]
    return picture, oracle.read(picture), (False, False)


def negative(case: Case):
    picture = 255 - world.draw(*case)
    return picture, oracle.read(picture), (False, False)


@pytest.mark.parametrize(
    "failure",
    [
        empty_scene,
        wrong_scene,
        wrong_place,
        wrong_hat,
        missing_hat,
        another_critter,
        copied_reference,
        jointly_wrong,
        noise,
        black,
        lower_half_erased,
        negative,
    ],
)
def test_failures_have_known_answers(failure: Callable[[Case], tuple[np.ndarray, Reading, tuple[bool, bool]]]):
    for case in random_cases(2, 100):
        picture, reading, verdict = failure(case)
        assert oracle.read(picture) == reading
        assert judge(picture, case) == verdict


def test_a_white_picture_is_snow_without_a_critter():
    assert oracle.read(np.full((32, 32, 3), 255, np.uint8)) == Reading("snow", None, None)


@pytest.mark.parametrize("below", world.PLACES)
@pytest.mark.parametrize("above", world.PLACES)
def test_two_critters_are_no_critter_at_one_place(below: str, above: str):
    """The wanted critter is complete and in the right place, but a second one is partly visible behind it."""
    for number, wanted in random_cases(3, 40):
        shown = Situation(wanted.scene, above, wanted.hat)
        picture = world.draw(number + 1, Situation(wanted.scene, below, wanted.hat))
        true, scene = world.draw(number, shown), world.background(wanted.scene)
        own = (true != scene).any(axis=-1)
        picture[own] = true[own]
        identity, prompt = judge(picture, (number, shown))
        assert identity
        if above != below:
            assert not prompt
            assert oracle.read(picture) == Reading(wanted.scene, None, None)


def test_half_a_critter_is_another_critter():
    """The left half is erased: the rest may be in the right place, but it is not the subject."""
    rejected = []
    for number, wanted in random_cases(4, 300):
        picture, scene = world.draw(number, wanted), world.background(wanted.scene)
        row, column = (world.CELL * cell for cell in world.PLACES[wanted.place])
        box = slice(row, row + 16), slice(column, column + 8)
        picture[box] = scene[box]
        rejected.append(not judge(picture, (number, wanted))[0])
    assert np.mean(rejected) > 0.98  # the others have almost the scene's colours


# --- identity --------------------------------------------------------------------------------------------------------


def test_the_error_of_one_changed_colour_is_its_share_times_the_distance():
    """Critter 0's body rows hold 36 cells: 10 of body colour, 24 of marking, 2 eyes.

    Marking (56, 195, 158) painted as (116, 255, 98) is 60 off in each colour, 60 / 127.5 on [-1, 1] pixels;
    squared .22145, times 24 / 36 = .14764.
    """
    situation = Situation("snow", "right", "blue")
    body = world.sprite(0)[world.BODY]
    marking = np.array([56, 195, 158])
    assert (body[..., 3] > 0).sum() == 36
    assert (body[..., :3] == marking).all(axis=-1).sum() == 24
    picture = world.draw(0, situation)
    picture[(picture == marking).all(axis=-1)] = (116, 255, 98)
    assert oracle.identity_error(picture, 0) == pytest.approx(0.14764, abs=1e-5)
    assert judge(picture, (0, situation)) == (False, True)


def test_swapped_colours_are_another_critter():
    rejected = []
    for case in random_cases(5, 300):
        body = world.sprite(case[0])[world.BODY]
        colours = np.unique(body[body[..., 3] > 0][:, :3], axis=0)
        first, second = colours[(colours != 255).any(axis=1)]
        picture = world.draw(*case)
        where_first, where_second = ((picture == colour).all(axis=-1) for colour in (first, second))
        picture[where_first], picture[where_second] = second, first
        rejected.append(not judge(picture, case)[0])
        assert oracle.read(picture).shows(case[1])
    assert np.mean(rejected) > 0.95  # the others have two colours that are hard to tell apart


def test_identity_is_read_at_any_position():
    """Also between the five places: the best alignment counts."""
    figure = world.sprite(0)
    for row, column in [(0, 0), (7, 3), (8, 8), (3, 5)]:
        cells = world.background("night")[::2, ::2].copy()
        box = cells[row : row + 8, column : column + 8]
        box[figure[..., 3] > 0] = figure[figure[..., 3] > 0][:, :3]
        assert oracle.identity_error(cells.repeat(2, 0).repeat(2, 1), 0) == 0


def test_other_critters_are_far_away():
    numbers = [number for number, _ in random_cases(6, 200)]
    situation = Situation("grass", "top", "red")
    errors = [oracle.identity_error(world.draw(a, situation), b) for a, b in pairwise(numbers)]
    assert np.min(errors) > identity_threshold()
    assert 0.4 < np.mean(errors) < 0.75  # a typical other critter has .58


def test_no_empty_scene_passes_for_a_critter():
    threshold = identity_threshold()
    for number, _ in random_cases(7, 100):
        assert all(oracle.identity_error(world.background(s), number) > threshold for s in world.SCENES)


def test_errors_up_to_the_threshold_are_accepted():
    """With a threshold at the picture's own error, and just below it."""
    case = (0, Situation("snow", "right", "no"))
    picture = world.draw(*case)
    picture[world.CELL * 8 :] = world.background("snow")[world.CELL * 8 :]
    error = oracle.identity_error(picture, 0)
    assert error > 0
    assert oracle.judge(picture, *case, threshold=error)[0]
    assert not oracle.judge(picture, *case, threshold=error - 1e-9)[0]


# --- pictures of any size --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (256, 256), (96, 32)])
def test_enlarged_pictures_are_read_as_the_original(size: tuple[int, int]):
    case = (7, Situation("city", "top", "yellow"))
    pixels = oracle.pixels(world.picture(*case).resize(size, Image.Resampling.NEAREST))
    np.testing.assert_array_equal(pixels, world.draw(*case))
    assert judge(pixels, case) == (True, True)


def test_larger_pictures_are_averaged_by_area():
    """Blocks of 2x2 pixels 0, 40, 80, 120 have mean 60, the outliers included."""
    blocks = np.tile(np.array([[0, 40], [80, 120]], dtype=np.uint8), (32, 32))
    pixels = oracle.pixels(Image.fromarray(np.stack([blocks] * 3, axis=-1)))
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == 60).all()


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((32, 32, 3), dtype=np.float32),
        np.zeros((32, 32, 3), dtype=np.int64),
        np.zeros((3, 32, 32), dtype=np.uint8),
        np.zeros((64, 64, 3), dtype=np.uint8),
        np.zeros((32, 32), dtype=np.uint8),
    ],
)
def test_other_arrays_are_refused(picture: np.ndarray):
    message = rf"uint8 pictures of 32x32x3, not {picture.dtype} \({', '.join(map(str, picture.shape))}\)"
    with pytest.raises(ValueError, match=message):
        oracle.read(picture)
    with pytest.raises(ValueError, match=message):
        oracle.identity_error(picture, 0)
