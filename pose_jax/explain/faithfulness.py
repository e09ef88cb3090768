"""Does a map name the pixels that the answer rests on? Removal tests on real models.

Everything here is relative to one way of removing pixels (the fill) and to one reading of the
answer; neither a single curve nor a single number is the truth. Functions are for one picture,
pure, with weights as arguments; joints are all asked, each by its own map. What cannot be
said (a constant map, no effect to explain) is NaN, never one half.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Num
from scipy import stats

from pose_jax.arrays import Array, PyTree
from pose_jax.explain.attention import Apply

Readings = Callable[[Any], Float[Array, "q k"]]
"""Outputs of a batch of one -> q readings of every joint, such as several scores."""

ORDERS = ("most", "least")


def removal_curves(
    apply: Apply,
    variables: PyTree,
    image: Float[Array, "h w 3"],
    fill: Float[Array, "h w 3"],
    maps: Float[Array, "k h w"],
    readings: Readings,
    *,
    order: str = "most",
    steps: int = 50,
    spared: Bool[Array, "k h w"] | None = None,
    chunk: int = 16,
) -> Float[Array, "k q n"]:
    """Readings of every joint while pixels go, in the order of its own map.

    Reading the curve of `least` from its end is insertion: the most important pixels alone on
    the fill, then more and more (RISE, Petsiuk et al., BMVC 2018, where both start
    pictures are fills).

    Args:
      image, fill: normalised pixels.
      maps: one per joint; larger is more important, ties by position.
      order: `most` important pixels first, or `least`.
      steps: equal shares of the pixels; the curve has `steps` + 1 points.
      spared: pixels that are never removed, such as the joint's own disc.
      chunk: forward passes side by side.

    Raises:
      ValueError: an unknown order, or no steps.
    """
    if order not in ORDERS:
        raise ValueError(f"order {order!r} is unknown; use {' or '.join(ORDERS)}")
    if steps < 1:
        raise ValueError(f"steps={steps}; at least 1")
    joints = maps.shape[0]
    flat = maps.reshape(joints, -1)
    flat = -flat if order == "most" else flat
    if spared is not None:
        # They come last, and the curve ends before them.
        flat = jnp.where(spared.reshape(joints, -1), jnp.inf, flat)
        free = (~spared.reshape(joints, -1)).sum(1)
    else:
        free = jnp.full(joints, flat.shape[1])
    ranks = jnp.argsort(jnp.argsort(flat, axis=1), axis=1)

    def one(task):
        joint, step = task
        gone = ranks[joint] * steps < step * free[joint]
        seen = jnp.where(gone.reshape(image.shape[:2])[..., None], fill, image)
        return readings(apply(variables, seen[None]))[:, joint]

    tasks = jnp.meshgrid(jnp.arange(joints), jnp.arange(steps + 1), indexing="ij")
    found = jax.lax.map(one, tuple(t.ravel() for t in tasks), batch_size=chunk)
    return jnp.moveaxis(found.reshape(joints, steps + 1, -1), -1, 1)


def area_under(curves: Num[np.ndarray, "*b n"]) -> Float[np.ndarray, "*b"]:
    """By trapezoids, over shares from 0 to 1."""
    curves = np.asarray(curves, np.float64)
    return np.asarray(np.trapezoid(curves, dx=1 / (curves.shape[-1] - 1), axis=-1))


def symmetric_gain(
    most: Num[np.ndarray, "*b n"], least: Num[np.ndarray, "*b n"]
) -> Float[np.ndarray, "*b"]:
    """Area when the least important pixels go first minus that when the most important do:
    0 for an order that says nothing, larger is better."""
    return np.asarray(area_under(least) - area_under(most))


def sufficiency_area(
    hits: Num[np.ndarray, "*b n"],
) -> Float[np.ndarray, "*b"]:
    """The smallest share of pixels that is enough, and from which on every larger one is too.

    Args:
      hits: 0 or 1 along the curve of `least`: its point i still shows the share 1 - i/(n-1).

    Returns:
      Shares; NaN where not even the whole picture hits.
    """
    hits = np.asarray(hits) > 0.5
    kept = np.logical_and.accumulate(hits, axis=-1)
    count = kept.sum(-1)
    steps = hits.shape[-1] - 1
    return np.where(count > 0, 1 - (count - 1) / steps, np.nan)


def group_curves(
    table: Num[np.ndarray, "c"],
    coalitions: Bool[np.ndarray, "c n"],
    players: Sequence[Sequence[int]],
    values: Num[np.ndarray, "p"],
) -> tuple[Float[np.ndarray, "p+1"], Float[np.ndarray, "p+1"]]:
    """Removal curves over the players of one target's own game, at no further forward pass.

    The players of a grouped game are the members of the target's cluster and whole other
    clusters; every coalition on the way is a row of the game's table.

    Args:
      table: scores of the coalitions. players: regions of each player.
      values: one per player, which give the order.

    Returns:
      Scores when the most valuable, and when the least valuable, players go first.

    Raises:
      ValueError: the table lacks a coalition on the way.
    """
    rows = {row.tobytes(): i for i, row in enumerate(np.asarray(coalitions, bool))}
    curves = []
    order = np.argsort(-np.asarray(values), kind="stable")
    for way in (order, order[::-1]):
        seen = np.ones(coalitions.shape[1], bool)
        curve = []
        for player in (None, *way):
            if player is not None:
                seen[list(players[player])] = False
            if seen.tobytes() not in rows:
                raise ValueError(
                    "the table lacks a coalition of these players; take the clusters that "
                    "the game was played with"
                )
            curve.append(float(table[rows[seen.tobytes()]]))
        curves.append(np.array(curve))
    return curves[0], curves[1]


def infidelity(
    apply: Apply,
    variables: PyTree,
    image: Float[Array, "h w 3"],
    fill: Float[Array, "h w 3"],
    maps: Float[Array, "k h w"],
    score: Callable[[Any], Float[Array, "k"]],
    *,
    key: jax.Array,
    samples: int = 128,
    sides: tuple[float, float] = (1 / 16, 1 / 4),
    chunk: int = 16,
) -> Float[Array, "k"]:
    """How badly the map predicts what hiding a random square does, on the scale that suits it
    best: mean (beta a - b)^2 / mean b^2, a the map's sum in the square, b the loss of score
    (Yeh et al., NeurIPS 2019, with the optimal beta). 0 is perfect, 1 says nothing.

    Args:
      sides: of the squares, as shares of the height.

    Returns:
      NaN where no square changes the score or the map is zero in all of them.
    """
    height, width = image.shape[:2]
    keys = jax.random.split(key, 3)
    low, high = (max(round(s * height), 1) for s in sides)
    side = jax.random.randint(keys[0], (samples,), low, high + 1)
    y = jax.random.uniform(keys[1], (samples,)) * (height - side + 1)
    x = jax.random.uniform(keys[2], (samples,)) * (width - side + 1)
    rows, columns = jnp.arange(height), jnp.arange(width)
    clean = score(apply(variables, image[None]))

    def one(square):
        side, top, left = square
        top, left = jnp.floor(top), jnp.floor(left)
        down = (rows >= top) & (rows < top + side)
        across = (columns >= left) & (columns < left + side)
        inside = down[:, None] & across
        seen = jnp.where(inside[..., None], fill, image)
        loss = clean - score(apply(variables, seen[None]))
        return (maps * inside).sum((1, 2)), loss

    a, b = jax.lax.map(one, (side, y, x), batch_size=chunk)
    square = (a**2).sum(0)
    beta = (a * b).sum(0) / jnp.where(square > 0, square, 1.0)
    total = (b**2).sum(0)
    error = ((beta * a - b) ** 2).sum(0) / jnp.where(total > 0, total, 1.0)
    return jnp.where((square > 0) & (total > 0), error, jnp.nan)


def max_sensitivity(
    explain: Callable[[Float[Array, "h w 3"]], Float[Array, "k h w"]],
    image: Float[Array, "h w 3"],
    *,
    key: jax.Array,
    radius: Any = 0.02,
    samples: int = 8,
) -> Float[Array, "k"]:
    """Largest relative change of a map under small uniform noise (Yeh et al., NeurIPS 2019).

    Args:
      explain: picture -> maps, its reference point frozen.
      radius: of the noise, in units of the picture; an array for one per channel.

    Returns:
      NaN for maps that are zero.
    """
    here = explain(image)
    norm = jnp.sqrt((here**2).sum((1, 2)))

    def one(key):
        noise = jax.random.uniform(key, image.shape, minval=-1.0, maxval=1.0) * radius
        return jnp.sqrt(((explain(image + noise) - here) ** 2).sum((1, 2)))

    moved = jax.lax.map(one, jax.random.split(key, samples)).max(0)
    return jnp.where(norm > 0, moved / jnp.where(norm > 0, norm, 1.0), jnp.nan)


def map_similarity(
    one: Num[np.ndarray, "k h w"], other: Num[np.ndarray, "k h w"]
) -> dict[str, Float[np.ndarray, "k"]]:
    """Spearman's correlation of two stacks of maps, with and without signs (Adebayo et al.,
    NeurIPS 2018). NaN for constant maps."""
    result = {
        "signed": np.full(len(one), np.nan),
        "absolute": np.full(len(one), np.nan),
    }
    for name, change in (("signed", lambda x: x), ("absolute", np.abs)):
        for k in range(len(one)):
            a, b = (change(np.asarray(m[k], np.float64)).ravel() for m in (one, other))
            if (
                np.isfinite(a).all()
                and np.isfinite(b).all()
                and np.ptp(a)
                and np.ptp(b)
            ):
                found: Any = stats.spearmanr(a, b)
                result[name][k] = found.statistic
    return result


def agreement_of_fills(
    values: Num[np.ndarray, "f n k"],
) -> Float[np.ndarray, "f f k"]:
    """Kendall's tau-b between the rankings of n players under f fills, per target; below .8 the
    explanation depends on how pixels are removed."""
    fills, _, targets = values.shape
    result = np.full((fills, fills, targets), np.nan)
    for t in range(targets):
        for i in range(fills):
            for j in range(fills):
                a, b = values[i, :, t], values[j, :, t]
                there = np.isfinite(a) & np.isfinite(b)
                if there.sum() > 1 and np.ptp(a[there]) and np.ptp(b[there]):
                    found: Any = stats.kendalltau(a[there], b[there])
                    result[i, j, t] = found.statistic
    return result


def point_and_energy(
    maps: Num[np.ndarray, "k h w"], owners: Int[np.ndarray, "h w"], parts: int
) -> tuple[Int[np.ndarray, "k"], Float[np.ndarray, "parts k"]]:
    """The part that holds each map's maximum, and the share of positive evidence per part.

    A point elsewhere than the joint is no error for a joint that cannot be seen: report where
    maps point, not hits. Of tied maxima none counts.

    Returns:
      Parts (-1: undefined), shares (NaN without positive evidence).
    """
    flat = np.asarray(maps, np.float64).reshape(len(maps), -1)
    finite = np.asarray(np.isfinite(flat).all(1))
    clean = np.where(finite[:, None], flat, 0.0)
    best = clean.max(1, keepdims=True)
    single = np.count_nonzero(clean == best, axis=1) == 1
    place = owners.ravel()[clean.argmax(1)]
    positive = np.maximum(clean, 0)
    total = positive.sum(1)
    inside = positive @ np.eye(parts)[owners.ravel()]
    share = inside / np.where(total > 0, total, np.nan)[:, None]
    share[~finite] = np.nan
    return np.where(single & finite, place, -1), share.T
