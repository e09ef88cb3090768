"""One affine per sample: crop, scale, rotation, shift, flip and half body in one matrix."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from pose_jax import geometry
from pose_jax.data.sources import Person
from pose_jax.pixels import InputSpec
from pose_jax.skeletons import Skeleton


@dataclasses.dataclass(frozen=True)
class Augment:
    """Geometric augmentation, drawn anew for every sample; colours are jittered on device.

    Attributes:
      flip: probability of mirroring (pairs are swapped by name).
      rotation_deg: standard deviation, clipped at twice that.
      rotation_probability: share of samples that are turned at all.
      scale: standard deviation of the factor around 1, clipped at that.
      shift: largest displacement in box sides.
      half_body: probability of cropping to the upper or lower half when more than eight
        keypoints are labelled (Wang et al. 2018); the upper half is taken in 7 of 10.
    """

    flip: float = 0.0
    rotation_deg: float = 0.0
    rotation_probability: float = 0.6
    scale: float = 0.0
    shift: float = 0.0
    half_body: float = 0.0


def sample_matrix(
    person: Person,
    skeleton: Skeleton,
    spec: InputSpec,
    augment: Augment,
    *,
    unit: bool,
    generator: np.random.Generator,
) -> tuple[Float[np.ndarray, "3 3"], bool]:
    """A random crop matrix and whether it mirrors."""
    draw = generator.random(5)
    noise = generator.standard_normal(2)
    box, padding = person.box, spec.padding
    if draw[0] < augment.half_body:
        half = half_body_box(person, skeleton, upper=bool(draw[1] < 0.7))
        if half is not None:
            box, padding = half, 1.5
    rotation = 0.0
    if draw[2] < augment.rotation_probability:
        limit = 2 * augment.rotation_deg
        rotation = float(np.clip(noise[0] * augment.rotation_deg, -limit, limit))
    spread = augment.scale
    scale = 1.0 + float(np.clip(noise[1] * spread, -spread, spread))
    shift = generator.uniform(-augment.shift, augment.shift, 2)
    flip = bool(draw[3] < augment.flip)
    matrix = geometry.crop_matrix(
        box,
        spec.size,
        padding=padding,
        unit=unit,
        area=spec.area,
        scale=scale,
        rotation_deg=rotation,
        shift=(float(shift[0]), float(shift[1])),
        flip=flip,
    )
    return matrix, flip


def half_body_box(
    person: Person, skeleton: Skeleton, *, upper: bool
) -> Float[np.ndarray, "4"] | None:
    """Box of the labelled keypoints above (or below) the waist; None when too few."""
    labelled = person.visible > 0
    if labelled.sum() <= 8:
        return None
    below = np.array(
        [k.endswith(("hip", "knee", "ankle", "pelvis")) for k in skeleton.keypoints]
    )
    part = labelled & (~below if upper else below)
    if part.sum() < 3:
        return None
    return geometry.keypoint_box(person.keypoints, part)


def transform_person(
    person: Person,
    skeleton: Skeleton,
    matrix: Float[np.ndarray, "3 3"],
    size: tuple[int, int],
    *,
    flip: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints `[k, 2]` in crop pixels and their visibility `[k]`.

    Points that are unlabelled or fall outside the crop become `(0, 0)` with visibility 0: an
    unlabelled point that went through the matrix would otherwise appear as a ghost.
    """
    points = geometry.transform(person.keypoints, matrix)
    visible = person.visible
    if flip:
        points, visible = points[skeleton.mirrored], visible[skeleton.mirrored]
    height, width = size
    inside = (points >= -0.5).all(-1) & (points <= (width - 0.5, height - 0.5)).all(-1)
    visible = np.where(inside, visible, 0)
    return np.where(visible[:, None] > 0, points, 0.0), visible
