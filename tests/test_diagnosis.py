"""Error types against hand-made cases, a slow loop, and what must not change them."""

import json
import time

import numpy as np
import pytest

from pose_jax import skeletons
from pose_jax.metrics import diagnosis, diagnosis_slices, similarity
from pose_jax.metrics.diagnosis import LABELS, People, corrected, label_keypoints

AREA = 1e4
# Left side of a person seen from the front; the right side is its mirror image.
LEFT = {
    "eye": (4, -4), "ear": (8, -2), "shoulder": (17.5, 25), "elbow": (30, 50),
    "wrist": (34, 77.4), "hip": (10, 80), "knee": (11, 120), "ankle": (12, 160),
}  # fmt: skip
MIDDLE = {"nose": (0, 0), "neck": (0, 18), "head_top": (0, -20)}
SHIFT = np.array([60.0, 5.0])


def body(skeleton):
    places = {**MIDDLE}
    for word, (x, y) in LEFT.items():
        places[f"left_{word}"], places[f"right_{word}"] = (x, y), (-x, y)
    return np.array([places[k] for k in skeleton.keypoints], float) + 200


def crowd(*points, area=AREA, visible=2):
    """People of one picture."""
    points = np.stack(points)
    areas = np.broadcast_to(np.asarray(area, float), len(points)).copy()
    flags = np.full(points.shape[:2], visible)
    return People(points, flags, areas, np.zeros(len(points), int))


def label_one(skeleton, moved, *, neighbour=False, unlabelled=(), area=AREA, **options):
    """Labels by name of person 0 whose named joints are predicted elsewhere."""
    points = body(skeleton)
    people = crowd(*([points, points + SHIFT] if neighbour else [points]), area=area)
    for name in unlabelled:
        people.visible[0, skeleton.index(name)] = 0
    predicted = points.copy()
    for name, place in moved.items():
        predicted[skeleton.index(name)] = place
    errors = label_keypoints(
        predicted[None], people, skeleton, person=np.array([0]), **options
    )
    words = [LABELS[i] if i >= 0 else None for i in errors.label[0]]
    return dict(zip(skeleton.keypoints, words)), errors


BODIES = [skeletons.COCO, skeletons.LSP]
both = pytest.mark.parametrize("skeleton", BODIES, ids=lambda s: s.name)


@both
def test_case_1_perfect(skeleton):
    found, errors = label_one(skeleton, {})
    assert set(found.values()) == {"good"}
    np.testing.assert_array_equal(errors.own, 1.0)


@both
@pytest.mark.parametrize(
    ("pixels", "similarity", "label"),
    [(7.0, 0.853, "good"), (7.1, 0.849, "jitter"), (10, 0.722, "jitter"),
     (14.5, 0.505, "jitter"), (14.7, 0.495, "miss")],
)  # fmt: skip
def test_cases_2_to_6_a_wrist_moves_away(skeleton, pixels, similarity, label):
    wrist = body(skeleton)[skeleton.index("left_wrist")]
    found, errors = label_one(skeleton, {"left_wrist": wrist + [pixels, 0]})
    assert found.pop("left_wrist") == label and set(found.values()) == {"good"}
    own = errors.own[0, skeleton.index("left_wrist")]
    assert own == pytest.approx(similarity, abs=5e-4)


@both
def test_cases_7_8_inversion_and_unlabelled_twin(skeleton):
    place = body(skeleton)[skeleton.index("right_wrist")]
    moved = {"left_wrist": place}
    joint = skeleton.index("left_wrist")
    found, errors = label_one(skeleton, moved)
    assert found.pop("left_wrist") == "inversion" and set(found.values()) == {"good"}
    assert errors.own[0, joint] < 1e-3 and errors.twin[0, joint] == 1
    assert errors.strict[0, joint] and not errors.untestable.any()
    found, errors = label_one(skeleton, moved, unlabelled=["right_wrist"])
    assert found["left_wrist"] == "miss" and found["right_wrist"] is None
    assert errors.twin[0, joint] == -1
    assert np.flatnonzero(errors.untestable[0]).tolist() == [joint]


