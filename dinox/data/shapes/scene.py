"""One image of the embedded dataset "shapes" and its objects: what is where, in front of what.

Objects are placed front to back. What hides an object (objects placed before, the image border) is then known the
moment it is placed, so a candidate position is accepted or refused by the exact share of hidden pixels, and nothing
placed later changes it.

Legend: h, w height and width of a sprite in pixels; H, W height and width of an image.
"""

from dataclasses import dataclass

import numpy as np

from dinox.data.shapes.drawing import INSIDE_TESTS, Sprite, outline_of, shape_alpha, texture

CLASS_NAMES = tuple(INSIDE_TESTS)

MAX_OBJECTS = 12
MIN_VISIBLE_PIXELS = 50
"""An object with fewer visible pixels is neither drawn nor annotated."""
MIN_SIZE = 96
"""Smallest image size: below it large objects would be no larger than small ones."""

# Diameters of the enclosing circles, in pixels. The shares here and below are tuned for the statistics that
# tests/data/test_shapes.py asserts.
_SMALL_SHARE = 0.36
_SMALL_DIAMETERS = (21.0, 30.0)
_LARGE_DIAMETERS = (42.0, 90.0 / 192.0)  # from pixels, to a share of the image size
_MAX_ROTATION = np.deg2rad(25)
_MAX_STRETCH = 1.3

# This share of the objects is asked to be hidden to a degree within _HIDDEN_RANGE, all others within _CLEAR_RANGE.
_HIDDEN_SHARE = 0.22
_HIDDEN_RANGE = (0.27, 0.42)
_CLEAR_RANGE = (0.0, 0.12)
_BORDER_SHARE = 0.4  # of the hidden objects, asked to be hidden by the border rather than by an object in front
_PLACING_TRIES = 60

# Objects vary less in colour than backgrounds: then the mean over a box varies by about the same amount whether the
# shape fills its box or leaves half of it to the background, and tells nothing about the class.
_BACKGROUND_COLOURS, _OBJECT_COLOURS = (15.0, 240.0), (45.0, 210.0)
_COLOUR_DISTANCE = 120.0  # Euclidean, of 255, between an object and the background and other objects
_BACKGROUND_AMPLITUDE, _OBJECT_AMPLITUDE = 11.0, 5.0
_OUTLINE_SHADE = 90.0

_CROWD_GRID = (4, 6)  # rows and columns of a crowd: at least, and fewer than
_CROWD_CELL = 13  # holds the widest tiny shape, rotated
_CROWD_DIAMETERS = (7.5, 9.5)


@dataclass(frozen=True)
class SceneObject:
    """One annotated object.

    ``class_index``: into ``CLASS_NAMES``; ``visible``: (H, W) bool; ``full_area``: its pixels if nothing hid it.
    """

    class_index: int
    visible: np.ndarray
    full_area: int
    is_crowd: bool = False


@dataclass(frozen=True)
class Scene:
    """``image``: (H, W, 3) uint8 RGB; ``background``: the same without objects. The visible masks are disjoint."""

    image: np.ndarray
    background: np.ndarray
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True)
class _Placed:
    sprite: Sprite
    top: int
    left: int
    object: SceneObject

    @property
    def center(self) -> tuple[float, float]:
        h, w = self.sprite.alpha.shape
        return self.top + h / 2, self.left + w / 2


