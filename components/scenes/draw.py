"""Draws a scene as a picture."""

import math

import numpy as np
from PIL import Image, ImageDraw

from sigline.components.scenes.grammar import Item, Scene

SIZE = 64
# Scenes are drawn at this scale and reduced, which smooths edges.
_SCALE = 4
_RGB = {
    "red": (214, 40, 40),
    "green": (42, 157, 80),
    "blue": (40, 90, 214),
    "yellow": (240, 200, 30),
    "purple": (140, 60, 190),
    "black": (30, 30, 30),
}
_COLOR_NOISE = 12
_RADIUS = {"small": (0.19, 0.22), "large": (0.28, 0.32)}
# Scale of the objects in a scene of two, so that they do not touch.
_PAIR_SCALE = 0.75


def draw_scene(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Returns a `SIZE` x `SIZE` RGB picture; places, shades and background vary with `rng`."""
    background = tuple(int(value) for value in rng.integers(190, 256, 3))
    canvas = Image.new("RGB", (SIZE * _SCALE, SIZE * _SCALE), background)
    drawing = ImageDraw.Draw(canvas)
    scale = 1.0 if scene.relation is None else _PAIR_SCALE
    for item, center in zip(scene.items, _centers(scene, rng), strict=True):
        radius = scale * float(rng.uniform(*_RADIUS[item.size]))
        _draw_item(drawing, item, center, radius, rng)
    return canvas.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def _centers(scene: Scene, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Returns the centres in the unit square; two objects stand as their relation says."""
    if scene.relation is None:
        x, y = rng.uniform(0.4, 0.6, 2)
        return [(float(x), float(y))]
    near, far = rng.uniform(0.25, 0.29), rng.uniform(0.71, 0.75)
    across = rng.uniform(0.4, 0.6, 2)
    first_is_near = scene.relation in ("left of", "above")
    along = (near, far) if first_is_near else (far, near)
    pairs = list(zip(along, across, strict=True))
    if scene.relation in ("above", "below"):
        pairs = [(y, x) for x, y in pairs]
    return [(float(x), float(y)) for x, y in pairs]


def _draw_item(
    drawing, item: Item, center: tuple[float, float], radius: float, rng: np.random.Generator
) -> None:
    full = SIZE * _SCALE
    x, y = center[0] * full, center[1] * full
    radius *= full
    noise = rng.integers(-_COLOR_NOISE, _COLOR_NOISE + 1, 3)
    color = tuple(int(np.clip(c + n, 0, 255)) for c, n in zip(_RGB[item.color], noise, strict=True))
    box = (x - radius, y - radius, x + radius, y + radius)
    if item.shape == "circle":
        drawing.ellipse(box, fill=color)
    elif item.shape == "ring":
        drawing.ellipse(box, outline=color, width=round(radius * 0.4))
    elif item.shape == "cross":
        arm = radius * 0.33
        drawing.rectangle((x - radius, y - arm, x + radius, y + arm), fill=color)
        drawing.rectangle((x - arm, y - radius, x + arm, y + radius), fill=color)
    else:
        drawing.polygon(_corners(item.shape, x, y, radius), fill=color)


def _corners(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    if shape == "square":
        radii, turn = [radius * 1.1] * 4, math.pi / 4
    elif shape == "triangle":
        radii, turn = [radius * 1.1] * 3, -math.pi / 2
    else:
        radii, turn = [radius * 1.15, radius * 0.48] * 5, -math.pi / 2
    angles = [turn + 2 * math.pi * i / len(radii) for i in range(len(radii))]
    return [
        (x + r * math.cos(angle), y + r * math.sin(angle))
        for r, angle in zip(radii, angles, strict=True)
    ]
