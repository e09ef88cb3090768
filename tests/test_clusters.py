"""Clusters: planted blobs, equality with scikit-learn, bad input."""

import sys

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn import cluster, decomposition, metrics, preprocessing

from pose_jax.analysis import clusters


def blobs(generator, sizes=(30, 50), axes=6, gap=12.0):
    """Gaussian blobs, the smaller one first."""
    centres = gap * np.eye(len(sizes), axes)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    x = generator.normal(size=(len(truth), axes)) + centres[truth] + 5
    return x.astype(np.float32), truth


@pytest.mark.parametrize("axes", [6, 200])
def test_blobs_are_found_and_numbered_by_size(generator, axes):
    x, truth = blobs(generator, axes=axes, gap=40.0)
    found = clusters.kmeans(x, (2, 3), restarts=4)
    assert list(found) == [2, 3]
    two = found[2]
    np.testing.assert_array_equal(two.labels, 1 - truth)
    np.testing.assert_allclose(two.centres, [x[30:].mean(0), x[:30].mean(0)], rtol=1e-4)
    assert two.stability == 1.0
    spread = sum(((x[truth == g] - x[truth == g].mean(0)) ** 2).sum() for g in (0, 1))
    assert two.inertia == pytest.approx(spread, rel=1e-5)
    # The third centre cuts a blob, each time elsewhere.
    assert found[3].inertia < spread and found[3].stability < 1
    sizes = np.bincount(found[3].labels)
    assert (np.diff(sizes) <= 0).all()


def test_the_best_restart_is_kept(generator):
    x = generator.normal(size=(120, 5))
    ours = clusters.kmeans(x, [5], restarts=8)[5]
    again = clusters.kmeans(x, [5], restarts=8)[5]
    np.testing.assert_array_equal(ours.labels, again.labels)
    fits = clusters._fits(clusters._turned(x, x.mean(0)), 5, 8, 1000, 0)
    assert len({round(fit.inertia, 6) for fit in fits}) > 1
    assert ours.inertia == pytest.approx(min(fit.inertia for fit in fits))
    pairs = [
        metrics.adjusted_rand_score(a.labels, b.labels)
        for i, a in enumerate(fits)
        for b in fits[:i]
    ]
    assert ours.stability == pytest.approx(np.mean(pairs))
    theirs = cluster.KMeans(5, n_init=50, random_state=0).fit(x)
    assert theirs.inertia_ <= ours.inertia * (1 + 1e-9) < 1.05 * theirs.inertia_
    alone = clusters.kmeans(x, [5], restarts=1)[5]
    assert np.isnan(alone.stability) and alone.inertia >= ours.inertia


def test_rotation_keeps_distances(generator):
    x = generator.normal(size=(20, 300)) + 3
    turned = clusters._turned(x, x.mean(0))
    assert turned.shape == (20, 20)
    np.testing.assert_allclose(pdist(turned), pdist(x))
    assert clusters._turned(x.T, x.T.mean(0)).shape == (300, 20)


def test_equal_sizes_are_numbered_by_first_member():
    labels = np.array([2, 0, 0, 2, 1, 1, 3])
    assert clusters._by_size(labels, 4).tolist() == [0, 1, 1, 0, 2, 2, 3]


@pytest.mark.parametrize("rows", [1, 7, 80])
def test_silhouettes_are_scikit_learns(generator, monkeypatch, rows):
    x, truth = blobs(generator)
    # As many rows at a time.
    monkeypatch.setattr(clusters, "WORKING_MIB", rows * 8 * len(x) / 2**20)
    single = truth.copy()
    single[3] = 7
    given = {2: truth, 3: single, 9: generator.integers(9, size=80)}
    found = clusters.silhouettes(x, given)
    for key, labels in given.items():
        np.testing.assert_allclose(
            found[key], metrics.silhouette_samples(x, labels), atol=1e-6
        )
    assert found[3][3] == 0
    wrong = clusters.misplaced(found[9], given[9])
    np.testing.assert_array_equal(wrong, found[9] < 0)
    assert not clusters.misplaced(found[9], given[9] - 9).any()
    assert 10 < wrong.sum() < 80 and not clusters.misplaced(found[2], truth).any()


