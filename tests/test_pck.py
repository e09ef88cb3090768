"""The PCK family against slow loops, hand-computed and published numbers."""

import functools
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
from jaxtyping import TypeCheckError

from pose_jax import skeletons
from pose_jax.metrics.pck import (
    Pck,
    box_longer_side,
    crop_side,
    heatmap_pck,
    heatmap_variants,
    pck,
    pckh,
    pckh_rows,
    torso,
)

REFUSED = (ValueError, TypeCheckError)
COCO, MPII = skeletons.COCO.keypoints, skeletons.MPII.keypoints


def _points(n=7, k=17, seed=0):
    rng = np.random.default_rng(seed)
    true = rng.uniform(0, 100, (n, k, 2))
    predicted = true + rng.normal(0, 8, (n, k, 2))
    return predicted, true, rng.integers(0, 3, (n, k)), rng.uniform(40, 90, n)


def _slow(predicted, true, visible, normaliser, threshold, strict):
    """(correct, count) per (person, joint), one point at a time."""
    n, k = visible.shape
    correct, count = np.zeros((n, k), int), np.zeros((n, k), int)
    for i in range(n):
        for j in range(k):
            if visible[i, j] > 0:
                error = math.dist(predicted[i, j], true[i, j]) / normaliser[i]
                count[i, j] = 1
                correct[i, j] = error < threshold if strict else error <= threshold
    return correct, count


@pytest.mark.parametrize("strict", [False, True])
def test_pck_equals_the_slow_loop(strict):
    predicted, true, visible, side = _points()
    visible[3] = 0
    visible[:, 4] = 0
    thresholds = (0.05, 0.1, 0.2)
    record = pck(predicted, true, visible, side, thresholds, COCO, strict=strict)
    result = record.compute()
    assert result["joints"]["right_ear"] == {"count": 0, "pck": None}
    for t, threshold in enumerate(thresholds):
        correct, count = _slow(predicted, true, visible, side, threshold, strict)
        assert result["micro"][t] == pytest.approx(correct.sum() / count.sum())
        joints = [correct[:, j].sum() / count[:, j].sum() for j in range(17) if j != 4]
        assert result["per_joint_mean"][t] == pytest.approx(np.mean(joints))
        persons = [correct[i].sum() / count[i].sum() for i in range(7) if i != 3]
        assert result["macro"][t] == pytest.approx(np.mean(persons))
        for word, value in (("visible", 2), ("occluded", 1)):
            part = visible == value
            expected = correct[part].sum() / part.sum()
            assert result[word]["count"] == part.sum()
            assert result[word]["pck"][t] == pytest.approx(expected)
        assert result["joints"]["nose"]["pck"][t] == pytest.approx(joints[0])
    assert 0.02 < result["micro"][0] < result["micro"][2] < 0.98
    assert result["entries"] == 6 and result["labels"] == count.sum()
    assert json.loads(json.dumps(result)) == result


def test_three_averages_by_hand():
    """Two persons, three joints: the averages differ and the empty joint is dropped."""
    visible = np.array([[2, 2, 0], [1, 0, 0]])
    true = np.zeros((2, 3, 2))
    predicted = np.zeros((2, 3, 2))
    predicted[0, 0, 0] = 3.0  # wrong: 3 / 10 > 0.2
    record = pck(predicted, true, visible, np.full(2, 10.0), [0.2], ["a", "b", "c"])
    result = record.compute()
    assert result["micro"] == pytest.approx([2 / 3])  # points: x, ok, ok
    assert result["per_joint_mean"] == pytest.approx([3 / 4])  # a 1/2, b 1/1, c dropped
    assert result["macro"] == pytest.approx([3 / 4])  # persons 1/2, 1/1
    predicted[0, 1, 0] = 3.0
    result = pck(
        predicted, true, visible, np.full(2, 10.0), [0.2], ["a", "b", "c"]
    ).compute()
    assert result["micro"] == pytest.approx([1 / 3])
    assert result["per_joint_mean"] == pytest.approx([1 / 4])  # a 1/2, b 0/1
    assert result["macro"] == pytest.approx([1 / 2])  # persons 0/2, 1/1
    assert result["visible"] == {"count": 2, "pck": [0.0]}
    assert result["occluded"] == {"count": 1, "pck": [1.0]}
    assert result["joints"]["c"] == {"count": 0, "pck": None}


