"""Listed rows: distinct coalitions once, equal to the sweep over all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pose_jax.explain import shapley

CLUSTERS = ((0, 1, 2), (3, 4), (5,))
ROWS = shapley.grouped_coalitions(CLUSTERS, "gsv")
NULL = np.zeros((3, 6), bool)
NULL[0, [1, 5]] = True
NULL[2] = True


def worth(coalition, scale, game):
    """A game in which null players change nothing: their weight is zero."""
    seen = jnp.where(coalition, game["weight"], 0.0)
    return (
        scale
        * jnp.outer(jnp.tanh(seen.sum()) + seen[0] * seen[3], jnp.arange(1.0, 7))[0]
    )


@pytest.fixture
def games(generator):
    weight = generator.normal(size=(3, 6)).astype(np.float32)
    return {"weight": np.where(NULL, 0, weight)}


def test_equal_to_the_sweep_with_fewer_rows(games):
    table, taken = shapley.coalition_table(
        worth, ROWS, args=(2.0,), games=games, null_players=NULL, chunk_size=7
    )
    full = shapley.group_shapley(
        worth, CLUSTERS, args=(2.0,), games=games, target_cluster=[0, 0, 0, 1, 1, 2]
    )
    np.testing.assert_allclose(table, full.table, rtol=1e-6)
    assert taken[1] == len(ROWS) and taken[2] == 1
    effective = {tuple(r | NULL[0]) for r in ROWS}
    assert taken[0] == len(effective) < len(ROWS)


def test_without_null_players_every_row_is_evaluated_once(games):
    seen = []

    def counted(coalition, game):
        jax.debug.callback(lambda c: seen.append(tuple(c.tolist())), coalition)
        return game["weight"] @ coalition

    shapley.coalition_table(
        counted, ROWS, games={"weight": games["weight"][:1]}, chunk_size=len(ROWS)
    )
    jax.effects_barrier()
    assert sorted(seen) == sorted(tuple(r) for r in ROWS.tolist())


def test_fewer_games_share_the_program(games):
    traces = []

    def traced(coalition, game):
        traces.append(1)
        return game["weight"] @ coalition

    room = dict(room=3, chunk_size=8)
    whole, _ = shapley.coalition_table(traced, ROWS, games=games, **room)
    before = len(traces)
    part = {"weight": games["weight"][:2]}
    found, taken = shapley.coalition_table(
        traced, ROWS, games=part, null_players=NULL[:2], **room
    )
    assert len(traces) == before
    np.testing.assert_allclose(found, whole[:2], rtol=1e-6)
    assert len(taken) == 2


def test_values_that_are_not_finite_are_named(games):
    def bad(coalition, game):
        lost = (
            coalition[1] & ~coalition[0] & (game["weight"][0] == games["weight"][1, 0])
        )
        return jnp.where(lost, jnp.nan, 1.0)

    with pytest.raises(ValueError, match=r"coalition \[1.*of game 1"):
        shapley.coalition_table(bad, ROWS, games=games)


def test_rows_of_any_input(games):
    def value(box, scale, game):
        return scale * box["x"] + game["weight"][0]

    game = np.array([2, 0, 0, 1, 2])
    inputs = {"x": np.arange(5, dtype=np.float32)}
    for chunk in (1, 2, 5, None):
        found = shapley.evaluate_rows(
            value, inputs, game, args=(jnp.float32(3),), games=games, chunk_size=chunk,
            longest=11,
        )  # fmt: skip
        expected = 3 * inputs["x"] + games["weight"][game, 0]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
