"""Scores of explanations against a cause that is known because it was planted.

The truth is what redrawing one region does to this network's answer (`Reactions`), never what
the label was made from and never another explanation. An explanation is one number per region
and target; `pool` makes it from a pixel map. All scores are per picture and target and NaN
where they mean nothing: a constant explanation says nothing and is not given half a point.

Effects of region r on joint k, with m the centre of mass of the joint's map (crop pixels) and
h the map as a distribution; a peak jumps when a joint is unresolved, its centre does not:

    shift    D = mean over donors of |m' - m|                                  pixels
    mass     TV = mean over donors of half the sum of |h' - h|                 0..1
    removal  V = 1 - T' / T, T the map at the clean peak, region not drawn     share
    follow   F = sum <m' - m, y' - y> / sum |y' - y|^2, y the label            1: follows
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from scipy import stats

SURE_PX = 2.0
"""A shift that counts as an effect, at least; pixels of a 96-pixel crop."""


def pool(
    maps: Num[np.ndarray, "k h w"], owners: Int[np.ndarray, "h w"], regions: int
) -> tuple[Float[np.ndarray, "r k"], Float[np.ndarray, "r k"]]:
    """The share of every map that lies in every region.

    Args:
      maps: signed; absolute values count.
      owners: region of every pixel.

    Returns:
      `mass`: sum inside / total. `density`: mass share / area share. NaN for maps that are zero
      or hold NaN; zero for regions without pixels.
    """
    flat = np.abs(np.asarray(maps, np.float64)).reshape(len(maps), -1)
    inside = np.eye(regions)[owners.ravel()]
    total = flat.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mass = (flat @ inside / total[:, None]).T
        area = inside.mean(0)[:, None]
        density = np.where(area > 0, mass / area, 0.0)
    undefined = ~np.isfinite(total) | (total <= 0)
    mass, density = (
        np.where(undefined, np.nan, mass),
        np.where(undefined, np.nan, density),
    )
    return mass, density


@dataclasses.dataclass(frozen=True)
class Truth:
    """What the network used, for n pictures, r regions and t targets.

    Attributes:
      shift: `[n, r, t]` D in pixels; NaN for regions that are not drawn.
      floor: `[t]` the 95th percentile of D over interventions that should do nothing.
      sure_px: shift from which a region counts as used.
    """

    shift: Float[np.ndarray, "n r t"]
    floor: Float[np.ndarray, "t"]
    sure_px: float

    @property
    def used(self) -> Bool[np.ndarray, "n r t"]:
        """Regions with an effect beyond doubt."""
        return self.shift > np.maximum(self.sure_px, 2 * self.floor)

    @property
    def unused(self) -> Bool[np.ndarray, "n r t"]:
        """Regions whose effect is noise. The others are left out of the recovery."""
        return self.shift <= self.floor


def defined_mean(values: Num[np.ndarray, "*s"], axis: int = 0) -> Any:
    """The mean of what is not NaN; NaN where nothing is defined."""
    there = np.isfinite(values)
    count = there.sum(axis)
    total = np.where(there, values, 0.0).sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def noise_floor(
    shift: Num[np.ndarray, "n r t"], null: Bool[np.ndarray, "r"]
) -> Float[np.ndarray, "t"]:
    """95th percentile per target over regions that decide no label.

    Raises:
      ValueError: no region is null, or none of them is ever drawn.
    """
    if not null.any():
        raise ValueError("no region is without a cause: the noise floor has no source")
    values = shift[:, null].reshape(-1, shift.shape[2])
    if np.isnan(values).all(0).any():
        raise ValueError("the regions without a cause are never drawn")
    return np.nanquantile(values, 0.95, axis=0)


def recovery(
    found: Num[np.ndarray, "n r t"],
    used: Bool[np.ndarray, "n r t"],
    unused: Bool[np.ndarray, "n r t"],
) -> Float[np.ndarray, "n t"]:
    """P(a used region outranks an unused one) + half of P(tie): an AUC, chance 1/2.

    NaN without used or without unused regions, and for explanations that are constant or NaN.
    """
    found = np.abs(np.asarray(found, np.float64))
    higher = found[:, :, None] > found[:, None]
    tied = found[:, :, None] == found[:, None]
    pairs = used[:, :, None] & unused[:, None]
    count = pairs.sum((1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        auc = ((higher + 0.5 * tied) * pairs).sum((1, 2)) / count
    return np.where((count > 0) & _says_something(found), auc, np.nan)


def rank_correlation(
    found: Num[np.ndarray, "n r t"], shift: Num[np.ndarray, "n r t"]
) -> Float[np.ndarray, "n t"]:
    """Kendall's tau-b over the drawn regions; NaN where either side is constant."""
    found = np.abs(np.asarray(found, np.float64))
    result = np.full((len(found), found.shape[2]), np.nan)
    defined = _says_something(found)
    for n, t in np.argwhere(defined):
        drawn = np.isfinite(shift[n, :, t])
        a, d = found[n, drawn, t], shift[n, drawn, t]
        if len(a) > 1 and np.ptp(a) > 0 and np.ptp(d) > 0:
            tau: Any = stats.kendalltau(a, d)
            result[n, t] = tau.statistic
    return result


