"""Influence, clusters and the error of grouping: by hand, planted, and from known games."""

import numpy as np
import pytest
import shapley_reference as reference
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from pose_jax import skeletons
from pose_jax.explain import interdependence, shapley
from pose_jax.explain.interdependence import (
    adjusted_rand,
    affinity,
    find_clusters,
    grouping_error,
    influence,
    influence_matrix,
    spectral_clusters,
)
from pose_jax.explain.shapley.orders import Orders

LSP = skeletons.get("lsp")
BLOCKS = LSP.cluster_indices()


def test_influence_by_hand():
    clean = np.array([[1.0, 0.5], [0.8, 0.6]])
    masked = np.zeros((2, 2, 2, 2))
    masked[0, 0] = [[0.2, 0.5], [0.4, 0.3]]  # Person 0, joint 0 hidden: two masks.
    masked[0, 1] = [[1.0, 0.1], [1.0, 0.3]]
    masked[1, 0] = [[0.8, 0.0], [0.0, 0.0]]
    masked[1, 1] = np.nan
    valid = np.array([[True, True], [True, False]])
    target_valid = np.array([[True, True], [False, True]])
    found = influence(clean, masked, valid, target_valid)
    nan = np.nan
    expected = [[[0.7, 0.0], [0.1, 0.3]], [[nan, nan], [0.6, nan]]]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    with pytest.raises(
        ValueError, match="person 1: the score of target 1 with joint 1"
    ):
        influence(clean, masked, np.ones((2, 2), bool), target_valid)


def test_matrix_of_persons_with_missing_joints():
    nan = np.nan
    per_person = np.array([
        [[0.4, 0.2], [0.1, 0.2]],
        [[0.6, nan], [nan, nan]],
        [[nan, nan], [nan, 0.4]],
    ])  # fmt: skip
    found = influence_matrix(per_person, ["a", "b", "c"])
    np.testing.assert_allclose(found.matrix, [[0.5, 0.2], [0.1, 0.3]])
    np.testing.assert_array_equal(found.counts, [[2, 1], [1, 2]])
    np.testing.assert_allclose(found.low, [[0.4, nan], [nan, 0.2]])
    np.testing.assert_allclose(found.high, [[0.6, nan], [nan, 0.4]])
    np.testing.assert_allclose(found.normalised, [[1, 0.4], [1 / 3, 1]])
    # Two persons of one picture are one unit: nothing is known about the spread.
    assert np.isnan(influence_matrix(per_person, ["a", "a", "a"]).low).all()
    harmless = influence_matrix(-per_person, ["a", "b", "c"])
    assert np.isnan(harmless.normalised).all()
    with pytest.raises(ValueError, match="targets must be the joints"):
        influence_matrix(np.ones((2, 3, 2)), [1, 2]).normalised  # noqa: B018


def test_a_planted_influence_matrix_is_found(generator):
    """Scores that lose a known amount for every patch, noise and missing labels."""
    persons, joints, masks = 200, 5, 4
    planted = generator.uniform(0, 0.5, (joints, joints))
    clean = generator.uniform(0.5, 1, (persons, joints))
    noise = generator.normal(size=(persons, joints, masks, joints)) * 0.1
    masked = clean[:, None, None] - planted.T[:, None] + noise
    valid = generator.uniform(size=(persons, joints)) < 0.8
    masked[~valid] = np.nan
    per_person = influence(clean, masked, valid, valid)
    assert per_person.shape == (persons, joints, joints)
    found = influence_matrix(per_person, range(persons))
    np.testing.assert_allclose(found.matrix, planted, atol=0.02)
    np.testing.assert_array_equal(
        found.counts, (valid[:, :, None] & valid[:, None]).sum(0)
    )
    inside = (found.low < planted) & (planted < found.high)
    assert inside.mean() > 0.8 and (found.high - found.low).max() < 0.04


