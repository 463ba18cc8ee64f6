"""The oracle reads scene, place, hat or dye, and subject from pixels. It is used to measure, never to train.

It works on drawings and on the output of a VAE or a generator: pixels are first averaged to cells, and every decision
is by nearest neighbour or by majority, with a stated tolerance. Distances are per cell, root mean square over RGB, on
pixels in [-1, 1].
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image

from customized_grpo.critters import world

TOLERANCE = 0.245  # a cell further than this from the scene belongs to the figure; critters are .249 from all scenes
PRESENCE = 0.4  # the least share of the sprite's body rows that must be figure for a critter to be there
STRAY = 6  # the most cells of figure outside its box; a second critter behind the first shows at least 10
HAT_TOLERANCE = 0.3  # a cell nearer than this to a hat's colour counts as part of that hat
HAT_SHARE = 0.75  # the least share of a hat's cells that must count


@dataclass(frozen=True)
class Reading:
    """What the oracle sees. `place` and `hat` are None if there is no critter.

    In the world of dyes `hat` means nothing, and in the world of hats `dye`.
    """

    scene: str
    place: str | None
    hat: str | None
    dye: str = "no"

    def shows(self, situation: world.Situation) -> bool:
        hat = self.hat if situation.dye is None else None
        dye = self.dye if situation.hat is None else None
        return (self.scene, self.place, hat, dye) == astuple(situation)


def pixels(picture: Image.Image) -> np.ndarray:
    """A picture of any size as the oracle reads it: uint8 [32, 32, 3], each pixel the mean of its area."""
    size = (world.SIZE, world.SIZE)
    return np.asarray(picture if picture.size == size else picture.resize(size, Image.Resampling.BOX))


def _signed(colours: np.ndarray) -> np.ndarray:
    return np.asarray(colours, dtype=np.float64) / 127.5 - 1


def _cells(picture: np.ndarray) -> np.ndarray:
    """uint8 [32, 32, 3] -> mean colour of each cell, [16, 16, 3] in [-1, 1]."""
    if picture.shape != (world.SIZE, world.SIZE, 3) or picture.dtype != np.uint8:
        raise ValueError(f"the oracle reads uint8 pictures of 32x32x3, not {picture.dtype} {picture.shape}")
    n, c = world.CANVAS, world.CELL
    return _signed(picture).reshape(n, c, n, c, 3).mean(axis=(1, 3))


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(((a - b) ** 2).mean(axis=-1))


@lru_cache
def _scenes() -> tuple[tuple[str, ...], np.ndarray]:
    return tuple(world.SCENES), np.stack([_cells(world.background(scene)) for scene in world.SCENES])


def read(picture: np.ndarray) -> Reading:
    """Scene, place, hat and dye of a picture, uint8 [32, 32, 3].

    The scene is the one that the cells are nearest to; distances are capped, so that the figure does not count. The
    place is the box that holds the figure. A hat is a brim and a crown of one of the three colours. The dye is what
    makes the whites of the eyes look as they do.
    """
    cells = _cells(picture)
    names, scenes = _scenes()
    distances = _distance(cells[None], scenes)
    index = int(np.minimum(distances, TOLERANCE).sum(axis=(1, 2)).argmin())
    figure = distances[index] > TOLERANCE
    place = _place(figure)
    if place is None:
        return Reading(names[index], None, None)
    return Reading(names[index], place, _hat(cells, place), _dye_of_eyes(cells, place))


def _place(figure: np.ndarray) -> str | None:
    """The box that holds most of the figure; None if there is no figure, or if too much of it is outside the box."""
    body_shares = {name: figure[_body(corner)].mean() for name, corner in world.PLACES.items()}
    cells = {name: figure[_box(corner)].sum() for name, corner in world.PLACES.items()}
    best = max(cells, key=lambda name: (cells[name], body_shares[name]))
    return best if body_shares[best] >= PRESENCE and figure.sum() - cells[best] <= STRAY else None


def _box(corner: tuple[int, int]) -> tuple[slice, slice]:
    row, column = corner
    return slice(row, row + world.SPRITE), slice(column, column + world.SPRITE)


def _body(corner: tuple[int, int]) -> tuple[slice, slice]:
    rows, columns = _box(corner)
    return slice(rows.start + world.HAT_ROWS, rows.stop), columns


def _hat(cells: np.ndarray, place: str) -> str:
    row, column = world.PLACES[place]
    top = cells[row : row + world.HAT_ROWS, column : column + world.SPRITE][world.HAT_SHAPE]
    colours = {name: _signed(np.array(rgb)) for name, rgb in world.HATS.items() if rgb is not None}
    shares = {name: (_distance(top, colour) < HAT_TOLERANCE).mean() for name, colour in colours.items()}
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] >= HAT_SHARE else "no"


def _dye_of_eyes(cells: np.ndarray, place: str) -> str:
    row, column = world.PLACES[place]
    middle = column + world.SPRITE // 2
    columns = [middle - 1 - world.EYE_COLUMN, middle + world.EYE_COLUMN]
    pairs = cells[[[row + eye] for eye in world.EYE_ROWS], columns]  # [rows, 2, 3]

    def distance(dye: str) -> float:
        white = world.dyed(np.full(4, 255, dtype=np.uint8), dye)[:3]
        return float(_distance(pairs, _signed(white)).mean(axis=1).min())

    return min(world.DYES, key=distance)


def identity_error(picture: np.ndarray, critter: int, dye: str | None = None) -> float:
    """Mean squared error of the critter's body over its own cells, at the best alignment, on pixels in [-1, 1].

    0 on every true picture of the critter, in any scene, at any place, under any hat. With a dye (which may be "no"):
    of the critter of the world of dyes, after this dye.
    """
    cells = _cells(picture)
    body = world.figure(critter, world.Situation("", "", dye=dye))[world.BODY]
    opaque = body[..., 3] > 0
    target = _signed(body[..., :3])[opaque]
    windows = np.lib.stride_tricks.sliding_window_view(cells, body.shape[:2], axis=(0, 1))  # [11, 9, 3, 6, 8]
    candidates = windows.transpose(0, 1, 3, 4, 2)[:, :, opaque]
    return float(((candidates - target) ** 2).mean(axis=(2, 3)).min())


def known_by(picture: np.ndarray, critter: int, of: world.World) -> tuple[float, str | None]:
    """(error, dye): under which dye of a world the critter is nearest, and its `identity_error` after this dye.

    A dye halves all differences between colours, so after one other critters are nearer: about 1 in 100 of them passes
    for this one, and without a dye none (the gates of the build have both figures).
    """
    return min(((identity_error(picture, critter, dye), dye) for dye in of.dyes), key=lambda pair: pair[0])


def judge(picture: np.ndarray, critter: int, situation: world.Situation, threshold: float) -> tuple[bool, bool]:
    """(identity right, prompt right): the oracle's verdict; `threshold` is the largest accepted `identity_error`.

    A critter is itself under any dye. The dye is read from the whole body if it is this critter, else from the eyes.
    """
    error, dye = known_by(picture, critter, world.world_of(situation))
    reading, same = read(picture), error <= threshold
    if same and dye is not None:
        reading = replace(reading, dye=dye)
    return same, reading.shows(situation)
