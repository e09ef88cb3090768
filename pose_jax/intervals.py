"""Bootstrap intervals; the unit that is resampled is the picture, not the person."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Num


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
    index = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    member = np.array([index[group] for group in groups])
    top = np.bincount(member, numerator, len(index))
    bottom = np.bincount(member, denominator, len(index))
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(
        len(index), np.full(len(index), 1 / len(index)), size=resamples
    )
    ratios = (draws @ top) / np.maximum(draws @ bottom, 1e-12)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
