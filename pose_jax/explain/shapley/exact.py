"""Exact Shapley values and other semivalues of games with up to 24 players."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding
from jaxtyping import Float

from pose_jax.explain.shapley.coalitions import (
    Array,
    PyTree,
    bits,
    check_count,
    check_players,
    coalition_weights,
    in_float,
    shapley_weights,
)
from pose_jax.explain.shapley.evaluate import Options, Plan, reduce_table, run
from pose_jax.explain.shapley.result import ShapleyResult, records


def exact_shapley(
    value_fn: Callable[..., Any],
    num_players: int,
    *,
    args: tuple = (),
    games: PyTree = None,
    chunk_size: int | None = None,
    sharding: NamedSharding | None = None,
    keep_table: bool | None = None,
) -> ShapleyResult:
    """Shapley values from all 2^n coalitions (Shapley 1953).

        phi_i = sum over S without i of [v(S + i) - v(S)] / (n C(n-1, |S|))

    Every coalition is evaluated once, all in one compiled program; what a coalition's
    value costs beyond `value_fn` is its weighted addition to n sums. May stand inside
    `jit`, `vmap` and `grad`.

    Args:
      value_fn: (coalition [n] bool, *args) -> array or pytree of arrays [*out]; pure,
        written for one coalition of one game. With `games` the game is the last argument.
        What it closes over is frozen at the first call: data go through `args`.
      num_players: n, at most 24.
      args: further arguments, pytrees; traced, so new values do not compile again.
        With `sharding` every device holds all of them, and arrays that lie on a mesh
        must come this way (JAX refuses to close over them).
      games: pytree whose leaves lead with [m]: m games in one program. Every array of
        the result leads with [m] too.
      chunk_size: coalitions evaluated together, per device. By default 4 MiB (256 MiB on
        an accelerator) of the largest array inside value_fn, within 1 and 8192.
      sharding: how the coalition axis is split over devices, a sharding of one axis.
      keep_table: keep all 2^n values; by default up to 64 MiB. Without them memory does
        not grow with the number of coalitions.

    Raises:
      ValueError: more than 2**24 coalitions; in eager calls also a value that is not
        finite (inside a trace it becomes NaN in the result).
    """
    check_players(num_players)
    check_count(2**num_players, f"{num_players} players")
    plan = AllCoalitions(num_players, 2**num_players)
    options = Options(chunk_size, sharding, keep_table)
    result, table = run(plan, value_fn, args, games, None, options)
    return dataclasses.replace(result, table=table)


def shapley_values(table: PyTree, num_players: int) -> ShapleyResult:
    """`exact_shapley` of a game that is evaluated already, from the table of its values.

    Args:
      table: tree of [2**n, *out]; bit i of the row number = player i present. Many games
        go through `jax.vmap`.

    Raises:
      ValueError: the table has another length or (eager calls) a value that is not finite.
    """
    check_table(table, num_players)
    check_count(2**num_players, f"{num_players} players")
    table = jax.tree.map(jnp.asarray, table)
    check_finite(table, lambda row: bits(np.array(row), num_players))
    plan = AllCoalitions(num_players, 2**num_players)
    return dataclasses.replace(reduce_table(plan, table, None), table=table)


def semivalue(
    table: PyTree,
    num_players: int,
    size_weights: Float[Array, "n"],
) -> PyTree:
    """Another value from a table of all coalitions (Dubey, Neyman and Weber 1981).

        psi_i = sum over S without i of [v(S + i) - v(S)] q(|S|) / C(n-1, |S|)

    Args:
      table: tree of [2**n, *out], `ShapleyResult.table`.
      size_weights: q [n], the weight of all coalitions of 0..n-1 others together; they
        sum to 1. Shapley 1/n each; Banzhaf C(n-1, s) / 2^(n-1); leave-one-out 1 at n-1;
        one player alone 1 at 0.

    Returns:
      Tree of [n, *out].

    Raises:
      ValueError: the table has another length, or the weights do not fit.
    """
    check_table(table, num_players)
    q = np.asarray(size_weights, np.float64)
    if q.shape != (num_players,) or abs(q.sum() - 1) > 1e-5:
        raise ValueError(
            f"size_weights has shape {q.shape} and sum {q.sum():.6g}; it needs one weight "
            f"for each of the sizes 0..{num_players - 1}, with sum 1"
        )
    plan = AllCoalitions(num_players, 2**num_players, tuple(q.tolist()))
    return reduce_table(plan, table, None).values


def check_table(table: PyTree, num_players: int) -> None:
    check_players(num_players)
    shapes = [jnp.shape(x) for x in jax.tree.leaves(table)]
    if not shapes or any(not s or s[0] != 2**num_players for s in shapes):
        raise ValueError(
            f"the table has shapes {shapes}; {num_players} players need 2**{num_players} = "
            f"{2**num_players} rows (was it dropped? keep_table=True keeps it)"
        )


def check_finite(table: PyTree, coalition: Callable[[int], Any], lead: int = 0) -> None:
    """Refuse a table with values that are not finite, unless it is traced.

    Args:
      coalition: row number -> [n] bool, for the message.
      lead: axes in front of the one of the coalitions.
    """
    for leaf in jax.tree.leaves(table):
        axes = tuple(a for a in range(jnp.ndim(leaf)) if a != lead)
        finite = jnp.isfinite(leaf).all(axes)
        if isinstance(finite, Tracer) or finite.all():
            continue
        row = int(jnp.argmin(finite))
        raise ValueError(
            "the table holds a value that is not finite for coalition "
            f"{np.flatnonzero(coalition(row)).tolist()} (row {row}); targets without label "
            "go into target_valid= of group_values"
        )


@dataclasses.dataclass(frozen=True)
class AllCoalitions(Plan):
    """Sums 0..n-1 are the values, then empty and full."""

    size_weights: tuple[float, ...] | None = None

    def masks(self, row, coalitions):
        return bits(row, self.num_players)

    def weights(self, masks):
        n = self.num_players
        present, absent = (
            shapley_weights(n)
            if self.size_weights is None
            else coalition_weights(self.size_weights)
        )
        size = masks.sum(1)
        inside = jnp.asarray(in_float(present))[size]
        outside = jnp.asarray(in_float(absent))[size]
        ends = jnp.stack([size == 0, size == n], 1).astype(inside.dtype)
        values = jnp.where(masks, inside[:, None], outside[:, None])
        return jnp.concatenate([values, ends], 1)

    def result(self, sums):
        def record(leaf):
            values, empty, full = leaf[:-2], leaf[-2], leaf[-1]
            residual = values.sum(0) - (full - empty)
            return dict(values=values, empty=empty, full=full, residual=residual)

        return ShapleyResult(
            **records(record, sums),
            evaluations=self.rows,
            num_players=self.num_players,
        )
