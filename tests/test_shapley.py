"""Exact Shapley values: axioms, references, invariances, guard rails."""

import doctest
import json
import re
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shapley_reference as reference

from pose_jax.explain import exact_shapley, semivalue, shapley, shapley_values
from pose_jax.explain.shapley import evaluate, exact


def number(coalition):
    """Row number of a coalition."""
    return jnp.sum(coalition * (1 << jnp.arange(len(coalition))))


def lookup(coalition, table):
    """Any table as a game."""
    return jax.tree.map(lambda t: jnp.asarray(t)[number(coalition)], table)


def saturating(coalition, weight, scale):
    """Interactions of every order, vector-valued [2]."""
    total = jnp.sum(jnp.where(coalition, weight, 0.0))
    pair = total * coalition[0]
    return scale * jnp.stack([jnp.tanh(total), jnp.tanh(pair) + total])


def saturating_game(coalition, scale, weight):
    """The weights of the players are the game."""
    return saturating(coalition, weight, scale)


def weights(n, seed=0):
    return np.random.default_rng(seed).normal(size=n).astype(np.float32)


def close(a, b, tolerance=2e-6):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance),
        a,
        b,
    )


def solve(table, n, **options):
    return exact_shapley(lookup, n, args=(table,), **options)


def test_package_docstring_runs():
    results = doctest.testmod(shapley)
    assert results.attempted > 15 and results.failed == 0


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_equals_all_orders(n, x64):
    table = reference.random_table(n, 3)
    result = solve(table, n)
    close(result.values, reference.shapley(table, n), 1e-12)
    close(result.table, table, 0)
    close((result.empty, result.full), (table[0], table[-1]), 0)
    close(result.residual, np.zeros(3), 1e-12)
    assert result.evaluations == 2**n and result.num_players == n
    assert result.standard_error is None and result.kind == "exact"
    assert result.coalitions.shape == (2**n, n)


def test_values_from_a_table():
    """Equal to the call that evaluates: trees, many games under vmap, inside jit."""
    tables = np.stack([reference.random_table(6, 2, seed=s) for s in range(3)])
    tables = tables.astype(np.float32)
    tree = {"map": tables[0], "peak": (tables[1, :, 0],)}
    close(shapley_values(tree, 6), solve(tree, 6))
    many = jax.vmap(lambda t: shapley_values(t, 6))(tables)
    for i, table in enumerate(tables):
        close(jax.tree.map(lambda x, i=i: x[i], many), solve(table, 6))
    close(jax.jit(lambda: shapley_values(tables[0], 6))(), solve(tables[0], 6))
    result = shapley_values(tables[0], 6)
    assert (result.kind, result.evaluations, result.num_players) == ("exact", 64, 6)
    with pytest.raises(ValueError, match="64 rows"):
        shapley_values(tables[0, :40], 6)
    tables[0, 11, 1] = np.nan
    with pytest.raises(ValueError, match=r"coalition \[0, 1, 3\] \(row 11\)"):
        shapley_values(tables[0], 6)
    traced = jax.jit(lambda t: shapley_values(t, 6).values)(tables[0])
    assert np.isnan(traced[:, 1]).all() and np.isfinite(traced[:, 0]).all()


def test_rows_of_the_table_are_bits():
    result = exact_shapley(lambda coalition: coalition.astype(jnp.float32), 5)
    np.testing.assert_array_equal(result.table, result.coalitions)
    assert [bool(x) for x in result.coalitions[0b01101]] == [1, 0, 1, 1, 0]


@pytest.mark.parametrize("players", [(1,), (0, 3), (0, 2, 4), (0, 1, 2, 3, 4)])
def test_unanimity_games_are_shared_equally(players):
    expected = np.isin(np.arange(5), players) / len(players)
    close(solve(reference.unanimity(5, players), 5).values, expected)


