"""Scores of heatmaps: each against a slow reference, and what they say about known maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pose_jax import skeletons
from pose_jax.explain import scores
from pose_jax.heatmaps import Codec
from pose_jax.metrics.similarity import keypoint_similarity

CODEC = Codec("unbiased", "argmax", 1.5)
LSP = skeletons.get("lsp")
K = LSP.num_keypoints
SIZE = (20, 24)


def gaussians(points, height=1.0):
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    offsets = np.stack([x, y], -1)[:, :, None] - points
    return height * np.exp(-0.5 * (offsets**2).sum(-1) / CODEC.sigma_px**2)


@pytest.fixture
def points():
    return np.random.default_rng(0).uniform(4, 15, (K, 2)).round()


@pytest.fixture
def reference(points):
    return scores.from_points(points, np.ones(K), LSP, area=150.0)


@pytest.fixture
def maps(points):
    noise = np.random.default_rng(1).normal(0, 0.05, (*SIZE, K))
    return gaussians(points) + noise


def score(name, maps, reference, codec=CODEC):
    return np.asarray(scores.make_score(name, codec)(jnp.asarray(maps), reference))


def at(maps, points):
    return np.array([maps[int(y), int(x), k] for k, (x, y) in enumerate(points)])


def distance(point):
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.hypot(x - point[0], y - point[1])


def slow(name, maps, points):
    """Written from the table of the module, a keypoint at a time."""
    result = []
    for k, point in enumerate(points):
        one, away = maps[:, :, k], distance(point)
        value = one[int(point[1]), int(point[0])]
        mass = np.maximum(one, 0)
        centre = np.array(
            [
                (mass.sum(0) * np.arange(SIZE[1])).sum(),
                (mass.sum(1) * np.arange(SIZE[0])).sum(),
            ]
        )
        moved = np.hypot(*(centre / mass.sum() - point))
        template = np.exp(-0.5 * away**2 / CODEC.sigma_px**2)
        peak = np.array(np.unravel_index(one.argmax(), SIZE))[::-1]
        similarity = np.exp(
            -((peak - point) ** 2).sum() / (2 * 150.0 * (2 * LSP.sigmas[k]) ** 2)
        )
        twin = LSP.mirrored[k]
        result.append(
            {
                "value": value,
                "disc": one[away <= 3].sum(),
                "matched_filter": (one * template).sum() / np.sqrt((template**2).sum()),
                "contrast": value - one[away > 9].max(),
                "mirror_contrast": value - maps[int(point[1]), int(point[0]), twin],
                "likelihood": np.exp(-0.3 * moved),
                "displacement": -moved,
                "position_x": centre[0] / mass.sum(),
                "position_y": centre[1] / mass.sum(),
                "log_likelihood": value - np.log(np.exp(one).sum()),
                "similarity": similarity,
                "thresholded": np.mean(
                    [similarity > t for t in np.arange(0.5, 1, 0.05)]
                ),
                "peak": one.max(),
                "heatmap": one,
            }[name]
        )
    return np.array(result)


@pytest.mark.parametrize("name", scores.SCORES)
def test_equals_a_slow_reference(name, maps, reference, points):
    # A joint that moved makes similarity and displacement say something.
    maps[:, :, 0] = np.roll(maps[:, :, 0], 3, axis=1)
    found = score(name, maps, reference)
    np.testing.assert_allclose(found, slow(name, maps, points), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", [n for n in scores.SCORES if n != "heatmap"])
def test_a_joint_that_jumps_scores_less_unless_only_the_peak_counts(name, points):
    reference = scores.from_points(points, np.ones(K), LSP, area=150.0)
    clean = score(name, gaussians(points), reference)
    away = points.copy()
    away[0] = (22, 18) if np.hypot(*(points[0] - (22, 18))) > 8 else (1, 1)
    jumped = score(name, gaussians(away), reference)
    if name == "peak":
        np.testing.assert_allclose(jumped[0], clean[0], rtol=1e-5)
    elif name.startswith("position"):  # Signed: it goes where the joint went.
        axis = "xy".index(name[-1])
        moved = away[0, axis] - points[0, axis]
        # The edge of the map cuts a part of the Gaussian off.
        np.testing.assert_allclose(jumped[0] - clean[0], moved, atol=0.5)
        assert abs(moved) > 1
    else:
        assert jumped[0] < clean[0] - 0.1 * abs(clean[0])
    if name != "mirror_contrast":
        np.testing.assert_allclose(jumped[1:], clean[1:], rtol=1e-5)


def test_softmax_maps_are_shares_already(maps, reference):
    raw = jnp.asarray(maps, jnp.float32)
    codec = Codec("unbiased", "argmax", 1.5, activation="softmax")
    from pose_jax.heatmaps import activate

    np.testing.assert_allclose(
        score("log_likelihood", activate(raw, codec), reference, codec),
        score("log_likelihood", raw, reference),
        rtol=1e-4,
    )


def test_the_clean_picture_is_its_own_reference(maps):
    clean = jnp.asarray(maps)
    reference = scores.from_clean(clean, CODEC, LSP, area=150.0)
    assert bool(reference.valid.all())
    np.testing.assert_allclose(
        score("value", maps, reference), score("peak", maps, reference), rtol=1e-6
    )
    np.testing.assert_allclose(score("similarity", maps, reference), 1.0)


def test_mirrored_joints_swap(points, reference):
    """A left wrist answered on the right one's place has the contrast of its twin."""
    swapped = gaussians(points)[:, :, LSP.mirrored]
    paired = LSP.mirrored != np.arange(K)
    assert (score("mirror_contrast", swapped, reference)[paired] < 0).all()
    assert (score("mirror_contrast", gaussians(points), reference)[paired] > 0).all()


@pytest.mark.parametrize(
    "name",
    ["value", "disc", "matched_filter", "likelihood", "displacement", "log_likelihood"],
)
def test_gradients_are_finite(name, points, reference):
    function = scores.make_score(name, CODEC)
    for maps in (gaussians(points), np.zeros((*SIZE, K))):
        grad = jax.grad(lambda m: function(m, reference).sum())(jnp.asarray(maps))
        assert bool(jnp.isfinite(grad).all())


def test_similarity_is_the_metrics(maps, reference, points):
    moved = gaussians(points + (1, 2))
    expected = keypoint_similarity(points + (1, 2), points, 150.0, LSP.sigmas)
    np.testing.assert_allclose(
        score("similarity", moved, reference), expected, rtol=1e-5
    )


def test_vmap_over_pictures(maps, reference):
    function = scores.make_score("contrast", CODEC)
    several = jnp.stack([maps, maps[::-1]])
    found = jax.vmap(function, (0, None))(several, reference)
    np.testing.assert_allclose(found[1], score("contrast", maps[::-1], reference))


def test_unknown_scores_are_explained():
    with pytest.raises(ValueError, match="choose one of value"):
        scores.make_score("loudness", CODEC)