def test_affinity_by_hand():
    """Symmetric part, cut at 0, then the mean with the mirrored pair (0-1, 2 on the axis)."""
    nan = np.nan
    matrix = np.array([[9, 0.2, 0.6], [0.4, 9, -0.5], [0.2, 0.1, 9]])
    found = affinity(matrix, np.array([1, 0, 2]))
    # 0-2 is 0.4, its image 1-2 is -0.2: cut first, then averaged.
    np.testing.assert_allclose(found, [[0, 0.3, 0.2], [0.3, 0, 0.2], [0.2, 0.2, 0]])
    unseen = matrix.copy()
    unseen[0, 2] = unseen[2, 0] = nan
    np.testing.assert_allclose(affinity(unseen, np.array([1, 0, 2]))[0], [0, 0.3, 0])
    unseen[1, 2] = nan
    with pytest.raises(ValueError, match="joints 0 and 2 were never valid together"):
        affinity(unseen, np.array([1, 0, 2]))
    for bad in ([1, 2, 0], [0, 0, 2], [0, 1, 3]):
        with pytest.raises(ValueError, match="must pair up the joints"):
            affinity(matrix, np.array(bad))


def test_affinity_is_its_own_mirror_image(generator):
    k = LSP.num_keypoints
    found = affinity(generator.normal(size=(k, k)), LSP.mirrored)
    np.testing.assert_allclose(found[np.ix_(LSP.mirrored, LSP.mirrored)], found)
    np.testing.assert_array_equal(found, found.T)
    assert (found >= 0).all() and not found.diagonal().any()


def blocks(clusters, generator, inside=1.0, outside=0.2, noise=0.1):
    k = sum(map(len, clusters))
    matrix = np.full((k, k), outside)
    for members in clusters:
        matrix[np.ix_(members, members)] = inside
    return matrix + generator.normal(size=(k, k)) * noise


@pytest.mark.parametrize(
    "skeleton,noise", [("lsp", 0.0), ("lsp", 0.2), ("coco", 0.2), ("mpii", 0.2)]
)
def test_planted_blocks_are_recovered(skeleton, noise, generator):
    found = skeletons.get(skeleton)
    planted = tuple(sorted(tuple(sorted(c)) for c in found.cluster_indices()))
    weights = affinity(blocks(planted, generator, noise=noise), found.mirrored)
    clustering = find_clusters(weights)
    assert clustering.clusters == planted
    assert spectral_clusters(weights, len(planted)) == planted
    again = find_clusters(weights.copy())
    np.testing.assert_array_equal(again.linkage, clustering.linkage)
    assert again.clusters == clustering.clusters
    # Mirrored joints lie in mirrored clusters.
    mirrored = {tuple(sorted(found.mirrored[list(c)].tolist())) for c in planted}
    assert mirrored == set(clustering.clusters)
    # The cut lies in the gap, and SciPy cuts the same tree there into the same clusters.
    heights = clustering.heights
    below, above = heights[heights < clustering.cut], heights[heights > clustering.cut]
    np.testing.assert_allclose(above.min() - below.max(), clustering.gap)
    labels = hierarchy.fcluster(clustering.linkage, clustering.cut, "distance")
    assert {tuple(np.flatnonzero(labels == x)) for x in labels} == set(planted)


def test_clusters_by_hand():
    """Chain of distances: pairs 0-1 (0), 2-3 (.25), 4-5 (.5), everything else 1."""
    weights = np.zeros((6, 6))
    for (i, j), w in {(0, 1): 1.0, (2, 3): 0.75, (4, 5): 0.5}.items():
        weights[i, j] = weights[j, i] = w
    found = find_clusters(weights)
    assert found.clusters == ((0, 1), (2, 3), (4, 5))
    np.testing.assert_allclose(found.heights, [0, 0.25, 0.5, 1, 1])
    np.testing.assert_allclose((found.cut, found.gap), (0.75, 0.5))
    # The caps forbid it: gaps .25 at four and at five clusters are equal, more is taken.
    found = find_clusters(weights, min_clusters=4)
    assert found.clusters == ((0, 1), (2,), (3,), (4,), (5,))
    np.testing.assert_allclose((found.cut, found.gap), (0.125, 0.25))
    found = find_clusters(weights, min_clusters=4, max_clusters=4)
    assert found.clusters == ((0, 1), (2, 3), (4,), (5,))