def test_axioms(x64):
    n = 5
    a, b = (reference.random_table(n, seed=s) for s in (1, 2))
    one, two = solve(a, n).values, solve(b, n).values
    close(solve(2 * a - 3 * b, n).values, 2 * one - 3 * two, 1e-12)
    # A null player gets nothing; a dummy only what it adds.
    rows = np.arange(2**n)
    null = a[rows & ~0b00100]
    assert abs(solve(null, n).values[2]) < 1e-14
    close(solve(null + 0.5 * (rows >> 2 & 1), n).values[2], 0.5, 1e-12)
    # Players that may change places get the same.
    masks = shapley.all_coalitions(n)
    swapped = masks[:, [3, 1, 2, 0, 4]] @ (1 << np.arange(n))
    even = solve((a + a[swapped]) / 2, n).values
    close(even[0], even[3], 1e-12)
    # Renumbering players renumbers values: new player i is old player order[i].
    order = np.array([4, 2, 0, 1, 3])
    renumbered = masks @ (1 << order)
    close(solve(a[renumbered], n).values, one[order], 1e-12)
    close(one.sum(), a[-1] - a[0], 1e-12)


def test_outputs_may_be_any_tree():
    """Maps and several outputs at once, each equal to its own game."""
    table = {
        "map": reference.random_table(6, 4, 3).astype(np.float32),
        "peak": (reference.random_table(6, seed=3).astype(np.float32),),
    }
    result = solve(table, 6)
    assert result.values["map"].shape == (6, 4, 3)
    close(result.values["peak"][0], solve(table["peak"][0], 6).values)
    close(result.values["map"][..., 2, 1], solve(table["map"][:, 2, 1], 6).values)


def test_whole_numbers_and_booleans_are_values():
    result = exact_shapley(lambda coalition: coalition[:2].all(), 4)
    close(result.values, np.array([0.5, 0.5, 0, 0]))


@pytest.mark.parametrize(
    "options",
    [
        dict(chunk_size=1),
        dict(chunk_size=7),
        dict(chunk_size=64),
        dict(chunk_size=200),
        dict(keep_table=False),
        dict(chunk_size=7, keep_table=False),
    ],
)
def test_chunks_and_streaming_change_nothing(options):
    args = weights(7), 1.3
    whole = exact_shapley(saturating, 7, args=args)
    other = exact_shapley(saturating, 7, args=args, **options)
    close(other.values, whole.values)
    close((other.empty, other.full), (whole.empty, whole.full))
    assert (other.table is None) == ("keep_table" in options)
    if other.table is not None:
        close(other.table, whole.table)


def test_a_large_table_is_not_kept(monkeypatch):
    def value(coalition):  # Two numbers of four bytes.
        return coalition[:2].astype(jnp.float32)

    for limit, kept in ((2**8 * 8, True), (2**8 * 8 - 1, False)):
        monkeypatch.setattr(evaluate, "TABLE_BYTES", limit)
        assert (exact_shapley(value, 8).table is not None) == kept
        evaluate._program.cache_clear()
    assert exact_shapley(value, 8, keep_table=True).table.shape == (256, 2)


