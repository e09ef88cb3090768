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
import scipy.linalg
from jaxtyping import Bool, Float, Int
from scipy.cluster import hierarchy
from scipy.sparse import csgraph
from scipy.spatial.distance import squareform

from pose_jax import intervals
from pose_jax.arrays import Array
from pose_jax.explain.grouping import GroupingError, grouping_error
from pose_jax.explain.shapley.coalitions import Clusters, check_clusters

__all__ = [
    "Clustering", "GroupingError", "Influence", "adjusted_rand", "affinity",
    "find_clusters", "grouping_error", "influence", "influence_matrix", "spectral_clusters",
]  # fmt: skip

TIE = 1e-9
"""Heights closer than this are one height (rounding of mirrored pairs)."""


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
        _check_square(self.matrix)
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
    _check_square(matrix)
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


@dataclasses.dataclass(frozen=True)
class Clustering:
    """Clusters cut from a dendrogram.

    Attributes:
      clusters: sorted members, clusters by their smallest member.
      heights: [K - 1] distance of every merge, rising.
      linkage: [K - 1, 4] in SciPy's format, for `scipy.cluster.hierarchy.dendrogram`.
      cut: the distance at which the tree is cut, in the middle of the gap.
      gap: rise from the last merge that was kept to the first that was not.
    """

    clusters: Clusters
    heights: Float[np.ndarray, "merges"]
    linkage: Float[np.ndarray, "merges 4"]
    cut: float
    gap: float


def find_clusters(
    W: Float[np.ndarray, "k k"],
    *,
    max_size: int = 6,
    min_clusters: int = 3,
    max_clusters: int = 6,
) -> Clustering:
    """Clusters of an affinity: average linkage on 1 - W / max W, cut at the largest gap.

    Only cuts with clusters of at most `max_size` and with `min_clusters` to `max_clusters`
    of them count, since they bound the number of coalitions (5 clusters of 3: 448). No number
    is tuned. Deterministic: of equal gaps (to 1e-9) the one with more clusters is taken; a
    cut between merges of equal height would separate equals and never counts. Which of
    several equal pairs merges first is SciPy's choice by index.

    Raises:
      ValueError: W is not an affinity, or no cut obeys the limits.
    """
    _check_affinity(W)
    if W.max() <= 0:
        raise ValueError(
            "no joint influences another (W is 0): there is nothing to cluster"
        )
    distance = 1 - W / W.max()
    np.fill_diagonal(distance, 0)
    tree = hierarchy.linkage(squareform(distance, checks=False), "average")
    heights, players = tree[:, 2], len(W)
    ends = np.concatenate([[0.0], heights, [1.0]])  # 1 is the distance of strangers.
    best: tuple[float, int] | None = None
    found = []
    for number in range(players, 0, -1):
        gap = float(ends[players - number + 1] - ends[players - number])
        largest = max(map(len, _cut(tree, number)))
        found.append((number, largest, gap))
        allowed = min_clusters <= number <= max_clusters and largest <= max_size
        if allowed and gap > (TIE if best is None else best[0] + TIE):
            best = gap, number
    if best is None:
        near = [f"{n} (largest {size}, gap {gap:.2g})" for n, size, gap in found]
        raise ValueError(
            f"no cut gives {min_clusters} to {max_clusters} clusters of at most {max_size} "
            f"joints with a gap; the tree offers {'; '.join(near)}: change the limits"
        )
    gap, number = best
    cut = float(ends[players - number] + gap / 2)
    return Clustering(_cut(tree, number), heights, tree, cut, gap)