@both
def test_case_9_wrong_part(skeleton):
    moved = {"left_wrist": body(skeleton)[skeleton.index("left_elbow")]}
    found, errors = label_one(skeleton, moved)
    assert found["left_wrist"] == "miss"
    own = errors.own[0, skeleton.index("left_wrist")]
    assert own == pytest.approx(0.083, abs=5e-4)
    found, _ = label_one(skeleton, moved, any_part=True)
    assert found.pop("left_wrist") == "confusion" and set(found.values()) == {"good"}
    far = {"left_wrist": np.array([900.0, 900.0])}
    assert label_one(skeleton, far, any_part=True)[0]["left_wrist"] == "miss"
    # Not a label: not a part.
    found, _ = label_one(skeleton, moved, any_part=True, unlabelled=["left_elbow"])
    assert found["left_wrist"] == "miss"


@both
def test_case_10_places_of_a_neighbour(skeleton):
    points = body(skeleton)
    wrist, joint = skeleton.index("left_wrist"), "left_wrist"
    place = points[wrist] + SHIFT
    found, errors = label_one(skeleton, {joint: place}, neighbour=True)
    assert found.pop(joint) == "swap" and set(found.values()) == {"good"}
    assert (errors.others[0, wrist], errors.source[0, wrist]) == (1, 1)
    assert errors.own[0, wrist] < 1e-3 and not errors.lonely
    place = points[skeleton.index("right_wrist")] + SHIFT
    found, errors = label_one(skeleton, {joint: place}, neighbour=True)
    assert found[joint] == "swap"  # although near its own place
    assert errors.own[0, wrist] == pytest.approx(0.749, abs=5e-4)
    middle = "nose" if skeleton.name == "coco" else "neck"
    place = points[skeleton.index(middle)] + SHIFT
    found, errors = label_one(skeleton, {middle: place}, neighbour=True)
    assert found[middle] == "swap"
    assert errors.twin[0, skeleton.index(middle)] == -1
    # Alone it would be a miss.
    assert label_one(skeleton, {middle: place})[0][middle] == "miss"


@both
def test_case_11_a_giant_neighbour(skeleton):
    wrist = skeleton.index("left_wrist")
    place = body(skeleton)[wrist] + SHIFT + [20, 0]
    found, errors = label_one(
        skeleton, {"left_wrist": place}, neighbour=True, area=[AREA, 4 * AREA]
    )
    assert found["left_wrist"] == "swap"
    assert errors.others[0, wrist] == pytest.approx(0.722, abs=5e-4)
    assert errors.source_distance[0, wrist] == pytest.approx(20)
    people = crowd(body(skeleton), body(skeleton) + SHIFT, area=[AREA, 4 * AREA])
    record = diagnosis_slices.error_counts(errors, people, skeleton)
    assert record["swap"]["share_not_near_by_own_area"] == 1.0
    assert record["swap"]["share_beyond_20_px"] == 0.0
    found, _ = label_one(skeleton, {"left_wrist": place}, neighbour=True)
    assert found["left_wrist"] == "miss"


@both
@pytest.mark.parametrize(
    ("share", "own", "twin", "label"),
    [(0.45, 0.915, 0.876, "good"), (0.5, 0.897, 0.897, "good"),
     (0.55, 0.876, 0.915, "inversion")],
)  # fmt: skip
def test_case_12_between_the_hips(skeleton, share, own, twin, label):
    points, joint = body(skeleton), skeleton.index("left_hip")
    way = points[skeleton.index("right_hip")] - points[joint]
    found, errors = label_one(skeleton, {"left_hip": points[joint] + share * way})
    assert found["left_hip"] == label
    assert errors.own[0, joint] == pytest.approx(own, abs=5e-4)
    assert errors.twin[0, joint] == pytest.approx(twin, abs=5e-4)
    assert not errors.strict.any()  # near its own place as well


def test_case_13_the_eyes():
    points, coco = body(skeletons.COCO), skeletons.COCO
    place = points[coco.index("right_eye")]
    found, errors = label_one(coco, {"left_eye": place})
    assert found["left_eye"] == "inversion"
    assert errors.own[0, coco.index("left_eye")] == pytest.approx(0.278, abs=5e-4)


