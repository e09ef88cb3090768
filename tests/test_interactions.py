"""Interaction indices against their definitions."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shapley_reference as reference
from test_shapley import close, lookup

from pose_jax.explain import exact_shapley, interactions

INDICES = ("SII", "k-SII", "STII", "FSII", "FBII", "BII", "Moebius")
N = 5


@pytest.fixture(scope="module")
def table():
    return reference.random_table(N)


def each(found, order):
    """(players, value) of every combination."""
    for size in range(1, order + 1):
        for players in itertools.combinations(range(N), size):
            yield players, found[size][players]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_derivative_indices(table, order):
    """SII, BII, STII's top order: weighted discrete derivatives; Moebius: dividends."""
    sii, bii, stii, moebius = (
        interactions(table, N, index=i, order=order)
        for i in ("SII", "BII", "STII", "Moebius")
    )
    dividends = reference.dividends(table, N)
    for players, value in each(sii, order):
        size = len(players)
        weight = reference.sii_weight(N, size)
        close(value, reference.interaction(table, N, players, weight), 1e-10)
    for players, value in each(bii, order):
        half = 0.5 ** (N - len(players))
        expected = reference.interaction(table, N, players, lambda t, h=half: h)
        close(value, expected, 1e-10)
    for players, value in each(moebius, order):
        close(value, dividends[reference.row(players)], 1e-10)
    for players, value in each(stii, order):
        if len(players) == order:
            expected = order / N * reference.interaction(
                table, N, players, lambda t: 1 / math.comb(N - 1, t)
            )  # fmt: skip
        else:
            expected = reference.derivative(table, N, players, 0)
        close(value, expected, 1e-10)


def test_order_one_is_the_value(table):
    shapley = reference.shapley(table, N)
    banzhaf = [
        reference.interaction(table, N, (i,), lambda t: 1 / 16) for i in range(N)
    ]
    for index in ("SII", "k-SII", "STII", "FSII"):
        close(interactions(table, N, index=index, order=1)[1], shapley, 1e-10)
    for index in ("BII", "FBII"):
        close(interactions(table, N, index=index, order=1)[1], np.array(banzhaf), 1e-10)
    close(interactions(table, N)[1], shapley, 1e-10)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("index", ["FSII", "FBII"])
def test_faithful_indices_are_regressions(table, index, order):
    """Least squares over all coalitions, FSII exact at both ends (Tsai et al. 2023)."""
    size = np.array([r.bit_count() for r in range(2**N)])
    weights, equal = np.ones(2**N), []
    if index == "FSII":
        inner = (size > 0) & (size < N)
        comb = np.array([math.comb(N, s) for s in size])
        weights = np.where(
            inner, (N - 1) / (comb * np.maximum(size * (N - size), 1)), 0
        )
        equal = [0, 2**N - 1]
    expected = reference.faithful(table, N, order, weights, equal)
    for players, value in each(interactions(table, N, index=index, order=order), order):
        close(value, expected[players], 1e-8)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("index", ["k-SII", "STII", "FSII"])
def test_efficient_indices_add_up(table, index, order):
    found = interactions(table, N, index=index, order=order)
    total = sum(value for _, value in each(found, order))
    close(total, table[-1] - table[0], 1e-10)


def test_ksii_by_its_recursion(table):
    """phi_k(S) = phi_(k-1)(S) + B_(k-s) sum over R of SII(S + R), |S + R| = k."""
    sii = interactions(table, N, index="SII", order=4)
    bernoulli = [1, -1 / 2, 1 / 6, 0]
    expected = {players: sii[1][players] for players in ((i,) for i in range(N))}
    for k in range(2, 5):
        for players in expected:
            others = [p for p in range(N) if p not in players]
            extra = itertools.combinations(others, k - len(players))
            expected[players] = expected[players] + bernoulli[k - len(players)] * sum(
                sii[k][tuple(sorted(players + e))] for e in extra
            )
        for players in itertools.combinations(range(N), k):
            expected[players] = sii[k][players]
        found = interactions(table, N, index="k-SII", order=k)
        for players, value in each(found, k):
            close(value, expected[players], 1e-10)


@pytest.mark.parametrize("index", INDICES)
def test_unanimity_pairs_and_null_players(index):
    """u_{1,3}: the pair has it all; whoever else is named gives 0."""
    found = interactions(reference.unanimity(N, (1, 3)), N, index=index, order=3)
    pairs = np.zeros((N, N))
    pairs[1, 3] = pairs[3, 1] = 1
    close(found[2], pairs, 1e-12)
    close(found[3], np.zeros((N,) * 3), 1e-12)
    assert not found[1][[0, 2, 4]].any()


@pytest.mark.parametrize("index", INDICES)
def test_arrays_are_symmetric_with_empty_diagonals(table, index):
    found = interactions(table, N, index=index, order=3)
    close(found[2], found[2].T, 0)
    for axes in itertools.permutations(range(3)):
        close(found[3], found[3].transpose(axes), 0)
    i = np.arange(N)
    assert not found[2][i, i].any() and not found[3][i, i].any()
    assert abs(found[2]).max() > 0.01


def test_trees_outputs_jit_and_vmap():
    tables = {"a": reference.random_table(6, 3).astype(np.float32)}
    host = interactions(tables, 6, index="FSII", order=3)
    assert isinstance(host[2]["a"], np.ndarray) and host[2]["a"].shape == (6, 6, 3)
    close(host[2]["a"][..., 1],
          interactions(tables["a"][:, 1], 6, index="FSII", order=3)[2], 1e-10)  # fmt: skip
    device = interactions(jax.tree.map(jnp.asarray, tables), 6, index="FSII", order=3)
    assert isinstance(device[2]["a"], jax.Array)
    assert device[2]["a"].dtype == jnp.float32

    def run(t):
        return interactions(t, 6, index="FSII", order=3)

    close(jax.jit(run)(tables), host, 2e-4)
    columns = jnp.moveaxis(jnp.asarray(tables["a"]), 1, 0)
    mapped = jax.vmap(run)(columns)
    close(mapped[3], np.moveaxis(host[3]["a"], -1, 0), 2e-4)


@pytest.mark.parametrize(
    "options,message",
    [
        (dict(index="SHAP"), "none of SII, k-SII"),
        (dict(order=0), r"order=0 is outside 1\.\.3"),
        (dict(order=4), r"order=4 is outside 1\.\.3"),
    ],
)
def test_mistakes_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        interactions(np.zeros(8), 3, **options)
    with pytest.raises(ValueError, match="keep_table=True"):
        interactions(None, 3)


def test_equal_to_shapiq():
    """The anchor library on the same random game (not installed by default)."""
    shapiq = pytest.importorskip("shapiq")
    n = 6
    table = reference.random_table(n)
    computer = shapiq.ExactComputer(
        lambda rows: table[rows.astype(int) @ (1 << np.arange(n))], n_players=n
    )
    values = exact_shapley(lookup, n, args=(table.astype(np.float32),)).values
    theirs = computer("SV")
    close(values, np.array([theirs[(i,)] for i in range(n)]), 1e-5)
    for index in ("SII", "k-SII", "STII", "FSII", "FBII", "BII"):
        theirs = computer(index, order=2)
        ours = interactions(table, n, index=index, order=2)
        for size in (1, 2):
            for players in itertools.combinations(range(n), size):
                close(ours[size][players], theirs[players], 1e-6)
