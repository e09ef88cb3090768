"""Values of players in clusters: grouped (gsv), Owen and decoupled, from one table.

All three see the same players through coalitions S = T + Q, T a part of one cluster and Q
whole other clusters, and differ in the weight of a marginal contribution only. With m_c
the size of the cluster, G clusters, s = |T|, h = number of clusters in Q, and
w_p(x) = 1 / (p C(p-1, x)):

    gsv        w_(m_c + G - 1)(s + h)      members and foreign clusters are players alike
    owen       w_(m_c)(s) w_G(h)           members in orders of clusters (Owen 1977)
    decoupled  w_(m_c)(s) if h = G - 1     members with all other clusters present

gsv follows XPose (Qiu et al., arXiv 2403.12370), whose exact weights are not public.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Bool

from pose_jax.explain.shapley.coalitions import (
    Array,
    Clusters,
    PyTree,
    check_clusters,
    grouped_coalitions,
    in_float,
    shapley_weights,
    union_size,
)
from pose_jax.explain.shapley.evaluate import Options, Plan, reduce_table, run
from pose_jax.explain.shapley.exact import check_finite
from pose_jax.explain.shapley.result import GroupShapleyResult, records
from pose_jax.explain.shapley.targets import Targets, check_valid

Kind = Literal["gsv", "owen", "decoupled"]
KINDS = ("gsv", "owen", "decoupled")


def group_shapley(
    value_fn: Callable[..., Any],
    clusters: Sequence[Sequence[int]],
    *,
    kind: str = "gsv",
    target_cluster: Sequence[int] | None = None,
    target_valid: Bool[Array, "*m k"] | None = None,
    args: tuple = (),
    games: PyTree = None,
    chunk_size: int | None = None,
    sharding: NamedSharding | None = None,
    keep_table: bool | None = None,
) -> GroupShapleyResult:
    """Exact values of all players for all targets, with players in clusters.

    Efficiency, that is `residual` = left - right, for every target:

      gsv        members + foreign clusters = full - empty
      owen       members + foreign quotient values = full - empty (so do all player_values)
      decoupled  members = full - baseline

    A gsv is the Shapley value only for games without interactions of three or more; values
    of targets in different clusters are of different games and must not be stacked.

    Args:
      value_fn: as in `exact_shapley`; every array it returns leads with the K targets.
      clusters: partition of the players 0..n-1.
      kind: `"gsv"`, `"owen"` or `"decoupled"`.
      target_cluster: [K] number of the cluster each target lies in; by default the players
        are the targets, K = n.
      target_valid: [K] (with games [m, K]) bool, traced; where False the target's values
        are taken as 0 (they may be NaN) and so is every result.
      args, games, chunk_size, sharding, keep_table: as in `exact_shapley`.

    Raises:
      ValueError: clusters that overlap or leave players out, another number of targets,
        more than 2**24 coalitions, or (eager calls) a value that is not finite.
    """
    plan = grouped_plan(clusters, kind, target_cluster)
    if target_valid is not None:
        check_valid(target_valid, len(plan.target_cluster), games is not None)
        if games is None:
            args = (*args, target_valid)
        else:
            games = (games, target_valid)
    function = Targets(
        value_fn, len(plan.target_cluster), target_valid is not None, games is not None
    )
    options = Options(chunk_size, sharding, keep_table)
    rows = grouped_coalitions(plan.clusters, kind)
    result, table = run(plan, function, args, games, rows, options)
    if target_valid is not None:
        result = dataclasses.replace(result, target_valid=jnp.asarray(target_valid))
    return dataclasses.replace(result, table=table)


def group_values(
    table: PyTree,
    clusters: Sequence[Sequence[int]],
    *,
    kind: str = "gsv",
    target_cluster: Sequence[int] | None = None,
    target_valid: Bool[Array, "*m k"] | None = None,
) -> GroupShapleyResult:
    """`group_shapley` of a game that is evaluated already, from the table of its values.

    Args:
      table: tree of [C, K, *out], its rows those of `grouped_coalitions(clusters, kind)`. A
        decoupled value may be read from the larger table of gsv and owen, too. With
        games every array leads with [m].
      clusters, kind, target_cluster: as in `group_shapley`.
      target_valid: [K], with games [m, K] and needed then; where False the table is taken
        as 0 (it may be NaN) and so is every result.

    Raises:
      ValueError: as `group_shapley`, or the table has another shape.
    """
    plan = grouped_plan(clusters, kind, target_cluster)
    targets = len(plan.target_cluster)
    valid = np.ones(targets, bool) if target_valid is None else target_valid
    check_valid(valid, targets, jnp.ndim(valid) == 2)
    return _from_table(plan, table, jnp.asarray(valid))


def reweight(group_result: GroupShapleyResult, kind: str = "gsv") -> GroupShapleyResult:
    """The same game's values of another kind, from the table that was kept.

    Raises:
      ValueError: no table, or the table of a decoupled game (it lacks rows) for a gsv or
        owen value.
    """
    if group_result.table is None:
        raise ValueError("reweight needs the table: group_shapley(keep_table=True)")
    found = group_result
    if kind != "decoupled" and not found.has_union:
        raise ValueError(
            f"a decoupled table of {found.evaluations} rows does not hold the coalitions of "
            f"kind={kind!r}; evaluate with kind='gsv' or 'owen' and reweight from there"
        )
    plan = grouped_plan(found.clusters, kind, found.target_cluster)
    return _from_table(plan, found.table, found.target_valid)


def _from_table(plan: Grouped, table: PyTree, valid: Any) -> GroupShapleyResult:
    """[*m, C, K, *out] and [*m, K] -> the record, the table inside."""
    lead = valid.ndim - 1
    table = jax.tree.map(jnp.asarray, table)
    rows = _rows_given(plan, table, valid.shape[:-1])
    plan = dataclasses.replace(plan, rows=len(rows))

    def masked(leaf):
        shape = (*valid.shape[:-1], 1, valid.shape[-1], *[1] * (leaf.ndim - lead - 2))
        return jnp.where(valid.reshape(shape), leaf, 0)

    table = jax.tree.map(masked, table)
    check_finite(table, rows.__getitem__, lead)
    function = functools.partial(reduce_table, plan, coalitions=jnp.asarray(rows))
    for _ in range(lead):  # Games lead.
        function = jax.vmap(function)
    return dataclasses.replace(function(table), table=table, target_valid=valid)


def _rows_given(plan: Grouped, table: PyTree, games: tuple[int, ...]) -> np.ndarray:
    """[C, n] the coalitions of the table; its shape tells which."""
    sizes, lead = [len(c) for c in plan.clusters], len(games)
    shapes = [leaf.shape for leaf in jax.tree.leaves(table)]
    found = {shape[: lead + 2] for shape in shapes}
    # Where both families have equally many rows they are the same rows.
    for kind in {plan.kind, "gsv"} if plan.kind == "decoupled" else {plan.kind}:
        if found == {(*games, union_size(sizes, kind), len(plan.target_cluster))}:
            return grouped_coalitions(plan.clusters, kind)
    needed = [*games, plan.rows, len(plan.target_cluster)]
    raise ValueError(
        f"the table has shapes {list(map(list, shapes))}; clusters of sizes {sizes} with "
        f"kind={plan.kind!r} need {needed} first, the rows of grouped_coalitions (games "
        "need target_valid=[m, K])"
    )


def grouped_plan(clusters, kind: str, target_cluster) -> Grouped:
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is none of {', '.join(KINDS)}")
    found = check_clusters(clusters)
    players = sum(len(c) for c in found)
    owner = _owner(found)
    targets = owner if target_cluster is None else np.asarray(target_cluster)
    if targets.ndim != 1 or not len(targets):
        raise ValueError(f"target_cluster has shape {targets.shape}; it needs [K]")
    if targets.min() < 0 or targets.max() >= len(found):
        raise ValueError(
            f"target_cluster={targets.tolist()} names clusters outside 0..{len(found) - 1}"
        )
    rows = len(grouped_coalitions(found, kind))
    return Grouped(players, rows, found, tuple(int(t) for t in targets), kind)


def _owner(clusters: Clusters) -> np.ndarray:
    """[n] the cluster of every player."""
    owner = np.zeros(sum(len(c) for c in clusters), int)
    for number, members in enumerate(clusters):
        owner[list(members)] = number
    return owner


@functools.lru_cache(maxsize=64)
def _member_weights(clusters: Clusters, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """[G, largest size + 1, G] weight of v(T + Q) by cluster, |T| and clusters in Q.

    First where the player is in T (or, gsv, the foreign cluster in Q), then where not.
    """
    groups, size = len(clusters), max(len(c) for c in clusters)
    present = np.zeros((groups, size + 1, groups))
    absent = np.zeros_like(present)
    # w_G(h) of the quotient: what a cluster's absence weighs, with the sign turned.
    order = -shapley_weights(groups)[1][:groups]
    last = np.arange(groups) == groups - 1
    for number, members in enumerate(clusters):
        m = len(members)
        if kind == "gsv":
            total = np.add.outer(np.arange(m + 1), np.arange(groups))
            inside, outside = shapley_weights(m + groups - 1)
            present[number, : m + 1], absent[number, : m + 1] = (
                inside[total],
                outside[total],
            )
            continue
        of_quotient = order if kind == "owen" else last
        inside, outside = shapley_weights(m)
        present[number, : m + 1] = np.outer(inside, of_quotient)
        absent[number, : m + 1] = np.outer(outside, of_quotient)
    return present, absent


@dataclasses.dataclass(frozen=True)
class Grouped(Plan):
    """Sums: members n, quotient G, empty, full, without c (G), foreign G x G (gsv)."""

    clusters: Clusters
    target_cluster: tuple[int, ...]
    kind: str

    def weights(self, masks):
        clusters, groups = self.clusters, len(self.clusters)
        count = jnp.stack([masks[:, list(c)].sum(1) for c in clusters], 1)
        present = count == np.array([len(c) for c in clusters])  # [r, G]
        whole = present | (count == 0)
        # A row serves cluster c when every other cluster is whole.
        serves = whole.sum(1, keepdims=True) - whole == groups - 1
        others = present.sum(1, keepdims=True) - present  # h, seen from each cluster
        inside, outside = (
            jnp.where(
                serves,
                jnp.asarray(in_float(table))[np.arange(groups), count, others],
                0,
            )
            for table in _member_weights(clusters, self.kind)
        )
        owner = _owner(clusters)
        members = jnp.where(masks, inside[:, owner], outside[:, owner])
        number = present.sum(1, keepdims=True)
        first, second = (
            jnp.asarray(in_float(w))[number] for w in shapley_weights(groups)
        )
        quotient = jnp.where(present, first, second) * whole.all(1, keepdims=True)
        ends = jnp.stack([~masks.any(1), masks.all(1)], 1)
        without = (count == 0) & (others == groups - 1)
        parts = [members, quotient, ends, without]
        if self.kind == "gsv":
            foreign = jnp.where(
                present[:, None, :], inside[:, :, None], outside[:, :, None]
            )
            parts.append(foreign.reshape(len(masks), -1))
        return jnp.concatenate([p.astype(members.dtype) for p in parts], 1)

    def result(self, sums):
        return GroupShapleyResult(
            **records(self._record, sums),
            target_valid=jnp.ones(len(self.target_cluster), bool),
            kind=self.kind,
            evaluations=self.rows,
            num_players=self.num_players,
            clusters=self.clusters,
            target_cluster=self.target_cluster,
        )

    def _record(self, leaf) -> dict[str, Any]:
        """[p, K, *out] -> the fields of one array of the value function."""
        n, groups = self.num_players, len(self.clusters)
        own, targets = np.array(self.target_cluster), np.arange(leaf.shape[1])
        ends = np.cumsum([n, groups, 1, 1, groups])
        players, quotient, empty, full, without, foreign = jnp.split(leaf, ends)
        empty, full = empty[0], full[0]

        def where(condition, values):
            shape = condition.shape + (1,) * (leaf.ndim - 2)
            return jnp.where(condition.reshape(shape), values, 0)

        member_values = where(_owner(self.clusters)[:, None] == own, players)
        others = quotient
        if self.kind == "gsv":
            foreign = foreign.reshape(groups, groups, *leaf.shape[1:])
            others = jnp.moveaxis(foreign[own, :, targets], 0, 1)
        cluster_values = where(np.arange(groups)[:, None] != own, others)
        total = member_values.sum(0)
        baseline = empty
        if self.kind == "decoupled":
            baseline = without[own, targets]
        else:
            total = total + cluster_values.sum(0)
        return dict(
            member_values=member_values,
            cluster_values=cluster_values,
            quotient_values=quotient,
            player_values=players if self.kind == "owen" else None,
            baseline=baseline,
            residual=total - (full - baseline),
            quotient_residual=quotient.sum(0) - (full - empty),
            empty=empty,
            full=full,
        )
