"""Groups of stored activations: k-means and what its clusters are worth."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import os
from collections.abc import Iterable, Mapping
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float, Int

from pose_jax.analysis import pca

LIMIT = 10_000
"""Rows beyond which silhouettes are taken from a sample."""

WORKING_MIB = 128
"""Distances that are held at a time."""

MOST_WORKERS = 4
"""Fits at a time; each holds a copy of the samples."""

FEWEST = 20
"""Persons below which an agreement says nothing."""


@dataclasses.dataclass(frozen=True)
class Clustering:
    """One partition of n samples.

    Attributes:
      labels: cluster of every sample; cluster 0 is the largest (of equals, the one that holds
        the earlier sample).
      centres: the means of the clusters.
      inertia: squared distances of the samples to their centres, summed.
      stability: mean adjusted Rand index over pairs of restarts (Hubert and Arabie 1985): 1 =
        every start finds these clusters, 0 = as by chance; NaN for one restart.
    """

    labels: Int[np.ndarray, "n"]
    centres: Float[np.ndarray, "g d"]
    inertia: float
    stability: float


def kmeans(
    x: Float[np.ndarray, "n d"],
    counts: Iterable[int] = range(2, 11),
    *,
    restarts: int = 10,
    max_iterations: int = 1000,
    seed: int = 0,
) -> dict[int, Clustering]:
    """k-means for several numbers of clusters: scikit-learn's, Lloyd from k-means++ starts.

    Every restart is a fit of its own; the one of lowest inertia is kept.

    Raises:
      ValueError: fewer (different) samples than clusters, no cluster or restart, values that
        are not finite.
    """
    counts = list(counts)
    if restarts < 1 or not counts or min(counts) < 1:
        raise ValueError(
            f"clusters {counts} with {restarts} restarts: at least one of each is needed"
        )
    if max(counts) > len(x):
        raise ValueError(
            f"{max(counts)} clusters cannot be made of {len(x)} samples: collect more "
            "samples or ask for fewer clusters"
        )
    mean, _ = pca.moments(pca.as_rows(x))
    turned = _turned(x, mean)
    return {
        count: _best(x, _fits(turned, count, restarts, max_iterations, seed), count)
        for count in counts
    }


def _turned(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Centred samples, rotated into the n axes that hold them where n < d.

    The rotation leaves all distances as they are and each iteration costs n / d of before.
    """
    centred = x - mean.astype(np.result_type(x, np.float32))
    if len(x) < x.shape[1]:
        triangle: np.ndarray = np.linalg.qr(centred.T, mode="r")  # pyright: ignore
        return np.ascontiguousarray(triangle.T)
    return centred


def _fits(x, count: int, restarts: int, iterations: int, seed: int) -> list[_Fit]:
    """One thread for each fit: faster than many threads in one where cores are shared, and
    the sums do not depend on the machine."""
    from sklearn.cluster import KMeans
    from threadpoolctl import ThreadpoolController

    threads = ThreadpoolController()

    def fit(restart: int) -> _Fit:
        state = np.random.SeedSequence([seed, count, restart]).generate_state(1)[0]
        model = KMeans(count, max_iter=iterations, random_state=int(state))
        model.set_params(n_init=1)
        with threads.limit(limits=1):  # OpenMP counts threads for each caller.
            model.fit(x)
        return _Fit(float(np.asarray(model.inertia_)), np.asarray(model.labels_))

    workers = min(restarts, os.cpu_count() or 1, MOST_WORKERS)
    with threads.limit(limits=1), futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(fit, range(restarts)))


class _Fit(NamedTuple):
    inertia: float
    labels: np.ndarray


