"""Procedural people: pictures with exact labels, from an index, without any file.

A body is a kinematic tree in three dimensions (x right, y up, z towards the camera) in
weak perspective. Every part is the convex hull of discs around joints, painted from far
to near; a map of the part on top of each pixel decides what is visible. Left and right
carry no cue of their own: only the view (a face or a back of a head) tells them apart.
"""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from pose_jax import skeletons
from pose_jax.data import scene

_SIDES = {"left": 1.0, "right": -1.0}
_ARM = ("shoulder", "elbow", "wrist", "hand")
_LEG = ("hip", "knee", "ankle", "toe")
# Radii of the discs in body heights; "chest" and "flank" are the corners of the trunk.
_RADIUS = dict(
    shoulder=0.036, elbow=0.029, wrist=0.021, hand=0.023, hip=0.054, knee=0.039,
    ankle=0.026, toe=0.020, chest=0.052, flank=0.050, thorax=0.032, neck=0.030,
)  # fmt: skip
# Points of the head in head radii (left, up, forward), how far (cosine) behind the
# outline each is still seen (nose and ears stand out), and the size of its mark.
_FACE = {
    "nose": ((0.0, -0.12, 1.08), -0.15, 0.13),
    "left_eye": ((0.36, 0.14, 0.90), 0.05, 0.10),
    "right_eye": ((-0.36, 0.14, 0.90), 0.05, 0.10),
    "left_ear": ((0.98, -0.02, -0.06), -0.35, 0.20),
    "right_ear": ((-0.98, -0.02, -0.06), -0.35, 0.20),
    "head_top": ((0.0, 1.10, 0.0), -2.00, 0.00),
}
_PLACED = skeletons.COCO.keypoints + ("neck", "head_top", "pelvis", "thorax")
# Numbers in the map of parts; a joint lies on its own limb's and on the one before.
_TORSO, _HEAD, _HAIR = 1, 2, 3
_PARTS = {
    f"{side}_{joint}": number
    for first, side in zip((10, 20), _SIDES)
    for number, joint in enumerate(_ARM + _LEG, start=first)
}
# Standing, walking, arms raised, sitting, crouching, bending, jumping. Degrees, low and
# high: arm flexion, abduction, elbow, inward turn; leg flexion, abduction, knee; bend.
_ACTIVITIES = (
    (-20, 35, 3, 32, 0, 75, -10, 90, -8, 12, 1, 13, 0, 12, -4, 12),
    (-45, 50, 3, 18, 10, 95, 0, 40, -28, 38, 0, 7, 0, 55, 0, 14),
    (-15, 40, 65, 172, 0, 120, -110, -30, -8, 20, 2, 22, 0, 25, -8, 8),
    (0, 70, 3, 35, 10, 110, 0, 70, 72, 100, 2, 26, 60, 110, -8, 22),
    (15, 90, 3, 40, 0, 90, 0, 70, 45, 110, 4, 32, 55, 130, 12, 45),
    (20, 100, 3, 30, 0, 45, 0, 60, -5, 30, 2, 18, 0, 35, 35, 80),
    (-30, 90, 20, 150, 0, 100, -90, 30, -35, 80, 5, 45, 5, 95, -15, 25),
)
_ODDS = (0.34, 0.18, 0.15, 0.12, 0.08, 0.06, 0.07)


@dataclasses.dataclass(frozen=True)
class Figure:
    """One picture and the exact labels of its labelled person.

    Attributes:
      image: RGB.
      keypoints: (x, y) pixels, centres at integers; (0, 0) outside the picture.
      visible: 0 outside the picture, 1 hidden by the body or an object, 2 visible.
      box: x, y, width, height (pixels) of the person's silhouette inside the picture.
      area: pixels of that silhouette; like the box it ignores what stands in front.
    """

    image: UInt8[np.ndarray, "h w 3"]
    keypoints: Float[np.ndarray, "k 2"]
    visible: Int[np.ndarray, "k"]
    box: Float[np.ndarray, "4"]
    area: float