def test_nobody_labelled_is_none_and_not_zero():
    predicted, true, visible, side = _points()
    result = pck(predicted, true, visible * 0, side, [0.1], COCO).compute()
    for key in ("micro", "per_joint_mean", "macro"):
        assert result[key] is None
    assert result["visible"] == result["occluded"] == {"count": 0, "pck": None}
    empty = pck(np.zeros((0, 17, 2)), np.zeros((0, 17, 2)), np.zeros((0, 17), int),
                np.zeros(0), [0.1], COCO)  # fmt: skip
    assert empty.compute()["micro"] is None and empty.compute()["entries"] == 0


def test_merge_of_parts_is_the_whole():
    predicted, true, visible, side = _points(n=9)
    side[4] = np.nan

    def record(rows):
        part = predicted[rows], true[rows], visible[rows], side[rows]
        return pck(*part, (0.1, 0.2), COCO)

    parts = [record(slice(0, 2)), record(slice(2, 2)), record(slice(2, 9))]
    merged = functools.reduce(Pck.merge, parts)
    assert merged.compute() == record(slice(None)).compute()
    assert merged.left_out == 1
    for change in (dict(thresholds=(0.1,)), dict(strict=True), dict(name="other")):
        arguments = dict(thresholds=(0.1, 0.2), names=COCO) | change
        other = pck(predicted, true, visible, side, **arguments)
        with pytest.raises(ValueError, match=f"cannot merge.*{next(iter(change))}"):
            merged.merge(other)


def test_persons_without_a_normaliser_are_left_out_and_counted():
    predicted, true, visible, side = _points()
    visible[5] = 0
    kept = pck(predicted[2:], true[2:], visible[2:], side[2:], [0.1], COCO).compute()
    side[0], side[1] = np.nan, 0.0
    result = pck(predicted, true, visible, side, [0.1], COCO).compute()
    assert result == kept | {"left_out": 2}
    side[5] = np.nan  # a row without a label is padding, not a person
    assert pck(predicted, true, visible, side, [0.1], COCO).left_out == 2


def test_invariances():
    predicted, true, visible, side = _points()
    base = pck(predicted, true, visible, side, [0.1], COCO).compute()
    moved = pck(predicted + 64, true + 64, visible, side, [0.1], COCO).compute()
    scaled = pck(4 * predicted, 4 * true, visible, 4 * side, [0.1], COCO).compute()
    assert moved == base and scaled == base
    on_device = pck(*map(jnp.asarray, (predicted, true, visible, side)), [0.1], COCO)
    assert on_device.compute() == base
    hidden = np.where((visible > 0)[..., None], true, np.nan)
    assert pck(predicted, hidden, visible, side, [0.1], COCO).compute() == base
    mask = pck(predicted, true, visible > 0, side, [0.1], COCO).compute()
    assert mask["micro"] == base["micro"] and mask["occluded"]["count"] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_predictions_that_are_not_finite_are_refused(value):
    predicted, true, visible, side = _points()
    visible[2, 3] = 0  # even where nothing is labelled
    predicted[2, 3, 1] = value
    message = "predicted point of row 2, 'left_ear' is not finite"
    for score in (
        lambda: pck(predicted, true, visible, side, [0.1], COCO),
        lambda: heatmap_pck(predicted, true, visible),
    ):
        with pytest.raises(ValueError, match=message):
            score()
    predicted[2, 3, 1] = 0.0
    visible[1, 0], true[1, 0, 0] = 1, value
    with pytest.raises(ValueError, match="labelled true point of row 1, 'nose'"):
        pck(predicted, true, visible, side, [0.1], COCO)
    predicted16, true16, visible16, head = _points(k=16)
    predicted16[4, 6] = value  # the pelvis is masked, its NaN is not
    with pytest.raises(ValueError, match="row 4, 'pelvis'"):
        pckh(predicted16, true16, visible16, head)


