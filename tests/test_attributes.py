"""Attributes worked by hand; correlations against SciPy and slow bootstraps."""

import numpy as np
import pytest
import scipy.stats

from pose_jax import skeletons
from pose_jax.analysis.attributes import attributes, binned, correlate

STANDING = dict(
    right_shoulder=(35, 50), left_shoulder=(65, 50), right_hip=(40, 100),
    left_hip=(60, 100), right_knee=(40, 150), left_knee=(60, 150),
    right_ankle=(40, 200), left_ankle=(60, 200), right_elbow=(35, 80),
    right_wrist=(75, 120),
)  # fmt: skip


def person(joints, skeleton=skeletons.LSP, occluded=()):
    points = np.full((skeleton.num_keypoints, 2), 1e6)  # Never read where not labelled.
    visible = np.zeros(skeleton.num_keypoints, int)
    for name, place in joints.items():
        points[skeleton.index(name)] = place
        visible[skeleton.index(name)] = 1 if name in occluded else 2
    return points, visible


def describe(*people, boxes=None, sizes=None, skeleton=skeletons.LSP):
    points, visible = (np.stack(v) for v in zip(*people))
    boxes = (
        np.tile([20.0, 20.0, 60.0, 200.0], (len(people), 1)) if boxes is None else boxes
    )
    return attributes(points, visible, boxes, sizes, skeleton)


def moved(joints, function):
    return {name: tuple(function(np.array(p))) for name, p in joints.items()}


def other_side(name):
    a, b = ("left", "right") if name.startswith("left") else ("right", "left")
    return name.replace(a, b)


MIRRORED = {
    other_side(n): p for n, p in moved(STANDING, lambda p: (100 - p[0], p[1])).items()
}
AWAY = moved(STANDING, lambda p: (100 - p[0], p[1]))
HEAD_DOWN = moved(STANDING, lambda p: -p)


def test_a_standing_person():
    found = describe(person(STANDING, occluded=("left_hip", "left_knee")))
    expected = dict(
        posture=1, knee_bend_deg=0, trunk_lean_deg=0, facing=30 / 50, scale_px=200,
        labelled=10, occluded_share=0.2, extent_aspect=40 / 150,
        right_hip_to_right_knee_angle=np.pi / 2,
        right_elbow_to_right_wrist_angle=np.pi / 4,
        left_shoulder_to_right_shoulder_angle=np.pi,
        right_shoulder_to_right_hip_angle=np.arctan2(50, 5),
    )  # fmt: skip
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], [value], atol=1e-5, err_msg=name)
    for name in (
        "truncation",
        "left_elbow_to_left_wrist_angle",
        "neck_to_left_shoulder_angle",
    ):
        assert np.isnan(found[name]).all(), name


def test_the_mirrored_the_turned_and_the_upside_down():
    mirrored, away, down = (
        describe(person(joints)) for joints in (MIRRORED, AWAY, HEAD_DOWN)
    )
    # A mirror turns nobody round.
    assert mirrored["facing"] == pytest.approx(0.6)
    assert mirrored["posture"] == pytest.approx(1)
    assert mirrored["left_elbow_to_left_wrist_angle"] == pytest.approx(np.pi * 3 / 4)
    assert away["facing"] == pytest.approx(-0.6)
    # Across the trunk, not along x: whoever stands on the head still faces the camera.
    assert down["facing"] == pytest.approx(0.6)
    assert down["trunk_lean_deg"] == pytest.approx(180)
    lying = describe(person(moved(STANDING, lambda p: (-p[1], p[0]))))
    assert lying["facing"] == pytest.approx(0.6)
    assert lying["trunk_lean_deg"] == pytest.approx(90)
    assert down["posture"] == 0


def legs(hip, knee, ankle):
    return {"left_hip": hip, "left_knee": knee, "left_ankle": ankle}


