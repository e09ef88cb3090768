"""OKS, OKS-NMS and rescoring against slow loops, pycocotools and known numbers."""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pose_jax import skeletons
from pose_jax.metrics.similarity import keypoint_similarity, oks, oks_nms, rescore

SIGMAS = skeletons.COCO.sigmas
REFUSED = (ValueError, TypeCheckError)


def _people(n=6, k=17, seed=0):
    rng = np.random.default_rng(seed)
    true = rng.uniform(0, 200, (n, k, 2))
    predicted = true + rng.normal(0, 6, (n, k, 2))
    visible = rng.integers(0, 3, (n, k))
    area = rng.uniform(500, 20000, n)
    return predicted, true, visible, area


def _slow_oks(predicted, true, visible, area, sigmas):
    total, count = 0.0, 0
    for i, sigma in enumerate(sigmas):
        if visible[i] > 0:
            dx, dy = predicted[i] - true[i]
            total += math.exp(-(dx * dx + dy * dy) / (2 * area * (2 * sigma) ** 2))
            count += 1
    return total / count if count else 0.0


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_oks_equals_the_slow_loop(convert):
    predicted, true, visible, area = _people()
    visible[2] = 0
    got = oks(*map(convert, (predicted, true, visible, area)), SIGMAS)
    expected = [_slow_oks(*row, SIGMAS) for row in zip(predicted, true, visible, area)]
    tolerance = 1e-12 if convert is np.asarray else 1e-5
    assert expected[2] == 0.0 and 0.1 < expected[0] < 0.99
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


def test_similarity_at_published_distances():
    """Pixels at which a similarity of .50 and .85 falls, area 96^2 (COCO constants)."""
    nose, hip = SIGMAS[0], SIGMAS[11]
    for sigma, half, good in ((nose, 5.9, 2.9), (hip, 24.0, 12.0)):
        for distance, value in ((half, 0.50), (good, 0.85)):
            got = keypoint_similarity(
                np.array([[distance, 0.0]]), np.zeros((1, 2)), 96.0**2, [sigma]
            )
            assert got == pytest.approx([value], abs=0.02)


def test_oks_equals_pycocotools():
    predicted, true, visible, area = _people(seed=3)
    visible[:, 0] = 2
    images = [{"id": i + 1} for i in range(len(true))]
    truth, rows = COCO(), []
    truth.dataset = {
        "images": images,
        "categories": [{"id": 1}],
        "annotations": [
            {
                "id": i + 1, "image_id": i + 1, "category_id": 1, "iscrowd": 0,
                "num_keypoints": 1, "bbox": [0, 0, 9, 9], "area": area[i],
                "keypoints": np.c_[true[i], visible[i]].ravel().tolist(),
            }
            for i in range(len(true))
        ],
    }  # fmt: skip
    truth.createIndex()
    for i in range(len(true)):
        points = np.c_[predicted[i], np.ones(17)].ravel().tolist()
        rows.append({"image_id": i + 1, "category_id": 1, "keypoints": points,
                     "score": 1.0})  # fmt: skip
    evaluator = COCOeval(truth, truth.loadRes(rows), "keypoints")
    evaluator.evaluate()
    expected = [evaluator.ious[i + 1, 1][0, 0] for i in range(len(true))]
    got = oks(predicted, true, visible, area, SIGMAS)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_one_person_vmap_jit_and_leading_axes_agree():
    predicted, true, visible, area = map(jnp.asarray, _people())
    one = oks(predicted[0], true[0], visible[0], area[0], SIGMAS)
    assert one.shape == ()
    batched = oks(predicted, true, visible, area, SIGMAS)
    mapped = jax.jit(jax.vmap(lambda *x: oks(*x, SIGMAS)))(
        predicted, true, visible, area
    )
    np.testing.assert_allclose(mapped, batched, rtol=1e-6)
    stacked = oks(
        predicted.reshape(2, 3, 17, 2), true.reshape(2, 3, 17, 2),
        visible.reshape(2, 3, 17), area.reshape(2, 3), SIGMAS,
    )  # fmt: skip
    np.testing.assert_allclose(stacked.reshape(6), batched, rtol=1e-6)
    per_point = keypoint_similarity(predicted, true, area, SIGMAS)
    masked = np.where(visible > 0, per_point, 0).sum(-1) / (visible > 0).sum(-1)
    np.testing.assert_allclose(batched, masked, rtol=1e-6)


def test_unlabelled_nan_reaches_neither_value_nor_gradient():
    predicted, true, visible, area = map(jnp.asarray, _people())
    true = jnp.where((visible > 0)[..., None], true, jnp.nan)
    visible = visible.at[1].set(0)
    area = area.at[1].set(0.0)
    value, gradient = jax.value_and_grad(
        lambda p: oks(p, true, visible, area, SIGMAS).sum()
    )(predicted)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert np.any(gradient != 0)
    np.testing.assert_array_equal(gradient[visible == 0], 0)
    # A person that counts but has no area must not look scored.
    assert np.isnan(oks(true[:1], true[:1], visible[:1] * 0 + 2, area[1:2], SIGMAS))