@both
def test_case_14_the_whole_pose_mirrored(skeleton):
    points = body(skeleton)
    found, errors = label_one(
        skeleton, dict(zip(skeleton.keypoints, points[skeleton.mirrored]))
    )
    middle = {k for k in found if k in MIDDLE}
    assert {k for k, v in found.items() if v == "good"} == middle
    assert {v for k, v in found.items() if k not in middle} == {"inversion"}
    assert errors.own[0, skeleton.index("left_hip")] == pytest.approx(0.646, abs=5e-4)
    if skeleton.name == "coco":
        assert errors.own.mean() == pytest.approx(0.287, abs=1e-3)  # OKS


@both
def test_case_15_absent_is_listed_apart(skeleton):
    scores = np.ones((1, skeleton.num_keypoints))
    moved = {"left_wrist": np.zeros(2)}
    found, _ = label_one(skeleton, moved, scores=scores)
    assert found["left_wrist"] == "miss"
    scores[0, skeleton.index("left_wrist")] = 0
    found, _ = label_one(skeleton, moved, scores=scores)
    assert found.pop("left_wrist") == "absent" and set(found.values()) == {"good"}
    # Wherever the coordinates are.
    assert label_one(skeleton, {}, scores=scores)[0]["left_wrist"] == "absent"


@both
def test_case_16_unlabelled_has_no_label(skeleton):
    moved = {"left_wrist": np.array([5.0, 900.0])}
    found, errors = label_one(skeleton, moved, unlabelled=["left_wrist"])
    assert found["left_wrist"] is None
    assert errors.labelled.sum() == skeleton.num_keypoints - 1
    moved = corrected(errors, ["miss", "jitter"])
    np.testing.assert_array_equal(moved, errors.predicted)


def test_case_17_neck_on_the_head_top():
    points, lsp = body(skeletons.LSP), skeletons.LSP
    found, errors = label_one(lsp, {"neck": points[lsp.index("head_top")]})
    assert found["neck"] == "miss"
    assert errors.own[0, lsp.index("neck")] < 0.5
    assert errors.twin[0, lsp.index("neck")] == -1


def test_exactly_at_the_margins_and_ties_between_people():
    coco = skeletons.COCO
    wrist = coco.index("left_wrist")
    kappa = 2 * coco.sigmas[wrist]
    for t, label in ((0.85, "good"), (0.5, "jitter")):
        distance = np.sqrt(-2 * AREA * kappa**2 * np.log(t))
        for angle in np.linspace(0, 6, 25):
            way = distance * np.array([np.cos(angle), np.sin(angle)])
            found, _ = label_one(coco, {"left_wrist": body(coco)[wrist] + way})
            assert found["left_wrist"] == label
    # Own before others before twin.
    points = body(coco)
    people = crowd(points, points)
    errors = label_keypoints(points[None], people, coco, person=np.array([0]))
    assert (errors.label == diagnosis.GOOD).all()
    predicted = points.copy()
    predicted[wrist] = points[coco.index("right_wrist")]
    other = points.copy()
    other[wrist] = predicted[wrist]  # their left wrist: before the twin
    people = crowd(points, other)
    errors = label_keypoints(predicted[None], people, coco, person=np.array([0]))
    assert LABELS[errors.label[0, wrist]] == "swap"
    people = crowd(points, points)  # their right wrist: behind it
    errors = label_keypoints(predicted[None], people, coco, person=np.array([0]))
    assert LABELS[errors.label[0, wrist]] == "inversion"


def test_rounding_decides_no_tie():
    """Half way between the hips, wherever the person stands and however large."""
    coco, rng = skeletons.COCO, np.random.default_rng(0)
    scale = rng.uniform(0.1, 3, 200)
    points = body(coco) * scale[:, None, None] + rng.uniform(0, 999, (200, 1, 2))
    hips = [coco.index("left_hip"), coco.index("right_hip")]
    predicted = points.copy()
    predicted[:, hips] = points[:, hips].mean(1, keepdims=True)
    people = People(points, np.full((200, 17), 2), AREA * scale**2, np.arange(200))
    errors = label_keypoints(predicted, people, coco)
    assert (errors.own < errors.twin).any()  # by the last bit
    assert (errors.label == diagnosis.GOOD).all()


# ---- random scenes ----