def _best(x: np.ndarray, fits: list[_Fit], count: int) -> Clustering:
    from sklearn.metrics import adjusted_rand_score

    pairs = itertools.combinations([fit.labels for fit in fits], 2)
    agreed = [adjusted_rand_score(a, b) for a, b in pairs]
    labels = _by_size(min(fits, key=lambda fit: fit.inertia).labels, count)
    filled = len(np.unique(labels))
    if filled < count:
        raise ValueError(
            f"{count} clusters cannot be made of {filled} different samples: ask for fewer"
        )
    centres = np.stack([x[labels == g].mean(0, np.float64) for g in range(count)])
    inertia = sum(
        float(((block - centres[labels[start : start + len(block)]]) ** 2).sum())
        for start, block in pca.blocks(pca.as_rows(x))
    )
    return Clustering(
        labels, centres, inertia, float(np.mean(agreed)) if agreed else np.nan
    )


def _by_size(labels: np.ndarray, count: int) -> np.ndarray:
    """Numbers anew: by falling size, then by first member."""
    sizes = np.bincount(labels, minlength=count)
    first = [int((labels == g).argmax()) for g in range(count)]
    order = sorted(range(count), key=lambda g: (-sizes[g], first[g]))
    numbers = np.empty(count, int)
    numbers[order] = np.arange(count)
    return numbers[labels]


def silhouettes(
    x: Float[np.ndarray, "n d"],
    labelings: Mapping[int, Int[np.ndarray, "n"]],
    *,
    limit: int = LIMIT,
    seed: int = 0,
) -> dict[int, Float[np.ndarray, "n"]]:
    """Silhouettes (Rousseeuw 1987), Euclidean; all labelings from one pass over distances.

    (b - a) / max(a, b) with a = mean distance to the others of the own cluster, b = to the
    members of the nearest other cluster; 0 for a sample alone in its cluster. Above `limit`
    rows, so many of them are drawn and compared among themselves; the others are NaN.

    Raises:
      ValueError: a labeling with fewer than two clusters.
    """
    from sklearn.metrics import pairwise_distances_chunked

    rows = np.arange(len(x))
    if len(x) > limit:
        rows = np.sort(np.random.default_rng(seed).choice(len(x), limit, replace=False))
    drawn = {}
    for key, labels in labelings.items():
        drawn[key] = np.unique(labels[rows], return_inverse=True)[1]
        if not drawn[key].any():
            raise ValueError(
                f"labeling {key} has one cluster among {len(rows)} samples: silhouettes "
                "compare at least two"
            )
    members = {k: np.eye(labels.max() + 1)[labels] for k, labels in drawn.items()}

    def reduce(distances: np.ndarray, start: int) -> tuple[np.ndarray, ...]:
        here = slice(start, start + len(distances))
        return tuple(
            _silhouette(distances, drawn[k][here], m) for k, m in members.items()
        )

    parts = list(
        pairwise_distances_chunked(
            x[rows], reduce_func=reduce, working_memory=WORKING_MIB
        )
    )
    found = {key: np.full(len(x), np.nan) for key in labelings}
    for number, key in enumerate(found):
        found[key][rows] = np.concatenate([part[number] for part in parts])
    return found


def _silhouette(distances, labels, members) -> np.ndarray:
    """[b, n] distances, [b] own clusters, [n, g] members -> [b]"""
    sums, sizes = distances @ members, members.sum(0)
    own = (np.arange(len(labels)), labels)
    others = sizes[labels] - 1
    inside = sums[own] / np.maximum(others, 1)
    means = sums / sizes
    means[own] = np.inf
    outside = means.min(1)
    larger = np.maximum(inside, outside)
    ratio = np.divide(
        outside - inside, larger, out=np.zeros_like(larger), where=larger > 0
    )
    return np.where(others > 0, ratio, 0.0)


def misplaced(
    silhouette: Float[np.ndarray, "n"], labels: Int[np.ndarray, "n"]
) -> Bool[np.ndarray, "n"]:
    """Samples nearer to another cluster than to their own: silhouette below 0.

    Samples that were not drawn (NaN) or are in no cluster (label -1) count as well placed.
    """
    return (silhouette < 0) & (labels >= 0)