@dataclasses.dataclass(frozen=True)
class FigureSource:
    """A random-access source of synthetic people.

    The same seed and index give the same picture bit for bit, in any order and process.
    The person of an index does not change with `people`, `clutter` or `occlusion`.

    Attributes:
      count: number of pictures.
      seed: non-negative.
      size: height and width of the pictures in pixels, at least 32.
      skeleton: registry name; COCO's joints, neck, head_top, pelvis, thorax are placed.
      people: people in a picture; the labelled one stands in front of the others.
      clutter: probability of things and limb-like bars behind, noise, a colour cast.
      occlusion: probability that one or two objects stand in front of the person.
      truncation: probability that the picture's border cuts the person.

    Raises:
      ValueError: a field is out of range, or a keypoint cannot be placed.
      KeyError: unknown skeleton.
    """

    count: int
    _: dataclasses.KW_ONLY
    seed: int = 0
    size: tuple[int, int] = (192, 160)
    skeleton: str = "coco"
    people: int = 1
    clutter: float = 0.85
    occlusion: float = 0.3
    truncation: float = 0.2

    def __post_init__(self):
        for name, least in (("count", 0), ("seed", 0), ("people", 1)):
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name}={value} is too small; give at least {least}")
        for name in ("clutter", "occlusion", "truncation"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name}={value} is no probability; give 0 .. 1")
        if len(self.size) != 2 or min(self.size) < 32:
            raise ValueError(f"size={self.size}; give (height, width), each 32 or more")
        if unknown := {*skeletons.get(self.skeleton).keypoints} - {*_PLACED}:
            raise ValueError(f"figures cannot place {unknown}; they know {_PLACED}")

    def __len__(self) -> int:
        return self.count

    def render(self, index: int) -> Figure:
        """The picture and labels of one index.

        Raises:
          IndexError: the index is not in 0 .. count - 1.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"no figure {index}: give 0 .. {self.count - 1}")
        streams = np.random.SeedSequence((self.seed, index)).spawn(3)
        body_rng, scene_rng, others_rng = map(np.random.default_rng, streams)
        person = _Person(body_rng, self.size, truncation=self.truncation)
        cluttered = scene_rng.random() < self.clutter
        image = scene.background(scene_rng, self.size, cluttered)
        parts, silhouette = np.zeros((2, *self.size), np.uint8)
        for _ in range(1, self.people):
            _Person(others_rng, self.size, truncation=0.25).paint(image, silhouette)
        person.paint(image, parts)
        np.minimum(parts, 1, out=silhouette)
        if scene_rng.random() < self.occlusion:
            joints = [person.disc[name][0] for name in _PLACED]
            reach = 4 * person.disc["left_chest"][1]
            scene.occlude(scene_rng, image, parts, joints, reach)
        if cluttered:
            image = scene.camera(scene_rng, image)
        labels = person.labels(parts, skeletons.get(self.skeleton).keypoints)
        box = np.array(cv2.boundingRect(silhouette), np.float64)
        return Figure(image, *labels, box, float(silhouette.sum()))


def _joints(rng, head_radius: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Joints in body heights from the pelvis; the head's frame (left, up, forward)."""
    low, high = np.reshape(_ACTIVITIES[rng.choice(7, p=_ODDS)], (8, 2)).T
    shoulder, hip = rng.normal(0.113, 0.009), rng.normal(0.072, 0.006)
    length = rng.normal(1, 0.06, 5).clip(0.85, 1.15) * (0.27, 0.165, 0.14, 0.235, 0.225)
    # Half of them face the camera, a quarter turn the back; a few lie or tumble.
    yaws = rng.normal(0, 32), rng.normal(180, 28), rng.uniform(-180, 180)
    yaw = rng.choice(yaws, p=(0.5, 0.25, 0.25))
    lean = rng.uniform(-110, 110) if rng.random() < 0.08 else rng.normal(0, 6)
    pelvis = scene.turn(np.eye(3), x=rng.normal(8, 7), z=lean, y=yaw)
    trunk = scene.turn(pelvis, x=rng.uniform(low[7], high[7]), y=rng.normal(0, 9))
    head = scene.turn(
        trunk, y=rng.normal(0, 22), x=rng.normal(4, 11), z=rng.normal(0, 7)
    )
    thorax = trunk[:, 1] * length[0]
    points = {"pelvis": np.zeros(3), "thorax": thorax}
    points["neck"] = thorax + trunk[:, 1] * 0.035 + head[:, 1] * 0.012
    points["head"] = points["neck"] + head @ (0, 0.015 + head_radius, 0.015)
    for name, (place, *_) in _FACE.items():
        points[name] = points["head"] + head @ place * head_radius
    for side, sign in _SIDES.items():
        angle = rng.uniform(low, high)
        arm = scene.turn(trunk, x=-angle[0], z=sign * angle[1], y=-sign * angle[3])
        fore = scene.turn(arm, x=-angle[2])
        hand = scene.turn(fore, x=rng.normal(-5, 12))
        leg = scene.turn(
            pelvis, x=-angle[4], z=sign * angle[5], y=sign * rng.normal(8, 9)
        )
        shin = scene.turn(leg, x=angle[6])
        foot = scene.turn(shin, x=rng.uniform(5, 40))
        upper = [thorax + trunk @ (sign * shoulder, -0.012, 0), arm[:, 1] * -length[1]]
        upper += [fore[:, 1] * -length[2], hand[:, 1] * -0.048]
        lower = [pelvis[:, 0] * (sign * hip), leg[:, 1] * -length[3]]
        lower += [shin[:, 1] * -length[4], foot[:, 2] * 0.082]
        chest = thorax + trunk @ (sign * (shoulder - 0.026), -0.04, 0)
        flank = 0.12 * chest + 0.88 * lower[0]
        places = *np.cumsum(upper, axis=0), *np.cumsum(lower, axis=0), chest, flank
        for name, place in zip((*_ARM, *_LEG, "chest", "flank"), places):
            points[f"{side}_{name}"] = place
    return points, head


