"""What figures are drawn with: discs and hulls, colours, background, occluders, camera."""

from __future__ import annotations

import math
from types import SimpleNamespace

import cv2
import numpy as np

OCCLUDER = 255
"""Number of things in front of the person in the map of parts."""

_AXES = dict(zip("xyz", np.eye(3)))
_SHIFT = 4  # OpenCV's fixed-point bits: drawing to 1/16 pixel
CIRCLE = np.exp(0.125j * np.pi * np.arange(16)).view(float).reshape(16, 2)
_HAIR_COLOURS = "1c1818", "3e2a1e", "68462a", "c49e60", "96928e", "8c4224"


def turn(frame, **degrees: float) -> np.ndarray:
    """The frame after right-handed rotations about its own axes, in the order given."""
    for axis, angle in degrees.items():
        frame = frame @ cv2.Rodrigues(_AXES[axis] * math.radians(angle))[0]
    return frame


def style(rng) -> SimpleNamespace:
    """RGB colours and cut of the clothes; reach counts the limb segments they cover."""
    shade = rng.random() ** 1.5 * np.array([151, 150, 140])
    return SimpleNamespace(
        skin=(243, 208, 182) - shade + rng.normal(0, 5, 3),
        hair=list(bytes.fromhex(rng.choice(_HAIR_COLOURS))) + rng.normal(0, 8, 3),
        shirt=colour(rng),
        trousers=colour(rng) * 0.75,
        shoes=colour(rng) * 0.6,
        sleeve_reach=(0.0, 0.6, 0.6, 1.95)[rng.integers(4)],
        leg_reach=(0.75, 1.97, 1.97)[rng.integers(3)],
        long_hair=rng.random() < 0.35,
    )


def colour(rng):
    """A colour of cloth, paint or plants."""
    grey = rng.uniform(30, 240)
    return grey + rng.uniform(0, 0.65) * (rng.uniform(0, 255, 3) - grey)


def hull(discs) -> np.ndarray:
    """Convex hull of discs as a fixed-point polygon."""
    edges = np.concatenate([centre + radius * CIRCLE for centre, radius in discs])
    points = np.rint(edges * (1 << _SHIFT)).astype(np.int32)
    return cv2.convexHull(points) if len(discs) > 1 else points


def paint(image, parts, shapes, light) -> None:
    """Shaded hulls `(discs, colour, part)`; rims first, or every joint shows a ring."""
    for discs, colour, part in shapes:
        polygon = hull(discs)
        cv2.fillConvexPoly(image, polygon, 0.74 * colour, cv2.LINE_AA, _SHIFT)
        cv2.fillConvexPoly(parts, polygon, part, cv2.LINE_8, _SHIFT)
    for discs, colour, _ in shapes:
        lit = hull([(centre + 0.2 * r * light, 0.7 * r) for centre, r in discs])
        cv2.fillConvexPoly(image, lit, colour, cv2.LINE_AA, _SHIFT)


def _thing(rng, centre, reach) -> np.ndarray:
    """A random box, egg or bar around a point, as a fixed-point polygon."""
    frame = turn(np.eye(3), z=rng.choice((0, rng.uniform(0, 90))))[:2, :2]
    wide, high = rng.uniform(0.2, 1.2, 2) * reach
    if rng.random() < 0.5:
        corners = [(x, y) for x in (-wide, wide) for y in (-high, high)]
        return hull([(centre + corner @ frame, 0.5) for corner in corners])
    along = wide * frame[0]
    return hull([(centre - along, wide / 2), (centre + along, high / 2)])


def background(rng, size, cluttered) -> np.ndarray:
    """A smooth gradient; cluttered: floor, things, limb-like bars, some blur."""
    extent, reach = np.array(size[::-1]), min(size)
    mix = colour(rng) + rng.normal(0, 20, (3, 3, 1)) + rng.normal(0, 6, (3, 3, 3))
    mix = mix.clip(0, 255).astype(np.uint8)
    image = cv2.resize(mix, size[::-1], interpolation=cv2.INTER_CUBIC)
    if not cluttered:
        return image
    if rng.random() < 0.5:
        image[int(size[0] * rng.uniform(0.55, 0.95)) :] = colour(rng)
    for _ in range(rng.integers(3, 14)):
        shape = _thing(rng, rng.random(2) * extent, reach * rng.uniform(0.04, 0.3))
        cv2.fillConvexPoly(image, shape, colour(rng), cv2.LINE_AA, _SHIFT)
    for _ in range(rng.integers(0, 6)):
        dress, thick = style(rng), reach * rng.uniform(0.015, 0.05)
        steps = np.vstack([rng.random(2) * extent, rng.normal(0, 0.11 * reach, (2, 2))])
        discs = list(zip(np.cumsum(steps, axis=0), thick * np.array([1.2, 1, 0.8])))
        bars = [(discs[:2], dress.shirt, 1), (discs[1:], dress.skin, 1)]
        paint(image, np.zeros((1, 1), np.uint8), bars, CIRCLE[0])
    if rng.random() < 0.4:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.8, 2.5))
    return image


def occlude(rng, image, parts, joints, reach) -> None:
    """One or two objects in front of joints below the head, given in COCO's order."""
    for joint in rng.integers(5, 17, rng.integers(1, 3)):
        where = joints[joint] + rng.normal(0, 0.1 * reach, 2)
        shape = _thing(rng, where, reach * rng.uniform(0.2, 0.6))
        cv2.fillConvexPoly(image, shape, colour(rng), cv2.LINE_AA, _SHIFT)
        cv2.fillConvexPoly(parts, shape, OCCLUDER, cv2.LINE_8, _SHIFT)


def camera(rng, image) -> np.ndarray:
    """Exposure, colour cast and sensor noise."""
    level = np.linspace(0, 1, 256)[:, None] ** rng.uniform(0.75, 1.35)
    image = cv2.LUT(image, (level * rng.uniform(195, 256, 3)).astype(np.uint8)[None])
    raw = np.frombuffer(rng.bytes(image.size), np.uint8).reshape(image.shape)
    noise = np.linspace(-1, 1, 256) * rng.uniform(1, 16)
    up, down = (np.clip(sign * noise, 0, 255).astype(np.uint8) for sign in (1, -1))
    return cv2.subtract(cv2.add(image, cv2.LUT(raw, up)), cv2.LUT(raw, down))
