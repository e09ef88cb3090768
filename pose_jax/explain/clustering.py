"""Clusters of joints that influence each other: merged in mirrored pairs, cut with limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int
from scipy.cluster import hierarchy
from scipy.sparse import csgraph

from pose_jax.arrays import Array
from pose_jax.explain.shapley.coalitions import Clusters, check_clusters

TIE = 1e-9
"""Heights closer than this are one height (rounding of mirrored pairs)."""


class NoClusters(ValueError):
    """No cut of the tree obeys the limits."""


@dataclasses.dataclass(frozen=True)
class Clustering:
    """Clusters of joints.

    Attributes:
      clusters: sorted members, clusters by their smallest member.
      heights: [K - 1] distance of every merge, rising; fewer where merging got stuck.
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
    mirrored: Int[Array, "k"] | None = None,
    *,
    max_size: int = 6,
    min_clusters: int = 3,
    max_clusters: int = 6,
    capped: bool = False,
) -> Clustering:
    """Clusters of an affinity: average linkage on 1 - W / max W, cut at the largest gap.

    Two clusters merge together with their mirror images (into one where they overlap: both
    shoulders join the neck at once), so the clusters are those of a body, whatever the order
    of the joints. Only cuts with clusters of at most `max_size` and with `min_clusters` to
    `max_clusters` of them count, since they bound the number of coalitions (5 clusters of
    3: 448). No number is tuned. Deterministic: of equal gaps (to 1e-9) the one with more
    clusters is taken; a cut between merges of equal height never counts.

    Args:
      mirrored: number of every joint's mirrored twin; W must be its own mirror image. By
        default nothing is mirrored, and this is plain average linkage.
      capped: pass over merges above `max_size`, for the closest allowed one. It answers where
        the plain tree says that the data have no such clusters: say so beside it.

    Raises:
      NoClusters: no cut obeys the limits.
      ValueError: W is not an affinity, or not its own mirror image.
    """
    check_affinity(W)
    if W.max() <= 0:
        raise ValueError(
            "no joint influences another (W is 0): there is nothing to cluster"
        )
    twin = np.arange(len(W)) if mirrored is None else np.asarray(mirrored)
    if not np.allclose(W, W[np.ix_(twin, twin)]):
        raise ValueError("W is not its own mirror image: take it from affinity()")
    distance = 1 - W / W.max()
    np.fill_diagonal(distance, 0)
    stages, linkage = _merge_all(distance, twin, max_size if capped else len(W))
    ends = [stage.height for stage in stages] + [1.0]  # 1 is the distance of strangers.
    best: tuple[float, int] | None = None
    for n, stage in enumerate(stages):
        gap = ends[n + 1] - stage.height
        allowed = min_clusters <= len(stage.clusters) <= max_clusters
        allowed &= max(map(len, stage.clusters)) <= max_size
        if allowed and gap > (TIE if best is None else best[0] + TIE):
            best = gap, n
    if best is None:
        near = [
            f"{len(s.clusters)} (largest {max(map(len, s.clusters))}, gap "
            f"{ends[n + 1] - s.height:.2g})"
            for n, s in enumerate(stages)
        ]
        raise NoClusters(
            f"no cut gives {min_clusters} to {max_clusters} clusters of at most {max_size} "
            f"joints with a gap; the tree offers {'; '.join(near)}: change the limits"
        )
    gap, n = best
    return Clustering(
        stages[n].clusters, linkage[:, 2], linkage, ends[n] + gap / 2, gap
    )


class _Stage(NamedTuple):
    height: float
    clusters: Clusters


def _merge_all(distance: np.ndarray, twin: np.ndarray, most: int):
    """Every stage of the merging, and its rows in SciPy's format."""
    k = len(distance)
    found: dict[int, tuple[int, ...]] = {i: (i,) for i in range(k)}
    stages, rows = [_Stage(0.0, _sorted(found.values()))], []
    while len(found) > 1:
        step = _closest(distance, twin, found, most)
        if step is None:
            break
        height, unions = step
        for parts in unions:
            first, *others = parts
            for other in others:
                members = tuple(sorted(found.pop(first) + found.pop(other)))
                rows.append((first, other, height, len(members)))
                first = k + len(rows) - 1
                found[first] = members
        stages.append(_Stage(height, _sorted(found.values())))
    return stages, np.array(rows, float).reshape(-1, 4)


def _closest(distance, twin, found: dict[int, tuple[int, ...]], most: int):
    """The height of the next merge and the clusters that become one, mirrored alike."""
    place = {members: i for i, members in found.items()}

    def image(i: int) -> int:
        return place[tuple(sorted(int(twin[m]) for m in found[i]))]

    pairs = [
        (round(float(distance[np.ix_(a, b)].mean()) / TIE), i, j)
        for i, a in found.items()
        for j, b in found.items()
        if i < j
    ]
    for height, i, j in sorted(pairs):
        pair, other = {i, j}, {image(i), image(j)}
        unions = [pair | other] if pair & other else [pair, other]
        sizes = [sum(len(found[c]) for c in union) for union in unions]
        if max(sizes) <= most:
            return height * TIE, [sorted(union) for union in unions]
    return None


def _sorted(clusters) -> Clusters:
    return tuple(sorted(tuple(c) for c in clusters))


def spectral_clusters(W: Float[np.ndarray, "k k"], num_clusters: int) -> Clusters:
    """Clusters of an affinity by its normalised Laplacian (Ng, Jordan and Weiss 2002).

    A check of `find_clusters` that shares nothing with it but W. Deterministic: Ward's
    clusters of the embedded joints stand in for k-means and its random start.

    Raises:
      ValueError: W is not an affinity, or so many clusters cannot be.
    """
    check_affinity(W)
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


def check_square(matrix: np.ndarray) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"the matrix has shape {list(matrix.shape)}; the targets must be the joints"
        )


def check_affinity(W: np.ndarray) -> None:
    check_square(W)
    # Written so that NaN fails, too.
    if len(W) < 2 or not (
        (W >= 0).all() and np.allclose(W, W.T) and not W.diagonal().any()
    ):
        raise ValueError(
            "W must hold two joints at least, be symmetric, not negative and 0 on the "
            "diagonal: take it from affinity()"
        )
