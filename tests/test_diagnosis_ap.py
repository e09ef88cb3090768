"""AP without each error type, against closed forms and pycocotools."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pose_jax import skeletons
from pose_jax.metrics import diagnosis
from pose_jax.metrics.coco_ap import coco_ap
from pose_jax.metrics.diagnosis_ap import (
    ap_gains,
    best_scores,
    diagnose_given_boxes,
    diagnose_results,
)
from pose_jax.metrics.diagnosis_files import Evaluation, match_people

SKELETON = skeletons.COCO
SIGMAS = np.array(SKELETON.sigmas)
STEPS = (*diagnosis.ERRORS, "score", "background", "missed_people")


def person(image, number, points, v=2, area=None, crowd=0):
    low, high = points.min(0), points.max(0)
    flags = np.broadcast_to(v, len(points))
    return {
        "id": number, "image_id": image, "category_id": 1, "iscrowd": crowd,
        "num_keypoints": int((flags > 0).sum()), "bbox": [*low, *(high - low)],
        "area": float((high - low).prod() * 0.6 if area is None else area),
        "keypoints": np.c_[points, flags].ravel().tolist(),
    }  # fmt: skip


def row(image, points, score, v=1.0):
    flat = np.c_[points, np.broadcast_to(v, len(points))].ravel().tolist()
    return {"image_id": image, "category_id": 1, "score": score, "keypoints": flat}


def files(people, images):
    categories = [{"id": 1, "name": "person"}]
    return dict(
        images=[{"id": i} for i in images], categories=categories, annotations=people
    )


def scene(seed, *, images=40, alone=False, crowds=True, k=17):
    """Crowded pictures, results of all kinds; `alone`: one person, one result each."""
    rng = np.random.default_rng(seed)
    people, rows = [], []
    for image in range(1, images + 1):
        scale = rng.uniform(30, 200)
        count = 1 if alone else rng.integers(0, 4)
        corner = rng.uniform(0, 300, 2)
        bodies = (
            corner
            + rng.random((count, k, 2)) * scale
            + rng.normal(0, scale / 3, (count, 1, 2))
        )
        for points in bodies:
            v = rng.choice(3, k, p=[0.2, 0.3, 0.5])
            if crowds and not alone and rng.random() < 0.1:
                people.append(person(image, len(people) + 1, points, v * 0, crowd=1))
            else:
                people.append(person(image, len(people) + 1, points, v))
            for _ in range(1 if alone else rng.integers(0, 4)):
                guess = points + rng.normal(0, scale * 0.03, (k, 2))
                kind = rng.integers(0, 7, k)
                guess[kind == 1] = points[SKELETON.mirrored[:k]][kind == 1]
                guess[kind == 2] += rng.normal(0, scale * 0.2, 2)
                guess[kind == 3] = bodies[rng.integers(count)][kind == 3]
                rows.append(row(image, guess, round(float(rng.random()), 2)))
        if not alone and rng.random() < 0.3:
            away = corner + 900 + rng.random((k, 2)) * scale
            rows.append(row(image, away, float(rng.random())))
    return files(people, range(1, images + 1)), rows


def reference(truth, rows, thresholds=None, *, background=False, missed=False):
    """pycocotools; at every threshold unmatched results and people can be ignored."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = copy.deepcopy(truth)
        ground.createIndex()
        evaluator = COCOeval(ground, ground.loadRes(copy.deepcopy(rows)), "keypoints")
        evaluator.params.kpt_oks_sigmas = SIGMAS
        evaluator.params.areaRng, evaluator.params.areaRngLbl = [[0, 1e10]], ["all"]
        if thresholds is not None:
            evaluator.params.iouThrs = np.array(thresholds)
        evaluator.evaluate()
        values = []
        for t in range(len(evaluator.params.iouThrs)):
            once = copy.copy(evaluator)
            once.evalImgs = copy.deepcopy(evaluator.evalImgs)
            for image in filter(None, once.evalImgs):
                if background:
                    image["dtIgnore"] |= image["dtMatches"] == 0
                if missed:
                    image["gtIgnore"] = np.logical_or(
                        image["gtIgnore"], image["gtMatches"][t] == 0
                    )
            once.accumulate()
            values.append(once.eval["precision"][t])
    values = np.stack(values)
    return float(values[values > -1].mean()), evaluator


