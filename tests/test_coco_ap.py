"""COCO AP against a closed form, pycocotools, stored results and broken input."""

import contextlib
import copy
import io
import json
import pathlib
import runpy
import sys
import warnings

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pose_jax import skeletons
from pose_jax.metrics.coco_ap import coco_ap, keypoint_oks_table

KEYS = ("AP", "AP50", "AP75", "AP_M", "AP_L", "AR", "AR50", "AR75", "AR_M", "AR_L")
SIGMAS = skeletons.COCO.sigmas
AREA = 100.0**2  # large


def _truth(people, *, k=17, images=None, first_id=1, area=AREA, v=2):
    """A ground-truth dict; people is a list of (image_id, points [k, 2])."""
    images = sorted({image for image, _ in people}) if images is None else images
    return {
        "images": [{"id": i, "width": 640, "height": 640} for i in images],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {
                "id": first_id + i, "image_id": image, "category_id": 1, "iscrowd": 0,
                "num_keypoints": k, "bbox": [0.0, 0.0, 100.0, 100.0], "area": area,
                "keypoints": np.c_[points, np.full(k, v)].ravel().tolist(),
            }
            for i, (image, points) in enumerate(people)
        ],
    }  # fmt: skip


def _row(image, points, score=1.0):
    triples = np.c_[points, np.ones(len(points))]
    return {"image_id": image, "category_id": 1, "score": score,
            "keypoints": triples.ravel().tolist()}  # fmt: skip


def _scene(n=40, k=17, seed=0):
    """n perfect predictions of n people in n images."""
    points = np.random.default_rng(seed).uniform(0, 500, (n, k, 2)).round(2)
    people = [(i + 1, p) for i, p in enumerate(points)]
    return _truth(people, k=k), [_row(i, p) for i, p in people]


def _pycocotools(truth, rows, sigmas=SIGMAS, max_detections=20):
    truth, rows = copy.deepcopy(truth), copy.deepcopy(rows)
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = truth
        ground.createIndex()
        evaluator = COCOeval(ground, ground.loadRes(rows), "keypoints")
        evaluator.params.kpt_oks_sigmas = np.array(sigmas)
        evaluator.params.maxDets = [max_detections]
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.params.maxDets = [20]  # its summary only knows 20
        evaluator.summarize()
    return {k: None if x == -1 else x for k, x in zip(KEYS, evaluator.stats)}


def _equal(result, expected, tolerance=1e-9):
    for key in KEYS:
        if expected[key] is None:
            assert result[key] is None, key
        else:
            assert result[key] == pytest.approx(expected[key], abs=tolerance), key


@pytest.mark.parametrize(
    ("similarity", "ap"), [(0.97, 1.0), (0.72, 0.5), (0.52, 0.1), (0.45, 0.0)]
)
@pytest.mark.parametrize("k", [17, 14, 3])
def test_closed_form(similarity, ap, k):
    """Every keypoint moved until its similarity is c: AP = share of thresholds <= c."""
    sigmas = np.array([*SIGMAS, *SIGMAS][:k])
    truth, rows = _scene(n=5, k=k)
    rng = np.random.default_rng(1)
    distance = np.sqrt(-np.log(similarity) * 2 * AREA) * 2 * sigmas
    for row in rows:
        angle = rng.uniform(0, 2 * np.pi, k)
        moved = np.reshape(row["keypoints"], (k, 3))
        moved[:, 0] += distance * np.cos(angle)
        moved[:, 1] += distance * np.sin(angle)
        row["keypoints"] = moved.ravel().tolist()
    result = coco_ap(truth, rows, sigmas=sigmas)
    for key in ("AP", "AP_L", "AR", "AR_L"):
        assert result[key] == pytest.approx(ap, abs=1e-12)
    assert result["AP50"] == float(similarity >= 0.5)
    assert result["AP75"] == float(similarity >= 0.75)
    assert result["AP_M"] is None