def capped_clusters(
    W: Float[np.ndarray, "k k"],
    *,
    max_size: int = 6,
    min_clusters: int = 3,
    max_clusters: int = 6,
) -> Clusters:
    """Clusters within the limits where no cut of the tree obeys them.

    The same average linkage, but a merge that would exceed `max_size` is passed over for the
    closest allowed one. Of the allowed numbers of clusters the one before the largest rise
    is taken. It answers where `find_clusters` says that the data have no such clusters: say
    so beside it.

    Raises:
      ValueError: W is not an affinity, or merging gets stuck above `max_clusters`.
    """
    _check_affinity(W)
    distance = 1 - W / max(float(W.max()), 1e-12)
    clusters: list[tuple[int, ...]] = [(i,) for i in range(len(W))]
    stages: list[tuple[float, list[tuple[int, ...]]]] = [(0.0, list(clusters))]
    while len(clusters) > min_clusters:
        pairs = [
            (float(distance[np.ix_(a, b)].mean()), i, j)
            for i, a in enumerate(clusters)
            for j, b in enumerate(clusters)
            if i < j and len(a) + len(b) <= max_size
        ]
        if not pairs:
            break
        height, i, j = min(pairs)
        clusters[i] = tuple(sorted(clusters[i] + clusters.pop(j)))
        stages.append((height, list(clusters)))
    heights = [height for height, _ in stages] + [1.0]
    gaps = {
        n: heights[n + 1] - heights[n]
        for n, (_, found) in enumerate(stages)
        if min_clusters <= len(found) <= max_clusters
    }
    if not gaps:
        raise ValueError(
            f"clusters of at most {max_size} joints cannot be merged down to "
            f"{max_clusters}: {len(clusters)} are left; change the limits"
        )
    return tuple(sorted(stages[max(gaps, key=lambda n: gaps[n])][1]))


def spectral_clusters(W: Float[np.ndarray, "k k"], num_clusters: int) -> Clusters:
    """Clusters of an affinity by its normalised Laplacian (Ng, Jordan and Weiss 2002).

    A check of `find_clusters` that shares nothing with it but W. Deterministic: Ward's
    clusters of the embedded joints stand in for k-means and its random start.

    Raises:
      ValueError: W is not an affinity, or so many clusters cannot be.
    """
    _check_affinity(W)
    if not 1 <= num_clusters <= len(W):
        raise ValueError(
            f"num_clusters={num_clusters} is outside 1..{len(W)} (the joints)"
        )
    laplacian = csgraph.laplacian(W, normed=True)
    _, vectors = scipy.linalg.eigh(laplacian, subset_by_index=[0, num_clusters - 1])
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    points = vectors / np.maximum(length, 1e-12)
    return _cut(hierarchy.linkage(points, "ward"), num_clusters)


def adjusted_rand(a: Sequence[Sequence[int]], b: Sequence[Sequence[int]]) -> float:
    """Agreement of two partitions: 1 = the same, 0 = as by chance (Hubert and Arabie 1985).

    Raises:
      ValueError: no partitions of the same joints.
    """
    first, second = check_clusters(a), check_clusters(b)
    count = sum(map(len, first))
    if sum(map(len, second)) != count:
        raise ValueError(
            f"the partitions are of {count} and of {sum(map(len, second))} joints"
        )
    table = np.array([[len({*x} & {*y}) for y in second] for x in first])

    def pairs(sizes) -> float:
        return float((sizes * (sizes - 1) / 2).sum())

    both, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    chance = rows * columns / max(count * (count - 1) / 2, 1)
    most = (rows + columns) / 2
    return 1.0 if most == chance else (both - chance) / (most - chance)


def _cut(tree: np.ndarray, number: int) -> Clusters:
    return _from_labels(hierarchy.cut_tree(tree, number)[:, 0])


def _from_labels(labels: np.ndarray) -> Clusters:
    """Sorted members, clusters by their smallest member."""
    groups = {int(label): np.flatnonzero(labels == label) for label in labels}
    return tuple(sorted(tuple(map(int, members)) for members in groups.values()))


def _check_square(matrix: np.ndarray) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"the matrix has shape {list(matrix.shape)}; the targets must be the joints"
        )


def _check_affinity(W: np.ndarray) -> None:
    _check_square(W)
    # Written so that NaN fails, too.
    if len(W) < 2 or not (
        (W >= 0).all() and np.allclose(W, W.T) and not W.diagonal().any()
    ):
        raise ValueError(
            "W must hold two joints at least, be symmetric, not negative and 0 on the "
            "diagonal: take it from affinity()"
        )
