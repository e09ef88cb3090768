"""Principal components: against scikit-learn, whatever the method and the parts."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn import decomposition

from pose_jax.analysis import pca


def planted(generator, count=300, axes=12):
    """Three strong directions in weak noise, away from the origin."""
    basis = np.linalg.qr(generator.normal(size=(axes, axes)))[0].T
    spread = np.array([9.0, 5.0, 3.0, *np.linspace(0.3, 0.1, axes - 3)])
    return generator.normal(size=(count, axes)) * spread @ basis + 20, basis


def test_planted_subspace_is_found(generator):
    x, basis = planted(generator, 3000)
    found = pca.fit(x)
    np.testing.assert_allclose(
        np.abs(found.components[:3] @ basis[:3].T), np.eye(3), atol=0.1
    )
    assert found.components_for(0.95) == 3
    np.testing.assert_allclose(found.variance[:3], [81, 25, 9], rtol=0.1)


@pytest.mark.parametrize("count", [300, 12, 9])
def test_equals_scikit_learn_with_more_and_with_fewer_samples_than_values(
    generator, count
):
    x, _ = planted(generator, count)
    found, theirs = pca.fit(x), decomposition.PCA(svd_solver="full").fit(x)
    most = min(count - 1, 12)
    assert found.components.shape == (most, 12) and found.method == "exact"
    np.testing.assert_allclose(found.mean, theirs.mean_)
    np.testing.assert_allclose(found.variance, theirs.explained_variance_[:most])
    np.testing.assert_allclose(found.shares, theirs.explained_variance_ratio_[:most])
    np.testing.assert_allclose(found.components, theirs.components_[:most], atol=1e-8)
    np.testing.assert_allclose(
        found.project(x), theirs.transform(x)[:, :most], atol=1e-8
    )
    few = pca.fit(x, components=2)
    np.testing.assert_allclose(few.components, found.components[:2], atol=1e-8)
    assert (
        few.total_variance
        == found.total_variance
        == pytest.approx(x.var(0, ddof=1).sum())
    )
    np.testing.assert_allclose(few.shares, found.shares[:2])


def test_signs_are_fixed(generator):
    x, _ = planted(generator)
    for method in ("exact", "randomised", "incremental"):
        found = pca.fit(x, components=4, method=method).components
        assert (found[np.arange(4), np.abs(found).argmax(1)] > 0).all()


def test_parts_are_the_whole_bit_for_bit(generator, tmp_path, monkeypatch):
    monkeypatch.setattr(pca, "BLOCK_BYTES", 8 * 12 * 40)  # 40 rows in a block.
    x = planted(generator)[0].astype(np.float32).reshape(300, 2, 2, 3)
    parts = []
    for number, part in enumerate(np.split(x, [7, 7, 250])):
        np.save(tmp_path / f"{number}.npy", part)
        mode = "r" if len(part) else None  # Nothing cannot be mapped.
        parts.append(np.load(tmp_path / f"{number}.npy", mmap_mode=mode))
    whole = pca.fit(x)
    np.testing.assert_array_equal(pca.fit(parts).components, whole.components)
    flat = x.reshape(300, 12)
    np.testing.assert_allclose(whole.components, pca.fit(flat).components)
    np.testing.assert_array_equal(whole.project(parts), whole.project(flat))
    assert whole.project(parts).dtype == np.float32
    # Sums are float64: scikit-learn's float32 is 1 % off at the weakest component here.
    theirs = decomposition.PCA().fit(flat.astype(np.float64)).explained_variance_
    np.testing.assert_allclose(whole.variance, theirs)
    rows = np.array([299, 0, 7, 249, 250, 6])
    np.testing.assert_array_equal(pca.take(parts, rows), flat[rows])


def test_incremental_is_exact_where_all_are_kept_and_close_where_not(generator):
    x, _ = planted(generator, 900)
    exact = pca.fit(x)
    streamed = pca.fit(np.array_split(x, 4), components=12, method="incremental")
    np.testing.assert_allclose(streamed.components, exact.components, atol=1e-7)
    np.testing.assert_allclose(streamed.variance, exact.variance)
    few = pca.fit(x, components=3, method="incremental")
    np.testing.assert_allclose(few.variance, exact.variance[:3], rtol=1e-3)
    np.testing.assert_allclose(few.shares, exact.shares[:3], rtol=1e-3)
    np.testing.assert_allclose(few.components, exact.components[:3], atol=0.02)


def test_randomised_finds_the_strong_components(generator):
    x, _ = planted(generator, 900)
    exact = pca.fit(x)
    found = pca.fit(x, components=3, method="randomised")
    np.testing.assert_allclose(found.components, exact.components[:3], atol=1e-4)
    np.testing.assert_allclose(found.variance, exact.variance[:3], rtol=1e-4)
    again = pca.fit(x, components=3, method="randomised")
    np.testing.assert_array_equal(found.components, again.components)


def test_auto_takes_what_fits_into_memory(generator, monkeypatch):
    monkeypatch.setattr(pca, "LIMITED", 5)
    x, _ = planted(generator)
    x = x.repeat(4, 1)
    methods = {}
    for memory in (2**31, 32 * 48 * 48, 32 * 48 * 48 - 1, 10_000):
        found = pca.fit(x[:40], memory_bytes=memory)
        methods[memory] = found.method, len(found.components)
    assert [m for m in methods.values()] == [
        ("exact", 39), ("exact", 39), ("exact", 39), ("incremental", 5),
    ]  # fmt: skip
    assert pca.fit(x, memory_bytes=32 * 48 * 48 - 1).method == "incremental"
    half = x.astype(np.float32)[:150]
    assert pca.fit(half, memory_bytes=2 * 4 * 48 * 150).method == "randomised"


def test_projections(generator):
    x, _ = planted(generator)
    found = pca.fit(x)
    np.testing.assert_allclose(found.restore(found.project(x)), x)
    np.testing.assert_allclose(found.restrict(x, slice(None)), x)
    few = pca.fit(x, components=3)
    expected = few.restore(few.project(x))
    mask = np.arange(12) < 3
    for keep in (slice(0, 3), np.array([2, 0, 1]), mask):
        np.testing.assert_allclose(found.restrict(x, keep), expected)
    np.testing.assert_allclose(
        found.restrict(x, slice(0, 0)), np.tile(x.mean(0), (300, 1))
    )
    # The sample variance along each axis is lambda.
    np.testing.assert_allclose(found.project(x).var(0, ddof=1), found.variance)


def test_components_for_is_a_count(generator):
    found = pca.PCA(
        np.zeros(4), np.eye(4)[:3], np.array([6.0, 3.0, 0.5]), 10.0, 9, "exact"
    )
    counts = {
        share: found.components_for(share) for share in (0.5, 0.6, 0.61, 0.9, 0.95)
    }
    assert counts == {0.5: 1, 0.6: 1, 0.61: 2, 0.9: 2, 0.95: 3}
    assert found.components_for(0.96) is None
    assert pca.fit(planted(generator)[0]).components_for(1.0) == 12
    with pytest.raises(ValueError, match="share=0 must"):
        found.components_for(0)


def test_walk(generator):
    x, _ = planted(generator)
    found = pca.fit(x)
    points = pca.walk(found, [1, 3, 12], [-2.0, 0.0, 0.5])
    assert points.shape == (3, 3, 12)
    np.testing.assert_array_equal(points[:, 1], np.tile(found.mean, (3, 1)))
    codes = found.project(points.reshape(9, 12)).reshape(3, 3, 12)
    for row, number in enumerate([1, 3, 12]):
        expected = np.zeros((3, 12))
        expected[:, number - 1] = (
            np.array([-2, 0, 0.5]) * found.variance[number - 1] ** 0.5
        )
        np.testing.assert_allclose(codes[row], expected, atol=1e-9)
    for wrong in (0, 13):
        with pytest.raises(ValueError, match=f"component {wrong} is outside 1..12"):
            pca.walk(found, [1, wrong], [0.0])


def test_nearest(generator, monkeypatch):
    monkeypatch.setattr(pca, "BLOCK_BYTES", 8 * 12 * 7)
    x = planted(generator)[0].astype(np.float32)
    points = x[:30:5] + generator.normal(size=(6, 12)) * 2
    row, away = pca.nearest(np.split(x, [100, 101]), points.reshape(2, 3, 12))
    distances = cdist(points, x)
    np.testing.assert_array_equal(row.ravel(), distances.argmin(1))
    np.testing.assert_allclose(away.ravel(), distances.min(1))
    assert row.shape == away.shape == (2, 3)
    twice, zero = pca.nearest(np.concatenate([x, x]), x[[5, 250]].astype(np.float64))
    assert twice.tolist() == [5, 250] and not zero.any()


def test_bad_input(generator):
    x, _ = planted(generator, 20)
    with pytest.raises(
        ValueError, match="12 components cannot be had from 8 samples .* 7"
    ):
        pca.fit(x[:8], components=12)
    with pytest.raises(ValueError, match="cannot be had from 1 samples"):
        pca.fit(x[:1])
    with pytest.raises(ValueError, match="0 components|1 components"):
        pca.fit(x, components=0)
    broken = x.copy()
    broken[13, 2] = np.nan
    with pytest.raises(ValueError, match="sample 13 has values that are not finite"):
        pca.fit([broken[:5], broken[5:]])
    with pytest.raises(ValueError, match="all 9 samples are equal"):
        pca.fit(np.full((9, 5), 0.1, np.float32))
    with pytest.raises(ValueError, match=r"parts of \[11, 12\] values"):
        pca.fit([x, x[:, 1:]])
    with pytest.raises(ValueError, match="no samples"):
        pca.fit([])
    with pytest.raises(ValueError, match="method 'svd' is unknown"):
        pca.fit(x, method="svd")
    with pytest.raises(ValueError, match="have 11 values, the PCA takes 12"):
        pca.fit(x).project(x[:, 1:])
    with pytest.raises(ValueError, match="points of 11 values among samples of 12"):
        pca.nearest(x, x[:2, 1:])