def _random(seed, k=17, categories=1):
    """Crowds, unlabelled people, every size, ties, crowded and empty images."""
    rng = np.random.default_rng(seed)
    annotations, rows = [], []
    images = rng.permutation(np.arange(3, 33)).tolist()
    for image in images:
        for _ in range(rng.integers(0, 5)):
            box = np.append(rng.uniform(0, 200, 2), rng.uniform(10, 250, 2))
            points = np.round(box[:2] + rng.random((k, 2)) * box[2:], 1)
            v = rng.choice(3, k) * (rng.random() < 0.8)
            category = int(rng.integers(1, categories + 1))
            annotations.append(
                {
                    "id": 1000 - len(annotations), "image_id": image,
                    "category_id": category, "iscrowd": int(rng.random() < 0.1),
                    "num_keypoints": int((v > 0).sum()), "bbox": box.tolist(),
                    "keypoints": np.c_[points, v].ravel().tolist(),
                    "area": float(rng.uniform(0.3, 0.8) * box[2] * box[3]),
                }
            )  # fmt: skip
            for _ in range(rng.integers(0, 9)):
                noise = rng.choice([0.002, 0.02, 0.2]) * np.sqrt(box[2] * box[3])
                row = _row(image, points + rng.normal(0, noise, (k, 2)))
                row["score"] = round(float(rng.random()), 1)
                row["category_id"] = int(rng.integers(1, categories + 1))
                rows.append(row)
    rows = [rows[i] for i in rng.permutation(len(rows))]
    truth = {
        "images": [{"id": i} for i in images],
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": f"c{i}"} for i in range(categories + 1)],
    }
    return truth, rows


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("k", "categories"), [(17, 1), (14, 1), (5, 2)])
def test_equals_pycocotools_on_random_sets(seed, k, categories):
    truth, rows = _random(seed, k, categories)
    sigmas = SIGMAS[:k] if k != 14 else skeletons.CROWDPOSE.sigmas
    expected = _pycocotools(truth, rows, sigmas)
    assert 0.05 < expected["AP"] < 0.9 and expected["AP_M"] != expected["AP_L"]
    _equal(coco_ap(truth, rows, sigmas=sigmas), expected)


def test_max_detections():
    truth, rows = _random(7)
    cut = coco_ap(truth, rows, sigmas=SIGMAS, max_detections=3)
    assert cut["AR"] < coco_ap(truth, rows, sigmas=SIGMAS)["AR"]
    assert any("only the 3 best-scored" in note for note in cut["notes"])
    keep = []
    for image in truth["images"]:
        own = [r for r in rows if r["image_id"] == image["id"]]
        keep += sorted(own, key=lambda r: -r["score"])[:3]
    _equal(cut, coco_ap(truth, keep, sigmas=SIGMAS))


def _data(root, *parts):
    return root.joinpath("evaluator", *parts)


@pytest.mark.parametrize("name", ["coco_example", "movenet_on_coco17_val"])
def test_stored_coco_results(name, data_root):
    folder = _data(data_root, name)
    expected = json.loads((folder / "expected.json").read_text())
    result = coco_ap(
        folder / expected["gt"],
        folder / expected["results"],
        sigmas=SIGMAS,
        keypoint_names=skeletons.COCO.keypoints,
    )
    _equal(result, expected["stats"])


def test_stored_crowdpose_result(data_root):
    """CrowdPose is COCO's protocol with area 0.53 w h and 14 keypoints."""
    folder = _data(data_root, "crowdpose_example")
    expected = json.loads((folder / "expected.json").read_text())
    sigmas = skeletons.CROWDPOSE.sigmas
    assert sigmas == pytest.approx(np.array(expected["sigmas_x10"]) / 10)
    truth = json.loads((folder / expected["gt"]).read_text())
    rows = json.loads((folder / expected["results"]).read_text())
    with pytest.raises(ValueError, match="area None.*area_source='box'"):
        coco_ap(truth, rows, sigmas=sigmas)
    for person in truth["annotations"]:
        person["area"] = 0.53 * person["bbox"][2] * person["bbox"][3]
    result = coco_ap(truth, rows, sigmas=sigmas)
    for key in ("AP", "AP50", "AP75", "AR", "AR50", "AR75"):
        assert result[key] == pytest.approx(expected["stats"][key], abs=1e-9)
    # Its easy / medium / hard rows are AP on the images of a range of the crowd index.
    limits = {"easy": (0, 0.2), "medium": (0.2, 0.8), "hard": (0.8, 2)}
    for word, (low, high) in limits.items():
        images = [i for i in truth["images"] if low <= i["crowdIndex"] < high]
        ids = {i["id"] for i in images}
        people = [a for a in truth["annotations"] if a["image_id"] in ids]
        part = coco_ap(
            {**truth, "images": images, "annotations": people},
            [r for r in rows if r["image_id"] in ids],
            sigmas=sigmas,
        )
        assert part["AP"] == pytest.approx(expected["stats"][f"AP_{word}"], abs=5e-5)


# ---- bad and unusual input: one row of the measured table of evaluators each ----


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("whole", [True, False])
def test_coordinates_that_are_not_finite_are_refused(value, whole):
    truth, rows = _scene()
    rows[12]["keypoints"][4 if not whole else slice(None)] = (
        value if not whole else [value] * 51
    )
    joint = 0 if whole else 1
    message = rf"keypoint {joint} of results\[12\] \(image_id 13\) is not finite"
    with pytest.raises(ValueError, match=message):
        coco_ap(truth, rows, sigmas=SIGMAS)


