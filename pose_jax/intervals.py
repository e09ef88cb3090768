"""Bootstrap intervals; the unit that is resampled is the picture, not the person."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float, Int, Num

BLOCK = 2**23
"""Resampled numbers held at a time."""


def ratio_interval(
    numerator: Num[np.ndarray, "n"],
    denominator: Num[np.ndarray, "n"],
    groups: Sequence[Hashable],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of `sum(numerator) / sum(denominator)`.

    Args:
      numerator, denominator: one entry per person.
      groups: the picture of every entry; whole pictures are drawn with replacement.

    Raises:
      ValueError: lengths differ or nothing is there.
    """
    if not len(numerator) == len(denominator) == len(groups) or len(groups) == 0:
        raise ValueError(
            f"{len(numerator)} numerators, {len(denominator)} denominators and "
            f"{len(groups)} groups must be equally many and at least one"
        )
    low, high = ratio_intervals(
        numerator[:, None], denominator[:, None], groups,
        resamples=resamples, level=level, seed=seed,
    )  # fmt: skip
    return float(low[0]), float(high[0])


def ratio_intervals(
    numerators: Num[np.ndarray, "n m"],
    denominators: Num[np.ndarray, "n m"],
    groups: Sequence[Hashable],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "m"], Float[np.ndarray, "m"]]:
    """`ratio_interval` of many ratios of the same persons, from the same resampled pictures.

    Returns:
      Lower and upper ends.

    Raises:
      ValueError: shapes differ or nothing is there.
    """
    if numerators.shape != denominators.shape or len(groups) != len(numerators):
        raise ValueError(
            f"numerators {numerators.shape}, denominators {denominators.shape} and "
            f"{len(groups)} groups must fit together"
        )
    if not numerators.size:
        raise ValueError("nothing to resample")
    member, count = _pictures(groups)
    tops, bottoms = np.zeros((2, count, numerators.shape[1]))
    np.add.at(tops, member, numerators)
    np.add.at(bottoms, member, denominators)
    generator, found = np.random.default_rng(seed), []
    size = max(1, BLOCK // count)
    for start in range(0, resamples, size):
        draws = _draws(generator, count, count, min(size, resamples - start))
        draws = draws.astype(float)
        found.append((draws @ tops) / np.maximum(draws @ bottoms, 1e-12))
    low, high = np.quantile(np.concatenate(found), _ends(level), axis=0)
    return low, high


def mean_interval(
    values: Num[np.ndarray, "m *s"],
    groups: Sequence[Hashable],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "*s"], Float[np.ndarray, "*s"]]:
    """Percentile intervals of the means over persons, entry by entry.

    Args:
      values: one row per person; NaN where an entry is missing. All entries see the same
        resampled pictures.
      groups: [m] the picture of every person; whole pictures are drawn with replacement.

    Returns:
      Lower and upper ends, NaN where fewer than two pictures hold the entry: nothing is
      known about its spread then.

    Raises:
      ValueError: lengths differ or nothing is there.
    """
    if len(values) != len(groups) or len(groups) == 0:
        raise ValueError(
            f"{len(values)} rows of values and {len(groups)} groups must be equally many "
            "and at least one"
        )
    member, count = _pictures(groups)
    flat = values.reshape(len(values), -1).astype(np.float64)
    there = ~np.isnan(flat)
    sums, counts = np.zeros((2, count, flat.shape[1]))
    np.add.at(sums, member, np.where(there, flat, 0))
    np.add.at(counts, member, there)
    known = np.flatnonzero((counts > 0).sum(0) >= 2)
    draws = _draws(np.random.default_rng(seed), count, count, resamples).astype(float)
    ends = np.full((2, flat.shape[1]), np.nan)
    for part in np.array_split(known, -(-len(known) * resamples // BLOCK) or 1):
        with np.errstate(invalid="ignore"):  # A resample may miss an entry: NaN.
            means = (draws @ sums[:, part]) / (draws @ counts[:, part])
        quantile = np.nanquantile if np.isnan(means).any() else np.quantile
        ends[:, part] = quantile(means, _ends(level), axis=0)
    low, high = ends.reshape(2, *values.shape[1:])
    return np.asarray(low), np.asarray(high)


def hierarchical_interval(
    values: Num[np.ndarray, "s m *q"],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "*q"], Float[np.ndarray, "*q"]]:
    """Percentile intervals of the mean over seeds of the mean over pictures.

    Seeds and pictures are drawn as in `paired_difference`, with its limits: three seeds say
    little about seeds. Entries of one picture (`q`) share its draw.

    Args:
      values: one row per seed, one entry per picture, the same pictures for all; NaN where
        undefined. A seed without any defined entry is left out.

    Raises:
      ValueError: nothing is there.
    """
    if values.ndim < 2 or 0 in values.shape[:2]:
        raise ValueError(f"values of shape {list(values.shape)}: seeds, then pictures")
    seeds, count = values.shape[:2]
    flat = values.reshape(seeds, count, -1).astype(np.float64)
    there = ~np.isnan(flat)
    sums = np.where(there, flat, 0.0)
    generator = np.random.default_rng(seed)
    drawn = _draws(generator, seeds, max(seeds - 1, 1), resamples).astype(float)
    pictures = _draws(generator, count, count, resamples).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.einsum("rm,smq->rsq", pictures, sums) / np.einsum(
            "rm,smq->rsq", pictures, there
        )
    known = ~np.isnan(means)
    weight = drawn[:, :, None] * known
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (np.where(known, means, 0.0) * weight).sum(1) / weight.sum(1)
    ends = np.full((2, flat.shape[2]), np.nan)
    some = ~np.isnan(found).all(0)
    ends[:, some] = np.nanquantile(found[:, some], _ends(level), axis=0)
    low, high = ends.reshape(2, *values.shape[2:])
    return np.asarray(low), np.asarray(high)


@dataclasses.dataclass(frozen=True)
class Difference:
    """What separates two arms a and b of a study, in the unit of the ratio.

    Attributes:
      estimate: mean over seeds of a - b.
      low, high: percentile interval.
      standard_error: standard deviation of the resampled estimates.
      smallest_effect: the true difference that such runs show in four of five repetitions
        (two-sided test at 95 %, power 80 %): (1.96 + 0.84) standard errors. A smaller one
        may exist and stay unseen.
      per_seed: [s] a - b of every seed, on all pictures.
    """

    estimate: float
    low: float
    high: float
    standard_error: float
    smallest_effect: float
    per_seed: Float[np.ndarray, "s"]


def paired_difference(
    numerator_a: Num[np.ndarray, "s m"],
    denominator_a: Num[np.ndarray, "s m"],
    numerator_b: Num[np.ndarray, "s m"],
    denominator_b: Num[np.ndarray, "s m"],
    groups: Sequence[Hashable],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Difference of two arms, trained with the same seeds and judged on the same pictures.

    The statistic is the mean over seeds of sum(numerator_a) / sum(denominator_a) minus the
    same of b. Paired hierarchical bootstrap: seeds are drawn with replacement, then
    pictures; both arms see the same draw. All seeds were judged on one set of pictures, so
    they share its draw, too (the two-way bootstrap of Owen 2007): with one draw for each,
    what an easy picture does to every seed would wrongly average out. Of s seeds s - 1 are
    drawn, which makes the variance between seeds unbiased (McCarthy and Snowden 1985).

    Three seeds leave the seed level coarse: it has few distinct draws, the ends of the
    interval are hardly beyond the extreme seeds, and when seeds differ much more than
    pictures a nominal 95 % covers about 75 %. One seed has no seed level at all; the interval is
    then for these very weights.

    Args:
      numerator_*, denominator_*: [s, m] one row per seed, one entry per person.
      groups: [m] the picture of every person.

    Raises:
      ValueError: shapes differ, nothing is there, or a denominator sums to nothing.
    """
    arms = [numerator_a, denominator_a, numerator_b, denominator_b]
    shapes = [a.shape for a in arms]
    if len({*shapes, (len(numerator_a), len(groups))}) != 1 or 0 in shapes[0]:
        raise ValueError(
            f"numerators and denominators have the shapes {shapes}, groups [{len(groups)}]; "
            "needed is [seeds, persons] for each, at least one of both"
        )
    member, count = _pictures(groups)
    sums = np.zeros((4, len(numerator_a), count))
    for total, arm in zip(sums, arms):
        np.add.at(total.T, member, arm.T)
    if (sums[[1, 3]].sum(2) <= 0).any():
        raise ValueError("a denominator sums to nothing; leave that seed or arm out")

    def differences(weights: np.ndarray) -> np.ndarray:
        """[r, pictures] -> [r, s]"""
        top_a, bottom_a, top_b, bottom_b = (weights @ total.T for total in sums)
        return top_a / np.maximum(bottom_a, 1e-12) - top_b / np.maximum(bottom_b, 1e-12)

    generator = np.random.default_rng(seed)
    seeds = len(numerator_a)
    drawn = _draws(generator, seeds, max(seeds - 1, 1), resamples)
    pictures = _draws(generator, count, count, resamples).astype(float)
    found = (differences(pictures) * drawn).sum(1) / drawn.sum(1)
    per_seed = differences(np.ones((1, count)))[0]
    low, high = np.quantile(found, _ends(level))
    error = float(found.std(ddof=1))
    return Difference(
        estimate=float(per_seed.mean()),
        low=float(low),
        high=float(high),
        standard_error=error,
        smallest_effect=(1.96 + 0.84) * error,
        per_seed=per_seed,
    )


def _pictures(groups: Sequence[Hashable]) -> tuple[Int[np.ndarray, "m"], int]:
    """The number of every entry's picture, in order of appearance, and how many there are."""
    index = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    return np.array([index[group] for group in groups]), len(index)


def _draws(
    generator: np.random.Generator, units: int, size: int, resamples: int
) -> Int[np.ndarray, "r units"]:
    """How often each unit is drawn, `size` times with replacement."""
    return generator.multinomial(size, np.full(units, 1 / units), size=resamples)


def _ends(level: float) -> list[float]:
    return [(1 - level) / 2, (1 + level) / 2]
