"""Critters: worlds of 32x32 pixel-art pictures whose content is known exactly, because it is drawn by rule.

A *critter* is a mirrored 8x8 sprite of two colours with white eyes. There is one for every integer, so identities
never run out. A *situation* puts it into a scene, at a place, with or without a hat (in the world `critters`) or a dye
(in `critters-dye`). Everything is drawn in cells of 2x2 pixels. Sprites start at multiples of 4 pixels, one token of
the built-in transformer.

A hat replaces the two top rows of the sprite, so rows 2 to 7 (`BODY`) are visible in every picture. A dye blends half
into every cell of the sprite: what the prompt asks for then changes what the subject looks like.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from typing import Literal

import numpy as np
from PIL import Image

from customized_grpo.fields import CRITTERS, CRITTERS_DYE

SIZE = 32  # pixels
CELL = 2  # pixels per cell
CANVAS = SIZE // CELL  # cells
SPRITE = 8  # cells
HAT_ROWS = 2  # cells; a hat covers the ears
BODY = slice(HAT_ROWS, SPRITE)  # sprite rows that no hat covers
EYE_ROWS, EYE_COLUMN = (3, 4), 1  # an eye is in one of these rows; the column counts from the middle outwards

RGB = tuple[int, int, int]

PLACES: dict[str, tuple[int, int]] = {  # top left cell (row, column) of the sprite
    "centre": (4, 4),
    "left": (4, 0),
    "right": (4, 8),
    "top": (0, 4),
    "bottom": (8, 4),
}
COLOURS: dict[str, RGB | None] = {  # of hats, and of dyes
    "no": None,
    "red": (220, 30, 40),
    "yellow": (250, 215, 40),
    "blue": (40, 70, 225),
}
HATS = DYES = COLOURS


@dataclass(frozen=True)
class Scene:
    """Two fields of colour and a decoration; `phrase` is its name in a prompt."""

    phrase: str
    sky: RGB
    ground: RGB
    horizon: int  # first row of ground, in cells
    accent: RGB
    accent_cells: tuple[tuple[int, int], ...]


def _block(rows: range, columns: range) -> tuple[tuple[int, int], ...]:
    return tuple(product(rows, columns))


def _scattered(rows: range, every: int, step: int) -> tuple[tuple[int, int], ...]:
    return tuple((row, column) for row in rows for column in range(CANVAS) if (column + step * row) % every == 0)


SCENES: dict[str, Scene] = {
    "beach": Scene(
        "on the beach", (150, 205, 235), (235, 215, 165), 10, (70, 140, 190), _block(range(8, 10), range(16))
    ),
    "snow": Scene(
        "in the snow", (200, 215, 230), (245, 248, 252), 9, (165, 185, 205), _scattered(range(0, 9, 2), 4, 1)
    ),
    "forest": Scene(
        "in the forest",
        (45, 80, 55),
        (75, 65, 45),
        12,
        (65, 45, 30),
        _block(range(12), range(1, 16, 5)) + _block(range(12), range(2, 16, 5)),
    ),
    "night": Scene("at night", (20, 22, 50), (38, 40, 62), 12, (200, 200, 190), _scattered(range(1, 11, 3), 7, 2)),
    "grass": Scene(
        "on the grass", (190, 225, 240), (130, 180, 105), 7, (105, 150, 85), _scattered(range(8, 16, 2), 3, 1)
    ),
    "city": Scene(
        "in the city",
        (175, 175, 185),
        (95, 95, 100),
        13,
        (120, 125, 140),
        _block(range(3, 13), range(0, 4)) + _block(range(6, 13), range(5, 9)) + _block(range(1, 13), range(11, 15)),
    ),
    "desert": Scene(
        "in the desert",
        (245, 225, 200),
        (215, 170, 120),
        8,
        (190, 140, 95),
        _scattered(range(10, 16, 3), 2, 0),
    ),
    "fabric": Scene(
        "on pink fabric", (240, 190, 205), (240, 190, 205), 8, (225, 165, 185), _scattered(range(16), 4, 1)
    ),
}


@dataclass(frozen=True)
class Situation:
    """What a prompt asks for: scene, place, and a hat or a dye, by name. The other of the two is None."""

    scene: str
    place: str
    hat: str | None = None
    dye: str | None = None

    @property
    def prompt(self) -> str:
        where = "in the centre" if self.place == "centre" else f"at the {self.place}"
        return f"a critter {SCENES[self.scene].phrase}, {where}, {self._look()}"

    def _look(self) -> str:
        if self.dye is None:
            return "without a hat" if self.hat == "no" else f"wearing a {self.hat} hat"
        return "not tinted" if self.dye == "no" else f"tinted {self.dye}"


@dataclass(frozen=True)
class World:
    """All situations of one kind: with hats, or with dyes."""

    name: str
    look: Literal["hat", "dye"]  # what its prompts ask for beside scene and place

    @cached_property
    def situations(self) -> tuple[Situation, ...]:
        return tuple(self.situation(*names) for names in product(SCENES, PLACES, COLOURS))

    @property
    def dyes(self) -> tuple[str | None, ...]:
        """The dyes under which a critter is still the same: None alone where there are none."""
        return tuple(DYES) if self.look == "dye" else (None,)

    def situation(self, scene: str, place: str, colour: str) -> Situation:
        """The situation with a hat or dye of this colour; "no" for none."""
        return Situation(scene, place, colour, None) if self.look == "hat" else Situation(scene, place, None, colour)

    def reference(self, scene: str) -> Situation:
        """The situation of a reference: in the centre, without hat or dye."""
        return self.situation(scene, "centre", "no")


HATTED, DYED = World(CRITTERS, "hat"), World(CRITTERS_DYE, "dye")
WORLDS = {world.name: world for world in (HATTED, DYED)}


def world_of(situation: Situation) -> World:
    return HATTED if situation.dye is None else DYED


SITUATIONS = HATTED.situations


def _is_far(colour: np.ndarray, others: np.ndarray, distance: float) -> bool:
    return bool(np.linalg.norm(others - colour, axis=1).min() > distance)


# The distance (0 to 255, Euclidean) of a critter's colours from all colours of scenes and hats: it is always visible.
_MARGIN = 55.0
_SCENE_COLOURS = np.array([c for scene in SCENES.values() for c in (scene.sky, scene.ground, scene.accent)], float)
_DYE_COLOURS = np.array([colour for colour in DYES.values() if colour is not None], float)
_WORLD_COLOURS = np.vstack([_SCENE_COLOURS, _DYE_COLOURS, [(255.0, 255.0, 255.0)]])


def figure(critter: int, situation: Situation) -> np.ndarray:
    """The critter as it looks in a situation, under any hat: uint8 [8, 8, 4] (RGB and opacity 0 or 255)."""
    if situation.dye is None:
        return sprite(critter)
    return dyed(sprite(critter, dyeable=True), situation.dye)


def dyed(figure: np.ndarray, dye: str) -> np.ndarray:
    """A figure, uint8 [..., 4], half of whose colour is that of the dye."""
    colour = DYES[dye]
    if colour is None:
        return figure
    blended = ((figure[..., :3].astype(int) + colour + 1) // 2).astype(np.uint8)
    return np.concatenate([blended, figure[..., 3:]], axis=-1)


@lru_cache(maxsize=4096)
def sprite(critter: int, *, dyeable: bool = False) -> np.ndarray:
    """The critter's sprite as uint8 [8, 8, 4] (RGB and opacity 0 or 255); a pure function of the integer.

    dyeable   its colours are also far from all scenes after any dye; it is another critter than the one without
    """
    rng = np.random.default_rng([critter, 0x0D7ED if dyeable else 0x0C417])
    body = _vivid_colour(rng, _WORLD_COLOURS, dyeable)
    marking = _vivid_colour(rng, np.vstack([_WORLD_COLOURS, body]), dyeable)

    half = np.full((SPRITE, 4), -1)  # columns from the middle outwards; -1 transparent, 0 body, 1 marking
    half[0, 1:3] = rng.choice([-1, 0, 1], size=2)  # ears: never in the middle, under the crown of a hat
    half[1, 1:3] = rng.choice([0, 1], size=2)
    half[2:, 0] = rng.integers(0, 2, size=6)  # a spine keeps the critter in one piece
    half[2:, 1] = rng.choice([0, 1], size=6)
    half[2:, 2] = rng.choice([-1, 0, 1], size=6, p=[0.3, 0.35, 0.35])
    half[3:, 3] = rng.choice([-1, 0, 1], size=5, p=[0.5, 0.25, 0.25])
    pixels = np.zeros((SPRITE, 4, 4), dtype=np.uint8)
    pixels[half == 0] = (*body, 255)
    pixels[half == 1] = (*marking, 255)
    pixels[rng.integers(EYE_ROWS[0], EYE_ROWS[-1] + 1), EYE_COLUMN] = (255, 255, 255, 255)
    return np.concatenate([pixels[:, ::-1], pixels], axis=1)


def _vivid_colour(rng: np.random.Generator, others: np.ndarray, dyeable: bool) -> np.ndarray:
    while True:
        colour = rng.integers(0, 256, size=3).astype(float)
        if colour.max() - colour.min() <= 90 or not _is_far(colour, others, _MARGIN):
            continue
        if not dyeable or all(_is_far((colour + dye) / 2, _SCENE_COLOURS, _MARGIN) for dye in _DYE_COLOURS):
            return colour


def background(scene: str) -> np.ndarray:
    """The scene without a critter, uint8 [32, 32, 3]."""
    return _enlarge(_scene_cells(scene))


@lru_cache
def _scene_cells(scene: str) -> np.ndarray:
    drawing = SCENES[scene]
    cells = np.empty((CANVAS, CANVAS, 3), dtype=np.uint8)
    cells[: drawing.horizon] = drawing.sky
    cells[drawing.horizon :] = drawing.ground
    rows, columns = zip(*drawing.accent_cells, strict=True)
    cells[list(rows), list(columns)] = drawing.accent
    return cells


# The cells of a hat in the two rows that it covers: a crown of four, a brim of eight.
HAT_SHAPE = np.array([[0, 0, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]], dtype=bool)


def draw(critter: int, situation: Situation) -> np.ndarray:
    """The true picture of a critter in a situation, uint8 [32, 32, 3]."""
    cells = _scene_cells(situation.scene).copy()
    row, column = PLACES[situation.place]
    box = cells[row : row + SPRITE, column : column + SPRITE]
    shown = figure(critter, situation)
    visible = shown[..., 3] > 0
    hat = None if situation.hat is None else HATS[situation.hat]
    if hat is not None:
        visible[:HAT_ROWS] = False
        box[:HAT_ROWS][HAT_SHAPE] = hat
    box[visible] = shown[visible, :3]
    return _enlarge(cells)


def _enlarge(cells: np.ndarray) -> np.ndarray:
    return cells.repeat(CELL, axis=0).repeat(CELL, axis=1)


def picture(critter: int, situation: Situation) -> Image.Image:
    """`draw` as a PIL image."""
    return Image.fromarray(draw(critter, situation))