@pytest.mark.parametrize("value", [np.nan, np.inf, None])
def test_scores_that_are_not_finite_are_refused(value):
    truth, rows = _scene()
    rows[3]["score"] = value
    message = r"score of results\[3\] \(image_id 4\)"
    with pytest.raises(ValueError, match=message):
        coco_ap(truth, rows, sigmas=SIGMAS)


@pytest.mark.parametrize("value", [0, -5.0, np.nan, np.inf, None, "missing"])
def test_area_that_is_not_positive_is_refused(value):
    truth, rows = _scene()
    person = truth["annotations"][7]
    person["area"] = value
    if value == "missing":
        del person["area"]
    with pytest.raises(ValueError, match=r"annotation id 8 has area .*area_source"):
        coco_ap(truth, rows, sigmas=SIGMAS)
    # Crowds and people without labels are ignored, so their area may be anything.
    person["iscrowd"] = 1
    if value not in (np.nan, np.inf):
        assert coco_ap(truth, rows, sigmas=SIGMAS)["AP"] == 1.0


def test_small_people_count_in_no_size_row():
    truth, rows = _scene()
    for person in truth["annotations"]:
        person["area"] = 31.0**2
    result = coco_ap(truth, rows, sigmas=SIGMAS)
    assert result["AP"] == result["AR"] == 1.0
    for key in ("AP_M", "AP_L", "AR_M", "AR_L"):
        assert result[key] is None
    assert len(result["notes"]) == 2
    assert "no labelled person of medium size" in result["notes"][0]
    assert "no labelled person of large size" in result["notes"][1]
    assert json.loads(json.dumps(result)) == result


def test_ids_may_start_at_zero():
    points = np.random.default_rng(0).uniform(0, 500, (2, 17, 2))
    people = [(0, points[0]), (1, points[1])]
    rows = [_row(i, p) for i, p in people]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = coco_ap(_truth(people, first_id=0), rows, sigmas=SIGMAS)
    assert result["AP"] == result["AR"] == 1.0
    assert _pycocotools(_truth(people, first_id=0), rows)["AR"] == 0.5  # why we care


def test_image_ids_may_be_words():
    truth, rows = _random(2)
    expected = coco_ap(truth, rows, sigmas=SIGMAS)
    for row in [*truth["annotations"], *rows]:
        row["image_id"] = f"{row['image_id']:05d}.jpg"
    for image in truth["images"]:
        image["id"] = f"{image['id']:05d}.jpg"
    _equal(coco_ap(truth, rows, sigmas=SIGMAS), expected)
    truth["images"].append({"id": 5})
    with pytest.raises(ValueError, match="image ids mix numbers and words"):
        coco_ap(truth, rows, sigmas=SIGMAS)


@pytest.mark.parametrize("field", ["num_keypoints", "iscrowd"])
def test_fields_that_may_be_missing(field):
    truth, rows = _random(3)
    for person in truth["annotations"]:
        person["iscrowd"] = 0
    expected = _pycocotools(truth, rows)
    for person in truth["annotations"]:
        del person[field]
    _equal(coco_ap(truth, rows, sigmas=SIGMAS), expected)


def test_num_keypoints_that_contradicts_the_points_is_noted():
    truth, rows = _scene()
    truth["annotations"][0]["num_keypoints"] = 0
    result = coco_ap(truth, rows, sigmas=SIGMAS)
    assert any("1 annotations state a num_keypoints" in n for n in result["notes"])
    assert result["counts"] == {"images": 40, "persons": 39, "results": 40}
    _equal(result, _pycocotools(truth, rows))


def test_empty_results_score_zero_and_empty_truth_scores_nothing():
    truth, rows = _scene()
    result = coco_ap(truth, [], sigmas=SIGMAS)
    for key in KEYS:
        assert result[key] == (None if key.endswith("_M") else 0.0), key
    for empty in ([], [{**truth["annotations"][0], "iscrowd": 1}]):
        nobody = coco_ap({**truth, "annotations": empty}, rows, sigmas=SIGMAS)
        assert all(nobody[key] is None for key in KEYS)
        assert any("no labelled person at all" in note for note in nobody["notes"])