def test_padding_rows_without_label_and_area_score_zero_silently():
    zeros = np.zeros((2, 17, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = oks(zeros, zeros, np.zeros((2, 17), int), np.zeros(2), SIGMAS)
    np.testing.assert_array_equal(got, [0.0, 0.0])


def test_half_precision_points_are_computed_in_float32():
    predicted, true, visible, area = map(jnp.asarray, _people())
    got = oks(predicted.astype(jnp.bfloat16), true, visible, area, SIGMAS)
    assert got.dtype == jnp.float32
    small = keypoint_similarity(
        jnp.full((1, 2), 201, jnp.bfloat16), jnp.full((1, 2), 200, jnp.bfloat16),
        jnp.asarray(1e4, jnp.bfloat16), (0.079,),
    )  # fmt: skip
    assert small.dtype == jnp.float32


def test_invariances():
    predicted, true, visible, area = _people()
    base = oks(predicted, true, visible, area, SIGMAS)
    moved = oks(predicted + [30, -7], true + [30, -7], visible, area, SIGMAS)
    np.testing.assert_allclose(moved, base, atol=1e-12)
    scaled = oks(3 * predicted, 3 * true, visible, 9 * area, SIGMAS)
    np.testing.assert_allclose(scaled, base, atol=1e-12)
    order = np.random.default_rng(1).permutation(17)
    permuted = oks(
        predicted[:, order], true[:, order], visible[:, order], area,
        np.array(SIGMAS)[order],
    )  # fmt: skip
    np.testing.assert_allclose(permuted, base, atol=1e-12)
    occluded = oks(predicted, true, np.minimum(visible, 1), area, SIGMAS)
    np.testing.assert_array_equal(occluded, base)
    np.testing.assert_array_equal(oks(predicted, true, visible > 0, area, SIGMAS), base)


def _slow_nms(keypoints, scores, areas, sigmas, threshold):
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    kept = []
    for i in order:
        suppressed = False
        for j in kept:
            area = (areas[i] + areas[j]) / 2
            everything = np.ones(len(sigmas))
            value = _slow_oks(keypoints[i], keypoints[j], everything, area, sigmas)
            suppressed = suppressed or value > threshold
        if not suppressed:
            kept.append(i)
    return kept


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_nms_equals_the_slow_loop(threshold):
    rng = np.random.default_rng(5)
    centres = rng.uniform(0, 100, (4, 17, 2))
    keypoints = centres[rng.integers(0, 4, 40)] + rng.normal(0, 2.5, (40, 17, 2))
    scores, areas = rng.random(40).round(1), rng.uniform(2000, 9000, 40)
    kept = oks_nms(keypoints, scores, areas, SIGMAS, threshold)
    assert kept.tolist() == _slow_nms(keypoints, scores, areas, SIGMAS, threshold)
    assert 4 <= len(kept) < 40


def test_nms_uses_the_mean_area_and_keeps_equality():
    """One point, sigma 0.5: OKS = exp(-d^2 / (2 area)), so the area decides alone."""
    points = np.array([[[0.0, 0.0]], [[2.0, 0.0]]])
    scores = np.array([0.5, 0.9])
    value = math.exp(-4 / (2 * 20))  # areas 10 and 30
    both = oks_nms(points, scores, np.array([10.0, 30.0]), [0.5], value + 1e-9)
    assert both.tolist() == [1, 0]
    one = oks_nms(points, scores, np.array([10.0, 30.0]), [0.5], value - 1e-9)
    assert one.tolist() == [1]
    # OKS 1 is not above a threshold of 1.
    twins = oks_nms(np.zeros((2, 1, 2)), scores, np.ones(2), [0.5], 1.0)
    assert twins.tolist() == [1, 0]


def test_nms_of_nobody_is_nobody():
    kept = oks_nms(np.zeros((0, 17, 2)), np.zeros(0), np.zeros(0), SIGMAS)
    assert kept.shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(keypoints=np.nan), "keypoints of pose 1 are not finite"),
        (dict(scores=np.inf), "scores of pose 1 are not finite"),
        (dict(areas=0.0), "area of pose 1 is not a positive"),
        (dict(areas=np.nan), "area of pose 1 is not a positive"),
    ],
)
def test_nms_refuses_what_cannot_be_compared(change, message):
    arguments = dict(keypoints=np.zeros((3, 2, 2)), scores=np.ones(3), areas=np.ones(3))
    for name, value in change.items():
        arguments[name][1] = value
    with pytest.raises(ValueError, match=message):
        oks_nms(**arguments, sigmas=(0.1, 0.1))


def test_nms_and_rescore_refuse_wrong_shapes():
    with pytest.raises(REFUSED):
        oks_nms(np.zeros((3, 17, 2)), np.ones(2), np.ones(3), SIGMAS)
    with pytest.raises(REFUSED):
        oks_nms(np.zeros((3, 17, 2)), np.ones(3), np.ones(2), SIGMAS)
    with pytest.raises(ValueError, match="14 sigmas"):
        oks_nms(np.zeros((3, 17, 2)), np.ones(3), np.ones(3), (0.1,) * 14)
    with pytest.raises(REFUSED):
        rescore(np.ones(2), np.ones((3, 17)))


def test_rescore_by_hand():
    scores = np.array([[0.9, 0.2, 0.5], [0.2, 0.1, 0.0], [0.3, 0.3, 0.3]])
    got = rescore(np.array([0.5, 0.8, 1.0]), scores)
    # 0.2 is not above 0.2: row 0 averages 0.9 and 0.5, row 1 nothing.
    np.testing.assert_allclose(got, [0.5 * 0.7, 0.0, 0.3])
    with pytest.raises(ValueError, match="keypoint scores of pose 1 are not finite"):
        rescore(np.ones(2), np.array([[1.0], [np.nan]]))
    with pytest.raises(ValueError, match="box score of pose 0 is not finite"):
        rescore(np.array([np.nan]), np.ones((1, 2)))