class _Stage:
    """The image while it is being filled: which pixels are taken, and the sprites so far, front to back."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        # Everything outside of the image counts as taken, so that border and objects hide in the same way.
        self.margin = max(height, width)
        self.taken = np.ones((height + 2 * self.margin, width + 2 * self.margin), dtype=bool)
        self.inside(self.taken)[:] = False
        self.placed: list[_Placed] = []

    def inside(self, padded: np.ndarray) -> np.ndarray:
        """(H + 2 margins, W + 2 margins, ...) -> (H, W, ...) view."""
        return padded[self.margin : self.margin + self.height, self.margin : self.margin + self.width]

    def window(self, padded: np.ndarray, sprite: Sprite, top: int, left: int) -> np.ndarray:
        """View (h, w, ...) of ``padded`` (H + 2 margins, W + 2 margins, ...) under a sprite put at (top, left)."""
        h, w = sprite.alpha.shape
        return padded[self.margin + top : self.margin + top + h, self.margin + left : self.margin + left + w]

    def hidden_share(self, sprite: Sprite, top: int, left: int) -> float:
        """Share of the sprite's pixels that would be hidden at (top, left); 1 where too few would stay visible."""
        mask = sprite.mask
        area = np.count_nonzero(mask)
        hidden = np.count_nonzero(mask & self.window(self.taken, sprite, top, left))
        return hidden / area if area - hidden >= MIN_VISIBLE_PIXELS else 1.0

    def place(self, sprite: Sprite, top: int, left: int, *, class_index: int, is_crowd: bool = False) -> None:
        """Put the sprite behind everything placed before."""
        taken = self.window(self.taken, sprite, top, left)
        visible = np.zeros_like(self.taken)
        self.window(visible, sprite, top, left)[:] = sprite.mask & ~taken
        taken |= sprite.mask
        scene_object = SceneObject(
            class_index, self.inside(visible).copy(), int(np.count_nonzero(sprite.mask)), is_crowd
        )
        self.placed.append(_Placed(sprite, top, left, scene_object))

    def paint(self, background: np.ndarray) -> np.ndarray:
        """Composite the sprites over ``background`` (H, W, 3) float32, back to front, into (H, W, 3) uint8."""
        canvas = np.zeros((*self.taken.shape, 3), dtype=np.float32)
        self.inside(canvas)[:] = background
        for item in reversed(self.placed):
            under = self.window(canvas, item.sprite, item.top, item.left)
            under += item.sprite.alpha[:, :, None] * (item.sprite.colours - under)
        return to_uint8(self.inside(canvas))


def to_uint8(colours: np.ndarray) -> np.ndarray:
    """Round and clip colours of any shape to uint8."""
    return np.clip(np.rint(colours), 0, 255).astype(np.uint8)


def make_scene(rng: np.random.Generator, *, size: int, empty: bool = False, crowd: bool = False) -> Scene:
    """Draw one scene of ``size`` x ``size`` pixels.

    It has 1 to 12 objects, or none if ``empty``, and one crowd more if ``crowd``.
    """
    base = rng.uniform(*_BACKGROUND_COLOURS, size=3)
    background = texture(rng, size, size, base=base, amplitude=_BACKGROUND_AMPLITUDE)
    stage, palette = _Stage(size, size), [base]
    if not empty:
        if crowd:
            _add_crowd(rng, stage, palette)
        for _ in range(_sample_object_count(rng)):
            _add_object(rng, stage, palette, size=size)
    return Scene(stage.paint(background), to_uint8(background), tuple(item.object for item in stage.placed))


def _sample_object_count(rng: np.random.Generator) -> int:
    """1 .. MAX_OBJECTS with a mean of 5.6: below uniform's 6.5, since full images have no place for clear objects."""
    return 1 + int(MAX_OBJECTS * rng.uniform() ** 1.3)


def _add_object(rng: np.random.Generator, stage: _Stage, palette: list[np.ndarray], *, size: int) -> None:
    """Place one object, or none if the image is too full for it."""
    class_index = int(rng.integers(len(CLASS_NAMES)))
    alpha = shape_alpha(
        CLASS_NAMES[class_index],
        diameter=_sample_diameter(rng, size),
        rotation=rng.uniform(-_MAX_ROTATION, _MAX_ROTATION),
        stretch=_MAX_STRETCH ** rng.uniform(-1, 1),
    )
    sprite = _fill(rng, alpha, palette)
    corner = _find_corner(rng, stage, sprite)
    if corner is not None:
        stage.place(sprite, *corner, class_index=class_index)


def _sample_diameter(rng: np.random.Generator, size: int) -> float:
    if rng.uniform() < _SMALL_SHARE:
        return rng.uniform(*_SMALL_DIAMETERS)
    smallest, largest_share = _LARGE_DIAMETERS
    return rng.uniform(smallest, largest_share * size)


