"""Object keypoint similarity (OKS) and the two steps that use it before AP.

    similarity of keypoint i = exp(-d_i^2 / (2 area (2 sigma_i)^2))          (1)

(COCO keypoint evaluation, cocodataset.org/#keypoints-eval). Two different areas are in
use and must not be mixed up: AP takes the *segmentation* area of the labelled person
(`keypoint_similarity`, `oks`), OKS-NMS the area of the *padded detection boxes*
(`oks_nms`), because a detection has no segmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Num, Shaped

from pose_jax.arrays import Array

__all__ = ["keypoint_similarity", "oks", "oks_nms", "rescore"]


def keypoint_similarity(
    predicted: Num[Array, "*b k 2"],
    true: Num[Array, "*b k 2"],
    area: Num[Array, "*b"] | float | int,
    sigmas: Num[Array, "k"] | Sequence[float],
) -> Float[Array, "*b k"]:
    """Similarity of every keypoint, equation (1): 1 is exact, 0 is far away.

    Works on JAX arrays (jit, vmap, grad; at least float32) and on NumPy arrays
    (float64).

    Args:
      predicted, true: pixels, the same frame for both.
      area: area of the labelled person in that frame, square pixels, above 0 (for COCO
        AP the segmentation area).
      sigmas: constants of the keypoints, `Skeleton.sigmas`.
    """
    xp, (points, labels, areas, constants) = _floats(predicted, true, area, sigmas)
    squared = xp.sum((points - labels) ** 2, axis=-1)
    return xp.exp(-squared / (2.0 * areas[..., None] * (2.0 * constants) ** 2))


def oks(
    predicted: Num[Array, "*b k 2"],
    true: Num[Array, "*b k 2"],
    visible: Shaped[Array, "*b k"],
    area: Num[Array, "*b"] | float | int,
    sigmas: Num[Array, "k"] | Sequence[float],
) -> Float[Array, "*b"]:
    """Object keypoint similarity: mean of (1) over the labelled keypoints.

    Args:
      visible: 0 not labelled, 1 and 2 labelled (both count alike); a boolean mask works
        too.
      predicted, true, area, sigmas: as in `keypoint_similarity`. Unlabelled rows of
        `true` may hold anything, NaN included; gradients stay finite.

    Returns:
      Values in [0, 1]; 0 for a person without a labelled keypoint (leave such persons
      out of means with `(visible > 0).any(-1)`).
    """
    xp, (points, labels, areas, constants) = _floats(predicted, true, area, sigmas)
    labelled = xp.asarray(visible) > 0
    some = labelled.any(axis=-1)
    # Masking before the square keeps NaN of unlabelled rows out of the gradient too.
    offset = xp.where(labelled[..., None], points - labels, 0.0)
    similarity = keypoint_similarity(
        offset, xp.zeros_like(offset), xp.where(some, areas, 1.0), constants
    )
    total = xp.sum(xp.where(labelled, similarity, 0.0), axis=-1)
    return xp.asarray(total / xp.maximum(labelled.sum(axis=-1), 1))


def oks_nms(
    keypoints: Num[np.ndarray, "n k 2"],
    scores: Num[np.ndarray, "n"],
    areas: Num[np.ndarray, "n"],
    sigmas: Num[np.ndarray, "k"] | Sequence[float],
    threshold: float = 0.9,
) -> Int[np.ndarray, "kept"]:
    """Greedy non-maximum suppression of the poses of one image, on the host.

    Poses are visited by falling score (ties: the earlier row first); a visited pose
    removes every later one whose OKS to it is *above* `threshold`. All keypoints count,
    whatever their score, and the area is the mean of both areas (HRNet's convention;
    see Sun et al., CVPR 2019, and its released evaluation code).

    Args:
      keypoints: `(x, y)` image pixels.
      areas: product of the sides of the padded detection boxes (what the crop covers),
        square pixels. This is not the segmentation area that AP uses.

    Returns:
      Indices of the kept poses, best score first.

    Raises:
      ValueError: shapes disagree, a value is not finite, or an area is not above 0.
    """
    keypoints = np.asarray(keypoints, np.float64)
    scores, areas = np.asarray(scores, np.float64), np.asarray(areas, np.float64)
    kappa = 2.0 * np.asarray(sigmas, np.float64)
    shapes = (keypoints.shape, scores.shape, areas.shape)
    n = len(keypoints)
    if shapes != ((n, len(kappa), 2), (n,), (n,)):
        raise ValueError(
            f"oks_nms got keypoints {keypoints.shape}, scores {scores.shape}, areas "
            f"{areas.shape} and {len(kappa)} sigmas; it needs [n, k, 2], [n], [n] and k"
        )
    for name, values in (("keypoints", keypoints), ("scores", scores)):
        _refuse(~np.isfinite(values), f"{name} of pose {{}} are not finite")
    _refuse(~(areas > 0) | np.isinf(areas), "area of pose {} is not a positive number")
    kept = []
    left = np.argsort(-scores, kind="stable")
    while left.size:
        best, left = left[0], left[1:]
        kept.append(best)
        squared = np.sum((keypoints[left] - keypoints[best]) ** 2, axis=-1)
        area = (areas[left] + areas[best]) / 2.0
        similarity = np.exp(-squared / (2.0 * area[:, None] * kappa**2)).mean(axis=-1)
        left = left[similarity <= threshold]
    return np.array(kept, np.int64)


def rescore(
    box_scores: Num[np.ndarray, "n"],
    keypoint_scores: Num[np.ndarray, "n k"],
    threshold: float = 0.2,
) -> Float[np.ndarray, "n"]:
    """Score of a pose: box score x mean of the keypoint scores above `threshold`.

    A pose without any keypoint above the threshold scores 0 (HRNet's convention). AP
    reads only this number, never the scores of single keypoints.

    Raises:
      ValueError: shapes disagree or a score is not finite.
    """
    box_scores = np.asarray(box_scores, np.float64)
    keypoint_scores = np.asarray(keypoint_scores, np.float64)
    if keypoint_scores.ndim != 2 or box_scores.shape != keypoint_scores.shape[:1]:
        raise ValueError(
            f"rescore got box scores {box_scores.shape} and keypoint scores "
            f"{keypoint_scores.shape}; it needs [n] and [n, k]"
        )
    _refuse(~np.isfinite(box_scores), "box score of pose {} is not finite")
    _refuse(~np.isfinite(keypoint_scores), "keypoint scores of pose {} are not finite")
    used = keypoint_scores > threshold
    total = np.sum(keypoint_scores, axis=-1, where=used)
    return box_scores * total / np.maximum(used.sum(axis=-1), 1)


def _floats(*values) -> tuple[Any, list[Any]]:
    """The array namespace of the inputs and the inputs in its floating type."""
    if any(isinstance(v, jax.Array) for v in values):
        arrays = [jnp.asarray(v) for v in values]
        # Half precision has too few bits for squared pixel distances.
        dtype = jnp.result_type(jnp.float32, *arrays)
        return jnp, [a.astype(dtype) for a in arrays]
    return np, [np.asarray(v, np.float64) for v in values]


def _refuse(bad: np.ndarray, message: str) -> None:
    if bad.any():
        raise ValueError(message.format(int(np.argwhere(bad)[0, 0])))