def test_linkage_is_the_average():
    """Joint 2 is .4 from 1 and .8 from 0: .6 from their pair, nearer to 0 than to 1."""
    weights = np.zeros((4, 4))
    for (i, j), w in {(0, 1): 1.0, (1, 2): 0.6, (0, 2): 0.2}.items():
        weights[i, j] = weights[j, i] = w
    found = find_clusters(weights, min_clusters=2)
    np.testing.assert_allclose(found.heights, [0, 0.6, 1])
    assert found.clusters == ((0, 1), (2,), (3,))


def test_caps_bound_the_clusters(generator):
    halves = blocks([range(4), range(4, 8), range(8, 14)], generator, noise=0.05)
    whole = blocks([range(8), range(8, 14)], generator, noise=0.0)
    weights = affinity(halves + 2 * whole, np.arange(14))
    free = find_clusters(weights, max_size=14, min_clusters=2)
    assert free.clusters == (tuple(range(8)), tuple(range(8, 14)))
    capped = (tuple(range(4)), tuple(range(4, 8)), tuple(range(8, 14)))
    for caps in (dict(min_clusters=2), dict(max_size=14)):  # Each of the two suffices.
        assert find_clusters(weights, **caps).clusters == capped
    one = find_clusters(weights, max_size=14, min_clusters=1, max_clusters=1)
    assert one.clusters == (tuple(range(14)),)
    with pytest.raises(ValueError, match=r"of at most 2 joints.*2 \(largest 8, gap"):
        find_clusters(weights, max_size=2)
    # Everything equal: any three clusters would be as good as any other.
    with pytest.raises(ValueError, match="no cut gives 3 to 6 clusters"):
        find_clusters(1.0 - np.eye(7))
    with pytest.raises(ValueError, match="nothing to cluster"):
        find_clusters(np.zeros((7, 7)))


@pytest.mark.parametrize("call", [find_clusters, lambda W: spectral_clusters(W, 2)])
@pytest.mark.parametrize(
    "matrix",
    [
        np.eye(4), -1 + np.eye(4), np.triu(np.ones((4, 4)), 1), np.zeros((1, 1)),
        np.where(np.eye(4) > 0, 0, np.nan),
    ],
)  # fmt: skip
def test_other_matrices_are_refused(call, matrix):
    with pytest.raises(ValueError, match="affinity"):
        call(matrix)


def test_spectral_clusters_see_what_distances_do_not():
    """Two rings of neighbours: no pair of one ring is close but for neighbours."""
    weights = np.zeros((12, 12))
    for start in (0, 6):
        for i in range(6):
            a, b = start + i, start + (i + 1) % 6
            weights[a, b] = weights[b, a] = 1
    rings = (tuple(range(6)), tuple(range(6, 12)))
    assert spectral_clusters(weights, 2) == rings
    assert spectral_clusters(weights, 1) == (tuple(range(12)),)
    assert spectral_clusters(weights, 12) == tuple((i,) for i in range(12))
    weights[0] = weights[:, 0] = 0  # A joint without any tie is a cluster of its own.
    assert spectral_clusters(weights, 3)[0] == (0,)
    with pytest.raises(ValueError, match=r"outside 1\.\.12"):
        spectral_clusters(weights, 13)


def test_a_loose_joint_does_not_take_a_spectral_cluster():
    """Cutting off a weak joint is cheap until cuts are measured by the ties they leave."""
    weights = np.full((11, 11), 0.1)
    weights[:5, :5] = weights[5:10, 5:10] = 1
    weights[10] = weights[:, 10] = 0
    weights[10, 7] = weights[7, 10] = 0.15
    np.fill_diagonal(weights, 0)
    assert spectral_clusters(weights, 2) == (tuple(range(5)), tuple(range(5, 11)))