def diagnose(truth, rows, **options):
    return diagnose_results(truth, rows, SKELETON, resamples=50, **options)


@pytest.mark.parametrize("seed", range(3))
def test_matching_is_pycocotools_at_oks_one_tenth(seed):
    truth, rows = scene(seed)
    _, evaluator = reference(truth, rows, [0.1])
    pairs, ignored, background, missed = set(), set(), set(), set()
    for image in filter(None, evaluator.evalImgs):
        for d, g, skip in zip(
            image["dtIds"], image["dtMatches"][0], image["dtIgnore"][0]
        ):
            if g and not skip:
                pairs.add((d - 1, int(g) - 1))
            (ignored if skip else set() if g else background).add(d - 1)
        for g, d, skip in zip(image["gtIds"], image["gtMatches"][0], image["gtIgnore"]):
            if not skip and not d:
                missed.add(g - 1)
    found = match_people(Evaluation(truth, rows, SIGMAS), SKELETON)
    assert set(zip(found.row.tolist(), found.person.tolist())) == pairs
    assert set(found.background.tolist()) == background
    assert set(found.missed.tolist()) == missed
    assert found.counts["matched_to_ignored_people"] == len(ignored) > 0
    c = found.counts
    assert c["matched"] + c["missed_people"] == c["persons"]
    assert c["matched"] + c["background"] + len(ignored) == c["results"] == len(rows)


@pytest.mark.parametrize("seed", range(2))
def test_rows_of_the_table_equal_pycocotools(seed):
    truth, rows = scene(seed)
    record = diagnose(truth, rows)
    assert json.loads(json.dumps(record)) == record
    ap, alone = record["ap"], record["ap"]["one_at_a_time"]
    base, _ = reference(truth, rows)
    assert 0.02 < base < 0.9
    assert ap["baseline"] == pytest.approx(base, abs=1e-12)
    assert ap["baseline"] == coco_ap(truth, rows, sigmas=SIGMAS)["AP"]
    expected, _ = reference(truth, rows, background=True)
    assert alone["background"]["ap"] == pytest.approx(expected, abs=1e-9)
    expected, _ = reference(truth, rows, background=True, missed=True)
    assert alone["missed_people"]["ap"] == pytest.approx(expected, abs=1e-9) == 1.0
    # Corrected poses, put into the files, score what the table says.
    evaluation = Evaluation(truth, rows, SIGMAS)
    found = match_people(evaluation, SKELETON)
    errors = diagnosis.label_keypoints(
        evaluation.points[found.row, :, :2], evaluation.people, SKELETON,
        person=found.person,
    )  # fmt: skip
    for name in ("miss", "jitter", "inversion", "swap"):
        moved = copy.deepcopy(rows)
        for i, points in zip(found.row, diagnosis.corrected(errors, [name])):
            moved[i] = row(rows[i]["image_id"], points, rows[i]["score"])
        expected, _ = reference(truth, moved)
        assert alone[name]["ap"] == pytest.approx(expected, abs=1e-9)
        assert alone[name]["gain"] == pytest.approx(expected - base, abs=1e-9)
        assert alone[name]["corrected"] == int(errors.where(name).sum()) > 0
    cumulative = ap["cumulative"]
    assert [s["type"] for s in cumulative] == list(STEPS)
    assert cumulative[0]["gain"] == alone["miss"]["gain"]
    total = sum(step["gain"] for step in cumulative)
    assert ap["baseline"] + total == pytest.approx(1.0)
    assert cumulative[-1]["ap"] == 1.0
    assert total != pytest.approx(sum(r["gain"] for r in alone.values()), abs=1e-3)
    # The last keypoint step holds all corrections at once.
    moved = copy.deepcopy(rows)
    for i, points in zip(found.row, diagnosis.corrected(errors, diagnosis.ERRORS)):
        moved[i] = row(rows[i]["image_id"], points, rows[i]["score"])
    jitter = next(s for s in cumulative if s["type"] == "jitter")
    assert jitter["ap"] == pytest.approx(reference(truth, moved)[0], abs=1e-9)
    points = evaluation.points.copy()
    points[found.row, :, :2] = diagnosis.corrected(errors, diagnosis.ERRORS)
    for item, score in zip(moved, best_scores(evaluation, points)):
        item["score"] = float(score)
    scored = next(s for s in cumulative if s["type"] == "score")
    assert scored["ap"] == pytest.approx(reference(truth, moved)[0], abs=1e-9)
    assert sum(t["count"] for t in record["keypoints"]["types"].values() if t) == int(
        errors.labelled.sum()
    )


