"""The crops of Andersen's bachelor thesis (following its COCO preprocessing).

A square of 1.1 x the longer side of the extent of the labelled keypoints, centred on that
extent and never padded: it shrinks until it fits the picture with its horizontal centre
kept, then slides vertically until it lies inside. The annotated box has no say: the original
squares and shifts it first, then overwrites its side and its centre.

With `input.padding=1` the crop matrix is this square. Keypoints become integers in the
targets (`heatmaps`, `encode="thesis"`), not here.

The original scales keypoints from the square's corner, x * n / side for n pixels of input, but
resizes pictures with half-pixel centres, so they lie (n / side - 1) / 2 px off. Here both go
through one matrix, and `input.area=False` keeps the original's keypoints, hence its targets;
its pictures lay that much further right and down. `input.area=True` would keep the pictures
and move the keypoints, by more than half a pixel wherever side < n / 2: in 56 % of the crops
of the COCO subset at n = 256 (median 0.6 px, 90th percentile 2.2 px).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from PIL import Image as PillowImage

from pose_jax.data import checks
from pose_jax.data.sources import PeopleSource

MARGIN = 0.1
"""Margin in longer sides of the extent of the labelled keypoints."""

FIRST_PIXEL = 1.0
"""The thesis took COCO's pixels, which count from 0, to count from 1."""

NO_LABEL = "without labelled keypoints"
NOT_CENTRED = "whose crop cannot be centred horizontally"
NOT_CONTAINED = "whose crop cannot contain the keypoints"
NO_PICTURE = "without a readable picture"

_ROUNDING_PX = 1e-6


def crop_box(
    keypoints: Float[np.ndarray, "k 2"],
    visible: Int[np.ndarray, "k"],
    image_size: tuple[int, int],
) -> Float[np.ndarray, "4"] | str:
    """The square crop of a person, or why there is none.

    Args:
      keypoints: (x, y) image pixels, read where labelled.
      visible: 0 not labelled, 1 occluded, 2 visible.
      image_size: (height, width) of the picture.

    Returns:
      x, y, width, height in image pixels; or one of `NO_LABEL`, `NOT_CENTRED` (a square as
      high as the extent does not fit around its horizontal centre), `NOT_CONTAINED` (the
      picture is lower than the extent is wide, a keypoint lies outside, or all lie in one
      point, whose crop is empty).
    """
    points = keypoints[visible > 0]
    if not len(points):
        return NO_LABEL
    height, width = image_size
    low, high = points.min(0), points.max(0)
    centre, extent = (low + high) / 2, high - low
    room = 2 * min(centre[0], width - centre[0])
    if extent[1] > room:
        return NOT_CENTRED
    side = min((1 + MARGIN) * extent.max(), room, height)
    corner = centre - side / 2
    corner[1] = np.clip(corner[1], 0, height - side)
    inside = (low >= corner - _ROUNDING_PX) & (high <= corner + side + _ROUNDING_PX)
    if side <= 0 or not inside.all():
        return NOT_CONTAINED
    return np.array([*corner, side, side])


def thesis_crops(
    source: PeopleSource, *, first_pixel: float = FIRST_PIXEL
) -> PeopleSource:
    """The people with the square crop as their box; the others are counted in `dropped`.

    All labels of `source` shape the square; whoever uses fewer (`Filters.labels`) narrows
    the result. Sizes of pictures come from the annotation file, else from the headers of
    the pictures. `ground_truth` stays as it is, so COCO AP compares with keypoints that were
    not moved.

    Args:
      source: people with their annotated boxes and pictures on disk.
      first_pixel: subtracted from the keypoints (see `FIRST_PIXEL`).

    Raises:
      DataError: nobody is left.
    """
    sizes = _listed_sizes(source)
    dropped, people = Counter(source.dropped), []
    for person in source.people:
        size = sizes.get(person.image_id)
        if size is None:
            size = _header_size(source.images / person.file_name)
            sizes[person.image_id] = size
        moved = np.where(
            person.visible[:, None] > 0, person.keypoints - first_pixel, 0.0
        )
        box = crop_box(moved, person.visible, size) if any(size) else NO_PICTURE
        if isinstance(box, str):
            dropped[box] += 1
        else:
            people.append(dataclasses.replace(person, box=box, keypoints=moved))
    checks.require_some(len(people), dropped, source.name)
    name = f"{source.name} (thesis crops)"
    return dataclasses.replace(source, name=name, people=people, dropped=dropped)


def _listed_sizes(source: PeopleSource) -> dict[int, tuple[int, int]]:
    """(height, width) by picture, where the annotation file names them."""
    rows = (source.ground_truth or {}).get("images", ())
    return {
        row["id"]: (row["height"], row["width"])
        for row in rows
        if row.get("height") and row.get("width")
    }


def _header_size(path: Path) -> tuple[int, int]:
    """(height, width) of a picture file; zeros where it cannot be read."""
    try:
        with PillowImage.open(path) as opened:  # Reads the header only.
            return opened.height, opened.width
    except OSError:
        return 0, 0
