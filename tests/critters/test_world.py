from dataclasses import astuple

import numpy as np
import pytest

from customized_grpo.critters import world
from customized_grpo.critters.world import Situation

# Critter 0, written down by hand: a body, b marking, c eye, . clear.
CRITTER_0 = """
........
.aa..aa.
.abaaba.
a.cbbc.a
..bbbb..
bbbbbbbb
.bbbbbb.
.aabbaa.
"""
CRITTER_0_COLOURS = {"a": (208, 47, 239), "b": (56, 195, 158), "c": (255, 255, 255)}

# The beach has sky (s) down to row 7, two rows of waves (w), then sand (g). A red hat (R) takes the sprite's two top
# rows, ears included: a crown of four cells and a brim of eight; left and right of the crown is sky.
BEACH_LEFT_RED_HAT = """
ssssssssssssssss
ssssssssssssssss
ssssssssssssssss
ssssssssssssssss
ssRRRRssssssssss
RRRRRRRRssssssss
sabaabasssssssss
ascbbcsassssssss
wwbbbbwwwwwwwwww
bbbbbbbbwwwwwwww
gbbbbbbggggggggg
gaabbaaggggggggg
gggggggggggggggg
gggggggggggggggg
gggggggggggggggg
gggggggggggggggg
"""
BEACH_BOTTOM_NO_HAT = """
ssssssssssssssss
ssssssssssssssss
ssssssssssssssss
ssssssssssssssss
ssssssssssssssss
ssssssssssssssss
ssssssssssssssss
ssssssssssssssss
wwwwwwwwwwwwwwww
wwwwwaawwaawwwww
gggggabaabaggggg
ggggagcbbcgagggg
ggggggbbbbgggggg
ggggbbbbbbbbgggg
gggggbbbbbbggggg
gggggaabbaaggggg
"""
BEACH_COLOURS = {"s": (150, 205, 235), "w": (70, 140, 190), "g": (235, 215, 165), "R": (220, 30, 40)}


def painted(cells: str, colours: dict[str, tuple[int, int, int]]) -> np.ndarray:
    return np.array([[colours[letter] for letter in row] for row in cells.split()], dtype=np.uint8)


def test_a_sprite_is_exact():
    figure = world.sprite(0)
    letters = np.array([list(row) for row in CRITTER_0.split()])
    assert figure.shape == (8, 8, 4)
    assert figure.dtype == np.uint8
    np.testing.assert_array_equal(figure[..., 3], np.where(letters == ".", 0, 255))
    clear = {".": (0, 0, 0)}
    np.testing.assert_array_equal(figure[..., :3], painted(CRITTER_0, CRITTER_0_COLOURS | clear))


def test_sprites_are_pure_functions_of_the_integer():
    numbers = [3_000_001, 5, 999_999, 5, 0]
    before = [world.sprite(number).copy() for number in numbers]
    world.sprite.cache_clear()
    for situation in world.SITUATIONS:
        world.draw(5, situation)
    for number, expected in reversed(list(zip(numbers, before, strict=True))):
        np.testing.assert_array_equal(world.sprite(number), expected)
    assert len({world.sprite(number).tobytes() for number in range(2000)}) == 2000


def test_sprites_are_mirrored_and_of_two_colours_with_two_white_eyes():
    for number in range(1000):
        figure = world.sprite(number)
        np.testing.assert_array_equal(figure, figure[:, ::-1])
        assert set(figure[..., 3].flat) == {0, 255}
        for part in (figure, figure[world.BODY]):  # a hat leaves both colours visible
            colours, counts = np.unique(part[part[..., 3] > 0][:, :3], axis=0, return_counts=True)
            assert len(colours) == 3
            (white,) = np.flatnonzero((colours == 255).all(axis=1))
            assert counts[white] == 2


def test_critters_keep_their_distance_from_every_colour_of_the_world():
    drawn = [colour for scene in world.SCENES.values() for colour in (scene.sky, scene.ground, scene.accent)]
    hats = [colour for colour in world.HATS.values() if colour is not None]
    known = np.array([*drawn, *hats, (255, 255, 255)], dtype=float)
    for number in range(1000):
        figure = world.sprite(number)
        colours = np.unique(figure[figure[..., 3] > 0][:, :3], axis=0).astype(float)
        body, marking = colours[(colours != 255).any(axis=1)]
        for colour in (body, marking):
            assert np.linalg.norm(known - colour, axis=1).min() > 55
            assert np.ptp(colour) > 90
        assert np.linalg.norm(body - marking) > 55