def scene(seed=0, skeleton=skeletons.COCO, images=25):
    """Pictures of 1 to 4 people, predictions of every kind of error, missing labels."""
    rng = np.random.default_rng(seed)
    points, visible, area, image, predicted, person = [], [], [], [], [], []
    for picture in rng.permutation(images):
        corner = rng.uniform(0, 300, 2)
        first = len(points)
        for _ in range(rng.integers(1, 5)):
            scale = rng.uniform(0.4, 1.6)
            points.append(
                body(skeleton) * scale + corner + rng.normal(0, 40, 2)
                + rng.normal(0, 5, (skeleton.num_keypoints, 2))
            )  # fmt: skip
            visible.append(rng.choice(3, skeleton.num_keypoints, p=[0.15, 0.25, 0.6]))
            area.append(AREA * scale**2 * rng.uniform(0.6, 1.4))
            image.append(picture)
        for who in range(first, len(points)):
            if rng.random() < 0.2:
                continue
            guess = points[who] + rng.normal(0, 4, points[who].shape)
            kind = rng.integers(0, 5, len(guess))
            guess[kind == 1] = points[who][skeleton.mirrored][kind == 1]
            guess[kind == 2] = points[rng.integers(first, len(points))][kind == 2]
            guess[kind == 3] += rng.normal(0, 30, 2)
            predicted.append(guess)
            person.append(who)
    people = People(
        np.array(points), np.array(visible), np.array(area), np.array(image)
    )
    order = rng.permutation(len(person))
    return np.array(predicted)[order], people, np.array(person)[order]


def slow_labels(predicted, people, person, skeleton):
    """One keypoint after the other, rows in the order of the published code."""
    found = np.full(predicted.shape[:2], -1)
    for i, who in enumerate(person):
        there = [
            h for h in range(len(people.area)) if people.image[h] == people.image[who]
        ]
        rest = [h for h in there if h != who]
        for k, p in enumerate(predicted[i]):
            if not people.visible[who, k]:
                continue
            twin = skeleton.mirrored[k]
            rows = [(who, k, "own"), *((h, k, "swap") for h in rest)]
            if twin != k:
                rows += [(who, twin, "twin"), *((h, twin, "swap") for h in rest)]
            best, kind = -1.0, "own"
            for h, j, name in rows:
                if not people.visible[h, j]:
                    continue
                squared = ((p - people.points[h, j]) ** 2).sum()
                variance = (2 * skeleton.sigmas[k]) ** 2
                value = np.exp(-squared / variance / people.area[h] / 2)
                if value > best + 1e-12:
                    best, kind = value, name
            if best < 0.5:
                label = "miss"
            elif kind == "own":
                label = "good" if best >= 0.85 else "jitter"
            else:
                label = {"twin": "inversion", "swap": "swap"}[kind]
            found[i, k] = LABELS.index(label)
    return found


@pytest.mark.parametrize("skeleton", BODIES, ids=lambda s: s.name)
def test_equals_the_slow_loop(skeleton):
    predicted, people, person = scene(1, skeleton)
    errors = label_keypoints(predicted, people, skeleton, person=person)
    expected = slow_labels(predicted, people, person, skeleton)
    np.testing.assert_array_equal(errors.label, expected)
    assert {*np.unique(expected)} == {-1, 0, 1, 2, 3, 4}
    # The source of a swap is where the similarity comes from.
    for i, k in np.argwhere(errors.where("swap")):
        h, area = errors.source[i, k], people.area[errors.source[i, k]]
        assert h != person[i] and people.image[h] == people.image[person[i]]
        value = np.exp(
            -(errors.source_distance[i, k] ** 2)
            / (2 * area * (2 * skeleton.sigmas[k]) ** 2)
        )
        assert value == pytest.approx(errors.others[i, k], rel=1e-9)


