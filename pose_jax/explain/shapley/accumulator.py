"""Values from coalitions that are evaluated elsewhere, piece by piece: start, add, finish.

For games that no single call covers: a model on another machine, a run over a data set
that is stopped and resumed. The state is a few sums (n x outputs numbers) and can be
saved between any two additions; rows may come in any order. Rows of several games may be
added, each game whole: the values are then those of the mean game, which are the means of
the games' values.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from pose_jax.explain.shapley.coalitions import (
    Array,
    PyTree,
    check_count,
    check_players,
    grouped_coalitions,
)
from pose_jax.explain.shapley.evaluate import Plan
from pose_jax.explain.shapley.exact import AllCoalitions
from pose_jax.explain.shapley.groups import Grouped, grouped_plan
from pose_jax.explain.shapley.result import GroupShapleyResult, ShapleyResult


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Accumulator:
    """Attributes:
    sums: tree of [p, *out], None before the first addition.
    counts: [n + 1] rows seen so far, by size of the coalition (host int64).
    """

    sums: PyTree
    counts: Any
    plan: Plan = dataclasses.field(metadata=dict(static=True))


def start(
    num_players: int,
    *,
    clusters: Sequence[Sequence[int]] | None = None,
    kind: str = "gsv",
    target_cluster: Sequence[int] | None = None,
) -> Accumulator:
    """An empty state for exact values, or with `clusters` for grouped ones.

    The rows to evaluate are `all_coalitions(n)` or `grouped_coalitions(clusters, kind)`.

    Raises:
      ValueError: as in `exact_shapley` and `group_shapley`.
    """
    check_players(num_players)
    plan: Plan
    if clusters is None:
        check_count(2**num_players, f"{num_players} players")
        plan = AllCoalitions(num_players, 2**num_players)
    else:
        plan = grouped_plan(clusters, kind, target_cluster)
        if plan.num_players != num_players:
            raise ValueError(
                f"clusters hold {plan.num_players} players, num_players={num_players}"
            )
    return Accumulator(None, np.zeros(num_players + 1, np.int64), plan)


def add(
    accumulator: Accumulator, coalitions: Bool[Array, "r n"], values: PyTree
) -> Accumulator:
    """The state after these rows.

    Args:
      coalitions: any rows of the game, each one once.
      values: tree of [r, *out], the value function's outputs for them.

    Raises:
      ValueError: shapes disagree, a value is not finite, or a row that the grouped value
        does not use.
    """
    plan, rows = accumulator.plan, np.asarray(coalitions, bool)
    shapes = [jnp.shape(v) for v in jax.tree.leaves(values)]
    if rows.shape[1] != plan.num_players or any(
        s[:1] != rows.shape[:1] for s in shapes
    ):
        raise ValueError(
            f"coalitions have shape {list(rows.shape)} and values {list(map(list, shapes))}; "
            f"needed are [r, {plan.num_players}] and [r, ...]"
        )
    for leaf in jax.tree.leaves(values):
        finite = np.isfinite(np.asarray(leaf, np.float64)).reshape(len(rows), -1).all(1)
        if not finite.all():
            players = np.flatnonzero(rows[int(np.argmin(finite))]).tolist()
            raise ValueError(f"the value of coalition {players} is not finite")
    if (unused := _unused(plan, rows)).any():
        players = np.flatnonzero(rows[int(np.argmax(unused))]).tolist()
        raise ValueError(f"the grouped value does not use coalition {players}")
    sums = _weighted(plan, rows, values)
    if accumulator.sums is not None:
        sums = jax.tree.map(jnp.add, accumulator.sums, sums)
    counts = np.bincount(rows.sum(1), minlength=plan.num_players + 1)
    return dataclasses.replace(
        accumulator, sums=sums, counts=accumulator.counts + counts
    )


def finish(accumulator: Accumulator) -> ShapleyResult | GroupShapleyResult:
    """The record, without a table.

    Raises:
      ValueError: rows are missing or came more than once (judged by how many there are of
        every size).
    """
    plan, counts = accumulator.plan, np.asarray(accumulator.counts)
    expected = _expected(plan)
    games = int(counts[0])
    if games < 1 or (counts != games * expected).any():
        size = int(np.argmax(counts != max(games, 1) * expected))
        raise ValueError(
            f"{counts[size]} coalitions of {size} players were added, "
            f"{max(games, 1) * expected[size]} are needed; add every row once per game"
        )
    return plan.result(jax.tree.map(lambda s: s / games, accumulator.sums))


@functools.partial(jax.jit, static_argnums=0)
def _weighted(plan: Plan, rows, values):
    weights = plan.weights(jnp.asarray(rows))

    def weigh(leaf):
        dtype = jnp.promote_types(jnp.float32, jnp.asarray(leaf).dtype)
        return jnp.einsum(
            "rp,r...->p...",
            weights.astype(dtype),
            jnp.asarray(leaf, dtype),
            precision=jax.lax.Precision.HIGHEST,
        )

    return jax.tree.map(weigh, values)


def _unused(plan: Plan, rows: np.ndarray) -> np.ndarray:
    """[r] rows outside the grouped game."""
    if not isinstance(plan, Grouped):
        return np.zeros(len(rows), bool)
    part = np.stack([rows[:, list(c)].mean(1) for c in plan.clusters], 1)
    broken = ((part > 0) & (part < 1)).sum(1)
    if plan.kind == "decoupled":
        return (broken > 1) | ((broken == 1) & (part == 0).any(1))
    return broken > 1


def _expected(plan: Plan) -> np.ndarray:
    """[n + 1] rows of every size in one game."""
    if isinstance(plan, Grouped):
        masks = grouped_coalitions(plan.clusters, plan.kind)
        return np.bincount(masks.sum(1), minlength=plan.num_players + 1)
    rows = np.ones(1, np.int64)
    for _ in range(plan.num_players):  # A row of Pascal's triangle.
        rows = np.append(rows, 0) + np.append(0, rows)
    return rows
