"""Records of explained games, as pytrees: arrays are leaves, counts and names are static."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import stdtrit

from pose_jax.explain.shapley.coalitions import (
    Clusters,
    PyTree,
    all_coalitions,
    grouped_coalitions,
    union_size,
)

_static = functools.partial(dataclasses.field, metadata=dict(static=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ShapleyResult:
    """Values of one game; with `games` (or `vmap`) every array leads with `[m]`.

    Where the value function returns a pytree, so is every field marked with `*out`.

    Attributes:
      values: [n, *out]
      empty, full: [*out] value of the empty and of the full coalition.
      residual: [*out] sum(values) - (full - empty); rounding only.
      table: [2**n, *out] or None; bit i of the row number = player i present.
      standard_error: [n, *out], None when exact.
      pairs: complementary pairs drawn; None when exact.
      converged: [*out] whether the tolerance was met; None without a tolerance.
      forecast_evaluations: [*out] evaluations that the tolerance is expected to need in
        all; None without a tolerance.
      kind: `"exact"`, `"antithetic"` or `"leverage"`.
      evaluations: distinct coalitions evaluated, per game.
      degrees_of_freedom: of Student's t for the interval; None when exact.
    """

    values: PyTree
    empty: PyTree
    full: PyTree
    residual: PyTree
    table: PyTree = None
    standard_error: PyTree = None
    pairs: Any = None
    converged: PyTree = None
    forecast_evaluations: PyTree = None
    kind: str = _static(default="exact")
    evaluations: int = _static(default=0)
    num_players: int = _static(default=0)
    degrees_of_freedom: int | None = _static(default=None)

    @property
    def coalitions(self) -> np.ndarray:
        """[2**n, n] bool, the rows of `table`."""
        return all_coalitions(self.num_players)

    def interval(self, level: float = 0.95) -> tuple[PyTree, PyTree]:
        """Lower and upper ends of the Student-t interval, [n, *out] each.

        Exact values are their own interval.
        """
        if self.degrees_of_freedom is None:
            return self.values, self.values
        t = float(stdtrit(self.degrees_of_freedom, 0.5 + level / 2))
        shifted = [
            jax.tree.map(
                lambda v, e, s=s: v + s * t * e, self.values, self.standard_error
            )
            for s in (-1, 1)
        ]
        return shifted[0], shifted[1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GroupShapleyResult:
    """Grouped values; K targets, n players, G clusters, C coalitions.

    With `games` (or `vmap`) every array leads with `[m]`.

    Attributes:
      member_values: [n, K, *out], zero outside the target's cluster.
      cluster_values: [G, K, *out], foreign clusters as the kind sees them, zero at the
        target's own.
      quotient_values: [G, K, *out], Shapley values of the clusters alone.
      player_values: [n, K, *out], the complete Owen matrix; None unless `owen`.
      baseline: [K, *out], where member bars start: `empty`, for `decoupled` the value
        without the target's own cluster.
      residual: [K, *out], by the efficiency of the kind (see `group_shapley`).
      quotient_residual: [K, *out], sum(quotient_values) - (full - empty).
      empty, full: [K, *out]
      table: [C, K, *out] or None; its rows are `.coalitions`.
      target_valid: [K] bool; where False every value is 0 and means nothing.
      kind, evaluations, num_players, clusters, target_cluster: static.
    """

    member_values: PyTree
    cluster_values: PyTree
    quotient_values: PyTree
    player_values: PyTree
    baseline: PyTree
    residual: PyTree
    quotient_residual: PyTree
    empty: PyTree
    full: PyTree
    target_valid: Any
    table: PyTree = None
    kind: str = _static(default="gsv")
    evaluations: int = _static(default=0)
    num_players: int = _static(default=0)
    clusters: Clusters = _static(default=())
    target_cluster: tuple[int, ...] = _static(default=())

    @property
    def has_union(self) -> bool:
        """Whether the table holds the rows of gsv and owen, not only of decoupled."""
        return self.evaluations == union_size([len(c) for c in self.clusters])

    @property
    def coalitions(self) -> np.ndarray:
        """[C, n] bool, the rows of `table` (see `grouped_coalitions` for their order)."""
        return grouped_coalitions(
            self.clusters, "gsv" if self.has_union else "decoupled"
        )

    def leave_one_out(self) -> PyTree:
        """[n, K, *out] full - v(all without the player), from the table.

        Raises:
          ValueError: the table was not kept.
        """
        rows = self._rows_of(~np.eye(self.num_players, dtype=bool))
        return jax.tree.map(
            lambda full, without: jnp.expand_dims(full, self._lead) - without,
            self.full,
            rows,
        )

    def one_alone(self) -> PyTree:
        """[n, K, *out] v(the player alone) - empty, from the table.

        Raises:
          ValueError: the table was not kept, or is that of a decoupled game.
        """
        rows = self._rows_of(np.eye(self.num_players, dtype=bool))
        return jax.tree.map(
            lambda alone, empty: alone - jnp.expand_dims(empty, self._lead),
            rows,
            self.empty,
        )

    @property
    def _lead(self) -> int:
        """Axes in front of the coalitions: 1 with games."""
        return self.target_valid.ndim - 1

    def _rows_of(self, wanted: np.ndarray) -> PyTree:
        """The table at these coalitions."""
        if self.table is None:
            raise ValueError("the table was not kept: group_shapley(keep_table=True)")
        rows = self.coalitions
        near = np.flatnonzero(np.isin(rows.sum(1), wanted.sum(1)))
        place = {rows[i].tobytes(): i for i in near}
        missing = [
            np.flatnonzero(w).tolist() for w in wanted if w.tobytes() not in place
        ]
        if missing:
            raise ValueError(
                f"the table of kind 'decoupled' does not hold coalition {missing[0]}; "
                "evaluate with kind='gsv' or 'owen'"
            )
        index = np.array([place[w.tobytes()] for w in wanted])
        return jax.tree.map(lambda t: jnp.take(t, index, axis=self._lead), self.table)


def records(function, tree: PyTree) -> dict[str, PyTree]:
    """`function(leaf) -> {name: array}` on every leaf -> {name: tree of arrays}."""
    leaves, structure = jax.tree.flatten(tree)
    found = [function(leaf) for leaf in leaves]
    return {name: structure.unflatten([f[name] for f in found]) for name in found[0]}