def off(points, area, similarity):
    """All keypoints at one similarity."""
    distance = np.sqrt(-2 * area * np.log(similarity)) * 2 * SIGMAS
    return points + distance[:, None] * [0.6, 0.8]


@pytest.mark.parametrize(
    ("similarity", "name", "before", "after", "defect"),
    [(0.72, "jitter", 0.5, 0.8, 1.0), (0.3, "miss", 0.0, 0.1, 0.7)],
)
def test_closed_form_and_the_defect_of_the_public_code(
    similarity, name, before, after, defect
):
    """AP = share of thresholds up to the similarity: .85 and .5, by the code's distances
    .960 and .841."""
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 4000, (6, 17, 2))
    people = [person(i + 1, i + 1, p, area=1e4) for i, p in enumerate(points)]
    rows = [row(i + 1, off(p, 1e4, similarity), 0.9) for i, p in enumerate(points)]
    truth = files(people, range(1, 7))
    for compatible, expected in ((False, after), (True, defect)):
        record = diagnose(truth, rows, compatible=compatible)
        assert record["ap"]["compatible"] is compatible
        assert record["ap"]["baseline"] == pytest.approx(before, abs=1e-12)
        alone = record["ap"]["one_at_a_time"]
        assert alone[name]["corrected"] == 6 * 17
        assert alone[name]["ap"] == pytest.approx(expected, abs=1e-12)
        assert alone[name]["gain"] == pytest.approx(expected - before, abs=1e-12)
        others = set(diagnosis.ERRORS) - {name}
        assert all(alone[o]["gain"] == 0 == alone[o]["corrected"] for o in others)
        # Nothing is left over: all people are found, nothing is background.
        assert record["matching"]["missed_people"] == 0
        assert alone["score"]["gain"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_gains_are_never_negative_for_single_people(seed):
    truth, rows = scene(seed, alone=True)
    record = diagnose(truth, rows)
    types = record["keypoints"]["types"]
    assert types["swap"] is None and types["inversion"]["count"] > 0
    alone = record["ap"]["one_at_a_time"]
    for name in diagnosis.ERRORS:
        assert alone[name]["gain"] >= -1e-12, name
    for step in record["ap"]["cumulative"]:
        assert step["gain"] >= -1e-12 or step["type"] == "score", step
    assert alone["miss"]["gain"] > 0.01 and alone["inversion"]["gain"] > 0.01


def mirrored_person(area):
    """A frontal person whose mirrored pose has OKS .09 at area 2,500."""
    left = {
        "eye": (4, -4), "ear": (8, -2), "shoulder": (17.5, 25), "elbow": (30, 50),
        "wrist": (34, 77.4), "hip": (10, 80), "knee": (11, 120), "ankle": (12, 160),
    }  # fmt: skip
    places = {"nose": (0, 0)}
    for word, (x, y) in left.items():
        places[f"left_{word}"], places[f"right_{word}"] = (x, y), (-x, y)
    points = np.array([places[k] for k in SKELETON.keypoints]) + 200.0
    return points, person(1, 1, points, area=area)


@pytest.mark.parametrize(("area", "matched"), [(1e4, 1), (2500, 0)])
def test_a_mirrored_pose_is_unmatched_when_small(area, matched):
    points, annotation = mirrored_person(area)
    flipped = points[SKELETON.mirrored]
    truth = files([annotation], [1])
    record = diagnose(truth, [row(1, flipped, 0.9)])
    counts = record["matching"]
    assert counts["matched"] == matched
    assert counts["background"] == counts["missed_people"] == 1 - matched
    assert counts["pose_inversion"] == 1 - matched
    if matched:
        assert record["keypoints"]["types"]["inversion"]["count"] == 16
        moved = record["ap"]["one_at_a_time"]["inversion"]
        assert moved["gain"] == pytest.approx(1.0)
    # One missed person is counted once, however many results mirror it.
    record = diagnose(truth, [row(1, flipped, 0.9), row(1, flipped + 1, 0.8)])
    assert record["matching"]["pose_inversion"] == 1 - matched
    # A result mirrors one person at most, and only if it fits (OKS > .5).
    if not matched:
        again = dict(annotation, id=2)
        record = diagnose(files([annotation, again], [1]), [row(1, flipped, 0.9)])
        assert record["matching"]["pose_inversion"] == 1
        assert record["matching"]["missed_people"] == 2
        record = diagnose(truth, [row(1, flipped + [0, 12], 0.9)])
        assert record["matching"]["background"] == 1
        assert record["matching"]["pose_inversion"] == 0
    # With given boxes there is no threshold.
    people = diagnosis.People(
        points[None], np.full((1, 17), 2), np.array([float(area)]), np.array([1])
    )
    errors = diagnosis.label_keypoints(flipped[None], people, SKELETON)
    assert errors.where("inversion").sum() == 16


def test_best_scores_by_hand():
    """Own OKS, times exp(-OKS^2 / .5) for each better result."""
    rng = np.random.default_rng(1)
    points = rng.uniform(0, 100, (17, 2))
    annotation = person(1, 1, points, area=1e4)
    other = person(2, 2, points, area=1e4)
    near, far = off(points, 1e4, 0.9), points + 5e3
    rows = [row(1, near, 0.1), row(1, points, 0.2), row(1, far, 0.9), row(2, near, 0.5)]
    crowd = person(1, 3, far, area=1e4, crowd=1)  # need not be found
    evaluation = Evaluation(files([annotation, other, crowd], [1, 2]), rows, SIGMAS)
    found = best_scores(evaluation, evaluation.points)
    sizes = [(p.max(0) - p.min(0)).prod() for p in (points, near)]
    squared = ((near - points) ** 2).sum(1)
    between = np.exp(-squared / (2 * np.mean(sizes) * (2 * SIGMAS) ** 2)).mean()
    expected = [0.9 * np.exp(-(between**2) / 0.5), 1.0, 0.0, 0.9]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_scores_that_rank_badly_cost_ap():
    rng = np.random.default_rng(2)
    points = rng.uniform(0, 300, (8, 17, 2))
    truth = files(
        [person(i + 1, i + 1, p, area=1e4) for i, p in enumerate(points)], range(1, 9)
    )
    rows = [row(i + 1, p, 0.1 + 0.01 * i) for i, p in enumerate(points)]
    rows += [row(i + 1, p + 3e3, 0.5) for i, p in enumerate(points)]
    record = diagnose(truth, rows)["ap"]
    alone = record["one_at_a_time"]
    assert record["baseline"] == pytest.approx(0.5)
    assert alone["score"]["ap"] == pytest.approx(1.0)
    assert alone["background"]["ap"] == pytest.approx(1.0)
    assert alone["missed_people"]["gain"] == pytest.approx(0.0)
    cumulative = {s["type"]: s["gain"] for s in record["cumulative"]}
    assert cumulative["score"] == pytest.approx(0.5)
    assert cumulative["background"] == pytest.approx(0.0)


def test_missed_people_and_the_limit_of_results():
    rng = np.random.default_rng(3)
    points = rng.uniform(0, 300, (10, 17, 2))
    truth = files(
        [person(i + 1, i + 1, p, area=1e4) for i, p in enumerate(points)], range(1, 11)
    )
    rows = [row(i + 1, p, 0.9) for i, p in enumerate(points[:6])]
    record = diagnose(truth, rows)
    alone = record["ap"]["one_at_a_time"]
    assert record["matching"]["missed_people"] == 4
    levels = np.mean(np.linspace(0, 1, 101) <= 0.6)
    assert record["ap"]["baseline"] == pytest.approx(levels)
    assert alone["background"]["gain"] == pytest.approx(0)
    assert alone["missed_people"]["gain"] == pytest.approx(1 - levels)
    many = rows + [row(1, points[0] + 3e3 + i, 1.0) for i in range(3)]
    record = diagnose(truth, many, max_detections=3)
    assert record["matching"]["results_beyond_limit"] == 1
    assert record["matching"]["missed_people"] == 5


def test_people_outside_the_range_are_not_counted():
    rng = np.random.default_rng(4)
    points = rng.uniform(0, 300, (6, 17, 2))
    areas = [900.0, 900, 900, 1e4, 1e4, 1e4]
    people = [
        person(i + 1, i + 1, p, area=a) for i, (p, a) in enumerate(zip(points, areas))
    ]
    rows = [row(i + 1, p + 0.5, 0.9) for i, p in enumerate(points)]
    people.append(person(4, 7, points[0], area=900.0))  # nobody finds this one
    truth = files(people, range(1, 7))
    everybody = diagnose(truth, rows)
    assert everybody["keypoints"]["labelled"] == 6 * 17
    assert everybody["ap"]["area_range"] == [0.0, 1e10]
    record = diagnose(truth, rows, area_range=(32.0**2, 1e10))
    assert record["keypoints"]["labelled"] == 3 * 17
    assert record["matching"]["persons"] == 3
    assert record["matching"]["matched_to_ignored_people"] == 3
    assert record["matching"]["background"] == 0
    assert record["ap"]["baseline"] == 1.0
    assert "1024 to 1e+10" in record["protocol"]


def test_absent_keypoints_and_nobody():
    points, annotation = mirrored_person(1e4)
    guess, v = points.copy(), np.ones(17)
    guess[:4], v[:4] = 0, 0
    truth = files([annotation], [1])
    record = diagnose(truth, [row(1, guess, 0.9, v)])
    assert record["keypoints"]["types"]["absent"]["count"] == 4
    assert record["ap"]["one_at_a_time"]["absent"]["gain"] > 0.05
    record = diagnose(truth, [row(1, guess, 0.9, v)], keypoint_scores=False)
    assert record["keypoints"]["types"]["absent"] is None
    assert record["keypoints"]["types"]["miss"]["count"] == 4
    empty = diagnose(truth, [])
    assert empty["ap"]["baseline"] == 0.0 and empty["matching"]["missed_people"] == 1
    nobody = diagnose(files([], [1]), [row(1, guess, 0.9)])
    assert nobody["ap"]["baseline"] is None
    assert nobody["ap"]["one_at_a_time"]["jitter"]["gain"] is None
    assert nobody["matching"]["background"] == 1
    assert json.loads(json.dumps(nobody)) == nobody


def test_gains_of_categories_and_word_ids():
    """Image ids may be words; people of another category are no neighbours."""
    points, annotation = mirrored_person(1e4)
    neighbour = dict(person(1, 2, points + 60.0, area=1e4), category_id=2)
    truth = files([annotation, neighbour], [1])
    truth["categories"].append({"id": 2, "name": "statue"})
    guess = points.copy()
    guess[9] = points[9] + 60
    rows = [row(1, guess, 0.9)]
    record = diagnose(truth, rows)
    assert record["keypoints"]["types"]["swap"] is None
    assert record["keypoints"]["types"]["miss"]["count"] == 1
    # Nor are those of another category of the next picture.
    neighbour["image_id"], truth["images"] = 2, [{"id": 1}, {"id": 2}]
    annotation["category_id"] = rows[0]["category_id"] = 2
    neighbour["category_id"] = 1
    record = diagnose(truth, rows)
    assert record["keypoints"]["types"]["swap"] is None
    neighbour["image_id"], truth["images"] = 1, [{"id": 1}]
    annotation["category_id"] = rows[0]["category_id"] = 1
    record = diagnose(truth, rows)
    assert record["keypoints"]["types"]["swap"]["count"] == 1
    for item in [*truth["annotations"], *rows]:
        item["image_id"] = "a.jpg"
    truth["images"] = [{"id": "a.jpg"}]
    assert diagnose(truth, rows) == record


@pytest.mark.parametrize("skeleton", [skeletons.COCO, skeletons.LSP])
def test_given_boxes_are_matched_by_identity(skeleton):
    k, rng = skeleton.num_keypoints, np.random.default_rng(0)
    points = rng.uniform(0, 200, (50, k, 2))
    people = diagnosis.People(
        points, rng.choice(3, (50, k)), np.full(50, 8e3), np.arange(50)
    )
    people.visible[3] = 0  # counts nowhere
    guess = points + rng.normal(0, 6, points.shape)
    guess[:10] = points[:10, skeleton.mirrored]
    guess[10:15] += 500.0  # nowhere near: still this person's
    scores = np.where(rng.random((50, k)) < 0.1, 0.0, 1.0)
    record = diagnose_given_boxes(
        guess, people, skeleton, scores=scores, normaliser=np.full(50, 200.0),
        factors={"size": people.area + np.arange(50)}, resamples=50,
    )  # fmt: skip
    assert json.loads(json.dumps(record)) == record
    assert "identity" in record["protocol"]
    types = record["keypoints"]["types"]
    assert types["swap"] is None and types["inversion"]["count"] > 30
    total = sum(t["count"] for t in types.values() if t)
    assert total == record["keypoints"]["labelled"] == int((people.visible > 0).sum())
    assert record["keypoints"]["distance"]["miss"][2] > 2
    assert len(record["slices"]["size"]["bins"]) == 4
    # A mean is linear: here gains add up.
    oks = record["oks"]
    gains = {name: row["gain"] for name, row in oks["one_at_a_time"].items()}
    assert gains.pop("swap") == gains.pop("confusion") == 0
    assert all(gain > 0 for gain in gains.values())
    errors = diagnosis.label_keypoints(guess, people, skeleton, scores=scores)
    moved = diagnosis.corrected(errors, diagnosis.ERRORS)
    by_person = [
        diagnose_given_boxes(
            guess[i : i + 1],
            diagnosis.People(
                points[i : i + 1], people.visible[i : i + 1], people.area[:1], np.arange(1)
            ),
            skeleton, resamples=1,
        )["oks"]["baseline"]
        for i in range(50)
    ]  # fmt: skip
    assert by_person[3] is None
    assert oks["baseline"] == pytest.approx(
        np.mean([v for v in by_person if v is not None])
    )
    again = diagnose_given_boxes(moved, people, skeleton, resamples=5)
    assert again["oks"]["baseline"] == pytest.approx(
        oks["baseline"] + sum(gains.values())
    )
    worse = diagnose_given_boxes(
        guess, people, skeleton, scores=scores, compatible=True, resamples=5
    )
    assert worse["oks"]["one_at_a_time"]["jitter"]["gain"] > gains["jitter"]


def test_gains_need_the_rows_of_the_errors():
    truth, rows = scene(5)
    evaluation = Evaluation(truth, rows, SIGMAS)
    found = match_people(evaluation, SKELETON)
    order = np.argsort(-found.row)
    whole = [
        ap_gains(
            evaluation,
            diagnosis.label_keypoints(
                evaluation.points[found.row[o], :, :2], evaluation.people, SKELETON,
                person=found.person[o],
            ),
            found.row[o],
        )
        for o in (np.arange(len(order)), order)
    ]  # fmt: skip
    assert whole[0] == whole[1]