def top_hit(
    found: Num[np.ndarray, "n r t"],
    shift: Num[np.ndarray, "n r t"],
    candidates: Bool[np.ndarray, "r t"] | None = None,
) -> Float[np.ndarray, "n t"]:
    """Whether the largest value stands at the largest effect, ties sharing the point.

    Args:
      candidates: regions that count; without the target's own limb, a hit is one on the
        *planted* cause.
    """
    found = np.abs(np.asarray(found, np.float64))
    valid = np.isfinite(shift)
    if candidates is not None:
        valid = valid & candidates
    a = np.where(valid, found, -np.inf)
    best = a == a.max(1, keepdims=True)
    truth = np.where(valid, shift, -np.inf)
    place = truth.argmax(1)
    ties = np.maximum(best.sum(1), 1)
    hit = np.take_along_axis(best, place[:, None], 1)[:, 0] / ties
    enough = valid.sum(1) > 1
    return np.where(enough & _says_something(found), hit, np.nan)


def share_error(
    found: Num[np.ndarray, "n r t"], shift: Num[np.ndarray, "n r t"]
) -> Float[np.ndarray, "n t"]:
    """Half the sum of |a / sum a - D / sum D|: 0 equal, 1 disjoint."""
    d = np.where(np.isfinite(shift), shift, 0.0)
    a = np.where(np.isfinite(shift), np.abs(np.asarray(found, np.float64)), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = np.abs(a / a.sum(1, keepdims=True) - d / d.sum(1, keepdims=True))
    sums = (a.sum(1) > 0) & (d.sum(1) > 0)
    return np.where(sums, 0.5 * gap.sum(1), np.nan)


def calibrated_error(
    found: Num[np.ndarray, "n r t"], shift: Num[np.ndarray, "n r t"]
) -> Float[np.ndarray, "n t"]:
    """Mean |beta a - D| in pixels, one beta fitted by least squares on the other half of the
    pictures (even and odd ones)."""
    a = np.abs(np.asarray(found, np.float64))
    valid = np.isfinite(a) & np.isfinite(shift)
    a, d = np.where(valid, a, 0.0), np.where(valid, shift, 0.0)
    result = np.full((len(a), a.shape[2]), np.nan)
    half = np.arange(len(a)) % 2 == 0
    for fit, read in ((half, ~half), (~half, half)):
        square = (a[fit] ** 2).sum()
        if square <= 0:
            continue
        beta = (a[fit] * d[fit]).sum() / square
        count = valid[read].sum(1)
        gap = (np.abs(beta * a[read] - d[read]) * valid[read]).sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            result[read] = np.where(count > 0, gap / count, np.nan)
    return result


def false_cause(
    found: Num[np.ndarray, "n r t"],
    used: Bool[np.ndarray, "n r t"],
    decoy: int,
) -> Float[np.ndarray, "n t"]:
    """1 where the decoy outranks the weakest used region, 1/2 at a tie; NaN where the
    network uses the decoy itself, or nothing."""
    found = np.abs(np.asarray(found, np.float64))
    weakest = np.where(used, found, np.inf).min(1)
    fooled = (found[:, decoy] > weakest) + 0.5 * (found[:, decoy] == weakest)
    meant = used.any(1) & ~used[:, decoy]
    return np.where(meant & _says_something(found), fooled, np.nan)


def preference(
    found: Num[np.ndarray, "n r t"], one: int, other: int
) -> Float[np.ndarray, "n t"]:
    """1 where region `one` has more than region `other`, 1/2 at a tie: in a world where
    neither means anything, 1/2 on average."""
    a, b = (np.abs(np.asarray(found, np.float64))[:, r] for r in (one, other))
    more = (a > b) + 0.5 * (a == b)
    return np.where(np.isfinite(a) & np.isfinite(b), more, np.nan)


def specificity(here: Num[np.ndarray, "n"], control: Num[np.ndarray, "m"]) -> float:
    """AUC of a region's values in a network that uses it against one that does not, on the
    same pictures; NaN without finite values on both sides."""
    a, b = here[np.isfinite(here)], control[np.isfinite(control)]
    if not len(a) or not len(b):
        return float("nan")
    return float(stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)))


def follow(
    moves: Num[np.ndarray, "n d t 2"], labels: Num[np.ndarray, "n d t 2"]
) -> tuple[Float[np.ndarray, "n t"], Float[np.ndarray, "n t"]]:
    """Numerator and denominator of F per picture, summed over donors; NaN moves count for
    nothing. F itself is the ratio of their sums over pictures."""
    valid = np.isfinite(moves).all(-1, keepdims=True)
    moves = np.where(valid, moves, 0.0)
    labels = np.where(valid, labels, 0.0)
    return (moves * labels).sum((1, 3)), (labels**2).sum((1, 3))


def _says_something(found: np.ndarray) -> np.ndarray:
    """`[n, t]` whether an explanation is finite and not the same everywhere."""
    finite = np.isfinite(found).all(1)
    with np.errstate(invalid="ignore"):
        return finite & (np.ptp(np.where(np.isfinite(found), found, 0.0), axis=1) > 0)


def score(
    found: Num[np.ndarray, "n r t"], truth: Truth, *, own: Bool[np.ndarray, "r t"],
    decoy: int,
) -> dict[str, Any]:  # fmt: skip
    """All scores of one explainer: `{name: [n, t]}`.

    Args:
      own: the target's own limb, which `foreign_top` leaves out.
      decoy: number of the region that looks like a cause and is none.
    """
    # A region that is not drawn in a picture has no effect and no say.
    drawn = np.isfinite(truth.shift)
    a = np.where(
        drawn, found, np.where(np.isnan(found).any(1, keepdims=True), np.nan, 0.0)
    )
    return {
        "recovery": recovery(a, truth.used & drawn, truth.unused & drawn),
        "rank_correlation": rank_correlation(a, truth.shift),
        "top": top_hit(a, truth.shift),
        "foreign_top": top_hit(a, truth.shift, ~own),
        "share_error": share_error(a, truth.shift),
        "calibrated_error_px": calibrated_error(a, truth.shift),
        "false_cause": false_cause(a, truth.used & drawn, decoy),
    }
