"""Critters: a world of 32x32 pixel-art pictures whose content is known exactly, because it is drawn by rule.

A *critter* is a mirrored 8x8 sprite of two colours with white eyes. There is one for every integer, so identities
never run out. A *situation* puts it into a scene, at a place, with or without a hat. Everything is drawn in cells of
2x2 pixels, and sprites start at multiples of 4 pixels (one token of the built-in transformer).

A hat replaces the two top rows of the sprite, so rows 2 to 7 (`BODY`) are visible in every picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from PIL import Image

SIZE = 32  # pixels
CELL = 2  # pixels per cell
CANVAS = SIZE // CELL  # cells
SPRITE = 8  # cells
HAT_ROWS = 2  # cells; a hat covers the ears
BODY = slice(HAT_ROWS, SPRITE)  # sprite rows that no hat covers

RGB = tuple[int, int, int]

PLACES: dict[str, tuple[int, int]] = {  # top left cell (row, column) of the sprite
    "centre": (4, 4),
    "left": (4, 0),
    "right": (4, 8),
    "top": (0, 4),
    "bottom": (8, 4),
}
HATS: dict[str, RGB | None] = {
    "no": None,
    "red": (220, 30, 40),
    "yellow": (250, 215, 40),
    "blue": (40, 70, 225),
}


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
    """What a prompt asks for: scene, place and hat by name."""

    scene: str
    place: str
    hat: str

    @property
    def prompt(self) -> str:
        where = "in the centre" if self.place == "centre" else f"at the {self.place}"
        hat = "without a hat" if self.hat == "no" else f"wearing a {self.hat} hat"
        return f"a critter {SCENES[self.scene].phrase}, {where}, {hat}"


SITUATIONS: tuple[Situation, ...] = tuple(Situation(*names) for names in product(SCENES, PLACES, HATS))


def _is_far(colour: np.ndarray, others: np.ndarray, distance: float) -> bool:
    return bool(np.linalg.norm(others - colour, axis=1).min() > distance)


# The distance (0 to 255, Euclidean) of a critter's colours from all colours of scenes and hats: it is always visible.
_MARGIN = 55.0
_WORLD_COLOURS = np.array(
    [colour for scene in SCENES.values() for colour in (scene.sky, scene.ground, scene.accent)]
    + [colour for colour in HATS.values() if colour is not None]
    + [(255, 255, 255)],
    dtype=float,
)


@lru_cache(maxsize=4096)
def sprite(critter: int) -> np.ndarray:
    """The critter's sprite as uint8 [8, 8, 4] (RGB and opacity 0 or 255); a pure function of the integer."""
    rng = np.random.default_rng([critter, 0x0C417])
    body = _vivid_colour(rng, _WORLD_COLOURS)
    marking = _vivid_colour(rng, np.vstack([_WORLD_COLOURS, body]))

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
    pixels[rng.integers(3, 5), 1] = (255, 255, 255, 255)  # eye
    return np.concatenate([pixels[:, ::-1], pixels], axis=1)


def _vivid_colour(rng: np.random.Generator, others: np.ndarray) -> np.ndarray:
    while True:
        colour = rng.integers(0, 256, size=3).astype(float)
        if colour.max() - colour.min() > 90 and _is_far(colour, others, _MARGIN):
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
    figure = sprite(critter)
    visible = figure[..., 3] > 0
    hat = HATS[situation.hat]
    if hat is not None:
        visible[:HAT_ROWS] = False
        box[:HAT_ROWS][HAT_SHAPE] = hat
    box[visible] = figure[visible, :3]
    return _enlarge(cells)


def _enlarge(cells: np.ndarray) -> np.ndarray:
    return cells.repeat(CELL, axis=0).repeat(CELL, axis=1)


def picture(critter: int, situation: Situation) -> Image.Image:
    """`draw` as a PIL image."""
    return Image.fromarray(draw(critter, situation))
