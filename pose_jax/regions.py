"""Which pixels belong to which keypoint, and what replaces them when a keypoint is removed.

One meaning of "removed" for the pose game (a coalition keeps the pixels of its players) and for
keypoint removal in training. Functions are written for one crop; use
`jax.vmap` for batches. Points are (x, y) in crop pixels, centres at integers.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from pose_jax.arrays import Array

SIDE = 0.12
"""Side of a keypoint's region as a share of the crop's height (31 px at 256 px), the size of
public joint-cutout code."""

BOX_AREA = (0.008, 0.03)
BOX_ASPECT = (0.5, 2.0)
"""Ranges of random boxes: share of the crop, width / height."""

FREE = -1
"""Owner of the pixels that no player owns: always visible."""

SHAPES = ("disc", "box")


def keypoint_owners(
    centres: Float[Array, "n 2"],
    present: Bool[Array, "n"],
    size: tuple[int, int],
    *,
    side_px: float,
    shape: str = "disc",
) -> Int[Array, "h w"]:
    """The owner of every pixel: regions around keypoints, split by Voronoi cells.

    A pixel within `side_px / 2` of some present keypoint belongs to the nearest one (ties: the
    first), so the regions never overlap and a coalition says exactly what is visible. Eyes and
    nose lie a few pixels apart; without ownership, hiding one would hide the others.

    Args:
      centres: keypoints; those not `present` own nothing (null players).
      shape: `disc` (Euclidean distance) or `box` (the larger of both distances).

    Raises:
      ValueError: an unknown shape.
    """
    if shape not in SHAPES:
        raise ValueError(f"region shape {shape!r} is unknown; use one of {SHAPES}")
    offsets = _grid(size)[:, :, None] - centres
    if shape == "disc":
        distance = jnp.sqrt((offsets**2).sum(-1))
    else:
        distance = jnp.abs(offsets).max(-1)
    return _nearest(distance, present, side_px / 2)


def limb_owners(
    centres: Float[Array, "k 2"],
    present: Bool[Array, "k"],
    limbs: Sequence[tuple[int, int]],
    size: tuple[int, int],
    *,
    width_px: float,
) -> Int[Array, "h w"]:
    """The owner of every pixel when limbs are the players: capsules around bones.

    A pixel within `width_px / 2` of a bone belongs to the nearest one (ties: the first). A limb
    with an end that is not present owns nothing.
    """
    ends = np.asarray(limbs).T
    start, end = centres[ends[0]], centres[ends[1]]
    bone = end - start
    length2 = jnp.maximum((bone**2).sum(-1), 1e-6)
    offsets = _grid(size)[:, :, None] - start
    along = jnp.clip((offsets * bone).sum(-1) / length2, 0.0, 1.0)
    distance = jnp.sqrt(((offsets - along[..., None] * bone) ** 2).sum(-1))
    return _nearest(distance, present[ends[0]] & present[ends[1]], width_px / 2)


def mask_owners(masks: Bool[Array, "n h w"]) -> Int[Array, "h w"]:
    """The owner of every pixel from a stack of masks; overlaps belong to the first mask."""
    return jnp.where(masks.any(0), jnp.argmax(masks, axis=0), FREE)


def random_half_sides(
    size: tuple[int, int],
    *,
    area: tuple[float, float] = BOX_AREA,
    aspect: tuple[float, float] = BOX_ASPECT,
    key: jax.Array,
) -> Float[Array, "2"]:
    """Half width and half height of a box of random area and aspect ratio.

    The boxes of the Perturbation Influence and of keypoint removal in training. The area is
    uniform, the aspect log-uniform; the ranges follow public joint-cutout code, XPose's own
    are not public.

    Args:
      area: range as shares of the crop. aspect: range of width / height.
    """
    first, second = jax.random.split(key)
    pixels = size[0] * size[1] * jax.random.uniform(first, (), jnp.float32, *area)
    low, high = np.log(aspect[0]), np.log(aspect[1])
    ratio = jnp.exp(jax.random.uniform(second, (), jnp.float32, low, high))
    return jnp.stack([jnp.sqrt(pixels * ratio), jnp.sqrt(pixels / ratio)]) / 2


def box_mask(
    centre: Float[Array, "2"], half_sides: Float[Array, "2"], size: tuple[int, int]
) -> Bool[Array, "h w"]:
    """Pixels of a box; sides of zero (and a centre that is NaN) cover none."""
    return (jnp.abs(_grid(size) - centre) < half_sides).all(-1)


def hidden(
    owners: Int[Array, "h w"], coalition: Bool[Array, "n"]
) -> Bool[Array, "h w"]:
    """Pixels whose owner is absent from the coalition."""
    return (owners != FREE) & ~coalition[owners]


def remove(
    image: Float[Array, "h w c"],
    fill: Float[Array, "h w c"],
    hidden: Bool[Array, "h w"],
) -> Float[Array, "h w c"]:
    """The picture with hidden pixels taken from `fill`; all others stay bit for bit."""
    return jnp.where(hidden[:, :, None], fill, image)


def inside(points: Float[Array, "n 2"], size: tuple[int, int]) -> Bool[Array, "n"]:
    """Whether points fall on a pixel of the crop."""
    height, width = size
    x, y = points[:, 0], points[:, 1]
    return (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)


# Fills: what a removed region shows. One picture per person, made once, never dependent on the
# coalition, so that the value of a coalition is a function of its members.


def mean_fill(
    image: Float[Array, "h w 3"], mean: Sequence[float]
) -> Float[Array, "h w 3"]:
    """The mean colour of the data set everywhere: zero after normalisation.

    Args:
      image: 0..255.
      mean: in shares of 255, as `InputSpec.colour`.
    """
    return jnp.broadcast_to(255 * jnp.asarray(mean, image.dtype), image.shape)


def blur_fill(
    image: Float[Array, "h w 3"], *, sigma_px: float
) -> Float[Array, "h w 3"]:
    """The picture itself, blurred by a Gaussian; edges repeat.

    Raises:
      ValueError: sigma is not positive.
    """
    if sigma_px <= 0:
        raise ValueError(f"sigma_px={sigma_px:g} must be positive")
    rows, columns = (_gaussian_matrix(n, sigma_px) for n in image.shape[:2])
    return jnp.einsum("ih,hwc,jw->ijc", rows, image, columns)


def noise_fill(
    image: Float[Array, "h w 3"], *, key: jax.Array
) -> Float[Array, "h w 3"]:
    """Uniform noise over the range of 8-bit colours, the same for every coalition."""
    return jax.random.uniform(key, image.shape, image.dtype, 0.0, 255.0)


def inpaint_fill(
    image: UInt8[np.ndarray, "h w 3"],
    owners: Int[np.ndarray, "h w"],
    *,
    radius_px: float = 3.0,
) -> UInt8[np.ndarray, "h w 3"]:
    """All owned pixels painted over from their surroundings (Telea 2004, OpenCV), on the host.

    Inpainting all regions at once keeps the fill independent of the coalition.
    """
    mask = (np.asarray(owners) != FREE).astype(np.uint8)
    bgr = cv2.inpaint(
        np.ascontiguousarray(image[:, :, ::-1]), mask, radius_px, cv2.INPAINT_TELEA
    )
    return np.ascontiguousarray(bgr[:, :, ::-1])


def _grid(size: tuple[int, int]) -> Float[Array, "h w 2"]:
    y, x = jnp.mgrid[: size[0], : size[1]]
    return jnp.stack([x, y], -1).astype(jnp.float32)


def _nearest(distance, present, reach: float) -> Int[Array, "h w"]:
    # Comparison with NaN is false: a player without a place owns nothing.
    distance = jnp.where(present & (distance <= reach), distance, jnp.inf)
    return jnp.where(
        distance.min(-1) <= reach, jnp.argmin(distance, axis=-1), FREE
    ).astype(jnp.int32)


def _gaussian_matrix(n: int, sigma_px: float) -> np.ndarray:
    """A blur along an axis of length n as a matrix; indices beyond the ends are clamped."""
    reach = max(1, round(4 * sigma_px))
    offsets = np.arange(-reach, reach + 1)
    taps = np.exp(-0.5 * (offsets / sigma_px) ** 2)
    matrix = np.zeros((n, n))
    rows = np.arange(n)
    for offset, tap in zip(offsets, taps / taps.sum()):
        np.add.at(matrix, (rows, (rows + offset).clip(0, n - 1)), tap)
    return matrix.astype(np.float32)