def test_the_whole_critter_is_visible_in_every_scene_and_place():
    for number in range(40):
        opaque = int((world.sprite(number)[..., 3] > 0).sum())
        for scene in world.SCENES:
            for place in world.PLACES:
                picture = world.draw(number, Situation(scene, place, "no"))
                changed = (picture != world.background(scene)).any(axis=-1)
                assert changed.sum() == opaque * world.CELL**2


@pytest.mark.parametrize(
    ("situation", "cells"),
    [
        (Situation("beach", "left", "red"), BEACH_LEFT_RED_HAT),
        (Situation("beach", "bottom", "no"), BEACH_BOTTOM_NO_HAT),
    ],
)
def test_drawing_is_exact(situation: Situation, cells: str):
    expected = painted(cells, CRITTER_0_COLOURS | BEACH_COLOURS).repeat(2, axis=0).repeat(2, axis=1)
    picture = world.draw(0, situation)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, expected)
    image = world.picture(0, situation)
    assert (image.mode, image.size) == ("RGB", (32, 32))
    np.testing.assert_array_equal(np.asarray(image), expected)


@pytest.mark.parametrize(
    ("place", "row", "column"), [("centre", 8, 8), ("left", 8, 0), ("right", 8, 16), ("top", 0, 8), ("bottom", 16, 8)]
)
def test_places_are_whole_tokens_of_the_transformer(place: str, row: int, column: int):
    changed = (world.draw(0, Situation("fabric", place, "blue")) != world.background("fabric")).any(axis=-1)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    assert (rows[0], rows[-1]) == (row, row + 15)
    assert (columns[0], columns[-1]) == (column, column + 15)
    assert row % 4 == column % 4 == 0


@pytest.mark.parametrize(
    ("hat", "colour"), [("red", (220, 30, 40)), ("yellow", (250, 215, 40)), ("blue", (40, 70, 225))]
)
def test_a_hat_replaces_the_two_top_rows_and_nothing_else(hat: str, colour: tuple[int, int, int]):
    number = next(n for n in range(100) if (world.sprite(n)[0, :, 3] > 0).any())  # with ears in the top row
    bare = world.draw(number, Situation("snow", "centre", "no"))
    dressed = world.draw(number, Situation("snow", "centre", hat))
    scene = world.background("snow")
    np.testing.assert_array_equal(dressed[12:], bare[12:])
    np.testing.assert_array_equal(dressed[:8], scene[:8])
    assert (dressed[8:10, 12:20] == colour).all()
    assert (dressed[10:12, 8:24] == colour).all()
    np.testing.assert_array_equal(dressed[8:10, 8:12], scene[8:10, 8:12])  # no ear is visible next to the crown
    np.testing.assert_array_equal(dressed[8:10, 20:24], scene[8:10, 20:24])


def test_there_are_160_situations_with_different_prompts_and_pictures():
    assert len(world.SITUATIONS) == len(set(world.SITUATIONS)) == 8 * 5 * 4
    assert len({situation.prompt for situation in world.SITUATIONS}) == 160
    for number in (0, 7, 42):
        assert len({world.draw(number, situation).tobytes() for situation in world.SITUATIONS}) == 160
    assert {astuple(s) for s in world.SITUATIONS} == {
        (scene, place, hat, None) for scene in world.SCENES for place in world.PLACES for hat in world.HATS
    }


def test_scenes_differ_in_more_cells_than_a_critter_hides():
    """A critter and its hat hide a quarter of the picture at most."""
    scenes = [world.background(scene).astype(int) for scene in world.SCENES]
    for index, first in enumerate(scenes):
        for second in scenes[:index]:
            assert (np.abs(first - second).max(axis=-1) > 20).mean() > 0.5


@pytest.mark.parametrize(
    ("situation", "prompt"),
    [
        (Situation("beach", "left", "red"), "a critter on the beach, at the left, wearing a red hat"),
        (Situation("night", "centre", "no"), "a critter at night, in the centre, without a hat"),
        (Situation("fabric", "bottom", "blue"), "a critter on pink fabric, at the bottom, wearing a blue hat"),
    ],
)
def test_prompts_are_exact(situation: Situation, prompt: str):
    assert situation.prompt == prompt


def test_drawing_does_not_change_scenes_and_sprites():
    scene, figure = world.background("city").copy(), world.sprite(3).copy()
    world.draw(3, Situation("city", "centre", "red"))[:] = 0
    world.background("city")[:] = 0
    np.testing.assert_array_equal(world.background("city"), scene)
    np.testing.assert_array_equal(world.sprite(3), figure)
