"""How far the answer for one joint rests on the picture around another, and joint groups.

Perturbation Influence, following XPose (Qiu et al., arXiv 2403.12370; its clustering rule,
masks and numbers are not public, those here are our choices): hide a patch around joint j,
see how much the score of joint i drops. Joints that need each other form clusters, and
`grouping_error` says what a grouped value costs against the Shapley value of all joints.

Rows are always targets i, columns the hidden joints (players) j. Arrays only; the masked
pictures are made and scored elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from pose_jax import intervals
from pose_jax.arrays import Array
from pose_jax.explain.clustering import (
    Clustering,
    NoClusters,
    adjusted_rand,
    check_square,
    find_clusters,
    spectral_clusters,
)
from pose_jax.explain.grouping import GroupingError, grouping_error

__all__ = [
    "Clustering", "GroupingError", "Influence", "NoClusters", "adjusted_rand", "affinity",
    "find_clusters", "grouping_error", "influence", "influence_matrix", "spectral_clusters",
]  # fmt: skip


def influence(
    clean: Float[Array, "m k"],
    masked: Float[Array, "m n r k"],
    valid: Bool[Array, "m n"],
    target_valid: Bool[Array, "m k"],
) -> Float[np.ndarray, "m k n"]:
    """Perturbation Influence of every person: mean drop of target i, joint j hidden.

    Args:
      clean: score of every target on the untouched picture, by default the thresholded
        keypoint similarity.
      masked: the same with the r-th random mask over joint j.
      valid: whether joint j has a place that can be hidden.
      target_valid: whether target i has a label.

    Returns:
      Unit of the score; NaN where i or j is not valid.

    Raises:
      ValueError: a score that counts is not finite.
    """
    clean, masked = np.asarray(clean, np.float64), np.asarray(masked, np.float64)
    drop = np.swapaxes(clean[:, None] - masked.mean(2), 1, 2)
    used = np.asarray(target_valid)[:, :, None] & np.asarray(valid)[:, None, :]
    if not np.isfinite(drop[used]).all():
        person, target, player = np.argwhere(used & ~np.isfinite(drop))[0]
        raise ValueError(
            f"person {person}: the score of target {target} with joint {player} hidden is "
            "not finite; set valid or target_valid to False there"
        )
    return np.where(used, drop, np.nan)


@dataclasses.dataclass(frozen=True)
class Influence:
    """Perturbation Influence over persons; K targets, n hidden joints.

    Attributes:
      matrix: [K, n] mean over the persons where both are valid, NaN without any.
      counts: [K, n] how many these are.
      low, high: [K, n] bootstrap interval, pictures resampled; NaN below two pictures.
    """

    matrix: Float[np.ndarray, "k n"]
    counts: Int[np.ndarray, "k n"]
    low: Float[np.ndarray, "k n"]
    high: Float[np.ndarray, "k n"]

    @property
    def normalised(self) -> Float[np.ndarray, "k n"]:
        """Rows divided by their diagonal: 1 = as much as the joint's own patch.

        Joints with small constants (wrists, ankles) no longer dominate. NaN in rows whose own
        patch does no harm.

        Raises:
          ValueError: targets are not the joints.
        """
        check_square(self.matrix)
        own = np.diagonal(self.matrix)[:, None]
        unknown = np.full_like(self.matrix, np.nan)
        return np.divide(self.matrix, own, out=unknown, where=own > 0)


def influence_matrix(
    per_person: Float[Array, "m k n"],
    groups: Sequence[Hashable],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Influence:
    """Means and bootstrap intervals of `influence`.

    Args:
      groups: [m] the picture of every person; whole pictures are resampled.
    """
    values = np.asarray(per_person)
    low, high = intervals.mean_interval(
        values, groups, resamples=resamples, level=level, seed=seed
    )
    there = ~np.isnan(values)
    counts = there.sum(0)
    total = np.where(there, values, 0).sum(0, dtype=np.float64)
    matrix = np.divide(
        total, counts, out=np.full(counts.shape, np.nan), where=counts > 0
    )
    return Influence(matrix, counts, low, high)


def affinity(
    matrix: Float[Array, "k k"], mirrored: Int[Array, "k"]
) -> Float[np.ndarray, "k k"]:
    """How strongly two joints hang together: symmetric, not negative, diagonal 0.

    W = max(0, (PI + PI^T) / 2), averaged with its left/right mirror image so that no side
    gets clusters of its own. A pair that was never seen takes its mirror image's value.

    Args:
      matrix: influence, raw or normalised.
      mirrored: number of every joint's mirrored twin (its own on the axis).

    Raises:
      ValueError: no square matrix, `mirrored` is not its own inverse, or a pair that was
        seen on neither side.
    """
    matrix, mirrored = np.asarray(matrix, np.float64), np.asarray(mirrored)
    check_square(matrix)
    identity = np.arange(len(matrix))
    permutation = np.array_equal(np.sort(mirrored), identity)
    if not permutation or (mirrored[mirrored] != identity).any():
        raise ValueError(
            f"mirrored={mirrored.tolist()} must pair up the joints 0..{len(matrix) - 1}"
        )
    mean = np.maximum((matrix + matrix.T) / 2, 0)
    both = np.stack([mean, mean[np.ix_(mirrored, mirrored)]])
    both[:, identity, identity] = 0
    seen = ~np.isnan(both)
    if not seen.any(0).all():
        i, j = np.argwhere(~seen.any(0))[0]
        raise ValueError(
            f"joints {i} and {j} were never valid together, nor were their mirrored twins; "
            "take more persons or leave a joint out"
        )
    return np.where(seen, both, 0).sum(0) / seen.sum(0)
