"""Sprites and textures of the embedded dataset "shapes".

Outlines are given as inside tests on the unit disk, so a shape of any size, stretch and rotation is one vectorised
expression. Colours and textures never depend on the class: only the outline, and what shows inside it, tells the
classes apart.

Legend: h, w height and width of a sprite in pixels; H, W height and width of an image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

_SUPERSAMPLING = 2  # inside tests per pixel and direction, for soft edges

_RING_HOLE = 0.6
_SQUARE_HALF_SIDE = 0.82
_TRIANGLE_APOTHEM = 0.5
_CROSS_HALF_LENGTH, _CROSS_HALF_WIDTH = 0.95, 0.3
_STAR_POINTS, _STAR_INNER_RADIUS = 5, 0.4


def _disk(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x**2 + y**2 <= 1


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    radius_squared = x**2 + y**2
    return (radius_squared <= 1) & (radius_squared >= _RING_HOLE**2)


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) <= _SQUARE_HALF_SIDE


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    slanted = np.abs(x) * np.sqrt(0.75) - y * 0.5
    return np.maximum(slanted, y) <= _TRIANGLE_APOTHEM


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    half_sector = np.pi / _STAR_POINTS
    angle = np.arctan2(x, -y) % (2 * half_sector)
    angle = np.minimum(angle, 2 * half_sector - angle)  # 0 at a tip, half_sector at a notch
    radius = np.hypot(x, y)
    # Within half a sector the edge is the straight line from the tip (1, 0) to the notch.
    notch_x, notch_y = _STAR_INNER_RADIUS * np.cos(half_sector), _STAR_INNER_RADIUS * np.sin(half_sector)
    return notch_y * (radius * np.cos(angle) - 1) + (1 - notch_x) * radius * np.sin(angle) <= 0


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    return (np.maximum(x, y) <= _CROSS_HALF_LENGTH) & (np.minimum(x, y) <= _CROSS_HALF_WIDTH)


INSIDE_TESTS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disk": _disk,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
}
"""Class name -> test of which points belong to the upright shape; x right, y down, about within the unit disk."""


@dataclass(frozen=True)
class Sprite:
    """Something drawn once and then put somewhere.

    ``alpha``: (h, w) float32 in [0, 1]; ``colours``: (h, w, 3) float32, about 0..255.
    """

    alpha: np.ndarray
    colours: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """(h, w) bool: the pixels at least half covered."""
        return self.alpha >= 0.5


def shape_alpha(name: str, *, diameter: float, rotation: float = 0.0, stretch: float = 1.0) -> np.ndarray:
    """Coverage (h, w) in [0, 1] of one shape, cropped to its pixels.

    ``diameter``: of the enclosing circle, in pixels. ``rotation``: clockwise, in radians. ``stretch``: width over
    height before the rotation, at constant area.
    """
    side = int(np.ceil(diameter * max(stretch, 1 / stretch) ** 0.5)) + 2
    samples = side * _SUPERSAMPLING
    offsets = ((np.arange(samples) + 0.5) / _SUPERSAMPLING - side / 2) * (2 / diameter)
    x, y = offsets[None, :], offsets[:, None]
    cos, sin = np.cos(rotation), np.sin(rotation)
    inside = INSIDE_TESTS[name]((cos * x + sin * y) / stretch**0.5, (cos * y - sin * x) * stretch**0.5)
    # (h * s, w * s) -> (h, s, w, s) -> (h, w)
    alpha = inside.reshape(side, _SUPERSAMPLING, side, _SUPERSAMPLING).mean(axis=(1, 3), dtype=np.float32)
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def outline_of(mask: np.ndarray) -> np.ndarray:
    """(h, w) bool: the pixels of ``mask`` with a 4-neighbour outside of it."""
    padded = np.pad(mask, 1)
    interior = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~interior


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """(height, width) float32 in [-1, 1]: random values on a grid of about ``cell`` pixels, interpolated between."""
    grid = rng.uniform(-1, 1, size=(int(height / cell) + 2, int(width / cell) + 2)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.BILINEAR))


def _stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    angle, period, phase = rng.uniform(0, np.pi), rng.uniform(7, 24), rng.uniform(0, 2 * np.pi)
    along = np.arange(width)[None, :] * np.cos(angle) + np.arange(height)[:, None] * np.sin(angle)
    return np.clip(2 * np.sin(along * (2 * np.pi / period) + phase), -1, 1)


def _checks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    period, shift_x, shift_y = rng.uniform(6, 18), rng.uniform(0, 18), rng.uniform(0, 18)
    columns = (np.arange(width) + shift_x) // period
    rows = (np.arange(height) + shift_y) // period
    return ((columns[None, :] + rows[:, None]) % 2) * 2 - 1


def _gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return np.linspace(-1, 1, width)[None, :] * np.cos(angle) + np.linspace(-1, 1, height)[:, None] * np.sin(angle)


def _blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return smooth_noise(rng, height, width, cell=rng.uniform(8, 30))


_PATTERNS = (_stripes, _checks, _gradient, _blobs)


def texture(rng: np.random.Generator, height: int, width: int, *, base: np.ndarray, amplitude: float) -> np.ndarray:
    """(height, width, 3) float32 around the colour ``base`` (3,): a random pattern in a random colour, blobs and grain.

    ``amplitude``: the largest deviation of the pattern in each channel, of 255. The values may leave 0..255.
    """
    pattern = _PATTERNS[rng.integers(len(_PATTERNS))](rng, height, width).astype(np.float32)
    direction = (rng.uniform(-1, 1, size=3) * amplitude).astype(np.float32)
    shade = smooth_noise(rng, height, width, cell=rng.uniform(12, 40)) * (amplitude / 2)
    grain = rng.standard_normal((height, width), dtype=np.float32) * (amplitude / 6)
    colours = pattern[:, :, None] * direction
    colours += (shade + grain)[:, :, None]
    colours += base.astype(np.float32)
    return colours
