"""Aligned predicted and labelled points, checked before a metric sees them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Num, Shaped

from pose_jax.arrays import Array

__all__ = ["check_points"]


def check_points(
    predicted: Num[Array, "n k 2"],
    true: Num[Array, "n k 2"],
    visible: Shaped[Array, "n k"],
    names: Sequence[str],
) -> tuple[
    Float[np.ndarray, "n k 2"], Float[np.ndarray, "n k 2"], Int[np.ndarray, "n k"]
]:
    """The three arrays on the host, refused unless every number can be scored.

    Args:
      predicted: all must be finite, unlabelled joints included.
      true: must be finite where labelled; the other points come back as 0.
      visible: 0 not labelled, 1 occluded, 2 visible; True of a boolean mask becomes 2.
      names: joints, in order.

    Raises:
      ValueError: shapes disagree or a number is not usable; the message names the row.
    """
    predicted = np.asarray(predicted, np.float64)
    true, visible = np.asarray(true, np.float64), np.asarray(visible)
    shape = (len(predicted), len(names), 2)
    if predicted.shape != shape or true.shape != shape or visible.shape != shape[:2]:
        raise ValueError(
            f"predicted {predicted.shape}, true {true.shape}, visible {visible.shape} "
            f"must be [n, k, 2], [n, k, 2] and [n, k] with k = {len(names)} joint names"
        )
    if visible.dtype == bool:
        visible = np.where(visible, 2, 0)
    if not np.isin(visible, (0, 1, 2)).all():
        row, joint = np.argwhere(~np.isin(visible, (0, 1, 2)))[0]
        raise ValueError(
            f"visible of row {row}, {names[joint]!r} is {visible[row, joint]}; use "
            "0 (not labelled), 1 (occluded) or 2 (visible)"
        )
    labelled = visible > 0
    for what, points, needed in (
        ("predicted", predicted, np.ones_like(labelled)),
        ("labelled true", true, labelled),
    ):
        bad = np.argwhere(~np.isfinite(points).all(axis=-1) & needed)
        if bad.size:
            row, joint = bad[0]
            raise ValueError(
                f"{what} point of row {row}, {names[joint]!r} is not finite "
                f"({points[row, joint].tolist()}); fix it upstream, it is never scored"
            )
    true = np.where(labelled[..., None], true, 0.0)
    return predicted, true, visible.astype(np.int64)
