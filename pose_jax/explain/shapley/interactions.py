"""Interaction indices of any order, all from one table of values.

With m the Moebius transform of the table (Harsanyi dividends), every index is a weighted sum
over the coalitions that contain S, the weight depending on sizes only (s = |S|, t = |T|,
k = the order asked for):

    I(S) = sum over T containing S of weight(t, s, k) m(T)

so one Moebius transform and one weighted superset sum per size serve all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.core import Tracer

from pose_jax.explain.shapley.coalitions import PyTree
from pose_jax.explain.shapley.exact import check_table


def interactions(
    table: PyTree, num_players: int, *, index: str = "SII", order: int = 2
) -> dict[int, PyTree]:
    """Interactions of 1 to `order` players.

    Args:
      table: tree of [2**n, *out], `ShapleyResult.table`. Concrete tables are worked on in
        float64 on the host (alternating sums lose digits in float32: 2e-5 at 20
        players); inside a trace in float32 or the table's own wider type. NumPy tables give
        NumPy results.
      index: one of
        "SII" Shapley interaction (Grabisch and Roubens 1999); order 1 = Shapley values;
        "k-SII" SII folded downwards so that all orders add up (Lundberg et al. 2020; Bordt
        and von Luxburg 2023);
        "STII" Shapley-Taylor (Sundararajan et al. 2020);
        "FSII", "FBII" faithful Shapley and Banzhaf (Tsai et al. 2023);
        "BII" Banzhaf interaction (Grabisch and Roubens 1999);
        "Moebius" the dividends themselves.
      order: largest number of players, 1 to n. k-SII, STII and FSII of all orders add up to
        v(all) - v(empty).

    Returns:
      {s: [n] * s + [*out]}, symmetric; entries with a repeated player are 0. Add up over
      combinations of players, not over the whole array, which counts each s! times.

    Raises:
      ValueError: an unknown index, an order outside 1..n, a table of another length.
    """
    if index not in WEIGHTS:
        raise ValueError(f"index={index!r} is none of {', '.join(WEIGHTS)}")
    if not 1 <= order <= num_players:
        raise ValueError(f"order={order} is outside 1..{num_players} (the players)")
    check_table(table, num_players)
    leaves, structure = jax.tree.flatten(table)
    found = [_of_array(leaf, num_players, index, order) for leaf in leaves]
    return {
        size: structure.unflatten([f[size] for f in found])
        for size in range(1, order + 1)
    }


def _of_array(table: Any, n: int, index: str, order: int) -> dict[int, Any]:
    traced = isinstance(table, Tracer)
    xp: Any = jnp if traced else np
    if traced:
        dtype = jnp.promote_types(jnp.float32, table.dtype)
    else:
        dtype = np.float64
    values = xp.asarray(table).astype(dtype).reshape(2**n, -1)
    dividends = _passes(values, n, xp, lambda low, high: (low, high - low))
    size_of = _popcount(n)
    result = {}
    for size in range(1, order + 1):
        weight = [
            WEIGHTS[index](t, size, order) if t >= size else 0.0 for t in range(n + 1)
        ]
        weighted = xp.asarray(np.array(weight)[size_of], dtype)[:, None] * dividends
        sums = _passes(weighted, n, xp, lambda low, high: (low + high, high))
        rows, distinct = _tuples(n, size)
        chosen = xp.where(distinct[..., None], sums[rows], 0)
        chosen = chosen.reshape((n,) * size + np.shape(table)[1:])
        result[size] = jnp.asarray(chosen) if isinstance(table, jax.Array) else chosen
    return result


def _passes(values, n: int, xp, pair: Callable):
    """One pass per player over [2**n, f]: (without, with the player) -> both anew."""
    for player in range(n):
        split = values.reshape(2 ** (n - 1 - player), 2, 2**player, -1)
        low, high = pair(split[:, 0], split[:, 1])
        values = xp.stack([low, high], axis=1)
    return values.reshape(2**n, -1)


def _popcount(n: int) -> np.ndarray:
    """[2**n] sizes of all coalitions."""
    sizes = np.zeros(1, np.int64)
    for _ in range(n):
        sizes = np.append(sizes, sizes + 1)
    return sizes


def _tuples(n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """[n] * size row numbers of the players named, and whether they are distinct."""
    rows = np.zeros((), np.int64)
    for _ in range(size):
        rows = rows[..., None] | (1 << np.arange(n))
    return rows, _popcount(n)[rows] == size


def _sii(t: int, s: int, k: int) -> float:
    return 1 / (t - s + 1)


def _bii(t: int, s: int, k: int) -> float:
    return 0.5 ** (t - s)


def _moebius(t: int, s: int, k: int) -> float:
    return float(t == s)


def _stii(t: int, s: int, k: int) -> float:
    return 1 / math.comb(t, k) if s == k else float(t == s)


def _fsii(t: int, s: int, k: int) -> float:
    if t <= k:
        return float(t == s)
    top = math.comb(k, s) * math.comb(t - 1, k) / math.comb(t + k - 1, k + s)
    return (-1) ** (k - s) * s / (k + s) * top


def _fbii(t: int, s: int, k: int) -> float:
    if t <= k:
        return float(t == s)
    return (-1) ** (k - s) * 0.5 ** (t - s) * math.comb(t - s - 1, k - s)


def _ksii(t: int, s: int, k: int) -> float:
    """sum_j B_j C(t-s, j) / (t-s-j+1): SII of the supersets, by Bernoulli numbers."""
    d = t - s
    return sum(
        bernoulli * math.comb(d, j) / (d - j + 1)
        for j, bernoulli in enumerate(scipy.special.bernoulli(min(k - s, d)))
    )


WEIGHTS: dict[str, Callable[[int, int, int], float]] = {
    "SII": _sii,
    "k-SII": _ksii,
    "STII": _stii,
    "FSII": _fsii,
    "FBII": _fbii,
    "BII": _bii,
    "Moebius": _moebius,
}
