"""Faithfulness: curves against slow loops, known networks with known outcomes."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from pose_jax.explain import faithfulness, shapley

H, W, K = 8, 6, 3


@pytest.fixture(scope="module")
def case():
    """A linear network: the score of joint k is the sum of picture times weights."""
    keys = jax.random.split(jax.random.key(0), 3)
    weights = jnp.abs(jax.random.normal(keys[0], (K, H, W, 3)))
    image = jnp.abs(jax.random.normal(keys[1], (H, W, 3)))
    fill = jnp.zeros((H, W, 3))

    def apply(variables, images, edits=None):
        return SimpleNamespace(value=jnp.einsum("khwc,bhwc->bk", variables, images))

    def readings(outputs):
        return jnp.stack([outputs.value[0], 2 * outputs.value[0]])

    def score(outputs):
        return outputs.value[0]

    maps = jnp.einsum("khwc,hwc->khw", weights, image)
    return SimpleNamespace(**locals())


def test_curves_of_a_linear_network_are_partial_sums(case):
    c = case
    for order in faithfulness.ORDERS:
        found = faithfulness.removal_curves(
            c.apply, c.weights, c.image, c.fill, c.maps, c.readings,
            order=order, steps=H * W, chunk=7,
        )  # fmt: skip
        assert found.shape == (K, 2, H * W + 1)
        for k in range(K):
            worth = np.sort(np.asarray(c.maps[k]).ravel())
            worth = worth[::-1] if order == "most" else worth
            expected = np.append(worth.sum(), worth.sum() - np.cumsum(worth))
            np.testing.assert_allclose(found[k, 0], expected, atol=1e-3)
            np.testing.assert_allclose(found[k, 1], 2 * expected, atol=2e-3)


def test_the_true_order_beats_random_and_its_reverse(case):
    c = case

    def gain(maps):
        curves = [
            np.asarray(
                faithfulness.removal_curves(
                    c.apply,
                    c.weights,
                    c.image,
                    c.fill,
                    maps,
                    c.readings,
                    order=order,
                    steps=12,
                )  # fmt: skip
            )[:, 0]
            for order in faithfulness.ORDERS
        ]
        return faithfulness.symmetric_gain(*curves)

    noise = jax.random.uniform(jax.random.key(5), c.maps.shape)
    true, random, worst = gain(c.maps), gain(noise), gain(-c.maps)
    assert (true > random + 1).all() and (random > worst + 1).all()
    np.testing.assert_allclose(true, -worst, rtol=1e-4)


def test_spared_pixels_stay(case):
    c = case
    spared = jnp.zeros((K, H, W), bool).at[:, 2:5, 1:4].set(True)
    found = faithfulness.removal_curves(
        c.apply, c.weights, c.image, c.fill, c.maps, c.readings, steps=4, spared=spared
    )
    left = np.asarray(jnp.where(spared, c.maps, 0).sum((1, 2)))
    np.testing.assert_allclose(found[:, 0, -1], left, rtol=1e-4)
    np.testing.assert_allclose(found[:, 0, 0], c.maps.sum((1, 2)), rtol=1e-4)


def test_areas():
    assert faithfulness.area_under(np.ones((2, 5))).tolist() == [1, 1]
    np.testing.assert_allclose(faithfulness.area_under(np.linspace(1, 0, 11)), 0.5)


def test_sufficiency_is_the_share_from_which_all_larger_ones_do():
    hits = np.array(
        [[1, 1, 1, 0, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    )
    found = faithfulness.sufficiency_area(hits)
    np.testing.assert_allclose(found, [0.5, 0.0, np.nan, 1.0])


def test_group_curves_walk_through_the_games_own_table(generator):
    clusters = ((0, 1), (2, 3), (4,))
    coalitions = shapley.grouped_coalitions(clusters, "gsv")
    worth = generator.random(5)
    table = coalitions @ worth
    # The target lies in the first cluster: its members, then the others whole.
    players = [[0], [1], [2, 3], [4]]
    values = np.array([worth[0], worth[1], worth[2] + worth[3], worth[4]])
    most, least = faithfulness.group_curves(table, coalitions, players, values)
    ranked = np.sort(values)[::-1]
    np.testing.assert_allclose(most, worth.sum() - np.append(0, np.cumsum(ranked)))
    np.testing.assert_allclose(
        least, worth.sum() - np.append(0, np.cumsum(ranked[::-1]))
    )
    assert faithfulness.symmetric_gain(most, least) > 0
    with pytest.raises(ValueError, match="lacks a coalition"):
        faithfulness.group_curves(
            table[:-3],
            coalitions[:-3],
            [[0, 2], [1], [3, 4]],
            np.array([3.0, 2.0, 1.0]),
        )


def test_infidelity_is_zero_for_the_truth_and_one_for_noise(case):
    c = case

    def ask(maps):
        return faithfulness.infidelity(
            c.apply, c.weights, c.image, c.fill, maps, c.score,
            key=jax.random.key(1), samples=64, sides=(0.2, 0.5),
        )  # fmt: skip

    np.testing.assert_allclose(ask(c.maps), 0, atol=1e-5)
    np.testing.assert_allclose(ask(-7 * c.maps), 0, atol=1e-5)  # Scale is free.
    board = jnp.where((jnp.arange(H)[:, None] + jnp.arange(W)) % 2, 1.0, -1.0)
    nothing = jnp.broadcast_to(board, c.maps.shape)  # Adds up to nothing in a square.
    assert (np.asarray(ask(nothing)) > 0.8).all()
    assert np.isnan(np.asarray(ask(jnp.zeros_like(c.maps)))).all()
    still = faithfulness.infidelity(
        c.apply, 0 * c.weights, c.image, c.fill, c.maps, c.score, key=jax.random.key(1)
    )
    assert np.isnan(np.asarray(still)).all()


def test_sensitivity_of_a_linear_explainer_is_bounded_by_its_noise(case):
    c = case

    def explain(image):
        return jnp.einsum("khwc,hwc->khw", c.weights, image)

    found = faithfulness.max_sensitivity(
        explain, c.image, key=jax.random.key(3), radius=0.02, samples=5
    )
    assert ((found > 0) & (found < 0.1)).all()
    double = faithfulness.max_sensitivity(
        explain, c.image, key=jax.random.key(3), radius=0.04, samples=5
    )
    np.testing.assert_allclose(double, 2 * found, rtol=1e-3)
    constant = faithfulness.max_sensitivity(
        lambda x: c.weights[..., 0], c.image, key=jax.random.key(3)
    )
    np.testing.assert_array_equal(constant, 0)
    nothing = faithfulness.max_sensitivity(
        lambda x: jnp.zeros((K, H, W)), c.image, key=jax.random.key(3)
    )
    assert np.isnan(np.asarray(nothing)).all()


def test_similarity_of_maps(generator):
    one = generator.normal(size=(3, H, W))
    other = one.copy()
    other[1] = -one[1]
    other[2] = 1.0
    found = faithfulness.map_similarity(one, other)
    np.testing.assert_allclose(found["signed"][:2], [1, -1])
    np.testing.assert_allclose(found["absolute"][:2], [1, 1])
    assert np.isnan(found["signed"][2])


def test_agreement_of_fills(generator):
    values = generator.normal(size=(3, 6, 2))
    values[1] = values[0] ** 3
    values[2, :, 1] = 4.0
    found = faithfulness.agreement_of_fills(values)
    np.testing.assert_allclose(found[0, 1], 1)
    expected = stats.kendalltau(values[0, :, 0], values[2, :, 0])
    assert found[0, 2, 0] == pytest.approx(expected.statistic)
    assert np.isnan(found[0, 2, 1])


def test_points_and_energy():
    owners = np.zeros((2, 3), int)
    owners[0, 1], owners[1, 2] = 1, 2
    maps = np.zeros((4, 2, 3))
    maps[0, 0, 1], maps[0, 1, 2], maps[0, 0, 0] = 3, 1, -5
    maps[1] = 2  # Ties everywhere: it points nowhere.
    maps[2] = -1
    maps[3, 0, 0] = np.nan
    place, share = faithfulness.point_and_energy(maps, owners, 3)
    assert place.tolist() == [1, -1, -1, -1]
    np.testing.assert_allclose(share[:, 0], [0, 0.75, 0.25])
    assert np.isnan(share[:, 2:]).all()


def test_faulty_questions(case):
    c = case
    for options, message in (
        (dict(order="best"), "unknown"),
        (dict(steps=0), "least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            faithfulness.removal_curves(
                c.apply, c.weights, c.image, c.fill, c.maps, c.readings, **options
            )