def test_keypoint_counts_that_differ_are_one_clear_error():
    truth, rows = _scene(k=13)
    truth["categories"][0]["keypoints"] = list("abcdefghijklmn")
    message = (
        "keypoint counts differ: 17 sigmas, 16 keypoint names, 14 names in category "
        "'person', 13 keypoints per annotation, 13 keypoints per result row"
    )
    with pytest.raises(ValueError, match=message):
        coco_ap(truth, rows, sigmas=SIGMAS, keypoint_names=skeletons.MPII.keypoints)
    truth, rows = _scene()
    rows[5]["keypoints"].append(1.0)
    with pytest.raises(ValueError, match=r"results\[5\] \(image_id 6\) has 52 numbers"):
        coco_ap(truth, rows, sigmas=SIGMAS)
    truth["annotations"][2]["keypoints"].pop()
    with pytest.raises(ValueError, match="annotation id 3 has 50 numbers"):
        coco_ap(truth, rows, sigmas=SIGMAS)


def test_keypoint_order_is_compared_by_name():
    truth, rows = _scene()
    names = list(skeletons.COCO.keypoints)
    truth["categories"][0]["keypoints"] = [names[i] for i in skeletons.COCO.mirrored]
    with pytest.raises(ValueError, match="AP compares by position"):
        coco_ap(truth, rows, sigmas=SIGMAS, keypoint_names=names)
    truth["categories"][0]["keypoints"] = names
    assert coco_ap(truth, rows, sigmas=SIGMAS, keypoint_names=names)["AP"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, r: r[1].update(image_id=999), r"results\[1\] \(image_id 999\) is"),
        (lambda t, r: r[1].update(category_id=9), r"category 9; the ground truth has"),
        (lambda t, r: r[4].pop("score"), r"results\[4\] has no 'score'"),
        (lambda t, r: t["annotations"][6].update(id=3), "annotation id 3 occurs 2"),
        (lambda t, r: t["images"].append({"id": 2}), "image id 2 occurs 2 times"),
        (lambda t, r: t["annotations"][0].update(image_id=99), "id 1 lies in image 99"),
        (lambda t, r: t["annotations"][0].pop("id"), r"annotations\[0\] has no 'id'"),
        (lambda t, r: t["annotations"][1]["keypoints"].__setitem__(0, np.nan),
         "annotation id 2 has a labelled keypoint that is not finite"),
        (lambda t, r: t["annotations"][1].update(keypoints=[], bbox=[]),
         "annotation id 2 has no labelled keypoint and no usable 'bbox'"),
        (lambda t, r: t.pop("images"), "must be a COCO dict with 'images'"),
    ],
)  # fmt: skip
def test_broken_files_are_refused(change, message):
    truth, rows = _scene()
    change(truth, rows)
    with pytest.raises(ValueError, match=message):
        coco_ap(truth, rows, sigmas=SIGMAS)


def test_results_that_are_not_rows_are_refused():
    truth, _ = _scene()
    with pytest.raises(ValueError, match="results must be a list"):
        coco_ap(truth, {"annotations": []}, sigmas=SIGMAS)


def test_twenty_better_scored_false_positives_hide_a_person():
    truth, rows = _scene(n=1)
    wrong = [_row(1, np.full((17, 2), 9e3 + i), 2.0) for i in range(20)]
    hidden = coco_ap(truth, wrong + rows, sigmas=SIGMAS)
    assert hidden["AR"] == 0.0 and "only the 20 best-scored" in hidden["notes"][0]
    seen = coco_ap(truth, wrong[:19] + rows, sigmas=SIGMAS)
    assert seen["AR"] == 1.0 and seen["AP"] == pytest.approx(1 / 20)


def test_swapped_sides_score_zero_and_occluded_labels_count():
    truth, rows = _scene()
    swapped = copy.deepcopy(rows)
    for row in swapped:
        points = np.reshape(row["keypoints"], (17, 3))[skeletons.COCO.mirrored]
        row["keypoints"] = points.ravel().tolist()
    assert coco_ap(truth, swapped, sigmas=SIGMAS)["AP"] == 0.0
    truth, rows = _random(5)
    expected = coco_ap(truth, rows, sigmas=SIGMAS)
    for person in truth["annotations"]:
        v = person["keypoints"][2::3]
        person["keypoints"][2::3] = [min(x, 1) for x in v]
    assert coco_ap(truth, rows, sigmas=SIGMAS) == expected


def test_a_box_in_the_rows_changes_nothing():
    truth, rows = _random(1)
    expected = coco_ap(truth, rows, sigmas=SIGMAS)
    boxed = [{**row, "bbox": [0.0, 0.0, 40.0, 40.0]} for row in rows]
    assert coco_ap(truth, boxed, sigmas=SIGMAS) == expected
    assert _pycocotools(truth, boxed)["AP_M"] != expected["AP_M"]  # why we drop it