def test_bad_arguments_are_refused():
    predicted, true, visible, side = _points()
    with pytest.raises(REFUSED):
        pck(predicted[:, :16], true, visible, side, [0.1], COCO)
    with pytest.raises(REFUSED):
        pck(predicted, true, visible, side[:3], [0.1], COCO)
    with pytest.raises(ValueError, match=r"\(7, 17, 2\).* k = 16 joint names"):
        pck(predicted, true, visible, side, [0.1], MPII)
    for thresholds in ([], [0.0], [np.nan]):
        with pytest.raises(ValueError, match="thresholds must be positive"):
            pck(predicted, true, visible, side, thresholds, COCO)
    with pytest.raises(ValueError, match="normaliser of row 6 is -1"):
        pck(predicted, true, visible, np.r_[side[:6], -1.0], [0.1], COCO)
    visible[1, 2] = 3
    with pytest.raises(ValueError, match="visible of row 1, 'right_eye' is 3"):
        pck(predicted, true, visible, side, [0.1], COCO)


def test_normalisers_by_hand():
    boxes = np.array([[5.0, 6.0, 30.0, 40.0], [0.0, 0.0, 9.0, 2.0]])
    np.testing.assert_array_equal(box_longer_side(boxes), [40, 9])
    # left shoulder 5, right shoulder 6, left hip 11, right hip 12
    true, visible = np.zeros((4, 17, 2)), np.zeros((4, 17), int)
    true[:, 5], true[:, 12] = (3.0, 0.0), (0.0, 4.0)
    true[:, 6], true[:, 11] = (0.0, 0.0), (6.0, 8.0)
    visible[0, [5, 6, 11, 12]] = 2
    visible[1, [6, 11, 12]] = 1
    visible[2, [5, 6]] = 2
    np.testing.assert_array_equal(torso(true, visible, "coco"), [5, 10, np.nan, np.nan])
    # Crops of 192 x 256 (w x h): 2 crop pixels per image pixel, and one rotated by 90.
    double = np.array([[2.0, 0, -10], [0, 2, 4], [0, 0, 1]])
    turned = np.array([[0.0, -0.5, 7], [0.5, 0, 1], [0, 0, 1]])
    matrices = np.stack([np.eye(3), double, turned])
    np.testing.assert_allclose(crop_side(matrices, (256, 192)), [256, 128, 512])


def test_heatmap_pck_is_strict_at_half():
    """size 80: normaliser 8, so 4 cells are exactly 0.5 and not correct."""
    true = np.zeros((1, 17, 2))
    predicted, visible = true.copy(), np.full((1, 17), 2)
    predicted[0, 0, 0] = 4
    predicted[0, 1, 0] = 3
    assert heatmap_pck(predicted, true, visible, 80).compute()["macro"] == [16 / 17]
    # size 64: 3 cells are correct, sqrt(9 + 4) = 3.6 are not, the limit is 3.2.
    predicted[0, 0] = (3, 2)
    assert heatmap_pck(predicted, true, visible).compute()["macro"] == [16 / 17]