def test_postures_and_knees():
    profile = legs((50, 100), (90, 100), (90, 140))
    frontal = legs((40, 100), (40, 110), (40, 150))
    walking = legs((0, 0), (0, 50), (50, 100))
    lying = legs((0, 0), (50, 0), (100, 0))
    folded = legs((0, 0), (0, 50), (0, 10))
    nowhere = legs((5, 5), (5, 5), (5, 50))
    found = describe(*map(person, (profile, frontal, walking, lying, folded, nowhere)))
    np.testing.assert_allclose(
        found["posture"], [0, 0.25, 0.5, 0, 0, np.nan], atol=1e-9
    )
    np.testing.assert_allclose(
        found["knee_bend_deg"], [90, 0, 45, 0, 180, np.nan], atol=1e-5
    )
    both = {**walking, "right_hip": (9, 0), "right_knee": (9, 5), "right_ankle": (9, 9)}
    two = describe(person(both), person({**both, "right_ankle": (9, 10)}))
    np.testing.assert_allclose(two["posture"], [0.75, 0.75])
    assert np.isnan(two["facing"]).all() and np.isnan(two["trunk_lean_deg"]).all()


def test_trunk_from_one_side():
    found = describe(person({"right_hip": (0, 0), "right_shoulder": (30, -30)}))
    assert found["trunk_lean_deg"] == pytest.approx(45)
    assert np.isnan(found["facing"])
    close = {**STANDING, "left_shoulder": (200, 50), "right_shoulder": (-100, 50)}
    assert describe(person(close))["facing"] == 1


def test_a_truncated_person():
    boxes = np.array(
        [[0, 10, 50, 90], [20, 20, 50, 50], [-5, -5, 300, 300], [20, 50, 60, 40]], float
    )
    sizes = np.tile([100, 200], (4, 1))  # Height, width.
    found = describe(*[person(STANDING)] * 4, boxes=boxes, sizes=sizes)["truncation"]
    np.testing.assert_allclose(found, [140 / 280, 0, 1, 0])
    np.testing.assert_allclose(
        describe(*[person(STANDING)] * 4, boxes=boxes, sizes=sizes[:, ::-1])[
            "truncation"
        ],
        [90 / 280, 0, 1, 0],
    )


@pytest.mark.parametrize("skeleton", skeletons.SKELETONS.values(), ids=lambda s: s.name)
def test_every_skeleton(skeleton):
    joints = {n: p for n, p in STANDING.items() if n in skeleton.keypoints}
    nobody = (
        np.zeros((skeleton.num_keypoints, 2)),
        np.zeros(skeleton.num_keypoints, int),
    )
    found = describe(person(joints, skeleton), nobody, skeleton=skeleton)
    assert found["posture"][0] == 1 and found["facing"][0] == pytest.approx(0.6)
    assert sum(n.endswith("_angle") for n in found) == len(skeleton.limbs)
    left = {n: v[1] for n, v in found.items() if not np.isnan(v[1])}
    assert left == {"scale_px": 200, "labelled": 0}


def test_joints_that_are_not_in_the_skeleton_are_unknown():
    short = skeletons.from_names(["left_hip", "left_knee", "left_ankle"])
    found = describe(person(legs((0, 0), (0, 5), (0, 9)), short), skeleton=short)
    assert found["posture"] == pytest.approx(1) and np.isnan(found["facing"])
    with pytest.raises(ValueError, match="3 joints, but skeleton 'lsp' has 14"):
        attributes(
            np.zeros((1, 3, 2)), np.zeros((1, 3)), np.zeros((1, 4)), None, skeletons.LSP
        )