def test_ignored_people_need_no_keypoints_and_no_area():
    truth, rows = _scene(n=3)
    crowd = {
        "id": 99,
        "image_id": 1,
        "category_id": 1,
        "bbox": [600.0, 600.0, 9.0, 9.0],
    }
    truth["annotations"].append({**crowd, "iscrowd": 1})
    inside = _row(1, np.full((17, 2), 604.0), score=5.0)
    outside = _row(1, np.full((17, 2), 900.0), score=5.0)
    assert coco_ap(truth, [*rows, inside], sigmas=SIGMAS)["AP"] == 1.0
    assert coco_ap(truth, [*rows, outside], sigmas=SIGMAS)["AP"] < 1.0


def test_translation_and_scale_leave_ap_alone():
    truth, rows = _random(8)
    expected = coco_ap(truth, rows, sigmas=SIGMAS)
    moved_truth, moved_rows = copy.deepcopy((truth, rows))
    for item in [*moved_truth["annotations"], *moved_rows]:
        item["keypoints"] = (
            np.reshape(item["keypoints"], (17, 3)) * [2, 2, 1] + [64, 32, 0]
        ).ravel().tolist()  # fmt: skip
        if "area" in item:
            item["area"] *= 4
            x, y, w, h = item["bbox"]
            item["bbox"] = [2 * x + 64, 2 * y + 32, 2 * w, 2 * h]
    result = coco_ap(moved_truth, moved_rows, sigmas=SIGMAS)
    for key in ("AP", "AP50", "AP75", "AR", "AR50", "AR75"):
        assert result[key] == pytest.approx(expected[key], abs=1e-9)


def test_files_equal_dicts_inputs_stay_unchanged_and_nothing_is_printed(
    tmp_path, capsys
):
    truth, rows = _random(4)
    before = copy.deepcopy((truth, rows))
    result = coco_ap(truth, rows, sigmas=SIGMAS)
    assert (truth, rows) == before
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    paths = tmp_path / "truth.json", str(tmp_path / "rows.json")
    assert coco_ap(*paths, sigmas=np.array(SIGMAS)) == result
    assert capsys.readouterr() == ("", "")


def test_keypoint_oks_table_by_hand():
    sigmas, names = (0.05, 0.1), ("a", "b")
    area = np.array([100.0, 400.0, 1.0])
    true = np.zeros((3, 2, 2))
    predicted = np.array([[[1.0, 0], [0, 0]], [[0, 0], [0, 2.0]], [[0, 0], [0, 0]]])
    visible = np.array([[2, 0], [1, 2], [0, 0]])
    table = keypoint_oks_table(predicted, true, visible, area, sigmas, names)
    a0 = np.exp(-1 / (2 * 100 * 0.1**2))
    b1 = np.exp(-4 / (2 * 400 * 0.2**2))
    assert table["joints"]["a"] == {"count": 2, "oks": pytest.approx((a0 + 1) / 2)}
    assert table["joints"]["b"] == {"count": 1, "oks": pytest.approx(b1)}
    assert table["oks"] == pytest.approx((a0 + (1 + b1) / 2) / 2)
    assert table["persons"] == 2
    assert json.loads(json.dumps(table)) == table
    none = keypoint_oks_table(predicted, true, visible * 0, area, sigmas, names)
    assert none["oks"] is None and none["joints"]["a"] == {"count": 0, "oks": None}


def test_keypoint_oks_table_refuses_what_cannot_be_scored():
    points, visible = np.zeros((2, 3, 2)), np.full((2, 3), 2)
    arguments = dict(sigmas=(0.1,) * 3, names=("a", "b", "c"))
    with pytest.raises(ValueError, match="area of row 1 is 0.0"):
        keypoint_oks_table(points, points, visible, np.array([1.0, 0.0]), **arguments)
    with pytest.raises(ValueError, match="predicted point of row 0, 'a' is not finite"):
        keypoint_oks_table(points * np.nan, points, visible, np.ones(2), **arguments)
    with pytest.raises((ValueError, TypeCheckError)):
        keypoint_oks_table(points, points, visible, np.ones(3), **arguments)
    with pytest.raises(ValueError, match="2 sigmas"):
        keypoint_oks_table(
            points, points, visible, np.ones(2), (0.1, 0.1), ("a", "b", "c")
        )


def test_benchmark_script(monkeypatch, capsys):
    script = pathlib.Path(__file__).parent / "benchmarks" / "coco_eval.py"
    arguments = ["--images", "30", "--results", "600", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")
    record = json.loads(capsys.readouterr().out)
    assert record["results"] == 600 and record["AP"] > 0.05
    assert record["max_abs_difference"] < 1e-9