def test_adjusted_rand(generator):
    a = [[0, 1, 2], [3, 4, 5]]
    assert adjusted_rand(a, [[5, 4, 3], [2, 1, 0]]) == 1
    # Hubert and Arabie's formula by hand: pairs 2, rows 6, columns 3, chance 6 * 3 / 15.
    np.testing.assert_allclose(
        adjusted_rand(a, [[0, 1], [2, 3], [4, 5]]), (2 - 1.2) / (4.5 - 1.2)
    )
    assert adjusted_rand([[0, 1, 2]], [[0, 1, 2]]) == 1
    assert adjusted_rand([[0, 1, 2]], [[0], [1], [2]]) == 0
    draws = []
    for _ in range(300):
        order = generator.permutation(12)
        other = [order[:4].tolist(), order[4:8].tolist(), order[8:].tolist()]
        draws.append(adjusted_rand([range(4), range(4, 8), range(8, 12)], other))
    assert abs(np.mean(draws)) < 0.02
    with pytest.raises(ValueError, match="of 3 and of 4 joints"):
        adjusted_rand([[0, 1, 2]], [[0, 1, 2, 3]])


PLAYERS = 6
CLUSTERINGS = {
    "pairs": [[0, 3, 5], [1, 2], [4]],
    "singletons": [[i] for i in range(PLAYERS)],
    "one": [range(PLAYERS)],
}
ALL = np.ones((2, PLAYERS), bool)


def tables(order):
    found = [
        reference.random_table(PLAYERS, PLAYERS, seed=s, order=order) for s in (0, 1)
    ]
    return np.stack(found).astype(np.float32)


def test_extreme_clusters_cost_nothing():
    found = grouping_error(tables(None), CLUSTERINGS, ALL, ~ALL)
    for name in ("singletons", "one"):
        assert found[name]["gsv"].evaluations == found[name]["owen"].evaluations == 64
        for kind in ("gsv", "owen"):
            assert found[name][kind].member_error.max() < 1e-5
            assert found[name][kind].sampled_player_error.max() == 0
        assert found[name]["owen"].player_error.max() < 1e-5
    assert found["one"]["decoupled"].member_error.max() < 1e-5
    assert found["pairs"]["gsv"].player_error is None


def test_pair_interactions_cost_nothing_and_triples_do():
    for order, least, most in ((2, 0, 1e-5), (3, 1e-3, 1)):
        found = grouping_error(tables(order), CLUSTERINGS, ALL, ~ALL)["pairs"]
        for kind in ("gsv", "owen"):
            error = found[kind].member_error
            # Target 4 is alone in its cluster; triples with two of one cluster count.
            assert least <= error.mean() <= most and error.shape == (2, PLAYERS)
        assert least <= found["owen"].player_error.mean() <= most
        assert found["decoupled"].member_error.mean() > 0.05
        assert [found[k].evaluations for k in ("gsv", "owen", "decoupled")] == [
            40,
            40,
            16,
        ]


