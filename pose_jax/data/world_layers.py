"""The layers of the worlds: one drawing per region, and how they cover each other."""

from __future__ import annotations

import functools
from typing import Any

import cv2
import numpy as np
from jaxtyping import Int, UInt8

from pose_jax.data.world_figures import Scene, unit
from pose_jax.data.world_rules import BACKGROUND

_SHIFT = 4  # Fractional bits of OpenCV's coordinates.
_MARGIN = 3.0  # Around a drawn part, what still belongs to its region; pixels of 96.


class Pen:
    """Draws into one layer, in pixels of 96, anti-aliased to 1/16 pixel."""

    def __init__(self, size: int):
        self.scale = size / 96
        self.colour = np.zeros((size, size, 3), np.uint8)
        self.alpha = np.zeros((size, size), np.uint8)

    def _fixed(self, point) -> tuple[int, int]:
        x, y = ((np.asarray(point) + 0.5) * self.scale - 0.5) * 2**_SHIFT
        return round(x), round(y)

    def disc(self, centre, radius: float, colour) -> None:
        """A filled circle."""
        self._over([centre], radius, colour, [])

    def capsule(self, start, end, radius: float, colour) -> None:
        """A limb: a rectangle with round ends."""
        start, end = np.asarray(start, float), np.asarray(end, float)
        along = end - start
        across = np.array([-along[1], along[0]])
        across = across / max(np.linalg.norm(across), 1e-6) * radius
        corners = [start + across, end + across, end - across, start - across]
        self._over([start, end], radius, colour, corners)

    def _over(self, centres, radius: float, colour, corners) -> None:
        """Paints discs and one convex polygon over what is there."""
        mask = np.zeros_like(self.alpha)
        if corners:
            polygon = np.array([self._fixed(c) for c in corners], np.int32)
            cv2.fillConvexPoly(mask, polygon, 255, cv2.LINE_AA, _SHIFT)
        reach = round(radius * self.scale * 2**_SHIFT)
        for centre in centres:
            cv2.circle(mask, self._fixed(centre), reach, 255, -1, cv2.LINE_AA, _SHIFT)
        x, y, width, height = cv2.boundingRect(mask)
        where = slice(y, y + height), slice(x, x + width)
        mask = mask[where]
        share = (mask / 255.0)[..., None]
        below, alpha = self.colour[where], self.alpha[where]
        mixed = np.rint(below * (1 - share) + np.asarray(colour) * share)
        # On nothing, the colour is all there is; an edge is a matter of opacity.
        fresh = (alpha == 0)[..., None] & (share > 0)
        below[:] = np.where(fresh, np.asarray(colour, float), mixed).astype(np.uint8)
        np.maximum(alpha, mask, out=alpha)

    def finish(self) -> np.ndarray:
        return np.concatenate([self.colour, self.alpha[..., None]], -1)


def _rgb(layout, latent, contrast: float = 1.0) -> np.ndarray:
    """The figure's colour in this limb's shade."""
    hsv = np.array([(layout["hue"] + latent["hue"]) % 180, 140, latent["value"]])
    pixel = np.rint(hsv).astype(np.uint8).reshape(1, 1, 3)
    colour = cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].astype(float)
    return 110 + contrast * (colour - 110)


def _paint_half(pen: Pen, scene: Scene, places, world, *, right: bool) -> None:
    name = BACKGROUND[int(right)]
    rng = np.random.default_rng(scene.latents[name]["seed"])
    size = pen.alpha.shape[0]
    coarse = rng.uniform(45, 150, (5, 5, 3)).astype(np.float32)
    fine = rng.normal(0, 9, (size, size, 1))
    texture = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    pen.colour[:] = np.clip(texture + fine, 0, 255)
    for _ in range(int(rng.integers(2, 6))):
        start = rng.uniform(0, 96, 2)
        end = start + unit(rng.uniform(0, 2 * np.pi)) * rng.uniform(6, 26)
        hue = int(rng.integers(180))
        pixel = np.array([[[hue, 140, rng.integers(120, 245)]]], np.uint8)
        colour = cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0]
        pen.capsule(start, end, rng.uniform(0.8, 2.6), colour)
    middle = size // 2
    pen.alpha[:] = 0
    pen.alpha[:, middle if right else 0 : size if right else middle] = 255


def _paint_line(pen: Pen, scene: Scene, places, world) -> None:
    latent = scene.latents["line"]
    y = latent["height"]
    pen.capsule((-4, y), (100, y), 1.1, latent["shade"])


def _paint_leg(pen: Pen, scene: Scene, places, world, *, side: str) -> None:
    contrast = world.faint if side == "right" else 1.0
    colour = _rgb(scene.layout, scene.latents[f"{side}_leg"], contrast)
    joints = [places[f"{side}_{part}"] for part in ("hip", "knee", "ankle")]
    pen.capsule(joints[0], joints[1], 3.2, colour)
    if side == "right" or world.left_shank == "drawn":
        pen.capsule(joints[1], joints[2], 2.5, 0.9 * colour)