def test_silhouettes_of_a_sample(generator):
    x, truth = blobs(generator)
    found = clusters.silhouettes(x, {2: truth, 3: truth * 2}, limit=40)
    rows = np.flatnonzero(~np.isnan(found[2]))
    assert len(rows) == 40
    np.testing.assert_allclose(
        found[2][rows], metrics.silhouette_samples(x[rows], truth[rows]), atol=1e-6
    )
    np.testing.assert_array_equal(found[2], found[3])
    other = clusters.silhouettes(x, {2: truth}, limit=40, seed=1)[2]
    assert (np.isnan(other) != np.isnan(found[2])).any()
    assert not clusters.misplaced(found[2], truth).any()


def test_agreement(generator):
    labels = np.repeat([0, 1, 2], [40, 30, 30])
    noise = generator.integers(4, size=100)
    noise[::9] = -1
    given = {
        "same": (labels + 5) % 7,
        "noise": noise,
        "constant": np.zeros(100, int),
        "few": np.where(np.arange(100) % 6 == 0, labels, -1),
        "unknown": np.full(100, -1),
    }
    found = clusters.agreement(labels, given)
    assert list(found) == ["same", "noise"]
    assert found["same"]["nmi"] == pytest.approx(1) and found["same"]["null_high"] < 0.1
    known = noise >= 0
    assert found["noise"]["nmi"] == pytest.approx(
        metrics.normalized_mutual_info_score(labels[known], noise[known])
    )
    assert found["noise"]["count"] == known.sum()
    shuffled = [
        metrics.normalized_mutual_info_score(
            labels[known], np.random.default_rng(i).permutation(noise[known])
        )
        for i in range(200)
    ]
    assert found["noise"]["null"] == pytest.approx(np.mean(shuffled), rel=0.15)
    assert found["noise"]["null_high"] == pytest.approx(
        np.quantile(shuffled, 0.95), rel=0.25
    )
    assert clusters.agreement(np.zeros(100, int), given) == {}


def test_nearest_to_centres(generator):
    x, truth = blobs(generator, (4, 50))
    found = clusters.kmeans(x, [2], restarts=1)[2]
    rows = clusters.nearest_to_centres(x, found, 6)
    for g, members in enumerate((np.arange(4, 54), np.arange(4))):
        away = np.linalg.norm(x[members] - x[members].mean(0), axis=1)
        expected = members[away.argsort()][:6].tolist()
        assert rows[g].tolist() == expected + [-1] * (6 - len(expected))


def test_view_scales_every_axis(generator):
    x, _ = blobs(generator)
    x[:, 2] *= 1000
    x[:, 4] = 3
    positions, shares = clusters.view(x)
    scaled = preprocessing.StandardScaler().fit_transform(x)
    theirs = decomposition.PCA(2).fit(scaled)
    expected = theirs.transform(scaled)
    signs = np.sign((positions * expected).sum(0))
    np.testing.assert_allclose(positions * signs, expected, atol=1e-4)
    np.testing.assert_allclose(shares, theirs.explained_variance_ratio_, rtol=1e-4)


def test_view_by_umap_needs_the_package(generator, monkeypatch):
    x, _ = blobs(generator)
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ValueError, match="pip install umap-learn"):
        clusters.view(x, method="umap")
    with pytest.raises(ValueError, match="view 'tsne' is unknown"):
        clusters.view(x, method="tsne")


def test_bad_input(generator):
    x, truth = blobs(generator)
    with pytest.raises(ValueError, match="10 clusters cannot be made of 7 samples"):
        clusters.kmeans(x[:7])
    with pytest.raises(ValueError, match="with 0 restarts"):
        clusters.kmeans(x, restarts=0)
    with pytest.raises(ValueError, match=r"clusters \[\]"):
        clusters.kmeans(x, [])
    broken = x.copy()
    broken[5] = np.inf
    with pytest.raises(ValueError, match="sample 5 has values that are not finite"):
        clusters.kmeans(broken)
    with pytest.raises(
        ValueError, match="4 clusters cannot be made of 2 different samples"
    ):
        with pytest.warns(UserWarning):
            clusters.kmeans(x[[0, 1] * 5], [4])
    with pytest.raises(ValueError, match="labeling 4 has one cluster"):
        clusters.silhouettes(x, {2: truth, 4: truth * 0})