def test_errors_by_slow_reference(x64):
    """One person, every entry from orders; a null joint and a target without label."""
    clusters = CLUSTERINGS["pairs"]
    rows = np.arange(64)
    table = reference.random_table(PLAYERS, PLAYERS)[
        rows & ~0b001000
    ]  # Joint 3 is null.
    null, valid = np.zeros((1, PLAYERS), bool), np.ones((1, PLAYERS), bool)
    null[0, 3] = True
    valid[0, [1, 3]] = False
    exact = reference.shapley(table, PLAYERS)
    owen = reference.over_orders(table, PLAYERS, reference.cluster_orders(clusters))
    given = np.where(valid, table, np.nan)[None]
    found = grouping_error(given, {"x": clusters}, valid, null, kinds=["owen"])["x"][
        "owen"
    ]
    joints, targets = [0, 1, 2, 4, 5], [0, 2, 4, 5]
    scale = abs(exact[np.ix_(joints, targets)]).mean()
    np.testing.assert_allclose(found.scale, scale)
    own = {0: [0, 5], 2: [1, 2], 4: [4], 5: [0, 5]}
    for target in range(PLAYERS):
        gap = abs(owen - exact)[:, target] / scale
        if target not in targets:
            assert np.isnan(found.member_error[0, target])
            assert np.isnan(found.player_error[0, target])
            continue
        np.testing.assert_allclose(
            found.member_error[0, target], gap[own[target]].mean()
        )
        np.testing.assert_allclose(found.player_error[0, target], gap[joints].mean())


def test_sampling_at_the_same_number_of_evaluations():
    """More rows, closer values; too few for two pairs of orders, none."""
    found = grouping_error(tables(None), CLUSTERINGS, ALL, ~ALL)["pairs"]
    np.testing.assert_array_equal(
        found["gsv"].sampled_player_error, found["owen"].sampled_player_error
    )
    assert 0.02 < found["gsv"].sampled_player_error.mean() < 1
    assert np.isnan(
        found["decoupled"].sampled_member_error
    ).all()  # 16 < 22 evaluations.
    again = grouping_error(tables(None), CLUSTERINGS, ALL, ~ALL, seed=1)["pairs"]
    assert (
        again["gsv"].sampled_player_error != found["gsv"].sampled_player_error
    ).any()
    np.testing.assert_array_equal(again["gsv"].member_error, found["gsv"].member_error)
    # An additive game is exact at any budget, for the sampled values too.
    additive = grouping_error(tables(1), CLUSTERINGS, ALL, ~ALL)["pairs"]["gsv"]
    assert additive.sampled_member_error.max() < 1e-5
    # No more rows are looked up than counted.
    budget = shapley.union_size([3, 2, 1])
    design = Orders(PLAYERS, budget, 1, np.random.default_rng(0))
    assert len(design.coalitions) <= budget == found["gsv"].evaluations


def test_persons_without_any_effect_have_no_relative_error():
    table = tables(None)
    table[1] = 0.3
    found = grouping_error(table, CLUSTERINGS, ALL, ~ALL)["pairs"]["gsv"]
    assert np.isnan(found.member_error[1]).all() and np.isnan(found.scale[1])
    assert np.isfinite(found.member_error[0]).all()


@pytest.mark.parametrize(
    "shape,clusters,message",
    [
        ((2, 32, 6), CLUSTERINGS["pairs"], r"need \[persons, 64, 6\]"),
        ((2, 64, 5), CLUSTERINGS["pairs"], r"need \[persons, 64, 6\]"),
        ((2, 64, 6), [[0, 1], [2, 3, 4]], "hold 5 joints"),
        ((2, 64, 6), [[0, 1], [1, 2, 3, 4, 5]], "overlap"),
    ],
)
def test_mistakes_are_explained(shape, clusters, message):
    valid = np.ones((shape[0], shape[2]), bool)
    with pytest.raises(ValueError, match=message):
        grouping_error(np.ones(shape, np.float32), {"x": clusters}, valid, ~ALL)


def test_values_that_are_not_finite_are_refused():
    table = tables(None)
    table[0, 3, 2] = np.nan
    with pytest.raises(ValueError, match="valid target is not finite"):
        grouping_error(table, CLUSTERINGS, ALL, ~ALL)