def _paint_torso(pen: Pen, scene: Scene, places, world) -> None:
    colour = _rgb(scene.layout, scene.latents["torso"])
    top = (places["right_shoulder"] + places["left_shoulder"]) / 2
    bottom = (places["right_hip"] + places["left_hip"]) / 2
    pen.capsule(top, bottom, 5.5, colour)
    pen.capsule(places["right_shoulder"], places["left_shoulder"], 2.5, colour)


def _paint_arm(pen: Pen, scene: Scene, places, world, *, side: str) -> None:
    colour = _rgb(scene.layout, scene.latents[f"{side}_arm"])
    joints = [places[f"{side}_{part}"] for part in ("shoulder", "elbow", "wrist")]
    pen.capsule(joints[0], joints[1], 2.7, colour)
    drawn = world.wrist if side == "right" else world.left_forearm
    if drawn == "drawn":
        pen.capsule(joints[1], joints[2], 2.1, 0.9 * colour)


def _paint_head(pen: Pen, scene: Scene, places, world) -> None:
    colour = _rgb(scene.layout, scene.latents["head"])
    neck, top = places["neck"], places["head_top"]
    along = (top - neck) / np.linalg.norm(top - neck)
    centre = top - 5 * along
    pen.capsule(neck, centre, 1.6, colour)
    pen.disc(centre, 5.0, colour)
    across = np.array([-along[1], along[0]])
    if scene.latents["head"]["front"]:
        for sign in (-1, 1):
            pen.disc(centre + 1.9 * sign * across, 1.1, (15, 15, 15))
        pen.capsule(
            centre - 2.4 * along - 1.3 * across, centre - 2.4 * along + 1.3 * across, 0.5,
            (60, 10, 10),
        )  # fmt: skip
    else:
        pen.disc(centre + 0.4 * along, 4.4, (55, 40, 30))


def _paint_dial(pen: Pen, scene: Scene, places, world, *, name: str) -> None:
    latent = scene.latents[name]
    left = scene.layout["marker_left"] == (name == "marker")
    shift = scene.layout["dials"][int(left)]
    centre = np.array([13.0 if left else 82.0, 13.0]) + shift
    face = (150, 150, 150) if world.wrist != "gate" or latent["light"] else (45, 45, 45)
    pen.disc(centre, 10.5, face)
    colour = (225, 30, 30) if name == "marker" else (40, 70, 235)
    pen.disc(centre + 6.8 * unit(latent["angle"]), 3.0, colour)


PAINT = {
    "background_left": functools.partial(_paint_half, right=False),
    "background_right": functools.partial(_paint_half, right=True),
    "line": _paint_line,
    "left_leg": functools.partial(_paint_leg, side="left"),
    "right_leg": functools.partial(_paint_leg, side="right"),
    "torso": _paint_torso,
    "left_arm": functools.partial(_paint_arm, side="left"),
    "right_arm": functools.partial(_paint_arm, side="right"),
    "head": _paint_head,
    "decoy": functools.partial(_paint_dial, name="decoy"),
    "marker": functools.partial(_paint_dial, name="marker"),
}


EMPTY = 110.0
"""Grey of a pixel that no layer covers."""


def composite(
    layers: UInt8[np.ndarray, "r h w 4"], *, gain: Any = 1.0
) -> UInt8[np.ndarray, "h w 3"]:
    """Layers over each other on a grey ground, then the colour factors."""
    image = np.full((*layers.shape[1:3], 3), EMPTY, np.float32)
    for layer in layers:
        share = layer[..., 3:].astype(np.float32) / 255
        image = image * (1 - share) + layer[..., :3].astype(np.float32) * share
    return np.rint(np.clip(image * gain, 0, 255)).astype(np.uint8)


def owners(layers: UInt8[np.ndarray, "r h w 4"]) -> Int[np.ndarray, "h w"]:
    """The region of every pixel, see `WorldSource.owners`."""
    size = layers.shape[1]
    first = len(BACKGROUND)
    middle = np.arange(size) >= size // 2
    found = np.broadcast_to(middle.astype(np.int64), (size, size)).copy()
    drawn = layers[first:, ..., 3] > 127
    distance = np.full(drawn.shape, np.inf, np.float32)
    for n, mask in enumerate(drawn):
        if mask.any():
            distance[n] = cv2.distanceTransform(
                np.where(mask, 0, 255).astype(np.uint8), cv2.DIST_L2, 5
            )
    # Of two that cover a pixel, the later one is seen.
    nearest = len(drawn) - 1 - distance[::-1].argmin(0)
    near = distance.min(0) <= _MARGIN * size / 96
    return np.where(near, nearest + first, found)
