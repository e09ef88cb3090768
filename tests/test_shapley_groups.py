"""Grouped values: gsv, Owen and decoupled, against orders, dividends and axioms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shapley_reference as reference
from test_shapley import close, lookup, number, weights

from pose_jax.explain import (
    exact_shapley,
    group_shapley,
    group_values,
    reweight,
    shapley,
)

CLUSTERS = [list(range(5)), [5, 7, 9], [6, 8, 10], [11, 13, 15], [12, 14, 16]]
"""COCO-17: face, arms, legs (left and right are interleaved there)."""
SMALL = [[0, 3, 5], [1, 2], [4]]
KINDS = ("gsv", "owen", "decoupled")


def heads(coalition, weight):
    """17 targets, each of its own mixture of players, interactions of every order."""
    mixing = jnp.cos(jnp.arange(17.0)[:, None] * (1 + jnp.arange(17.0)))
    return jnp.tanh(mixing @ jnp.where(coalition, weight, 0.0))


def solve(table, clusters=SMALL, **options):
    return group_shapley(lookup, clusters, args=(jnp.asarray(table),), **options)


def owner(clusters):
    found = {p: c for c, members in enumerate(clusters) for p in members}
    return np.array([found[p] for p in range(len(found))])


@pytest.mark.parametrize(
    "sizes,kind,rows",
    [
        ((5, 3, 3, 3, 3), "gsv", 896),
        ((5, 3, 3, 3, 3), "decoupled", 86),
        ((3, 3, 3, 3, 2), "owen", 448),
        ((5, 6, 6), "owen", 624),
        ((5, 4, 2, 2, 2, 2), "gsv", 1728),
        ((5, 2, 2, 2, 2, 2, 2), "gsv", 2816),
        ((1, 8, 8), "gsv", 2040),
        ((1, 2, 2, 2, 2, 2, 2, 2, 2), "gsv", 4608),
        ((3, 3, 3, 3, 4), "gsv", 640),
        ((4,), "gsv", 16),
        ((1, 1, 1, 1), "owen", 16),
    ],
)
def test_union_of_coalitions(sizes, kind, rows):
    """The closed form, the rows themselves, and a search through all 2^n coalitions."""
    ends = np.cumsum((0, *sizes))
    clusters = tuple(tuple(range(a, b)) for a, b in itertools.pairwise(ends))
    masks = shapley.grouped_coalitions(clusters, kind)
    assert shapley.union_size(sizes, kind) == rows == len(masks)
    assert len(np.unique(masks, axis=0)) == rows
    assert not masks[0].any() and masks[2 ** len(sizes) - 1].all()
    n = int(ends[-1])
    everything = shapley.all_coalitions(n)
    part = np.stack([everything[:, list(c)].mean(1) for c in clusters], 1)
    broken = ((part > 0) & (part < 1)).sum(1)
    needed = broken <= 1
    if kind == "decoupled":
        needed &= (broken == 0) | (part > 0).all(1)
    codes = masks @ (1 << np.arange(n))
    np.testing.assert_array_equal(np.sort(codes), np.flatnonzero(needed))


def test_owen_is_the_mean_over_cluster_orders(x64):
    table = reference.random_table(6, 6)
    result = solve(table, kind="owen")
    expected = reference.over_orders(table, 6, reference.cluster_orders(SMALL))
    close(result.player_values, expected, 1e-12)
    same = owner(SMALL)[:, None] == owner(SMALL)
    close(result.member_values, np.where(same, expected, 0), 1e-12)
    close(result.residual, np.zeros(6), 1e-12)
    close(result.player_values.sum(0), result.full - result.empty, 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_quotient_and_contracted_games(kind, x64):
    """Every field against the Shapley value of the contracted game, by orders."""
    table, of = reference.random_table(6, 6), owner(SMALL)
    result = solve(table, kind=kind)
    quotient = reference.shapley(reference.contracted(table, 6, SMALL), 3)
    close(result.quotient_values, quotient, 1e-12)
    close(result.quotient_residual, np.zeros(6), 1e-12)
    close(result.residual, np.zeros(6), 1e-12)
    for target in range(6):
        own = SMALL[of[target]]
        others = [c for c in range(3) if c != of[target]]
        members = result.member_values[:, target]
        assert not np.any(np.delete(members, own))
        assert result.cluster_values[of[target], target] == 0
        foreign = result.cluster_values[np.array(others), target]
        if kind == "owen":
            # Quotient property: members together get what their cluster gets.
            close(members.sum(), quotient[of[target], target], 1e-12)
        if kind == "gsv":
            players = [[p] for p in own] + [SMALL[c] for c in others]
            flat = reference.shapley(
                reference.contracted(table, 6, players), len(players)
            )
            close(members[np.array(own)], flat[: len(own), target], 1e-12)
            close(foreign, flat[len(own) :, target], 1e-12)
            close(result.baseline[target], table[0, target], 1e-12)
        else:
            close(foreign, quotient[others, target], 1e-12)
        if kind == "decoupled":
            rest = reference.row(p for c in others for p in SMALL[c])
            inner = np.array([
                table[rest | reference.row(part), target]
                for part in (
                    [own[i] for i in range(len(own)) if r >> i & 1]
                    for r in range(2 ** len(own))
                )
            ])  # fmt: skip
            close(members[np.array(own)], reference.shapley(inner, len(own)), 1e-12)
            close(result.baseline[target], table[rest, target], 1e-12)
    assert (result.player_values is None) == (kind != "owen")


def test_dividend_formulas(x64):
    """Owen and gsv share a dividend d(T) as 1/((1+x)|T in B|) and 1/(|T in B| + x)."""
    table, of = reference.random_table(6), owner(SMALL)
    dividends = reference.dividends(table, 6)
    owen, gsv = np.zeros(6), np.zeros(6)
    for code in range(1, 64):
        players = [p for p in range(6) if code >> p & 1]
        for p in players:
            inside = sum(of[q] == of[p] for q in players)
            touched = len({of[q] for q in players}) - 1
            owen[p] += dividends[code] / ((1 + touched) * inside)
            gsv[p] += dividends[code] / (inside + touched)
    many = np.repeat(table[:, None], 6, 1)
    close(solve(many, kind="owen").member_values.diagonal(), owen, 1e-12)
    close(solve(many, kind="gsv").member_values.diagonal(), gsv, 1e-12)
    assert abs(owen - gsv).max() > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_two_additive_games_do_not_tell_kinds_apart(seed, x64):
    table = reference.random_table(6, 6, seed=seed, order=2)
    exact = exact_shapley(lookup, 6, args=(table,)).values
    owen = solve(table, kind="owen")
    close(owen.player_values, exact, 1e-12)
    close(solve(table, kind="gsv").member_values, owen.member_values, 1e-12)
    # Three-player dividends do.
    table = reference.random_table(6, 6, seed=seed, order=3)
    assert abs(solve(table, kind="gsv").member_values
               - solve(table, kind="owen").member_values).max() > 1e-3  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_clusters_give_the_shapley_value(kind, x64):
    table = reference.random_table(5, 5)
    exact = reference.shapley(table, 5)
    one = solve(table, [[3, 0, 1, 4, 2]], kind=kind)
    close(one.member_values, exact, 1e-12)
    assert one.evaluations == 32
    single = solve(table, [[i] for i in range(5)], kind=kind)
    close(single.quotient_values, exact, 1e-12)
    assert single.evaluations == 32
    if kind == "gsv":
        both = single.member_values + single.cluster_values
        close(both, exact, 1e-12)
    if kind == "owen":
        close(single.player_values, exact, 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_axioms(kind, x64):
    a, b = (reference.random_table(6, 6, seed=s) for s in (1, 2))

    def members(table, clusters=SMALL, **options):
        return solve(table, clusters, kind=kind, **options).member_values

    close(members(2 * a - b), 2 * members(a) - members(b), 1e-12)
    rows = np.arange(64)
    assert abs(members(a[rows & ~0b001000])[3]).max() < 1e-14  # Null player 3.
    # Players 0 and 5 of one cluster may change places.
    masks = shapley.all_coalitions(6)
    swapped = masks[:, [5, 1, 2, 3, 4, 0]] @ (1 << np.arange(6))
    even = members((a + a[swapped]) / 2)
    close(even[0, 3], even[5, 3], 1e-12)
    # Order is the player index: neither the order of clusters nor of members matters.
    found = solve(a, [[4], [2, 1], [5, 0, 3]], kind=kind)
    close(found.member_values, members(a), 1e-12)
    close(found.quotient_values[::-1], solve(a, kind=kind).quotient_values, 1e-12)
    # Renumbering players: new player i is old player order[i].
    order = np.array([4, 2, 0, 5, 1, 3])
    table = a[masks @ (1 << order)][:, order]
    clusters = [[int(np.flatnonzero(order == p)[0]) for p in c] for c in SMALL]
    close(members(table, clusters), members(a)[np.ix_(order, order)], 1e-12)


def test_targets_that_are_not_players(x64):
    table = reference.random_table(6, 2, 3)
    result = solve(table, target_cluster=[1, 0])
    assert result.member_values.shape == (6, 2, 3)
    for target, cluster in enumerate((1, 0)):
        one = np.repeat(table[:, target : target + 1], 6, 1)
        whole = solve(one).member_values[:, SMALL[cluster][0]]
        close(result.member_values[:, target], whole, 1e-12)


def test_kinds_from_one_table():
    table = reference.random_table(6, 6).astype(np.float32)
    for first in ("gsv", "owen"):
        result = solve(table, kind=first)
        np.testing.assert_array_equal(
            result.table, table[result.coalitions @ (1 << np.arange(6))]
        )
        for kind in KINDS:
            again, direct = reweight(result, kind=kind), solve(table, kind=kind)
            assert again.kind == kind
            for name in ("member_values", "cluster_values", "quotient_values",
                         "player_values", "baseline", "residual", "full"):  # fmt: skip
                close(getattr(again, name), getattr(direct, name))
    local = solve(table, kind="decoupled")
    assert len(local.coalitions) == local.evaluations == 6 + 2 + 8
    with pytest.raises(ValueError, match="does not hold the coalitions"):
        reweight(local, kind="owen")
    with pytest.raises(ValueError, match="keep_table=True"):
        reweight(solve(table, keep_table=False), kind="owen")


FIELDS = ("member_values", "cluster_values", "quotient_values", "player_values", "baseline",
          "residual", "quotient_residual", "empty", "full", "table", "target_valid")  # fmt: skip


def rows_of(clusters, kind):
    masks = shapley.grouped_coalitions(tuple(map(tuple, clusters)), kind)
    return masks @ (1 << np.arange(masks.shape[1]))


@pytest.mark.parametrize("kind", KINDS)
def test_values_from_a_table_of_one_game(kind):
    """Equal to the call that evaluates, trees and targets that are no players included."""
    table = {
        "map": reference.random_table(6, 2, 3).astype(np.float32),
        "peak": reference.random_table(6, 2, seed=4).astype(np.float32),
    }
    direct = solve_tree(table, kind=kind, target_cluster=[1, 0])
    rows = rows_of(SMALL, kind)
    given = jax.tree.map(lambda t: t[rows], table)
    found = group_values(given, SMALL, kind=kind, target_cluster=[1, 0])
    for name in FIELDS:
        close(getattr(found, name), getattr(direct, name))
    assert (found.kind, found.evaluations) == (kind, len(rows))
    np.testing.assert_array_equal(found.coalitions, direct.coalitions)
    traced = jax.jit(lambda t: group_values(t, SMALL, kind=kind, target_cluster=[1, 0]))
    close(traced(given).member_values, direct.member_values)


def solve_tree(table, **options):
    return group_shapley(
        lookup, SMALL, args=(jax.tree.map(jnp.asarray, table),), **options
    )


@pytest.mark.parametrize("kind", KINDS)
def test_values_from_tables_of_many_games(kind):
    tables = np.stack([reference.random_table(6, 6, seed=s) for s in range(3)])
    tables = tables.astype(np.float32)
    valid = np.ones((3, 6), bool)
    valid[1, 2] = valid[2, 5] = False
    direct = group_shapley(lookup, SMALL, kind=kind, games=tables, target_valid=valid)
    tables[1, :, 2] = tables[2, :, 5] = np.nan
    given = tables[:, rows_of(SMALL, kind)]
    found = group_values(given, SMALL, kind=kind, target_valid=valid)
    for name in FIELDS:
        close(getattr(found, name), getattr(direct, name))
    # The larger table of gsv and owen serves a decoupled value as well.
    union = tables[:, rows_of(SMALL, "gsv")]
    again = group_values(union, SMALL, kind=kind, target_valid=valid)
    close(again.member_values, direct.member_values)
    assert again.has_union and again.kind == kind
    with pytest.raises(ValueError, match=r"not finite for coalition \[\] \(row 0\)"):
        group_values(given, SMALL, kind=kind, target_valid=np.ones((3, 6), bool))
    lone = np.where(np.isnan(given), 0, given)
    lone[2, 9, 4] = np.inf
    players = shapley.grouped_coalitions(tuple(map(tuple, SMALL)), kind)[9]
    message = rf"coalition \[{', '.join(map(str, np.flatnonzero(players)))}\] \(row 9\)"
    with pytest.raises(ValueError, match=message):
        group_values(lone, SMALL, kind=kind, target_valid=valid)


@pytest.mark.parametrize(
    "shape,options,message",
    [
        ((64, 6), dict(), r"\[\[64, 6\]\].*sizes \[3, 2, 1\].*need \[40, 6\]"),
        ((40, 5), dict(), r"need \[40, 6\]"),
        ((16, 6), dict(kind="owen"), r"need \[40, 6\]"),
        ((41, 6), dict(kind="decoupled"), r"need \[16, 6\]"),
        ((2, 40, 6), dict(), r"games need target_valid"),
        ((2, 40, 6), dict(target_valid=np.ones((3, 6), bool)), r"need \[3, 40, 6\]"),
        ((40, 6), dict(target_valid=np.ones(5, bool)), r"it needs \[6\]"),
        ((40, 6), dict(kind="shapley"), "none of gsv, owen, decoupled"),
    ],
)  # fmt: skip
def test_tables_of_other_games_are_refused(shape, options, message):
    with pytest.raises(ValueError, match=message):
        group_values(np.zeros(shape, np.float32), SMALL, **options)


def test_single_players_from_the_table():
    tables = np.stack([reference.random_table(6, 6, seed=s) for s in (1, 2)])
    result = group_shapley(lookup, SMALL, games=tables.astype(np.float32))
    alone, others = 1 << np.arange(6), 63 - (1 << np.arange(6))
    close(result.leave_one_out(), tables[:, 63:] - tables[:, others])
    close(result.one_alone(), tables[:, alone] - tables[:, :1])
    local = solve(tables[0], kind="decoupled")
    close(local.leave_one_out(), tables[0, 63:] - tables[0, others])
    with pytest.raises(ValueError, match=r"does not hold coalition \[0\]"):
        local.one_alone()
    with pytest.raises(ValueError, match="keep_table=True"):
        solve(tables[0], keep_table=False).leave_one_out()


@pytest.mark.parametrize("options", [dict(), dict(chunk_size=50), dict(chunk_size=128)])
def test_coco_games(options):
    """Persons x coalitions in one axis; streaming and jit equal; all 2^17 rows as a check."""
    people = np.stack([weights(17, s) for s in range(3)])
    result = group_shapley(heads, CLUSTERS, kind="owen", games=people, **options)
    assert result.table.shape == (3, 896, 17) and result.evaluations == 896
    assert result.member_values.shape == (3, 17, 17)
    assert abs(result.residual).max() < 1e-5
    streamed = group_shapley(
        heads, CLUSTERS, kind="owen", games=people, keep_table=False, **options
    )
    close(streamed.player_values, result.player_values)
    assert streamed.table is None
    one = group_shapley(heads, CLUSTERS, kind="owen", args=(people[1],))
    close(one.player_values, result.player_values[1], 5e-6)
    changed = reweight(result, kind="gsv")
    gsv = group_shapley(heads, CLUSTERS, args=(people[1],))
    close(changed.member_values[1], gsv.member_values, 5e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_jit_and_vmap(kind):
    people = np.stack([weights(17, s) for s in range(2)])

    def run(weight):
        return group_shapley(heads, CLUSTERS, kind=kind, args=(weight,))

    eager, mapped = run(people[1]), jax.jit(jax.vmap(run))(people)
    close(jax.jit(run)(people[1]), eager, 5e-6)
    close(jax.tree.map(lambda x: x[1], mapped), eager, 5e-6)
    assert (mapped.kind, mapped.num_players) == (kind, 17)
    if kind != "gsv":
        return
    close(reweight(mapped, "decoupled").member_values[1],
          reweight(eager, "decoupled").member_values, 5e-6)  # fmt: skip


def test_targets_without_label_are_masked():
    """Their values may be NaN; the others are as before. Traced, so no new program."""
    traces = []

    def value(coalition, valid, weight):
        traces.append(1)
        return jnp.where(valid, heads(coalition, weight), jnp.nan)

    people = np.stack([weights(17, s) for s in range(2)])
    valid = np.ones((2, 17), bool)
    valid[0, 3] = valid[1, 8] = False
    games = dict(valid=valid, weight=people)
    result = group_shapley(
        lambda c, game: value(c, game["valid"], game["weight"]),
        CLUSTERS,
        games=games,
        target_valid=valid,
    )
    whole = group_shapley(heads, CLUSTERS, games=people)
    close(result.member_values, np.where(valid[:, None], whole.member_values, 0), 1e-6)
    np.testing.assert_array_equal(result.target_valid, valid)
    one = group_shapley(
        value, CLUSTERS, args=(valid[0], people[0]), target_valid=valid[0]
    )
    close(one.member_values, result.member_values[0], 5e-6)
    count = len(traces)
    group_shapley(value, CLUSTERS, args=(valid[1], people[0]), target_valid=valid[1])
    assert len(traces) == count
    with pytest.raises(ValueError, match="not finite"):
        group_shapley(value, CLUSTERS, args=(valid[0], people[0]))
    with pytest.raises(ValueError, match=r"target_valid has shape \[17\]"):
        group_shapley(heads, CLUSTERS, games=people, target_valid=valid[0])


def test_null_players_of_unlabelled_keypoints():
    """A keypoint that owns no pixel gets nothing, in any kind, and changes no other."""
    weight = weights(17)
    weight[7] = 0
    without = [[p for p in c if p != 7] for c in CLUSTERS]
    for kind in KINDS:
        result = group_shapley(heads, CLUSTERS, kind=kind, args=(weight,))
        assert abs(result.member_values[7]).max() < 1e-6
    owen = group_shapley(heads, CLUSTERS, kind="owen", args=(weight,)).player_values
    lone = group_shapley(
        heads, [*without, [7]], kind="owen", args=(weight,)
    ).player_values
    close(owen, lone, 5e-6)


@pytest.mark.parametrize(
    "options,message",
    [
        (dict(clusters=[[0, 1], [1, 2]]), "overlap: player 1 is in cluster 0 and again"),
        (dict(clusters=[[0, 0], [1, 2]]), "overlap: player 0"),
        (dict(clusters=[[0, 1], [3]]), r"incomplete: players \[2\]"),
        (dict(clusters=[[0, 1], []]), "a cluster is empty"),
        (dict(clusters=[]), "a cluster is empty"),
        (dict(clusters=[[-1, 0], [1]]), "incomplete"),
        (dict(clusters=SMALL, kind="shapley"), "none of gsv, owen, decoupled"),
        (dict(clusters=SMALL, target_cluster=[0, 3]), r"outside 0\.\.2"),
        (dict(clusters=SMALL, target_cluster=[0, 1]),
         r"value_fn returned shape \[6\] where its first axis must hold the 2 targets"),
        (dict(clusters=[[0, 3], [1, 2, 4]]), r"hold the 5 targets"),
        (dict(clusters=[list(range(25))]), "above the limit"),
        (dict(clusters=[[i] for i in range(30)]), "1,073,741,824 coalitions"),
    ],
)  # fmt: skip
def test_mistakes_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        group_shapley(lambda c: jnp.zeros(6), **options)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_programs_lower_for_accelerators(platform):
    run = jax.jit(lambda w: group_shapley(heads, CLUSTERS, args=(w,), chunk_size=128))
    exported = jax.export.export(run, platforms=[platform])(weights(17))
    assert exported.platforms == (platform,)
    assert exported.out_avals[0].shape == (17, 17)


def test_number_is_a_row_number():
    assert int(number(jnp.array([True, False, True]))) == 5