def test_capped_clusters_answer_where_no_cut_does():
    """A chain: average linkage swallows one joint after the other."""
    n = 12
    late = np.maximum.outer(np.arange(n), np.arange(n))
    W = np.where(np.eye(n) > 0, 0, 1 - 0.07 * late)
    limits = dict(max_size=4, min_clusters=3, max_clusters=5)
    with pytest.raises(interdependence.NoClusters):
        find_clusters(W, **limits)
    found = find_clusters(W, **limits, capped=True).clusters
    assert sorted(i for c in found for i in c) == list(range(n))
    assert 3 <= len(found) <= 5 and max(map(len, found)) <= 4
    with pytest.raises(interdependence.NoClusters, match="change the limits"):
        find_clusters(W, max_size=2, min_clusters=3, max_clusters=5, capped=True)
    with pytest.raises(ValueError, match="nothing to cluster"):
        find_clusters(np.zeros((7, 7)), capped=True)


def test_capped_clusters_are_those_of_the_tree_where_it_obeys():
    truth = ((0, 1, 2), (3, 4), (5, 6, 7), (8, 9))
    W = np.full((10, 10), 0.05)
    for members in truth:
        W[np.ix_(members, members)] = 0.9
    np.fill_diagonal(W, 0)
    assert find_clusters(W, capped=True).clusters == truth
    assert find_clusters(W).clusters == truth


@pytest.mark.parametrize("skeleton", [LSP, skeletons.get("coco")])
def test_clusters_are_those_of_a_body_however_ties_fall(skeleton, generator):
    """Mirrored joints lie in mirrored clusters, and the order of the joints does not matter."""
    twin = skeleton.mirrored
    for _ in range(20):
        weights = affinity(generator.normal(size=(len(twin),) * 2), twin)
        found = find_clusters(weights, twin, capped=True, max_size=8, max_clusters=10)
        images = {tuple(sorted(twin[list(c)].tolist())) for c in found.clusters}
        assert images == set(found.clusters)
        order = generator.permutation(len(twin))
        place = np.argsort(order)
        again = find_clusters(
            weights[np.ix_(order, order)], place[twin[order]],
            capped=True, max_size=8, max_clusters=10,
        )  # fmt: skip
        back = {tuple(sorted(order[list(c)].tolist())) for c in again.clusters}
        assert back == set(found.clusters)


def test_both_shoulders_join_the_neck_at_once():
    names = LSP.keypoints
    W = np.zeros((14, 14))
    neck = names.index("neck")
    for side in ("left", "right"):
        for a, b, w in (
            ("shoulder", "neck", 1.0),
            ("elbow", "wrist", 0.8),
            ("knee", "ankle", 0.8),
        ):
            i = names.index(f"{side}_{a}")
            j = neck if b == "neck" else names.index(f"{side}_{b}")
            W[i, j] = W[j, i] = w
    found = find_clusters(W, LSP.mirrored, max_clusters=9).clusters
    together = {frozenset(names[i] for i in c) for c in found if len(c) > 1}
    assert together == {
        frozenset({"left_shoulder", "neck", "right_shoulder"}),
        frozenset({"left_elbow", "left_wrist"}), frozenset({"right_elbow", "right_wrist"}),
        frozenset({"left_knee", "left_ankle"}), frozenset({"right_knee", "right_ankle"}),
    }  # fmt: skip
    with pytest.raises(ValueError, match="mirror image"):
        find_clusters(
            W + np.diag(np.ones(13), 1) + np.diag(np.ones(13), -1), LSP.mirrored
        )


def test_without_a_mirror_it_is_scipys_average_linkage(generator):
    W = generator.random((9, 9))
    W = np.triu(W, 1) + np.triu(W, 1).T
    found = find_clusters(W, max_size=9, min_clusters=1, max_clusters=9)
    distance = 1 - W / W.max()
    np.fill_diagonal(distance, 0)
    expected = hierarchy.linkage(squareform(distance, checks=False), "average")
    np.testing.assert_allclose(found.heights, expected[:, 2], atol=1e-8)
    np.testing.assert_array_equal(found.linkage[:, 3], expected[:, 3])
    labels = hierarchy.fcluster(expected, found.cut, "distance")
    assert {tuple(np.flatnonzero(labels == x)) for x in labels} == set(found.clusters)