def test_heatmap_pck_variants_by_hand():
    """Three crops; macro, micro and every variant's denominator computed by hand."""
    visible = np.zeros((3, 17), int)
    visible[0, [0, 7, 8, 9]] = (2, 2, 1, 2)  # nose, elbows, left wrist
    visible[1, [0, 7]] = (1, 1)  # occluded only
    true, predicted = np.full((3, 17, 2), 20), np.full((3, 17, 2), 20)
    predicted[0, [0, 8], 0] += 10  # nose and right elbow wrong
    result = heatmap_pck(predicted, true, visible).compute()
    assert result["macro"] == pytest.approx([(2 / 4 + 2 / 2) / 2])  # crop 2 is empty
    assert result["micro"] == pytest.approx([4 / 6])
    assert result["entries"] == 2 and result["images"] == 3
    assert result["macro_images"] == result["macro"]
    assert result["macro_over_all"] == pytest.approx([(2 / 4 + 2 / 2) / 3])
    seen = heatmap_pck(predicted, true, visible, variant="visible").compute()
    assert seen["macro"] == pytest.approx([2 / 3]) and seen["entries"] == 1
    # Crops 1 and 2 have no visible joint, yet the thesis divides by three.
    assert seen["macro_images"] == seen["macro"] and seen["images"] == 3
    assert seen["macro_over_all"] == pytest.approx([2 / 3 / 3])
    limbs = heatmap_pck(predicted, true, visible, variant="limbs").compute()
    # Pairs with a label: crop 0 elbows 1/2, crop 0 wrists 1/1, crop 1 elbows 1/1.
    assert limbs["macro"] == pytest.approx([(1 / 2 + 1 + 1) / 3])
    assert limbs["entries"] == 3 and limbs["micro"] == pytest.approx([3 / 4])
    # Over the eight joints: crop 0 has 2 of 3, crop 1 has 1 of 1, crop 2 no label.
    assert limbs["macro_images"] == pytest.approx([(2 / 3 + 1) / 2])
    assert limbs["macro_over_all"] == pytest.approx([(2 / 3 + 1) / 3])
    assert set(limbs["joints"]) == {
        f"{s}_{j}"
        for s in ("left", "right")
        for j in ("elbow", "wrist", "knee", "ankle")
    }


def test_image_means_merge_and_are_for_images_only():
    predicted, true, visible, side = _points(n=9)
    visible[[2, 8]] = 0

    def record(rows, variant="limbs"):
        part = predicted[rows], true[rows], visible[rows]
        return heatmap_pck(*part, 640, names=COCO, variant=variant)

    parts = [record(slice(0, 3)), record(slice(3, 3)), record(slice(3, 9))]
    merged, whole = functools.reduce(Pck.merge, parts).compute(), record(slice(None))
    for key in ("images", "macro_images", "macro_over_all"):
        assert merged[key] == whole.compute()[key], key
    assert merged["images"] == 9
    nobody = record([2, 8]).compute()
    assert nobody["images"] == 2
    assert nobody["macro_over_all"] is None and nobody["macro_images"] is None
    # Rows of other protocols may be padding: no such number is offered.
    plain = pck(predicted, true, visible, side, [0.1], COCO)
    assert not {"images", "macro_over_all"} & set(plain.compute())
    assert plain.images is None and plain.merge(plain).images is None


def test_heatmap_pck_refuses_unknown_variants_and_bodies():
    points, visible = np.zeros((1, 2, 2)), np.ones((1, 2), int)
    with pytest.raises(ValueError, match="unknown variant 'half'"):
        heatmap_pck(points, points, visible, names=("a", "b"), variant="half")
    with pytest.raises(ValueError, match="'limbs' needs the joints"):
        heatmap_pck(points, points, visible, names=("a", "b"), variant="limbs")


def test_heatmap_variants_of_a_body():
    assert heatmap_variants(COCO) == ("labelled", "visible", "limbs")
    assert heatmap_variants(skeletons.LSP.keypoints)[-1] == "limbs"
    for missing in ("left_elbow", "right_ankle"):
        names = [name for name in COCO if name != missing]
        assert heatmap_variants(names) == ("labelled", "visible")


def _heads(errors):
    """One person with head size 100, error `errors[j]` at joint j, all labelled."""
    true = np.full((1, 16, 2), 300.0)
    predicted = true.copy()
    predicted[0, :, 0] += errors
    return predicted, true, np.full((1, 16), 2), np.array([100.0])


