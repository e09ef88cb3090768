"""What a person's labels say: numbers to name components and clusters by.

Points are (x, y) in image pixels, y downwards. Everything that needs a joint which is not
labelled, or which the skeleton does not have, is NaN.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float, Int, Num

from pose_jax.skeletons import Skeleton

ANGLE = "_angle"
"""Attributes whose names end so are angles in radians; the others are plain numbers."""

TOUCH_PX = 1.0
"""A side of the box this close to the picture's border touches it."""

FEWEST = 20
"""Persons below which nothing is correlated."""

BINS, SECTORS = 4, 8
OWN_VALUES = 6
"""Attributes of at most so many distinct values keep them as bins."""


def attributes(
    keypoints: Float[np.ndarray, "n k 2"],
    visible: Num[np.ndarray, "n k"],
    boxes: Num[np.ndarray, "n 4"],
    image_sizes: Num[np.ndarray, "n 2"] | None,
    skeleton: Skeleton,
) -> dict[str, Float[np.ndarray, "n"]]:
    """Attributes of n persons, NaN where undefined.

    | name | meaning |
    |---|---|
    | `posture` | 0 sitting (lying, kneeling) .. 1 standing; mean over the labelled legs of max(0, cos(knee bend)) max(0, drop) / max(thigh, shank), drop = how far the knee lies below the hip. The first factor is the straightness of the knee; the second is the cosine of the thigh with the vertical, and small, too, for a thigh that points at the camera |
    | `knee_bend_deg` | 180 minus the angle hip-knee-ankle: 0 is a straight leg; mean over the labelled legs |
    | `trunk_lean_deg` | 0 upright .. 180 head down: the trunk (hip to shoulder, mean over the labelled sides) against the vertical |
    | `facing` | +1 towards the camera, 0 profile, -1 away: from the right to the left shoulder across the trunk, in trunk lengths, clipped; for an upright trunk the difference of their x |
    | `scale_px` | the longer side of the box |
    | `truncation` | share of the box's perimeter that lies at (within `TOUCH_PX`) or beyond the picture's border: 0 inside .. 1 the box fills the picture; a box that was padded around the person overstates it; NaN without `image_sizes` |
    | `labelled` | number of labelled joints |
    | `occluded_share` | labelled joints with `visible` 1 |
    | `extent_aspect` | width / height of the labelled joints' extent |
    | `<a>_to_<b>_angle` | direction of each limb of the skeleton, radians in (-pi, pi]: 0 to the picture's right, pi/2 down; circular |

    Args:
      keypoints: image pixels; read only where labelled.
      visible: 0 not labelled, 1 occluded, 2 visible.
      boxes: x, y, width, height in image pixels.
      image_sizes: height, width of every person's picture.

    Raises:
      ValueError: the joints are not those of the skeleton.
    """  # noqa: E501
    if keypoints.shape[1] != skeleton.num_keypoints:
        raise ValueError(
            f"keypoints of {keypoints.shape[1]} joints, but skeleton {skeleton.name!r} has "
            f"{skeleton.num_keypoints}: pass the skeleton of the labels"
        )
    there = visible > 0
    points = np.where(there[..., None], keypoints, np.nan).astype(np.float64)
    joints = {name: points[:, i] for i, name in enumerate(skeleton.keypoints)}
    unknown = np.full((len(points), 2), np.nan)

    def joint(name: str) -> np.ndarray:
        return joints.get(name, unknown)

    with np.errstate(invalid="ignore", divide="ignore"):
        found = {
            **_legs(joint),
            **_trunk(joint),
            "scale_px": boxes[:, 2:].max(1).astype(np.float64),
            "truncation": _truncation(boxes, image_sizes),
            "labelled": there.sum(1).astype(np.float64),
            "occluded_share": _finite((there & (visible == 1)).sum(1) / there.sum(1)),
            "extent_aspect": _aspect(points, there),
        }
    for a, b in skeleton.limbs:
        x, y = (joint(b) - joint(a)).T
        angle = np.where((x == 0) & (y == 0), np.nan, np.arctan2(y, x))
        found[f"{a}_to_{b}{ANGLE}"] = angle
    return found


def _legs(joint) -> dict[str, np.ndarray]:
    bends, postures = [], []
    for side in ("left", "right"):
        hip, knee, ankle = (joint(f"{side}_{n}") for n in ("hip", "knee", "ankle"))
        thigh, shank = knee - hip, ankle - knee
        lengths = np.linalg.norm([thigh, shank], axis=-1)
        cosine = _finite((thigh * shank).sum(1) / lengths.prod(0)).clip(-1, 1)
        drop = thigh[:, 1] / lengths.max(0)
        bends.append(np.degrees(np.arccos(cosine)))
        postures.append(np.maximum(cosine, 0) * np.maximum(drop, 0))
    return {"posture": _mean(postures), "knee_bend_deg": _mean(bends)}


