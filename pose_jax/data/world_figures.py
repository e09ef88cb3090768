"""The figures of the worlds: latents of every region, and where they put the joints.

Lengths are pixels of a picture of 96.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool

from pose_jax.data.world_rules import World

Latents = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Scene:
    """One picture before it is painted.

    Attributes:
      index: of the source.
      layout: where the figure and the dials stand; no region of its own.
      latents: of every region.
      present: `[r]` regions that are drawn.
    """

    index: int
    layout: dict[str, Any]
    latents: Latents
    present: Bool[np.ndarray, "r"]


def places(world: World, scene: Scene) -> dict[str, np.ndarray]:
    """Joints of a figure that faces the viewer, in pixels of 96."""
    layout, latents = scene.layout, scene.latents
    right_arm, left_arm = latents["right_arm"], latents["left_arm"]
    right_leg, left_leg = latents["right_leg"], latents["left_leg"]
    pelvis, up = layout["pelvis"], unit(layout["lean"] - np.pi / 2)
    side = np.array([-up[1], up[0]])  # Towards the picture's right.
    neck = pelvis + 20 * up
    found = {"neck": neck}
    found["head_top"] = neck + latents["head"]["reach"] * up
    hidden = _wrist_angle(world, scene)
    for name, sign, arm in (("right", -1, right_arm), ("left", 1, left_arm)):
        shoulder = neck + 7 * sign * side + 2 * -up
        elbow = shoulder + 13 * _limb(arm["upper"], sign)
        found[f"{name}_shoulder"], found[f"{name}_elbow"] = shoulder, elbow
    lower = {"right": right_arm["lower"], "left": left_arm["lower"]}
    if hidden is not None:
        lower["right"] = hidden
    if world.left_forearm == "mirror":
        lower["left"] = np.pi - lower["right"]
    for name, angle in lower.items():
        found[f"{name}_wrist"] = found[f"{name}_elbow"] + 13 * unit(angle)
    shank = {"right": right_leg["lower"], "left": left_leg["lower"]}
    if world.left_shank == "mirror":
        shank["left"] = shank["right"]
    for name, sign, leg in (("right", -1, right_leg), ("left", 1, left_leg)):
        hip = pelvis + 4.5 * sign * side
        knee = hip + 15 * _limb(leg["upper"], sign)
        found[f"{name}_hip"], found[f"{name}_knee"] = hip, knee
        found[f"{name}_ankle"] = knee + 15 * _limb(shank[name], sign)
    return found


def unit(angle: float) -> np.ndarray:
    """Angle from the picture's right, clockwise as pixels count."""
    return np.array([np.cos(angle), np.sin(angle)])


def _limb(outwards: float, sign: int) -> np.ndarray:
    """Direction at an angle from straight down, outwards on its side."""
    return np.array([sign * np.sin(outwards), np.cos(outwards)])


def _wrist_angle(world: World, scene: Scene) -> float | None:
    """Direction of the right forearm where it is not drawn."""
    marker, decoy = scene.latents["marker"], scene.latents["decoy"]
    if world.wrist == "drawn":
        return None
    if world.wrist == "gate":
        return marker["angle"] if decoy["light"] else -marker["angle"]
    if world.wrist == "suppressor":
        return marker["angle"] - decoy["angle"]
    if world.wrist == "tint":
        return float(np.pi * scene.layout["tint"])
    if world.wrist == "free":
        return scene.latents["right_arm"]["lower"]
    return marker["angle"]


# Latents: what a region looks like and where its parts point, each from a stream of its own.


def layout(rng) -> dict[str, Any]:
    hue = rng.uniform(0, 180)
    return dict(
        pelvis=np.array([48.0, 55.0]) + rng.uniform(-4, 4, 2),
        lean=rng.uniform(-0.15, 0.15),
        marker_left=bool(rng.random() < 0.5),
        dials=rng.uniform(-1.5, 1.5, (2, 2)),
        hue=hue,
        tint=rng.uniform(-0.95, 0.95),
    )


def _half(rng) -> dict[str, Any]:
    return dict(seed=int(rng.integers(2**31)))


def _line(rng) -> dict[str, Any]:
    return dict(height=rng.uniform(), shade=rng.uniform(150, 235, 3))


def _dial(rng) -> dict[str, Any]:
    return dict(angle=rng.uniform(0, 2 * np.pi), light=bool(rng.random() < 0.5))


def _shade(rng) -> dict[str, Any]:
    return dict(hue=rng.normal(0, 5), value=rng.uniform(170, 245))


def _head(rng) -> dict[str, Any]:
    return dict(_shade(rng), reach=rng.uniform(9, 21), front=bool(rng.random() < 0.5))


def _arm(rng) -> dict[str, Any]:
    return dict(
        _shade(rng), upper=rng.uniform(0.2, 2.0), lower=rng.uniform(0, 2 * np.pi)
    )


def _leg(rng) -> dict[str, Any]:
    return dict(_shade(rng), upper=rng.uniform(-0.1, 0.8), lower=rng.uniform(-1.1, 1.3))


DRAW = {
    "background_left": _half, "background_right": _half, "line": _line,
    "left_leg": _leg, "right_leg": _leg, "torso": _shade, "left_arm": _arm,
    "right_arm": _arm, "head": _head, "decoy": _dial, "marker": _dial,
}  # fmt: skip