@pytest.mark.parametrize("change", ["translate", "scale", "mirror", "names", "shuffle"])
def test_what_must_not_change_labels(change):
    coco = skeletons.COCO
    predicted, people, person = scene(2)
    before = label_keypoints(predicted, people, coco, person=person)
    points, visible, area, image = (
        people.points,
        people.visible,
        people.area,
        people.image,
    )
    expected = before.label
    if change == "translate":
        predicted, points = predicted + [512.3, -77.1], points + [512.3, -77.1]
    elif change == "scale":
        predicted, points, area = predicted * 3.7, points * 3.7, area * 3.7**2
    elif change in ("mirror", "names"):
        side = np.array([-1, 1]) if change == "mirror" else np.ones(2)
        predicted, points = (
            predicted[:, coco.mirrored] * side,
            points[:, coco.mirrored] * side,
        )
        visible, expected = visible[:, coco.mirrored], expected[:, coco.mirrored]
    else:
        order = np.random.default_rng(0).permutation(len(area))
        points, visible, area, image = (
            x[order] for x in (points, visible, area, image)
        )
        person = np.argsort(order)[person]
    after = label_keypoints(
        predicted, People(points, visible, area, image), coco, person=person
    )
    np.testing.assert_array_equal(after.label, expected)


@pytest.mark.parametrize("compatible", [False, True])
def test_corrected_poses(compatible):
    coco = skeletons.COCO
    predicted, people, person = scene(3)
    scores = np.where(
        np.random.default_rng(0).random(predicted.shape[:2]) < 0.1, 0.0, 1.0
    )
    errors = label_keypoints(
        predicted, people, coco, person=person, scores=scores, any_part=True
    )
    for name in diagnosis.ERRORS:
        moved = corrected(errors, [name], compatible=compatible)
        where = errors.where(name)
        assert where.any(), name
        np.testing.assert_array_equal(moved[~where], predicted[~where])
        after = similarity.keypoint_similarity(
            moved, people.points[person], people.area[person], coco.sigmas
        )
        assert (after[where] >= errors.own[where]).all(), name
        goal = {"jitter": 0.85, "miss": 0.5, "confusion": 0.5}.get(
            name, np.maximum(errors.twin, errors.others)[where]
        )
        if name == "absent":
            goal = np.maximum(errors.own[where], 0.5)
            if compatible:
                goal = np.where(errors.own[where] < 0.5, 0.5**0.25, goal)
        elif compatible:
            goal = goal**0.25
        np.testing.assert_allclose(after[where], goal, atol=1e-6)
        # The bearing stays.
        old = (predicted - people.points[person])[where]
        new = (moved - people.points[person])[where]
        cosine = (old * new).sum(1) / np.maximum(
            np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1), 1e-300
        )
        apart = np.linalg.norm(new, axis=1) > 1e-3
        np.testing.assert_allclose(cosine[apart], 1, atol=1e-9)
    # Types do not disturb each other, and a corrected keypoint is no longer an error.
    both = corrected(errors, ["miss", "jitter"], compatible=compatible)
    one = corrected(errors, ["miss"], compatible=compatible)
    np.testing.assert_array_equal(both[errors.where("miss")], one[errors.where("miss")])


def test_published_distances_of_the_defect():
    """Wrist, area 10^4: 7.07 and 14.60 px; the code moves to 3.53 and 7.30."""
    coco, joint = skeletons.COCO, skeletons.COCO.index("left_wrist")
    wrist = body(coco)[joint]
    for start, right, code in ((10, 7.07, 3.53), (40, 14.60, 7.30)):
        _, errors = label_one(coco, {"left_wrist": wrist + [start, 0]})
        for flag, pixels in ((False, right), (True, code)):
            moved = corrected(errors, ["jitter", "miss"], compatible=flag)[0, joint]
            assert np.linalg.norm(moved - wrist) == pytest.approx(pixels, abs=6e-3)