def _trunk(joint) -> dict[str, np.ndarray]:
    sides = [joint(f"{s}_shoulder") - joint(f"{s}_hip") for s in ("left", "right")]
    x, y = np.stack([_mean([s[:, i] for s in sides]) for i in (0, 1)])
    length = np.hypot(x, y)
    across = joint("left_shoulder") - joint("right_shoulder")
    # (-y, x) lies across the trunk: to the picture's right for one that stands upright.
    facing = (-y * across[:, 0] + x * across[:, 1]) / length**2
    return {
        "trunk_lean_deg": np.degrees(np.arccos(_finite(-y / length).clip(-1, 1))),
        "facing": _finite(facing).clip(-1, 1),
    }


def _truncation(boxes: np.ndarray, image_sizes: np.ndarray | None) -> np.ndarray:
    if image_sizes is None:
        return np.full(len(boxes), np.nan)
    x, y, width, height = boxes.T.astype(np.float64)
    rows, columns = image_sizes.T
    upright = (x <= TOUCH_PX).astype(float) + (x + width >= columns - TOUCH_PX)
    level = (y <= TOUCH_PX).astype(float) + (y + height >= rows - TOUCH_PX)
    return _finite((upright * height + level * width) / (2 * (width + height)))


def _aspect(points: np.ndarray, there: np.ndarray) -> np.ndarray:
    low = np.where(there[..., None], points, np.inf).min(1)
    high = np.where(there[..., None], points, -np.inf).max(1)
    width, height = (high - low).T
    return _finite(width / height)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _mean(values: list[np.ndarray]) -> np.ndarray:
    """Over the entries that are defined."""
    stacked = np.stack(values)
    defined = ~np.isnan(stacked)
    return _finite(np.where(defined, stacked, 0).sum(0) / defined.sum(0))


