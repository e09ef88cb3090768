"""PCK: the share of keypoints whose error is within a threshold, as mergeable counts.

A point is correct if `distance / normaliser <= threshold` (strictly below with
`strict=True`). What "PCK" means depends on three choices, so all of them travel with
the numbers:

  normaliser  longer side of the person's box (Yang & Ramanan 2013, "PCK"), torso (LSP,
              JHMDB), side of the crop, tenth of the heatmap (thesis, training logs), or
              0.6 x diagonal of the head box (MPII, "PCKh", Andriluka et al., CVPR
              2014).
  comparison  `<=` (official MPII code, HRNet) or `<`.
  average     micro (all points pooled), per joint (mean of the joints' rates), macro
              (mean of the persons' rates). They differ, and all three are reported.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Num, Shaped

from pose_jax import skeletons
from pose_jax.arrays import Array
from pose_jax.metrics.pck_record import Pck, count_correct
from pose_jax.metrics.points import check_points

__all__ = [
    "Pck", "box_longer_side", "crop_side", "heatmap_pck", "heatmap_variants", "pck",
    "pckh", "pckh_rows", "torso",
]  # fmt: skip

_HEATMAP_VARIANTS = ("labelled", "visible", "limbs")
_LIMB_JOINTS = ("elbow", "wrist", "knee", "ankle")
_PCKH_ROWS = (
    ("Head", ("head_top",)),
    *((word.capitalize(), (f"left_{word}", f"right_{word}"))
      for word in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")),
)  # fmt: skip


def pck(
    predicted: Num[Array, "n k 2"],
    true: Num[Array, "n k 2"],
    visible: Shaped[Array, "n k"],
    normaliser: Num[Array, "n"],
    thresholds: Sequence[float],
    names: Sequence[str],
    *,
    strict: bool = False,
    name: str = "PCK",
) -> Pck:
    """PCK with any normaliser.

    Args:
      predicted, true: pixels, the same frame for both; `true` is read where labelled
        only.
      visible: 0 not labelled, 1 occluded, 2 visible; a boolean mask counts every label
        as visible. A row without a label (padding) counts nowhere.
      normaliser: length per person in the same pixels (`box_longer_side`, `torso`,
        `crop_side`, ...). Persons where it is NaN or 0 are left out and counted.
      thresholds: multiples of the normaliser.
      names: joints, in order.
      name: protocol name kept in the record, e.g. "PCK box".

    Raises:
      ValueError: shapes disagree; a prediction, a labelled true point or a threshold is
        not usable; the message names the row.
    """
    names = tuple(names)
    predicted, true, visible = check_points(predicted, true, visible, names)
    normaliser = np.asarray(normaliser, np.float64)
    if normaliser.shape != (len(predicted),):
        raise ValueError(
            f"normaliser has shape {normaliser.shape} but there are {len(predicted)} "
            "persons; give one length per person"
        )
    if np.any(normaliser < 0) or np.isinf(normaliser).any():
        row = int(np.flatnonzero((normaliser < 0) | np.isinf(normaliser))[0])
        raise ValueError(
            f"normaliser of row {row} is {normaliser[row]}; give a length in pixels or "
            "NaN to leave the person out"
        )
    usable = normaliser > 0
    labelled = (visible > 0).any(axis=1)
    distance = np.linalg.norm(predicted - true, axis=-1)[usable]
    return count_correct(
        distance / normaliser[usable, None],
        visible[usable],
        name=name,
        names=names,
        thresholds=thresholds,
        strict=strict,
        left_out=int(np.sum(labelled & ~usable)),
    )


def heatmap_pck(
    predicted_grid: Num[Array, "n k 2"],
    true_grid: Num[Array, "n k 2"],
    visible: Shaped[Array, "n k"],
    size: int = 64,
    *,
    names: Sequence[str] = skeletons.COCO.keypoints,
    variant: str = "labelled",
) -> Pck:
    """PCK on the heatmap grid: distance / (size / 10) strictly below 0.5.

    On a 64 x 64 grid that is 3.2 cells, one twentieth of the crop. The threshold of the
    stacked-hourglass training log (Newell et al., ECCV 2016); the number to quote is
    `macro`, the mean over the images with a label, following Andersen's bachelor
    thesis. It is not comparable with PCKh or box-normalised PCK.

    The thesis's own denominators stand beside it: for "labelled" and "visible",
    `macro_over_all` divides the sum of the images' rates by all images, also those that
    have no such label. For "limbs", the thesis's published number is `macro` (over
    image-and-pair entries), that of an older version `macro_over_all` (per image over
    the eight joints, by all images); `macro_images` is the older one with the right
    denominator.

    Args:
      predicted_grid, true_grid: `(x, y)` peak of each map in grid cells, one row per
        crop.
      visible: as in `pck`, but every row is an evaluated image, none is padding.
      size: side of the square heatmap.
      names: joints, in order.
      variant: "labelled": every labelled joint. "visible": joints with v = 2 only.
        "limbs": elbows, wrists, knees and ankles, where the unit of `macro` is one
        (image, left/right pair) with a label.

    Raises:
      ValueError: as in `pck`; an unknown variant; joints that "limbs" needs are
        missing.
    """
    if variant not in _HEATMAP_VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; use one of {_HEATMAP_VARIANTS}")
    names = tuple(names)
    predicted, true, visible = check_points(predicted_grid, true_grid, visible, names)
    if variant == "visible":
        visible = np.where(visible == 2, 2, 0)
    units = None
    if variant == "limbs":
        keep = _limb_columns(names)
        names = tuple(names[j] for j in keep)
        predicted, true, visible = predicted[:, keep], true[:, keep], visible[:, keep]
        units = [(j, j + 1) for j in range(0, len(keep), 2)]
    return count_correct(
        np.linalg.norm(predicted - true, axis=-1) / (size / 10.0),
        visible,
        name=f"heatmap PCK, {variant}",
        names=names,
        thresholds=(0.5,),
        strict=True,
        units=units,
        count_images=True,
    )


def heatmap_variants(names: Sequence[str]) -> tuple[str, ...]:
    """Variants of `heatmap_pck` that a body with these joints has: "limbs" needs left and
    right elbows, wrists, knees and ankles."""
    limbs = set(_limb_words()) <= set(names)
    return tuple(v for v in _HEATMAP_VARIANTS if v != "limbs" or limbs)


def pckh(
    predicted: Num[Array, "n 16 2"],
    true: Num[Array, "n 16 2"],
    visible: Shaped[Array, "n 16"],
    head_size: Num[Array, "n"],
    threshold: float = 0.5,
    *,
    strict: bool = False,
) -> Pck:
    """MPII's PCKh; `pckh_rows` turns the record into the usual table.

    Follows the official toolkit and HRNet: error / head size `<=` threshold, pelvis and
    thorax left out, the mean pools all points (so joints weigh by their number of
    labels). A second threshold of exactly 0.10 is always included (HRNet's released
    code reads 0.11 there). Both point sets must use the same index base: MPII's files
    are 1-based.

    Args:
      predicted, true: image pixels in the joint order of `skeletons.MPII`.
      visible: as in `pck`; above 0 where the joint is annotated (`jnt_missing == 0`).
      head_size: 0.6 x diagonal of the head box, pixels.
      strict: `<` instead of `<=` (mmpose and the hourglass authors).

    Raises:
      ValueError: as in `pck`.
    """
    names = skeletons.MPII.keypoints
    predicted, true, visible = check_points(predicted, true, visible, names)
    keep = [j for j, word in enumerate(names) if word not in ("pelvis", "thorax")]
    return pck(
        predicted[:, keep],
        true[:, keep],
        visible[:, keep],
        head_size,
        (threshold, 0.1) if threshold != 0.1 else (0.1,),
        [names[j] for j in keep],
        strict=strict,
        name="PCKh",
    )


def pckh_rows(record: Pck) -> dict[str, float | None]:
    """The table of an MPII paper: Head ... Ankle, Mean, Mean@0.1, as fractions.

    Left and right are averaged with equal weight; `Mean` pools all joints but pelvis
    and thorax (the upper neck counts in it but has no row); `Mean@0.1` is at exactly
    0.10.

    Raises:
      ValueError: the record does not come from `pckh`.
    """
    if record.name != "PCKh":
        raise ValueError(f"pckh_rows needs a record of pckh, not of {record.name!r}")
    result = record.compute()
    rows: dict[str, float | None] = {}
    for row, members in _PCKH_ROWS:
        rates = [result["joints"][m]["pck"] for m in members]
        known = [rate[0] for rate in rates if rate is not None]
        rows[row] = float(np.mean(known)) if known else None
    mean = result["micro"] or [None] * len(record.thresholds)
    rows["Mean"] = mean[0]
    rows["Mean@0.1"] = mean[record.thresholds.index(0.1)]
    return rows


def box_longer_side(boxes: Num[Array, "n 4"]) -> Float[np.ndarray, "n"]:
    """Longer side of `x, y, width, height` boxes, pixels."""
    return np.asarray(boxes, np.float64)[:, 2:].max(axis=1)


def torso(
    true: Num[Array, "n k 2"],
    visible: Shaped[Array, "n k"],
    skeleton: str | skeletons.Skeleton,
) -> Float[np.ndarray, "n"]:
    """Torso length: left shoulder - right hip, else the other diagonal, pixels.

    NaN where neither diagonal is labelled; `pck` leaves such persons out and counts
    them.
    """
    skeleton = skeletons.get(skeleton)
    true, labelled = np.asarray(true, np.float64), np.asarray(visible) > 0
    ends = np.array([skeleton.index(word) for word in skeleton.torso])
    length = np.full(len(true), np.nan)
    for a, b in (skeleton.mirrored[ends], ends):
        known = labelled[:, a] & labelled[:, b]
        length[known] = np.linalg.norm(true[known, a] - true[known, b], axis=-1)
    return length


def crop_side(
    matrix: Num[Array, "n 3 3"], size: tuple[int, int]
) -> Float[np.ndarray, "n"]:
    """Longer side of the crops, measured in image pixels.

    Args:
      matrix: image pixels -> crop pixels (rotation, one scale, shift). For points in
        crop pixels pass identities: the result is `max(size)`.
      size: height and width of the crop, pixels.
    """
    matrix = np.asarray(matrix, np.float64)
    scale = np.sqrt(np.abs(np.linalg.det(matrix[:, :2, :2])))
    return max(size) / scale


def _limb_words() -> list[str]:
    return [f"{side}_{joint}" for joint in _LIMB_JOINTS for side in ("left", "right")]


def _limb_columns(names: tuple[str, ...]) -> list[int]:
    """Columns of elbows, wrists, knees, ankles; left and right follow each other."""
    words = _limb_words()
    missing = [word for word in words if word not in names]
    if missing:
        raise ValueError(f"variant 'limbs' needs the joints {missing}, names lack them")
    return [names.index(word) for word in words]