def test_counts_sum_and_are_json():
    coco = skeletons.COCO
    predicted, people, person = scene(4)
    scores = np.random.default_rng(1).uniform(-0.1, 1, predicted.shape[:2])
    errors = label_keypoints(predicted, people, coco, person=person, scores=scores)
    side = np.sqrt(errors.area)
    record = diagnosis_slices.error_counts(errors, people, coco, normaliser=side)
    assert json.loads(json.dumps(record)) == record
    total = int((people.visible[person] > 0).sum())
    assert record["labelled"] == total
    counts = {k: v["count"] for k, v in record["types"].items() if v}
    assert sum(counts.values()) == total and record["types"]["confusion"] is None
    assert counts["absent"] == int(((scores <= 0) & (people.visible[person] > 0)).sum())
    for name, row in record["types"].items():
        if row:
            assert 0 <= row["low"] <= row["share"] <= row["high"] <= 1
            assert sum(j[name] for j in record["joints"].values()) == row["count"]
    for row in record["joints"].values():
        assert sum(row[k] for k in counts) == row["labelled"]
    strict = record["inversion"]["strict"]
    assert 0 < strict <= counts["inversion"]
    distance = (
        np.linalg.norm(predicted - people.points[person], axis=-1) / side[:, None]
    )
    assert record["distance"]["miss"][1] == np.median(distance[errors.where("miss")])
    assert record["sigmas_source"] == coco.sigmas_source
    assert record["sigmas"]["nose"] == 0.026


def test_single_people_have_no_swap_column():
    lsp = skeletons.LSP
    points = np.stack([body(lsp), body(lsp) + 3])
    people = People(points, np.full((2, 14), 2), np.full(2, AREA), np.array(["a", "b"]))
    errors = label_keypoints(points + 4.0, people, lsp)
    record = diagnosis_slices.error_counts(errors, people, lsp)
    assert errors.lonely and record["swap"] is None and record["types"]["swap"] is None
    assert all(j["swap"] is None for j in record["joints"].values())
    assert any("n/a" in note for note in record["notes"])
    # A second person without a label or an area cannot be a source either.
    people.visible[1] = 0
    together = People(points, people.visible, people.area, np.array(["a", "a"]))
    assert label_keypoints(points[:1], together, lsp, person=np.array([0])).lonely
    people.visible[1] = 2
    assert not label_keypoints(points[:1], together, lsp, person=np.array([0])).lonely


def test_any_part_splits_misses_only():
    coco = skeletons.COCO
    predicted, people, person = scene(5)
    plain = label_keypoints(predicted, people, coco, person=person)
    more = label_keypoints(predicted, people, coco, person=person, any_part=True)
    split = more.where("confusion")
    assert split.any() and more.where("miss").any()
    assert plain.where("miss")[split].all()
    np.testing.assert_array_equal(plain.label[~split], more.label[~split])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(predicted=np.full((1, 17, 2), np.nan)), "not finite"),
        (lambda a: a["people"].area.__setitem__(0, 0.0), "row 0 has area 0.0"),
        (lambda a: a.update(person=np.array([3])), "rows of the 1 people"),
        (lambda a: a.update(sigmas=[0.1]), "one positive sigma"),
    ],
)
def test_bad_input_is_refused(change, message):
    coco = skeletons.COCO
    people = crowd(body(coco))
    asked = dict(
        predicted=body(coco)[None], people=people, skeleton=coco, person=np.array([0])
    )
    change(asked)
    with pytest.raises(ValueError, match=message):
        label_keypoints(**asked)
    _, errors = label_one(coco, {})
    with pytest.raises(ValueError, match="cannot correct"):
        corrected(errors, ["good"])
    with pytest.raises(ValueError, match="unknown label"):
        errors.where("jiter")


def test_a_hundred_thousand_keypoints_take_seconds():
    predicted, people, person = scene(6, images=100)
    many = 100_000 // predicted[..., 0].size + 1
    n, m = len(person), len(people.area)
    big = People(
        np.tile(people.points, (many, 1, 1)), np.tile(people.visible, (many, 1)),
        np.tile(people.area, many), np.repeat(np.arange(many) * 1000, m)
        + np.tile(people.image, many),
    )  # fmt: skip
    person = np.tile(person, many) + np.repeat(np.arange(many) * m, n)
    start = time.process_time()
    errors = label_keypoints(
        np.tile(predicted, (many, 1, 1)), big, skeletons.COCO, person=person
    )
    corrected(errors, diagnosis.ERRORS)
    assert errors.label.size >= 100_000
    assert time.process_time() - start < 5
    np.testing.assert_array_equal(errors.label[:n], errors.label[-n:])


# ---- slices ----


