"""Person box -> one 3x3 crop matrix. Points and images go through the same matrix.

Pixel centres are at integers. Crop, scale, rotation, shift and flip are composed into one
matrix, so a picture is resampled once and its keypoints follow exactly.

Two conventions exist for "the box fills the crop" (Huang et al. 2020, "The devil is in the
details"): the common one counts pixels (`unit=False`: box width -> W, box centre -> W/2, as
HRNet and SimpleBaseline do), the unbiased one counts unit intervals between pixel centres
(`unit=True`: box width -> W - 1, centre -> (W - 1)/2), under which mirroring is exact.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float, UInt8


def crop_matrix(
    box: Float[np.ndarray, "4"],
    size: tuple[int, int],
    *,
    padding: float = 1.25,
    unit: bool = False,
    area: bool = False,
    scale: float = 1.0,
    rotation_deg: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
    flip: bool = False,
) -> Float[np.ndarray, "3 3"]:
    """Matrix from image pixels to crop pixels.

    The shorter side of the box grows to the crop's aspect ratio, then both are multiplied by
    `padding` and `scale`.

    Args:
      box: x, y, width, height in image pixels.
      size: (height, width) of the crop.
      padding: margin factor around the box (1.25 in the COCO literature).
      unit: count unit intervals instead of pixels (see the module text).
      area: pixels are areas, as where a box is cut out and resized: with half-pixel centres
        box width -> W and the box's edge -> the crop's edge. Not together with `unit`.
      scale: > 1 shows more of the surroundings (the person gets smaller).
      rotation_deg: the person turns clockwise on screen by this angle.
      shift: (x, y) displacement of the centre in units of the padded box's sides.
      flip: mirror the crop left to right.

    Raises:
      ValueError: box with non-positive or non-finite sides.
    """
    x, y, width, height = (float(v) for v in box)
    if not np.isfinite([x, y, width, height]).all() or width <= 0 or height <= 0:
        raise ValueError(
            f"box {[x, y, width, height]} needs finite x, y and positive width, height "
            "(format: xywh in pixels)"
        )
    crop_height, crop_width = size
    aspect = crop_width / crop_height
    if width > aspect * height:
        height = width / aspect
    else:
        width = height * aspect
    width, height = width * padding * scale, height * padding * scale
    centre_x = x + float(box[2]) / 2 + shift[0] * width
    centre_y = y + float(box[3]) / 2 + shift[1] * height

    last = 1.0 if unit else 0.0
    zoom = (crop_width - last) / width
    angle = np.deg2rad(rotation_deg)
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    to_origin = np.array([[1, 0, -centre_x], [0, 1, -centre_y], [0, 0, 1]])
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    to_crop = np.eye(3)
    to_crop[:2, 2] = (crop_width - last) / 2, (crop_height - last) / 2
    if (
        area
    ):  # Pixel i covers [i, i + 1): centres sit half a pixel inside, here and there.
        to_origin[:2, 2] += 0.5
        to_crop[:2, 2] -= 0.5
    matrix = to_crop @ turn @ to_origin
    if flip:
        mirror = np.array([[-1.0, 0, crop_width - 1.0], [0, 1, 0], [0, 0, 1]])
        matrix = mirror @ matrix
    return matrix


def transform(
    points: Float[np.ndarray, "*b k 2"], matrix: Float[np.ndarray, "*b 3 3"]
) -> Float[np.ndarray, "*b k 2"]:
    """Points through an affine matrix."""
    linear = np.swapaxes(matrix[..., :2, :2], -1, -2)
    return points @ linear + matrix[..., None, :2, 2]


def invert(
    points: Float[np.ndarray, "*b k 2"], matrix: Float[np.ndarray, "*b 3 3"]
) -> Float[np.ndarray, "*b k 2"]:
    """Points back through an affine matrix: crop pixels -> image pixels."""
    return transform(points, np.linalg.inv(matrix))


def warp(
    image: UInt8[np.ndarray, "h w 3"],
    matrix: Float[np.ndarray, "3 3"],
    size: tuple[int, int],
    *,
    fill: tuple[int, int, int] = (0, 0, 0),
) -> UInt8[np.ndarray, "crop_h crop_w 3"]:
    """Resample an image once (bilinear, constant border)."""
    height, width = size
    return cv2.warpAffine(
        image,
        matrix[:2],
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=fill,
    )


def keypoint_box(
    keypoints: Float[np.ndarray, "k 2"], labelled: np.ndarray, margin: float = 0.0
) -> Float[np.ndarray, "4"]:
    """Tight xywh box of the labelled keypoints, grown by `margin` of its sides.

    Raises:
      ValueError: nothing is labelled.
    """
    points = keypoints[np.asarray(labelled, bool)]
    if len(points) == 0:
        raise ValueError("a box of keypoints needs at least one labelled keypoint")
    low, high = points.min(0), points.max(0)
    side = np.maximum(high - low, 1.0)
    return np.concatenate([low - side * margin / 2, side * (1 + margin)])