def _add_crowd(rng: np.random.Generator, stage: _Stage, palette: list[np.ndarray]) -> None:
    """Place a cluster of tiny shapes of one class, annotated as one crowd region."""
    class_index = int(rng.integers(len(CLASS_NAMES)))
    rows, columns = rng.integers(*_CROWD_GRID, size=2)
    alpha = np.zeros((rows * _CROWD_CELL, columns * _CROWD_CELL), dtype=np.float32)
    for row in range(rows):
        for column in range(columns):
            tiny = shape_alpha(
                CLASS_NAMES[class_index], diameter=rng.uniform(*_CROWD_DIAMETERS), rotation=rng.uniform(0, 2 * np.pi)
            )
            h, w = tiny.shape
            top = row * _CROWD_CELL + rng.integers(_CROWD_CELL - h + 1)
            left = column * _CROWD_CELL + rng.integers(_CROWD_CELL - w + 1)
            alpha[top : top + h, left : left + w] = tiny
    sprite = _fill(rng, alpha, palette)
    stage.place(sprite, *_random_corner_inside(rng, stage, sprite), class_index=class_index, is_crowd=True)


def _fill(rng: np.random.Generator, alpha: np.ndarray, palette: list[np.ndarray]) -> Sprite:
    """A textured sprite, outlined, in a colour well apart from those in ``palette``, which gains it."""
    candidates = rng.uniform(*_OBJECT_COLOURS, size=(24, 3))
    distances = np.linalg.norm(candidates[:, None] - np.stack(palette)[None], axis=2)  # (candidates, palette)
    # The first that is far enough from all, else the farthest.
    base = candidates[np.argmax(np.minimum(distances.min(axis=1), _COLOUR_DISTANCE))]
    palette.append(base)
    colours = texture(rng, *alpha.shape, base=base, amplitude=_OBJECT_AMPLITUDE)
    colours[outline_of(alpha >= 0.5)] += _OUTLINE_SHADE * rng.choice((-1, 1))
    return Sprite(alpha, colours)


def _find_corner(rng: np.random.Generator, stage: _Stage, sprite: Sprite) -> tuple[int, int] | None:
    """(top, left) at which the sprite is as clear, or as hidden, as chance asks for; None if no try finds one."""
    propose, (least, most) = _random_corner_inside, _CLEAR_RANGE
    if rng.uniform() < _HIDDEN_SHARE:
        has_objects = any(not item.object.is_crowd for item in stage.placed)
        propose = _random_corner_behind if has_objects and rng.uniform() >= _BORDER_SHARE else _random_corner_at_border
        least, most = _HIDDEN_RANGE
    for _ in range(_PLACING_TRIES):
        top, left = propose(rng, stage, sprite)
        if least <= stage.hidden_share(sprite, top, left) <= most:
            return top, left
    return None


def _random_corner_inside(rng: np.random.Generator, stage: _Stage, sprite: Sprite) -> tuple[int, int]:
    h, w = sprite.alpha.shape
    return int(rng.integers(stage.height - h + 1)), int(rng.integers(stage.width - w + 1))


def _random_corner_at_border(rng: np.random.Generator, stage: _Stage, sprite: Sprite) -> tuple[int, int]:
    h, w = sprite.alpha.shape
    top, left = _random_corner_inside(rng, stage, sprite)
    across = rng.uniform(0.2, 0.6)  # share of the sprite's box beyond the border
    if rng.uniform() < 0.5:
        top = int(rng.choice((-across * h, stage.height - (1 - across) * h)))
    else:
        left = int(rng.choice((-across * w, stage.width - (1 - across) * w)))
    return top, left


def _random_corner_behind(rng: np.random.Generator, stage: _Stage, sprite: Sprite) -> tuple[int, int]:
    h, w = sprite.alpha.shape
    in_front = [item for item in stage.placed if not item.object.is_crowd]
    other = in_front[rng.integers(len(in_front))]
    angle = rng.uniform(0, 2 * np.pi)
    distance = rng.uniform(0.2, 0.8) * (max(h, w) + max(other.sprite.alpha.shape)) / 2
    center_y, center_x = other.center
    # Objects stay within the margin of the stage: clip the centre to the image.
    center_y = np.clip(center_y + distance * np.sin(angle), 0, stage.height)
    center_x = np.clip(center_x + distance * np.cos(angle), 0, stage.width)
    return int(center_y - h / 2), int(center_x - w / 2)
