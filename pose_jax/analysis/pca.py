"""Principal components of stored activations, and the walk along them.

Samples are `parts`: one array `[n, ...]` or a sequence of arrays `[n_i, ...]` (memory-mapped
files, say), flattened to rows of d values and read block by block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float, Int

Parts: TypeAlias = np.ndarray | Sequence[np.ndarray]

LIMITED = 256
"""Components that are kept, unless told otherwise, where all of them are out of reach."""

BLOCK_BYTES = 2**25
"""Rows that are read and converted to float64 at a time."""

METHODS = ("auto", "exact", "randomised", "incremental")


@dataclasses.dataclass(frozen=True)
class PCA:
    """Principal components: axes of largest variance through the mean.

    Attributes:
      mean: centre of the samples.
      components: orthonormal rows, by falling variance; the entry of largest magnitude is
        positive, which fixes the sign.
      variance: lambda, the variance of the samples along each component (n - 1).
      total_variance: summed over all d axes, whatever number of components is kept.
      count: samples.
      method: `exact`, `randomised` or `incremental`.
    """

    mean: Float[np.ndarray, "d"]
    components: Float[np.ndarray, "c d"]
    variance: Float[np.ndarray, "c"]
    total_variance: float
    count: int
    method: str

    @property
    def shares(self) -> Float[np.ndarray, "c"]:
        """The share of every component in the total variance."""
        return self.variance / self.total_variance

    def components_for(self, share: float = 0.95) -> int | None:
        """How many components, the first ones, hold `share` of the variance (a count).

        None where all components that were kept hold less.

        Raises:
          ValueError: the share is not in (0, 1].
        """
        if not 0 < share <= 1:
            raise ValueError(f"share={share:g} must lie above 0 and at most at 1")
        # Rounding must not ask for one component more than all of them.
        enough = np.flatnonzero(np.cumsum(self.shares) >= share - 1e-9)
        return int(enough[0]) + 1 if len(enough) else None

    def project(self, parts: Parts) -> Float[np.ndarray, "n c"]:
        """Coordinates of samples along the components, in the samples' float type."""
        return self._map(
            parts, len(self.components), lambda x: x @ self.components.T, centre=True
        )

    def restore(self, codes: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n d"]:
        """The samples that have these coordinates (the inverse where all are kept)."""
        return self._map(
            codes, len(self.mean), lambda x: x @ self.components + self.mean
        )

    def restrict(
        self, parts: Parts, keep: slice | Int[np.ndarray, "m"] | Bool[np.ndarray, "c"]
    ) -> Float[np.ndarray, "n d"]:
        """Samples on the subspace through the mean that some components span.

        Args:
          keep: rows of `components`: `slice(0, 50)` (the first fifty), row numbers from 0,
            or a mask.
        """
        kept = self.components[keep]
        return self._map(
            parts, len(self.mean), lambda x: x @ kept.T @ kept + self.mean, centre=True
        )

    def _map(self, parts: Parts, width: int, function, *, centre: bool = False):
        rows = as_rows(parts)
        needed = len(self.mean) if centre else len(self.components)
        if rows[0].shape[1] != needed:
            raise ValueError(
                f"the samples have {rows[0].shape[1]} values, the PCA takes {needed}: "
                "it belongs to another tap or another set of components"
            )
        kind = np.result_type(*rows)
        result = np.empty(
            (sum(map(len, rows)), width),
            kind if np.issubdtype(kind, np.floating) else np.float64,
        )
        for start, block in blocks(rows):
            result[start : start + len(block)] = function(
                block - self.mean if centre else block
            )
        return result


def fit(
    parts: Parts,
    *,
    components: int | None = None,
    method: str = "auto",
    seed: int = 0,
    memory_bytes: int = 2**31,
) -> PCA:
    """Principal components of samples (centred, not scaled).

    `exact` takes the eigenvectors of the covariance, summed in float64 block by block, or,
    for no more samples than values, the singular vectors of the samples. `randomised` is
    scikit-learn's (Halko et al. 2011; samples in memory); `incremental` is scikit-learn's
    (Ross et al. 2008), one block at a time. `auto` takes the first of them that fits into
    `memory_bytes`.

    Args:
      components: how many to keep. By default all (at most n - 1) of an exact fit, `LIMITED`
        of the others.
      seed: of the randomised method.
      memory_bytes: what the fit may use on top of the samples.

    Raises:
      ValueError: fewer samples than components, values that are not finite, samples that
        are all equal, parts of different widths, an unknown method.
    """
    rows = as_rows(parts)
    count, axes = sum(map(len, rows)), rows[0].shape[1]
    most = min(count - 1, axes)
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; use one of {METHODS}")
    if not 1 <= (1 if components is None else components) <= most:
        raise ValueError(
            f"{components or 1} components cannot be had from {count} samples of {axes} "
            f"values, which span at most {max(most, 0)}: collect more or ask for fewer"
        )
    mean, total = moments(rows)
    if method == "auto":
        method = _choose(rows, count, axes, memory_bytes)
    if components is None:
        components = most if method == "exact" else min(LIMITED, most)
    if method == "exact":
        solve = _by_covariance if count > axes else _by_samples
        variance, found = solve(rows, mean, components)
    elif method == "randomised":
        variance, found = _randomised(rows, components, seed)
    else:
        variance, found = _incremental(rows, components)
    largest = np.abs(found).argmax(1)
    found = found * np.sign(found[np.arange(len(found)), largest])[:, None]
    return PCA(mean, found, np.maximum(variance, 0), total, count, method)


def walk(
    pca: PCA, component_numbers: Sequence[int], steps: Sequence[float]
) -> Float[np.ndarray, "components steps d"]:
    """Points mean + c sqrt(lambda_i) v_i, in units of each component's deviation.

    Args:
      component_numbers: from 1 (the component of largest variance).
      steps: c; at 0 the point is the mean, exactly.

    Raises:
      ValueError: a component that was not kept.
    """
    numbers = np.asarray(component_numbers, int)
    wrong = numbers[(numbers < 1) | (numbers > len(pca.components))]
    if len(wrong):
        raise ValueError(
            f"component {wrong[0]} is outside 1..{len(pca.components)}, the components kept"
        )
    deviation = np.sqrt(pca.variance[numbers - 1])[:, None]
    moves = deviation * pca.components[numbers - 1]
    return pca.mean + np.asarray(steps, float)[:, None] * moves[:, None]


def nearest(
    parts: Parts, points: Float[np.ndarray, "*p d"]
) -> tuple[Int[np.ndarray, "*p"], Float[np.ndarray, "*p"]]:
    """The sample nearest to each point, Euclidean over all d values.

    Returns:
      Row numbers over all parts (of equally near ones the first), and distances.

    Raises:
      ValueError: points and samples differ in width.
    """
    rows, places = as_rows(parts), np.reshape(points, (-1, points.shape[-1]))
    places = places.astype(np.float64)
    if rows[0].shape[1] != places.shape[1]:
        raise ValueError(
            f"points of {places.shape[1]} values among samples of {rows[0].shape[1]}: "
            "take both from one tap"
        )
    best = np.full(len(places), np.inf)
    row = np.zeros(len(places), int)
    for start, block in blocks(rows):
        # The square of a point is the same for every sample: left out of the comparison.
        squared = (block**2).sum(1)[:, None] - 2 * block @ places.T
        here = squared.argmin(0)
        lower = squared[here, np.arange(len(places))]
        closer = lower < best
        best[closer], row[closer] = lower[closer], start + here[closer]
    away = np.linalg.norm(take(rows, row) - places, axis=1)
    return row.reshape(points.shape[:-1]), away.reshape(points.shape[:-1])


def take(parts: Parts, rows: Int[np.ndarray, "m"]) -> Float[np.ndarray, "m d"]:
    """Rows by number over all parts, as float64."""
    arrays = as_rows(parts)
    ends = np.cumsum([len(a) for a in arrays])
    part = np.searchsorted(ends, rows, side="right")
    return np.array(
        [arrays[p][r - ends[p]] for p, r in zip(part, rows)], np.float64
    ).reshape(len(rows), arrays[0].shape[1])


def as_rows(parts: Parts) -> list[np.ndarray]:
    """Views `[n_i, d]` of the parts that hold something.

    Raises:
      ValueError: nothing is there, or the parts differ in width.
    """
    arrays = [parts] if isinstance(parts, np.ndarray) else list(parts)
    rows = [a.reshape(len(a), -1) for a in arrays if a.size]
    if not rows:
        raise ValueError("there are no samples: collect activations first")
    widths = sorted({a.shape[1] for a in rows})
    if len(widths) > 1:
        raise ValueError(
            f"parts of {widths} values cannot be stacked: take them from one tap"
        )
    return rows


def blocks(
    rows: list[np.ndarray], size: int | None = None
) -> Iterator[tuple[int, Float[np.ndarray, "m d"]]]:
    """(number of the first row, rows as float64), `size` rows each wherever parts end."""
    count, axes = sum(map(len, rows)), rows[0].shape[1]
    size = size or max(1, BLOCK_BYTES // (8 * axes))
    ends = np.cumsum([len(a) for a in rows])
    for start in range(0, count, size):
        stop = min(start + size, count)
        block, here = np.empty((stop - start, axes)), start
        while here < stop:
            part = int(np.searchsorted(ends, here, side="right"))
            last = min(stop, int(ends[part]))
            begin = int(ends[part]) - len(rows[part])
            block[here - start : last - start] = rows[part][here - begin : last - begin]
            here = last
        yield start, block


def moments(rows: list[np.ndarray]) -> tuple[Float[np.ndarray, "d"], float]:
    """Mean, and variance summed over all axes.

    Raises:
      ValueError: a value is not finite (its row is named), or all samples are equal.
    """
    first = rows[0][0].astype(np.float64)
    sums, squares, count = np.zeros_like(first), np.zeros_like(first), 0
    for start, block in blocks(rows):
        finite = np.isfinite(block).all(1)
        if not finite.all():
            raise ValueError(
                f"sample {start + int(finite.argmin())} has values that are not finite: "
                "collect it again or leave it out"
            )
        # Around the first sample: equal samples then have a variance of exactly zero.
        block -= first
        sums += block.sum(0)
        squares += np.einsum("nd,nd->d", block, block)
        count += len(block)
    total = float((squares - sums**2 / count).sum() / max(count - 1, 1))
    if not total > 0:
        raise ValueError(f"all {count} samples are equal: they have no components")
    return first + sums / count, total


def _choose(rows, count: int, axes: int, memory_bytes: int) -> str:
    # Four float64 copies: the matrix, its vectors and LAPACK's workspace of two.
    if 32 * axes * min(count, axes) <= memory_bytes:
        return "exact"
    # The samples together, and scikit-learn's range finder beside them.
    if 2 * np.result_type(*rows).itemsize * count * axes <= memory_bytes:
        return "randomised"
    return "incremental"


def _by_covariance(rows, mean, components: int):
    axes = len(mean)
    covariance, count = np.zeros((axes, axes), order="F"), 0
    (rank_update,) = scipy.linalg.get_blas_funcs(["syrk"], dtype=np.float64)
    for _, block in blocks(rows):
        block -= mean
        count += len(block)
        covariance = rank_update(
            1.0, block.T, beta=1.0, c=covariance, lower=1, overwrite_c=1
        )
    # The divide-and-conquer driver finds all; for a few the other one is faster.
    few = 4 * components < axes
    values, vectors = scipy.linalg.eigh(
        covariance,
        overwrite_a=True,
        check_finite=False,
        driver="evr" if few else "evd",
        subset_by_index=[axes - components, axes - 1] if few else None,
    )
    order = np.argsort(values)[::-1][:components]
    return values[order] / (count - 1), np.ascontiguousarray(vectors[:, order].T)


def _by_samples(rows, mean, components: int):
    centred = take(rows, np.arange(sum(map(len, rows)))) - mean
    _, singular, vectors = scipy.linalg.svd(
        centred, full_matrices=False, overwrite_a=True, check_finite=False
    )
    variance = singular**2 / (len(centred) - 1)
    return variance[:components], vectors[:components]


def _randomised(rows, components: int, seed: int):
    from sklearn import decomposition

    model = decomposition.PCA(
        components, svd_solver="randomized", random_state=seed, copy=False
    ).fit(np.concatenate(rows))
    return _found(model)


def _incremental(rows, components: int):
    from sklearn import decomposition

    model = decomposition.IncrementalPCA(components)
    for _, block in blocks(rows, max(2 * components, LIMITED)):
        model.partial_fit(block, check_input=False)
    return _found(model)


def _found(model) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.asarray(model.explained_variance_, np.float64),
        np.asarray(model.components_, np.float64),
    )