def correlate(
    scores: Float[np.ndarray, "n c"],
    attributes: dict[str, Float[np.ndarray, "n"]],
    *,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    resamples: int = 500,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """How each component goes with each attribute, the strongest first.

    Numbers: Spearman's rank correlation, -1..1. Angles: the circular-linear correlation R,
    0..1, R^2 = (xc^2 + xs^2 - 2 xc xs cs) / (1 - cs^2) of the Pearson correlations of score,
    cosine and sine (Mardia and Jupp 2000, section 11.2; Zar, Biostatistical Analysis, 27).
    R has no sign and is about sqrt(2 / count) where nothing is there: neither compare it with
    Spearman's value nor its interval with 0.

    Args:
      scores: coordinates along the components.
      attributes: of the same persons; NaN where undefined.
      groups: the picture of every person; whole pictures are resampled. By default every
        person is its own.

    Returns:
      Records with `component` (from 1), `attribute`, `statistic` (`spearman`, `circular`),
      `value`, `count`, `low`, `high` (95 % percentile bootstrap, NaN for fewer than two
      pictures); fewer than `FEWEST` persons, or no variation, give no record.

    Raises:
      ValueError: lengths differ, or a score is not finite.
    """
    people = range(len(scores)) if groups is None else list(groups)
    lengths = {len(scores), len(people), *map(len, attributes.values())}
    if len(lengths) > 1 or not np.isfinite(scores).all():
        raise ValueError(
            f"scores, groups and attributes of {sorted(lengths)} persons must be equally "
            "many, and every score finite"
        )
    picture = {p: i for i, p in enumerate(dict.fromkeys(people))}
    member = np.array([picture[p] for p in people], int)
    found = []
    for name, values in attributes.items():
        known = np.flatnonzero(~np.isnan(values))
        if len(known) < FEWEST or np.ptp(values[known]) == 0:
            continue
        circular = name.endswith(ANGLE)
        _, here = np.unique(member[known], return_inverse=True)
        statistic = _circular if circular else _spearman
        value, low, high = statistic(
            scores[known], values[known], here, resamples, seed
        )
        found += [
            dict(
                component=i + 1, attribute=name,
                statistic="circular" if circular else "spearman",
                value=float(value[i]), count=len(known),
                low=float(low[i]), high=float(high[i]),
            )
            for i in np.flatnonzero(np.isfinite(value))
        ]  # fmt: skip
    return sorted(found, key=lambda record: -abs(record["value"]))


BLOCK = 2**21
"""Resampled numbers held at a time."""


def _weights(here: np.ndarray, resamples: int, seed: int):
    """How often every person counts: the sample itself first, then blocks of resamples."""
    yield np.ones((1, len(here)), np.float32)
    pictures, generator = int(here.max()) + 1, np.random.default_rng(seed)
    left = resamples if pictures > 1 else 0
    while left:
        size = min(left, max(1, BLOCK // len(here)))
        drawn = generator.multinomial(pictures, np.full(pictures, 1 / pictures), size)
        yield drawn.astype(np.float32)[:, here]
        left -= size


def _interval(per_draw: list[np.ndarray]):
    """(value, low, high) [c] of blocks [draws, c], the sample itself first."""
    value, draws = (
        per_draw[0][0],
        np.concatenate(per_draw[1:] or [per_draw[0] * np.nan]),
    )
    with np.errstate(all="ignore"):
        empty = np.isnan(draws).all(0)
        filled = np.where(empty, 0, draws)
        low, high = np.nanquantile(filled, [0.025, 0.975], axis=0)
    return value, np.where(empty, np.nan, low), np.where(empty, np.nan, high)


def _spearman(scores, values, here, resamples, seed):
    columns = [_Ranks(column) for column in scores.T]
    reference, results = _Ranks(values), []
    for weights in _weights(here, resamples, seed):
        other, rows = reference(weights), []
        for column in columns:
            mine = column(weights)
            with np.errstate(invalid="ignore", divide="ignore"):
                rows.append(
                    _sum(weights, mine, other)
                    / np.sqrt(_sum(weights, mine, mine) * _sum(weights, other, other))
                )
        results.append(np.stack(rows, 1))
    return _interval(results)


class _Ranks:
    """Middle ranks of values that occur several times each, around their mean."""

    def __init__(self, values: np.ndarray):
        ranks = scipy.stats.rankdata(values, "dense").astype(int) - 1
        self.order = np.argsort(ranks, kind="stable")
        self.starts = np.flatnonzero(np.diff(ranks[self.order], prepend=-1))
        self.ranks = ranks

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """[r, n] -> [r, n]; the ranks are made anew for every resample."""
        tied = np.add.reduceat(weights[:, self.order], self.starts, axis=1)
        middle = np.cumsum(tied, 1) - tied / 2
        return (middle - weights.sum(1, keepdims=True) / 2)[:, self.ranks]


def _sum(weights, a, b) -> np.ndarray:
    return np.einsum("rn,rn,rn->r", weights, a, b).astype(np.float64)


def _circular(scores, values, here, resamples, seed):
    x = (scores - scores.mean(0)).astype(np.float64)
    c, s = np.cos(values)[:, None], np.sin(values)[:, None]
    terms = [x, c, s, x * x, c * c, s * s, x * c, x * s, c * s]
    results = []
    for weights in _weights(here, resamples, seed):
        total = weights.sum(1, keepdims=True)
        mx, mc, ms, xx, cc, ss, xc, xs, cs = (weights @ term / total for term in terms)
        with np.errstate(invalid="ignore", divide="ignore"):
            vx, vc, vs = xx - mx**2, cc - mc**2, ss - ms**2
            rxc = (xc - mx * mc) / np.sqrt(vx * vc)
            rxs = (xs - mx * ms) / np.sqrt(vx * vs)
            rcs = (cs - mc * ms) / np.sqrt(vc * vs)
            square = (rxc**2 + rxs**2 - 2 * rxc * rxs * rcs) / (1 - rcs**2)
        results.append(np.sqrt(np.clip(square, 0, 1)))
    return _interval(results)


def binned(
    attributes: dict[str, Float[np.ndarray, "n"]],
) -> dict[str, Int[np.ndarray, "n"]]:
    """Attributes as labels from 0, -1 where undefined, for mutual information.

    Angles fall into 8 sectors around the picture's axes and diagonals; attributes of at most
    `OWN_VALUES` distinct values keep them; all others fall into quarters of equal size (fewer
    where many values are equal).
    """
    return {name: _bin(name, values) for name, values in attributes.items()}


def _bin(name: str, values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    labels, here = np.full(len(values), -1), values[known]
    if name.endswith(ANGLE):
        labels[known] = np.round(here * SECTORS / (2 * np.pi)).astype(int) % SECTORS
    elif len(here):
        own = np.unique(here)
        if len(own) > OWN_VALUES:
            inner = np.quantile(here, np.arange(1, BINS) / BINS)
            own = np.searchsorted(np.unique(inner), here, side="left")
            labels[known] = np.unique(own, return_inverse=True)[1]
        else:
            labels[known] = np.searchsorted(own, here)
    return labels