def test_quantile_bins():
    number, edges = diagnosis_slices.quantile_bins(np.arange(9.0), 3)
    assert np.bincount(number).tolist() == [3, 3, 3] and len(edges) == 4
    number, _ = diagnosis_slices.quantile_bins(np.array([2.0, np.nan, 2.0]), 3)
    assert number.tolist() == [0, -1, 0]
    # Most people overlap with nobody: zero is its own bin.
    values = np.r_[np.zeros(60), np.linspace(0.01, 1, 40)]
    number, edges = diagnosis_slices.quantile_bins(values, 4)
    assert (number[:60] == 0).all() and (number[60:] > 0).all()
    assert edges[0] == edges[1] == 0
    with pytest.raises(ValueError, match="0 values cannot fill"):
        diagnosis_slices.quantile_bins(np.array([np.nan]))


def test_crowding_and_truncation():
    boxes = np.array([[0, 0, 10, 10], [5, 0, 10, 10], [0, 0, 10, 10], [50, 50, 5, 5.0]])
    image = np.array([1, 1, 2, 1])
    found = diagnosis_slices.crowding(boxes, image)
    np.testing.assert_allclose(found, [1 / 3, 1 / 3, 0, 0])
    size = np.tile([100.0, 60.0], (4, 1))
    inside = np.array([[5, 5, 10, 10], [5, 5, 10, 54], [90, 5, 9, 9], [1, 9, 9, 9.0]])
    assert diagnosis_slices.truncated(inside, size).tolist() == [
        False,
        True,
        True,
        True,
    ]


def test_slices_find_the_planted_factor():
    """Large people are answered well, small ones off by a fixed number of pixels."""
    coco, rng = skeletons.COCO, np.random.default_rng(0)
    n = 120
    scale = rng.uniform(0.3, 2, n)
    points = body(coco) * scale[:, None, None]
    people = People(
        points, rng.choice([1, 2], (n, 17)), AREA * scale**2, np.arange(n) // 2
    )
    people.visible[::5, 3] = 0
    errors = label_keypoints(points + np.array([6.0, 0.0]), people, coco)
    factors = {
        "size": people.area,
        "visibility": people.visible,
        "even": np.where(np.arange(n) % 2 > 0, "odd", "even"),
        "half": np.where(np.arange(n) < 60, np.nan, scale),
    }
    record = diagnosis_slices.error_slices(errors, people, coco, factors, resamples=200)
    assert json.loads(json.dumps(record)) == record
    size = record["size"]["bins"]
    good = [row["types"]["good"]["share"] for row in size]
    assert len(size) == 4 and good == sorted(good) and good[-1] - good[0] > 0.5
    assert size[-1]["types"]["good"]["low"] > size[0]["types"]["good"]["high"]
    assert [row["label"]["value"] for row in record["visibility"]["bins"]] == [1, 2]
    shares = [r["types"]["good"]["share"] for r in record["visibility"]["bins"]]
    assert abs(shares[0] - shares[1]) < 0.05
    assert [r["label"]["value"] for r in record["even"]["bins"]] == ["even", "odd"]
    assert record["half"]["left_out"] == 60 * 17 - 12
    for row in record.values():
        used = sum(r["labelled"] for r in row["bins"])
        assert used + row["left_out"] == n * 17 - 24
        for part in row["bins"]:
            types = [t["count"] for t in part["types"].values() if t]
            assert sum(types) == part["labelled"]
    with pytest.raises(ValueError, match="factor 'size' has shape"):
        diagnosis_slices.error_slices(errors, people, coco, {"size": scale[:3]})


def test_intervals_resample_pictures():
    """Copies of a person in one picture tell nothing new."""
    coco, rng = skeletons.COCO, np.random.default_rng(0)
    points = np.tile(body(coco), (30, 1, 1))
    predicted = points + rng.normal(0, 8, (30, 1, 1)) * np.ones((1, 17, 2))
    ends = []
    for copies in (1, 6):
        many = [np.repeat(x, copies, axis=0) for x in (points, predicted)]
        image = np.repeat(np.arange(30), copies)
        people = People(
            many[0], np.full(many[0].shape[:2], 2), np.full(len(image), AREA), image
        )
        errors = label_keypoints(many[1], people, coco)
        row = diagnosis_slices.error_counts(errors, people, coco)["types"]["good"]
        ends.append((row["share"], row["low"], row["high"]))
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-12)
    assert ends[0][2] - ends[0][1] > 0.1