def agreement(
    labels: Int[np.ndarray, "n"],
    binned: Mapping[str, Int[np.ndarray, "n"]],
    *,
    seed: int = 0,
    shuffles: int = 100,
) -> dict[str, dict[str, Any]]:
    """Normalised mutual information of clusters and attributes, beside what chance gives.

    Args:
      binned: labels of every attribute, -1 where undefined (`attributes.binned`).
      shuffles: permutations of the attribute among the samples that have it.

    Returns:
      `nmi` (mean of both entropies below the line, as in scikit-learn), `null` (mean over the
      shuffles), `null_high` (their 95 % quantile), `count`. Attributes with one bin, or known
      of fewer than `FEWEST` samples, are left out, as are all where there is one cluster.
    """
    from sklearn.metrics import mutual_info_score

    found = {}
    for name, bins in binned.items():
        known = bins >= 0
        mine = np.unique(labels[known], return_inverse=True)[1]
        theirs = np.unique(bins[known], return_inverse=True)[1]
        if len(mine) < FEWEST or not mine.any() or not theirs.any():
            continue
        width = int(theirs.max()) + 1
        entropies = [scipy.stats.entropy(np.bincount(v)) for v in (mine, theirs)]
        scale, cells = float(np.mean(entropies)), (int(mine.max()) + 1) * width

        def score(other, mine=mine, width=width, scale=scale, cells=cells) -> float:
            table = np.bincount(mine * width + other, minlength=cells)
            table = table.reshape(-1, width)
            return mutual_info_score(None, None, contingency=table) / scale

        generator = np.random.default_rng(seed)
        null = [score(generator.permutation(theirs)) for _ in range(shuffles)]
        found[name] = {
            "nmi": score(theirs),
            "null": float(np.mean(null)),
            "null_high": float(np.quantile(null, 0.95)),
            "count": len(mine),
        }
    return found


def nearest_to_centres(
    x: Float[np.ndarray, "n d"], clustering: Clustering, count: int
) -> Int[np.ndarray, "g count"]:
    """The members of every cluster nearest to its centre, nearest first.

    Returns:
      Row numbers; -1 where a cluster has fewer members.
    """
    away = np.concatenate(
        [
            np.linalg.norm(
                block
                - clustering.centres[clustering.labels[start : start + len(block)]],
                axis=1,
            )
            for start, block in pca.blocks(pca.as_rows(x))
        ]
    )
    rows = np.full((len(clustering.centres), count), -1)
    for g, row in enumerate(rows):
        members = np.flatnonzero(clustering.labels == g)
        nearest = members[np.argsort(away[members], kind="stable")][:count]
        row[: len(nearest)] = nearest
    return rows


def check_view(method: str) -> None:
    """Refuse a method of `view` that cannot run.

    Raises:
      ValueError: an unknown method, or umap-learn is not installed.
    """
    if method not in ("pca", "umap"):
        raise ValueError(f"view {method!r} is unknown; use 'pca' or 'umap'")
    if method == "umap" and importlib.util.find_spec("umap") is None:
        raise ValueError(
            "view 'umap' needs the package umap-learn: pip install umap-learn, or use 'pca'"
        )


def view(
    x: Float[np.ndarray, "n d"], *, method: str = "pca", seed: int = 0
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "2"] | None]:
    """Samples in two dimensions, for pictures.

    `pca` scales every axis to variance 1 first (constant axes stay 0), as the hourglass thesis
    did, and takes the first two components; `umap` is McInnes et al. 2018 on the plain values.

    Returns:
      Positions, and the shares of variance that the axes explain (None for umap).

    Raises:
      ValueError: an unknown method, umap-learn is not installed, fewer than three samples.
    """
    if method == "pca":
        from sklearn.preprocessing import StandardScaler

        scaled = StandardScaler().fit_transform(x)
        found = pca.fit(scaled, components=2, seed=seed)
        return found.project(scaled), found.shares
    check_view(method)
    import umap  # pyright: ignore[reportMissingImports]

    positions = umap.UMAP(n_components=2, random_state=seed).fit_transform(x)
    return np.asarray(positions, x.dtype), None