def test_spearman_is_scipys_and_the_bootstrap_draws_pictures(generator):
    n, seed, resamples = 60, 3, 40
    scores = generator.normal(size=(n, 3)).round(1)  # Ties.
    values = (scores[:, 1] + generator.normal(size=n)).round()
    values[:7] = np.nan
    groups = [f"picture {i // 3}" for i in range(n)]
    found = correlate(
        scores, {"size": values}, groups=groups, seed=seed, resamples=resamples
    )
    assert found[0]["component"] == 2 and len(found) == 3
    strength = [abs(r["value"]) for r in found]
    assert strength == sorted(strength, reverse=True)
    known = np.flatnonzero(~np.isnan(values))
    member = np.unique(np.arange(n)[known] // 3, return_inverse=True)[1]
    pictures = member.max() + 1
    draws = np.random.default_rng(seed).multinomial(
        pictures, np.full(pictures, 1 / pictures), resamples
    )
    for record in found:
        x, y = scores[known, record["component"] - 1], values[known]
        expected = scipy.stats.spearmanr(x, y).statistic
        again = []
        for draw in draws:
            rows = np.repeat(np.arange(len(x)), draw[member])
            again.append(scipy.stats.spearmanr(x[rows], y[rows]).statistic)
        low, high = np.quantile(again, [0.025, 0.975])
        np.testing.assert_allclose(
            [record["value"], record["low"], record["high"]],
            [expected, low, high],
            rtol=1e-4,
        )
        assert record["statistic"] == "spearman" and record["count"] == len(known)


def circular(x, angle):
    """Multiple correlation of x with cosine and sine, by least squares."""
    design = np.stack([np.ones_like(x), np.cos(angle), np.sin(angle)], 1)
    rest = x - design @ np.linalg.lstsq(design, x)[0]
    return np.sqrt(1 - rest.var() / x.var())


def test_angles_are_correlated_on_the_circle(generator):
    n, seed, resamples = 80, 1, 50
    angle = generator.uniform(-np.pi, np.pi, n)
    scores = np.stack(
        [
            5 + 0.1 * np.cos(angle - 1),
            generator.normal(size=n),
            np.sin(angle) + angle / 3,
        ],
        1,
    )
    found = correlate(scores, {"thigh_angle": angle}, seed=seed, resamples=resamples)
    assert [r["component"] for r in found] == [1, 3, 2]
    assert found[0]["value"] == pytest.approx(1, abs=1e-6)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples)
    for record in found:
        x = scores[:, record["component"] - 1]
        assert record["value"] == pytest.approx(circular(x, angle), abs=1e-5)
        rows = [np.repeat(np.arange(n), draw) for draw in draws]
        ends = np.quantile([circular(x[r], angle[r]) for r in rows], [0.025, 0.975])
        np.testing.assert_allclose([record["low"], record["high"]], ends, atol=1e-4)
        assert record["statistic"] == "circular"


def test_copies_of_a_picture_add_nothing(generator):
    scores = generator.normal(size=(40, 1))
    values = scores[:, 0] + 2 * generator.normal(size=40)
    rows = np.arange(40).repeat(6)
    copies = scores[rows], {"size": values[rows]}
    alone = correlate(scores, {"size": values})[0]
    grouped, blind = correlate(*copies, groups=rows)[0], correlate(*copies)[0]
    assert grouped["value"] == pytest.approx(alone["value"])
    widths = [r["high"] - r["low"] for r in (alone, grouped, blind)]
    assert widths[1] == pytest.approx(widths[0], rel=1e-6)
    assert widths[2] < 0.6 * widths[0]


def test_what_says_nothing_is_left_out(generator):
    scores = np.stack([generator.normal(size=30), np.ones(30)], 1)
    few, line = np.full((2, 30), np.nan)
    few[:19], line[:20] = range(19), range(20)
    given = {"few": few, "line": line, "same": np.ones(30), "none": np.full(30, np.nan)}
    found = correlate(scores, given)
    assert [(r["attribute"], r["component"], r["count"]) for r in found] == [
        ("line", 1, 20)
    ]
    alone = correlate(scores, {"line": line}, groups=["one"] * 30)[0]
    assert np.isnan([alone["low"], alone["high"]]).all() and np.isfinite(alone["value"])
    with pytest.raises(ValueError, match=r"of \[29, 30\] persons"):
        correlate(scores, {"line": line}, groups=range(29))
    with pytest.raises(ValueError, match="every score finite"):
        correlate(scores * np.nan, {"line": line})


def test_bins():
    angles = np.radians([0, 22, 23, 90, 180, -180, -90, -22, -23, np.nan])
    found = binned(
        {
            "limb_angle": angles,
            "labelled": np.array([3, 5, 5, 14, np.nan, 3.0]),
            "scale": np.array([1.0, 2, 3, 4, 5, 6, 7, 8, np.nan]),
            "skewed": np.array([0.0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6]),
            "nothing": np.full(3, np.nan),
        }
    )
    expected = {
        "limb_angle": [0, 0, 1, 2, 4, 4, 6, 0, 7, -1],
        "labelled": [0, 1, 1, 2, -1, 0],
        "scale": [0, 0, 1, 1, 2, 2, 3, 3, -1],
        "skewed": [0, 0, 0, 0, 0, 1, 2, 2, 3, 3, 3],
        "nothing": [-1, -1, -1],
    }
    assert {n: v.tolist() for n, v in found.items()} == expected
    halves = binned({"two": np.repeat([0.0, 1, 2, 3, 4, 5, 6], [90, 1, 1, 1, 1, 1, 1])})
    assert halves["two"].tolist() == [0] * 90 + [1] * 6
