"""What it costs to group players: grouped values against the exact ones of all players.

Every coalition that a grouped value needs is a row of the full table, so one evaluation of
all 2^n coalitions judges any number of clusterings (16,384 for the 14 joints of LSP).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from pose_jax.arrays import Array
from pose_jax.explain.shapley import group_values, grouped_coalitions, shapley_values
from pose_jax.explain.shapley.coalitions import Clusters, check_clusters
from pose_jax.explain.shapley.orders import Orders


@dataclasses.dataclass(frozen=True)
class GroupingError:
    """What one kind of grouped value costs in one clustering; relative, 0 = exact.

    Every entry compares values for one target of one person with their exact ones; values
    of different targets are never added. In units of `scale`.

    Attributes:
      member_error: [m, K] mean |member value - exact value| over the target's own cluster;
        NaN for targets without label.
      player_error: [m, K] the same over all joints, from the complete Owen matrix; None
        unless `owen` (gsv and decoupled have no value for joints of other clusters).
      sampled_member_error, sampled_player_error: [m, K] of antithetic sampling of all joints
        with as many evaluations; NaN where these are too few for it.
      scale: [m] mean |exact value| over all joints and labelled targets of the person; NaN,
        and so are the errors, where no joint has any effect.
      evaluations: coalitions that the grouped value needs.
    """

    member_error: Float[np.ndarray, "m k"]
    player_error: Float[np.ndarray, "m k"] | None
    sampled_member_error: Float[np.ndarray, "m k"]
    sampled_player_error: Float[np.ndarray, "m k"]
    scale: Float[np.ndarray, "m"]
    evaluations: int


def grouping_error(
    table: Float[Array, "m rows k"],
    clusterings: Mapping[str, Sequence[Sequence[int]]],
    target_valid: Bool[Array, "m k"],
    null: Bool[Array, "m n"],
    *,
    kinds: Sequence[str] = ("gsv", "owen", "decoupled"),
    seed: int = 0,
) -> dict[str, dict[str, GroupingError]]:
    """Grouped values against the Shapley values of all joints, from one full table.

    Args:
      table: [m, 2**n, K] all coalitions of every person, K = n: joints are targets; bit i of
        the row number = joint i present. May be NaN where the target is not valid.
      clusterings: partitions of the joints by name.
      target_valid: whether the target has a label.
      null: joints without a place, which own no pixel; their values are 0 in any game, and
        they are left out of the means, which they would flatter.
      seed: of the orders drawn for the sampled values.

    Returns:
      {name: {kind: record}}, every array by person so that intervals can be made.

    Raises:
      ValueError: shapes disagree, clusters are no partition, an unknown kind, or a value
        that is not finite.
    """
    players = np.shape(null)[1]
    if np.shape(table)[1:] != (2**players, players):
        raise ValueError(
            f"the table has shape {list(np.shape(table))}; {players} joints as players and "
            f"targets need [persons, {2**players}, {players}]"
        )
    valid, present = np.asarray(target_valid), ~np.asarray(null)
    table = np.where(valid[:, None], np.asarray(table), 0)
    if not np.isfinite(table).all():
        raise ValueError(
            "a value of a valid target is not finite; set target_valid there"
        )
    exact = np.asarray(_exact(jnp.asarray(table)).values, np.float64)
    entries = present[:, :, None] & valid[:, None]
    scale = _mean(np.abs(exact), entries, (1, 2))
    # What rounding makes of a constant score is no effect to compare with.
    scale = np.where(scale > 1e-6 * np.abs(table).max((1, 2)), scale, np.nan)
    sampled: dict[int, np.ndarray] = {}

    def record(clusters: Clusters, kind: str) -> GroupingError:
        if (held := sum(map(len, clusters))) != players:
            raise ValueError(f"clusters hold {held} joints, the table {players}")
        rows = grouped_coalitions(clusters, kind) @ (1 << np.arange(players))
        count = len(rows)
        if count not in sampled:
            whole = count == 2**players
            sampled[count] = exact if whole else _sampled(table, count, seed)
        found = group_values(table[:, rows], clusters, kind=kind, target_valid=valid)
        own = entries & _together(clusters)
        complete = found.player_values
        return GroupingError(
            member_error=_relative(found.member_values, exact, own, scale),
            player_error=None
            if complete is None
            else _relative(complete, exact, entries, scale),
            sampled_member_error=_relative(sampled[count], exact, own, scale),
            sampled_player_error=_relative(sampled[count], exact, entries, scale),
            scale=scale,
            evaluations=count,
        )

    return {
        name: {kind: record(check_clusters(clusters), kind) for kind in kinds}
        for name, clusters in clusterings.items()
    }


@jax.jit
@jax.vmap
def _exact(table):
    return shapley_values(table, table.shape[1])


def _sampled(table: np.ndarray, evaluations: int, seed: int) -> np.ndarray:
    """[m, n, K] antithetic estimates, orders drawn anew for every person.

    NaN where two pairs of orders do not fit into the evaluations.
    """
    players = table.shape[2]
    generator = np.random.default_rng(seed)
    found = np.full((len(table), players, players), np.nan)
    if evaluations < min(2 + 4 * (players - 1), 2**players):
        return found
    for values, estimate in zip(table, found):
        design = Orders(players, evaluations, 1, generator)
        rows = design.coalitions @ (1 << np.arange(players))
        estimate[:] = design.estimate(values[rows].astype(np.float64))[0]
    return found


def _together(clusters: Clusters) -> np.ndarray:
    """[n, n] whether two joints are of one cluster."""
    players = sum(map(len, clusters))
    found = np.zeros((players, players), bool)
    for members in clusters:
        found[np.ix_(members, members)] = True
    return found


def _relative(values: Any, exact: np.ndarray, where: np.ndarray, scale: np.ndarray):
    """[m, n, K] values -> [m, K] mean distance from the exact ones, in units of scale [m]."""
    gap = _mean(np.abs(np.asarray(values, np.float64) - exact), where, 1)
    return gap / scale[:, None]


def _mean(values: np.ndarray, where: np.ndarray, axis: Any) -> np.ndarray:
    """Mean over the entries that count, NaN without any."""
    count = where.sum(axis)
    total = np.where(where, values, 0).sum(axis)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