class _Person:
    """A placed body: pixel discs `(xy, radius)` by joint, `z` in body heights."""

    def __init__(self, rng, size, *, truncation):
        head_radius, girth = rng.uniform(0.064, 0.092), rng.uniform(0.85, 1.3)
        joints, self.frame = _joints(rng, head_radius)
        space = np.stack(list(joints.values()))
        near = 1 / (1 - space[:, 2] / 4)  # the camera stands four body heights away
        flat = space[:, :2] * (1, -1) * near[:, None]
        widths = {"head": head_radius / girth} | _RADIUS
        radius = near * girth * [widths.get(name.split("_")[-1], 0) for name in joints]
        low = (flat - 1.2 * radius[:, None]).min(axis=0)
        extent = (flat + 1.2 * radius[:, None]).max(axis=0) - low
        truncated = rng.random() < truncation
        share = rng.uniform(0.85, 1.5) if truncated else rng.uniform(0.55, 0.95)
        scale = share * (size[::-1] / extent).min()  # pixels per body height
        free = size[::-1] - extent * scale
        corner = rng.random(2) * free - 0.5
        if truncated:
            axis = int(rng.random() < 0.6)
            beyond = rng.uniform(0.12, 0.4) * extent[axis] * scale
            corner[axis] = free[axis] + beyond if rng.random() < 0.6 else -beyond
        xy = (flat - low) * scale + corner
        self.disc = dict(zip(joints, zip(xy, radius * scale)))
        self.z = dict(zip(joints, space[:, 2].tolist()))
        self.depth = (self.z["thorax"] + self.z["pelvis"]) / 2
        self.style, self.light = scene.style(rng), scene.CIRCLE[rng.integers(16)]

    def on_head(self, place, radius: float):
        """A disc at a place of the head, both in head radii."""
        centre, size = self.disc["head"]
        return centre + (self.frame @ place)[:2] * (size, -size), size * radius

    def faces(self, name: str) -> bool:
        """Whether a point of the head is on the camera's side and not under hair."""
        place, limit, _ = _FACE[name]
        hair = self.style.long_hair and name.endswith("ear")
        return bool(self.frame[2] @ place > limit * np.linalg.norm(place)) and not hair

    def paint(self, image, parts) -> None:
        """Draws far to near, on the picture and on the map of parts."""
        style, corners = self.style, ("hip", "flank", "chest", "shoulder")
        discs = [self.disc[f"{side}_{name}"] for name in corners for side in _SIDES]
        layers: list = [(self.depth, [[(discs[:4], style.trousers, _TORSO)]])]
        layers.append((self.depth, [[(discs[2:], style.shirt, _TORSO)]]))
        layers.append((self.z["head"], self._head()))
        if style.long_hair:
            mane = self.on_head((0, 0, -0.3), 1.0), self.on_head((0, -1.5, -0.5), 0.75)
            depth = self.depth - math.copysign(0.02, self.frame[2, 2])
            layers.append((depth, [[(mane, style.hair, _HAIR)]]))
        # Arms lie on the trunk when they hang beside it, shirts on trousers.
        arm = _ARM, 0.02, style.sleeve_reach, style.shirt, style.skin
        leg = _LEG, -0.02, style.leg_reach, style.trousers, style.shoes
        for side in _SIDES:
            for chain, bias, *dress in (arm, leg):
                names = [f"{side}_{joint}" for joint in chain]
                depth = sum(self.z[name] for name in names[:3]) / 3 + bias
                layers.append((depth, self._limb(names, *dress)))
        for _, layer in sorted(layers, key=lambda pair: pair[0]):
            for shapes in layer:
                scene.paint(image, parts, shapes, self.light)

    def _head(self):
        skin, on_head = self.style.skin, self.on_head
        throat = self.disc["thorax"], self.disc["neck"], on_head((0, -0.3, 0), 0.5)
        yield [(throat, skin, _HEAD)]
        face = [on_head((0, -0.08, 0.24), 0.84), on_head((0, -0.62, 0.3), 0.46)]
        hair = [on_head((0, 0.14, -0.16), 1.06)]
        order = [[(hair, self.style.hair, _HEAD)], [(face, skin, _HEAD)]]
        yield from order if self.frame[2, 2] > -0.2 else order[::-1]
        for name, (place, _, size) in _FACE.items():
            if size and self.faces(name):
                colour = skin * (0.1 if name.endswith("eye") else 0.72)
                yield [([on_head(place, size)], colour, _HEAD)]

    def _limb(self, names, reach, cloth, end):
        discs, first = [self.disc[name] for name in names], _PARTS[names[0]]
        colours = self.style.skin, self.style.skin, end
        yield [(discs[i : i + 2], colours[i], first + i) for i in range(3)]
        dressed = []
        for i in range(math.ceil(reach)):
            (a, r), (b, q) = discs[i : i + 2]
            share = min(reach - i, 1.0)
            cuff = a + share * (b - a), 1.13 * (r + share * (q - r))
            dressed.append(([(a, 1.13 * r), cuff], cloth, first + i))
        yield dressed

    def labels(self, parts, names):
        """Keypoints and flags; `parts` says what lies on top of every pixel."""
        keypoints = np.array([self.disc[name][0] for name in names])
        visible = np.zeros(len(names), np.int64)
        for k, (column, row) in enumerate(np.rint(keypoints).astype(int)):
            if 0 <= row < parts.shape[0] and 0 <= column < parts.shape[1]:
                visible[k] = 2 if self._shown(names[k], int(parts[row, column])) else 1
        return np.where(visible[:, None], keypoints, 0), visible

    def _shown(self, name: str, top: int) -> bool:
        """Whether a joint is seen where `top` is the part nearest to the camera."""
        if name in _FACE:
            return top == _HEAD and self.faces(name)
        if top == _TORSO and name.endswith(("shoulder", "hip")):
            return self.z[name] > self.depth - 0.075  # not the far side of a profile
        own = _PARTS.get(name, _HEAD)  # neck, thorax, pelvis: head or torso
        return top in (own, own - 1)