def test_streaming_memory_does_not_grow():
    """Temporary memory of the compiled program, with 16 times the coalitions."""

    def memory(n):
        def run(weight):
            return exact_shapley(saturating, n, args=(weight, 1.0), keep_table=False)

        compiled = jax.jit(run).lower(weights(n)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(20) < 1.5 * memory(16) < 2**24


@pytest.mark.parametrize("chunk_size", [None, 5, 32, 64, 100])
def test_many_games_equal_one_by_one(chunk_size):
    many = np.stack([weights(5, seed) for seed in range(7)])
    result = exact_shapley(
        saturating_game,
        5,
        args=(0.8,),
        games=many,
        chunk_size=chunk_size,
    )
    assert result.values.shape == (7, 5, 2) and result.table.shape == (7, 32, 2)
    assert result.evaluations == 32
    for i, weight in enumerate(many):
        one = exact_shapley(saturating, 5, args=(weight, 0.8))
        for name in ("values", "table", "empty", "full"):
            close(getattr(result, name)[i], getattr(one, name))
    single = exact_shapley(saturating_game, 5, args=(0.8,), games=many[:1])
    close(single.values, result.values[:1])


def test_games_fill_the_last_chunk():
    """Rows of all games are one axis: 3 games of 8 rows are 3 chunks of 8, not 3 of 16."""
    from pose_jax.explain.shapley import sweep

    assert sweep.fixed_layout(3, 8, 1, 16).steps == 2
    assert sweep.fixed_layout(3, 8, 2, 4).steps == 3
    fitted = sweep.fitted_layout(100, 8, 1, 64)
    assert fitted.chunk % 8 == 0 and fitted.chunk <= 64
    assert 800 <= fitted.share < 800 + fitted.chunk
    assert sweep.fitted_layout(1, 896, 4, 64)[2:] == (4, 4, 56)


def test_jit_vmap_and_grad():
    n, many = 6, np.stack([weights(6, seed) for seed in range(3)])

    def run(weight):
        return exact_shapley(saturating, n, args=(weight, 1.0), chunk_size=16)

    eager = [run(w) for w in many]
    close(jax.jit(run)(many[0]), eager[0])
    mapped = jax.vmap(run)(many)
    both = jax.jit(jax.vmap(run))(many)
    for i, one in enumerate(eager):
        close(jax.tree.map(lambda x, i=i: x[i], mapped), one)
        close(jax.tree.map(lambda x, i=i: x[i], both), one)
    assert (mapped.kind, mapped.evaluations, mapped.num_players) == ("exact", 64, 6)
    slope = jax.grad(lambda w: run(w).values[0, 1])(many[0])
    shift = 1e-2 * np.eye(n, dtype=np.float32)[2]
    ends = [run(many[0] + s).values[0, 1] for s in (shift, -shift)]
    np.testing.assert_allclose(slope[2], (ends[0] - ends[1]) / 2e-2, rtol=0.02)


def test_a_function_may_close_over_tracers():
    @jax.jit
    def run(weight):
        return exact_shapley(lambda c: saturating(c, weight, 1.0), 4).values

    expected = exact_shapley(saturating, 4, args=(weights(4), 1.0)).values
    close(run(weights(4)), expected)

    # vmap and grad without jit hand over tracers that only the closure sees.
    def closed(weight):
        return exact_shapley(lambda c: saturating(c, weight, 1.0), 4).values

    close(jax.vmap(closed)(weights(4)[None])[0], expected)
    slope = jax.grad(lambda w: closed(w)[0, 1])(weights(4))
    assert np.isfinite(slope).all() and abs(slope).max() > 1e-3


def test_one_trace():
    """New data, and new games of the same number, replay the first program."""
    traces = []

    def value(coalition, image, game):
        traces.append(1)
        return jnp.sum(coalition * image) * game

    for seed in range(3):
        games = jnp.arange(4.0) + seed
        exact_shapley(value, 6, args=(weights(6, seed),), games=games, chunk_size=16)
    assert len(traces) == 1
    plan = exact.AllCoalitions(6, 64)
    program = evaluate._program(plan, value, evaluate.Options(chunk_size=16))
    assert program._cache_size() == 1


def test_half_precision_functions_have_float32_sums():
    whole = exact_shapley(saturating, 8, args=(weights(8), 1.0))
    half = exact_shapley(
        lambda *a: saturating(*a).astype(jnp.bfloat16), 8, args=(weights(8), 1.0)
    )
    assert half.table.dtype == jnp.bfloat16 and half.values.dtype == jnp.float32
    close(half.values, whole.values, 2e-2)
    # The sums themselves are exact: rounding the values is all that happened.
    rounded = np.asarray(half.table, np.float64)
    close(half.values, solve(rounded.astype(np.float32), 8).values, 1e-6)


SHARDED = """
import json, sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
sys.path.insert(0, TESTS)
from test_shapley import saturating, weights
from test_shapley_groups import CLUSTERS, heads
from pose_jax.explain import exact_shapley, group_shapley

out = {}
for count in (1, 2, 4):
    mesh = jax.make_mesh((count,), ("data",), devices=jax.devices()[:count])
    sharding = NamedSharding(mesh, P("data"))
    for name, options in (("chunks", dict(chunk_size=16)), ("odd", dict(chunk_size=13)),
                          ("stream", dict(keep_table=False)))[count == 1:]:
        result = exact_shapley(saturating, 8, args=(weights(8), 1.3), sharding=sharding, **options)
        table = None if result.table is None else np.asarray(result.table).tolist()
        out[f"{name}-{count}"] = [np.asarray(result.values).tolist(), table]
    games = np.stack([weights(17, s) for s in range(3)])
    grouped = group_shapley(heads, CLUSTERS, games=games, sharding=sharding, chunk_size=50)
    out[f"group-{count}"] = [np.asarray(grouped.member_values).tolist(),
                             np.asarray(grouped.table[2]).tolist()]

def run(weight):
    return exact_shapley(saturating, 8, args=(weight, 1.3), sharding=sharding, chunk_size=16)

compiled = jax.jit(run).lower(weights(8)).compile()
result = compiled(weights(8))
shards = [s.data.shape for s in result.table.addressable_shards]
bad = ""
try:
    exact_shapley(lambda c: 1.0 / (c.sum() - 3.0), 6, sharding=sharding, chunk_size=4)
except ValueError as error:
    bad = str(error)
def uneven(weight):
    return exact_shapley(saturating, 8, args=(weight, 1.3), sharding=sharding, chunk_size=13)

out["odd-jit"] = [np.asarray(x).tolist() for x in (lambda r: (r.values, r.table))(
    jax.jit(uneven)(weights(8)))]
# Weights that lie on the mesh, a mesh of two axes, coalitions over both.
from pose_jax.sharding import MeshConfig, make_mesh
mesh = make_mesh(MeshConfig(data=2, model=2))
placed = jax.device_put(weights(8), NamedSharding(mesh, P()))
for axes in ("data", ("data", "model")):
    result = exact_shapley(saturating, 8, args=(placed, 1.3), chunk_size=16,
                           sharding=NamedSharding(mesh, P(axes)))
    out[f"placed-{axes}"] = [np.asarray(x).tolist() for x in (result.values, result.table)]

print(json.dumps(dict(values=out, text=compiled.as_text(), shards=shards, bad=bad)))
"""


def test_devices_change_nothing(environment):
    """1, 2 and 4 devices, chunks that fit and that do not, many games, no gathering."""
    import os

    done = subprocess.run(
        [sys.executable, "-c", SHARDED.replace("TESTS", repr(os.path.dirname(__file__)))],
        env={**environment, "JAX_NUM_CPU_DEVICES": "4"},
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    whole = exact_shapley(saturating, 8, args=(weights(8), 1.3))
    from test_shapley_groups import CLUSTERS, heads

    games = np.stack([weights(17, s) for s in range(3)])
    from pose_jax.explain import group_shapley

    grouped = group_shapley(heads, CLUSTERS, games=games)
    for name, (values, table) in found["values"].items():
        group = name.startswith("group")
        close(np.array(values), grouped.member_values if group else whole.values, 5e-6)
        assert (table is None) == name.startswith("stream")
        if table is not None:
            close(np.array(table), grouped.table[2] if group else whole.table, 5e-6)
    text = found["text"]
    assert "all-reduce" in text and "while" in text
    assert not re.search(r"all-gather|all-to-all|collective-permute", text)
    assert found["shards"] == [[64, 2]] * 4
    assert "coalition [0, 1, 2] (row 7)" in found["bad"]


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_programs_lower_for_accelerators(platform):
    def run(weight):
        return exact_shapley(saturating, 8, args=(weight, 1.0), chunk_size=32)

    exported = jax.export.export(jax.jit(run), platforms=[platform])(weights(8))
    assert exported.platforms == (platform,)
    assert exported.out_avals[0].shape == (8, 2)


def test_semivalues(x64):
    n = 5
    table = reference.random_table(n, 2)
    shap = semivalue(table, n, np.full(n, 1 / n))
    close(shap, reference.shapley(table, n), 1e-12)
    sizes = np.array([1, 4, 6, 4, 1]) / 16
    banzhaf = [
        reference.interaction(table, n, (i,), lambda t: 1 / 16) for i in range(n)
    ]
    close(semivalue(table, n, sizes), np.array(banzhaf), 1e-12)
    last, first = np.eye(n)[-1], np.eye(n)[0]
    without = [31 - (1 << i) for i in range(n)]
    close(semivalue(table, n, last), table[-1] - table[without], 1e-12)
    close(semivalue(table, n, first), table[1 << np.arange(n)] - table[0], 1e-12)


@pytest.mark.parametrize("kind", ["exact", "gsv", "owen", "decoupled"])
def test_accumulator_resumes(kind):
    """Rows in any order, in pieces, over two games, through a saved state."""
    n, clusters = 6, [[0, 3, 5], [1, 2], [4]]
    tables = [reference.random_table(n, n, seed=s).astype(np.float32) for s in (4, 5)]
    mean = (tables[0] + tables[1]) / 2
    if kind == "exact":
        state, rows = shapley.start(n), shapley.all_coalitions(n)
        whole = solve(mean, n)
    else:
        state = shapley.start(n, clusters=clusters, kind=kind)
        rows = shapley.grouped_coalitions(
            tuple(map(tuple, clusters)), "decoupled" if kind == "decoupled" else "gsv"
        )
        whole = shapley.group_shapley(lookup, clusters, kind=kind, args=(mean,))
    order = np.random.default_rng(0).permutation(len(rows))
    for table in tables:
        for part in np.array_split(order, 3):
            masks = rows[part]
            state = shapley.add(state, masks, table[masks @ (1 << np.arange(n))])
            leaves, structure = jax.tree.flatten(state)
            state = structure.unflatten([np.array(x) for x in leaves])  # Saved, loaded.
    found = shapley.finish(state)
    fields = ("values", "member_values", "cluster_values", "quotient_values",
              "player_values", "baseline", "empty", "full", "residual")  # fmt: skip
    for name in (f for f in fields if hasattr(whole, f)):
        close(getattr(found, name), getattr(whole, name), 1e-5)
    assert (found.kind, found.evaluations) == (whole.kind, len(rows))
    with pytest.raises(ValueError, match="are needed"):
        shapley.finish(shapley.add(state, rows[:3], np.zeros((3, n), np.float32)))
    with pytest.raises(ValueError, match="not finite"):
        shapley.add(state, rows[:1], np.full((1, n), np.nan, np.float32))


def test_accumulator_refuses_rows_of_other_games():
    state = shapley.start(4, clusters=[[0, 1], [2, 3]], kind="decoupled")
    values = np.zeros((1, 4), np.float32)
    for bad in ([1, 0, 1, 0], [1, 0, 0, 0]):
        with pytest.raises(ValueError, match="does not use coalition"):
            shapley.add(state, np.array([bad], bool), values)


def test_values_that_are_not_finite():
    def value(coalition, weight):
        return jnp.where(coalition.sum() == 3, weight, 1.0) * jnp.ones(2)

    with pytest.raises(ValueError, match=r"not finite for coalition \[0, 1, 2\]"):
        exact_shapley(value, 6, args=(np.inf,), chunk_size=4)
    with pytest.raises(ValueError, match=r"coalition \[0, 1, 2\] \(row 7 of game 2\)"):
        exact_shapley(value, 6, games=np.array([1.0, 2.0, np.nan]))
    traced = jax.jit(lambda w: exact_shapley(value, 6, args=(w,)).values)
    assert np.isnan(traced(np.nan)).all() and np.isfinite(traced(2.0)).all()


def test_too_many_coalitions_are_refused_at_once():
    with pytest.raises(ValueError, match=r"33,554,432 coalitions.*0\.12 GiB.*sampled"):
        exact_shapley(saturating, 25, args=(weights(25), 1.0))


def test_closures_made_anew_are_told():
    def make(scale):
        return lambda coalition: scale * coalition.sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for scale in range(4):
            exact_shapley(make(scale), 3)
    with pytest.warns(UserWarning, match="fifth time.*args="):
        exact_shapley(make(4), 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for scale in range(9):  # The same function, new data, other options.
            exact_shapley(saturating, 3, args=(weights(3), float(scale)))

    class Model:
        def value(self, coalition):
            return coalition.sum()

    model = Model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(6):
            exact_shapley(model.value, 3)


@pytest.mark.parametrize(
    "call,error,message",
    [
        (lambda: exact_shapley(saturating, 0), ValueError, "one player at least"),
        (lambda: exact_shapley(saturating, 3, chunk_size=0), ValueError, "chunk_size=0"),
        (lambda: exact_shapley(lambda c: {}, 3), ValueError, "no array"),
        (lambda: exact_shapley(lookup, 3, games=(np.zeros(2), np.zeros(3))),
         ValueError, "same number of games"),
        (lambda: semivalue(np.zeros(7), 3, np.ones(3) / 3), ValueError, "8 rows"),
        (lambda: semivalue(np.zeros(8), 3, np.ones(3)), ValueError, "sum 1"),
    ],
)  # fmt: skip
def test_mistakes_are_explained(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_unhashable_function_is_explained():
    class Model:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, coalition):
            return coalition.sum()

    with pytest.raises(TypeError, match="hashable"):
        exact_shapley(Model(), 3)