def test_pckh_separates_at_most_from_below():
    errors = np.zeros(16)
    errors[MPII.index("head_top")] = 50.0  # exactly 0.5
    official = pckh_rows(pckh(*_heads(errors)))
    assert official["Head"] == 1.0 and official["Mean"] == 1.0
    strict = pckh_rows(pckh(*_heads(errors), strict=True))
    assert strict["Head"] == 0.0 and strict["Mean"] == pytest.approx(13 / 14)


def test_pckh_at_a_tenth_is_not_eleven_hundredths():
    errors = np.zeros(16)
    errors[MPII.index("left_wrist")] = 10.5
    errors[MPII.index("right_wrist")] = 10.0
    rows = pckh_rows(pckh(*_heads(errors)))
    assert rows["Mean"] == 1.0
    assert rows["Mean@0.1"] == pytest.approx(13 / 14)  # 0.11 would give 1.0
    only = pckh(*_heads(errors), threshold=0.1)
    assert only.thresholds == (0.1,)
    assert pckh_rows(only)["Wrist"] == 0.5


def test_pckh_masks_pelvis_and_thorax_and_weighs_by_labels():
    errors = np.zeros(16)
    errors[[MPII.index("pelvis"), MPII.index("thorax")]] = 1000.0
    assert pckh_rows(pckh(*_heads(errors)))["Mean"] == 1.0
    predicted, true, visible, head = (np.repeat(x, 3, axis=0) for x in _heads(errors))
    visible[:] = 0
    left, right = MPII.index("left_knee"), MPII.index("right_knee")
    visible[:, left] = 2  # three labels, all correct
    visible[0, right] = 1  # one label, wrong
    predicted[0, right] += 999
    rows = pckh_rows(pckh(predicted, true, visible, head))
    assert rows["Knee"] == 0.5  # left and right weigh the same in a row
    assert rows["Mean"] == 0.75  # but by their labels in the mean
    assert rows["Head"] is None and rows["Ankle"] is None


def test_pckh_rows_refuses_other_records():
    predicted, true, visible, side = _points()
    with pytest.raises(ValueError, match="needs a record of pckh, not of 'PCK'"):
        pckh_rows(pck(predicted, true, visible, side, [0.5], COCO))


def _mpii(root):
    folder = root / "mpii"
    mat = scipy.io.loadmat(folder / "detections_our_format.mat")
    boxes = mat["headboxes_src"]
    head = 0.6 * np.linalg.norm(boxes[1] - boxes[0], axis=0)
    order = ["pos_pred_src", "pos_gt_src"]
    predicted, true = (np.transpose(mat[name], (2, 0, 1)) for name in order)
    visible = np.where(mat["jnt_missing"].T == 1, 0, 2)
    expected = json.loads((folder / "expected_pckh.json").read_text())["PCKh@0.5"]
    return predicted, true, visible, head, expected


def test_published_mpii_result(data_root):
    """Tompson et al. (CVPR 2015) on 2,958 persons: PCKh 82.34."""
    predicted, true, visible, head, expected = _mpii(data_root)
    rows = pckh_rows(pckh(predicted, true, visible, head))
    for row, percent in expected.items():
        assert 100 * rows[row] == pytest.approx(percent, abs=6e-5), row
    assert round(100 * rows["Mean"], 2) == 82.34
    # The index base cancels if both files share it, and only then.
    shifted = pckh_rows(pckh(predicted - 1, true - 1, visible, head))
    mixed = pckh_rows(pckh(predicted - 1, true, visible, head))
    assert shifted["Mean"] == pytest.approx(rows["Mean"], abs=1e-4)
    assert rows["Mean@0.1"] - mixed["Mean@0.1"] > 1e-3
    assert rows["Mean@0.1"] < rows["Mean"]
    halves = [
        pckh(predicted[part], true[part], visible[part], head[part])
        for part in (slice(None, 1000), slice(1000, None))
    ]
    assert pckh_rows(halves[0].merge(halves[1])) == rows
