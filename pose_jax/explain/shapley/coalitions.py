"""Coalitions as rows of booleans: True = the player is present.

Two families of rows are used. *All* coalitions of n players: row r holds player i when
bit i of r is set (row 0 is empty, the last row is full). The *grouped* coalitions of a
partition into clusters: any part of one cluster together with whole other clusters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

Array: TypeAlias = jax.Array | np.ndarray
PyTree: TypeAlias = Any
Clusters: TypeAlias = tuple[tuple[int, ...], ...]

MAX_COALITIONS = 2**24
"""More rows per game than this are refused."""


def bits(rows: Int[Array, "*r"], num_players: int) -> Bool[Array, "*r n"]:
    """Row numbers -> coalitions of all `num_players` players; bit i is player i."""
    return (rows[..., None] >> np.arange(num_players, dtype=np.int32)) & 1 == 1


def all_coalitions(num_players: int) -> Bool[np.ndarray, "rows n"]:
    """Every coalition, in the order of `ShapleyResult.table`.

    Raises:
      ValueError: more than 2**24 rows.
    """
    check_players(num_players)
    check_count(2**num_players, f"{num_players} players")
    return np.asarray(bits(np.arange(2**num_players, dtype=np.int32), num_players))


def check_players(num_players: int) -> None:
    if num_players < 1:
        raise ValueError(f"num_players={num_players}: a game needs one player at least")


def check_count(rows: int, what: str) -> None:
    """Refuse a game with too many coalitions, before anything is allocated."""
    if rows <= MAX_COALITIONS:
        return
    size = rows * 4 / 2**30
    raise ValueError(
        f"{what} have {rows:,} coalitions, above the limit of {MAX_COALITIONS:,} (a "
        f"float32 table of one output alone would take {size:,.2f} GiB); use "
        "group_shapley with smaller clusters, or sampled_shapley(budget=...)"
    )


def check_clusters(clusters: Sequence[Sequence[int]]) -> Clusters:
    """The partition as sorted tuples, in the given order of clusters.

    Raises:
      ValueError: an empty cluster, a player in two clusters, or one in none.
    """
    found: Clusters = tuple(tuple(sorted(int(i) for i in c)) for c in clusters)
    if not found or not all(found):
        raise ValueError(f"clusters={list(map(list, found))}: a cluster is empty")
    owner: dict[int, int] = {}
    for number, members in enumerate(found):
        for player in members:
            if player in owner:
                raise ValueError(
                    f"clusters overlap: player {player} is in cluster {owner[player]} and "
                    f"again in cluster {number}; every player belongs to exactly one"
                )
            owner[player] = number
    missing = sorted(set(range(max(owner) + 1)) - set(owner))
    if missing or min(owner) < 0:
        raise ValueError(
            f"clusters are incomplete: players {missing or [min(owner)]} are in none (or "
            f"negative); they must partition 0..{max(owner)}"
        )
    return found


def union_size(sizes: Sequence[int], kind: str = "gsv") -> int:
    """Rows of `grouped_coalitions` for clusters of these sizes.

    gsv and owen: 2^(G-1) (2 + sum_c (2^m_c - 2)); the games of two clusters meet exactly in
    the 2^G unions of whole clusters. decoupled: 2^G + sum_c (2^m_c - 2).
    """
    inner = sum(2**m - 2 for m in sizes)
    groups = len(sizes)
    return 2**groups + inner if kind == "decoupled" else 2 ** (groups - 1) * (2 + inner)


def grouped_coalitions(
    clusters: Sequence[Sequence[int]], kind: str = "gsv"
) -> Bool[np.ndarray, "rows n"]:
    """Every coalition that a grouped value needs, each once.

    Rows: first the 2^G unions of whole clusters (bit c of the row number = cluster c, so row
    0 is empty and row 2^G - 1 full); then, cluster by cluster, its proper non-empty parts
    together with every union of other clusters (`decoupled`: with all of them). The order of
    the members inside a cluster does not matter.

    Raises:
      ValueError: clusters that are no partition, or more than 2**24 rows.
    """
    return _grouped_coalitions(check_clusters(clusters), kind)


@functools.lru_cache(maxsize=16)
def _grouped_coalitions(clusters: Clusters, kind: str) -> Bool[np.ndarray, "rows n"]:
    sizes = [len(c) for c in clusters]
    check_count(union_size(sizes, kind), f"clusters of sizes {sizes}")
    member = np.zeros((len(clusters), sum(sizes)), bool)
    for number, members in enumerate(clusters):
        member[number, list(members)] = True
    choices = bits(np.arange(2 ** len(clusters), dtype=np.int32), len(clusters))
    owner = member.argmax(0)
    unions = np.asarray(choices)[:, owner]
    parts = [unions]
    for number, members in enumerate(clusters):
        inner = np.zeros((2 ** len(members) - 2, sum(sizes)), bool)
        inner[:, list(members)] = bits(
            np.arange(1, 2 ** len(members) - 1, dtype=np.int32), len(members)
        )
        outer = unions[~unions[:, members[0]]]
        if kind == "decoupled":
            outer = ~member[None, number]
        parts.append((outer[:, None] | inner[None]).reshape(-1, sum(sizes)))
    rows = np.concatenate(parts)
    rows.flags.writeable = False
    return rows


def coalition_weights(size_weights: Any) -> tuple[np.ndarray, np.ndarray]:
    """Weights of v(S) in a value of one player, by |S| = 0..n: player present, absent.

    A marginal contribution to a coalition of size s (of the n - 1 others) weighs
    w(s) = size_weights[s] / C(n-1, s), so v(S) enters with w(|S|-1) when the player is in S
    and with -w(|S|) when not. Shapley: size_weights = 1/n each.
    """
    size_weights = np.asarray(size_weights, np.float64)
    n = len(size_weights)
    w = size_weights / np.array([float(math.comb(n - 1, s)) for s in range(n)])
    return np.append(0.0, w), np.append(-w, 0.0)


def in_float(weights: Any) -> np.ndarray:
    """Weights computed in float64 -> the float type in use, on the host."""
    return np.asarray(weights, jnp.result_type(float))


def shapley_weights(num_players: int) -> tuple[np.ndarray, np.ndarray]:
    """`coalition_weights` of the Shapley value (Shapley 1953)."""
    return coalition_weights(np.full(num_players, 1.0 / num_players))
