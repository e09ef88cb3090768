"""Procedural people: deterministic, exactly labelled, varied, for every skeleton."""

import hashlib
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import pose_jax
from pose_jax import skeletons
from pose_jax.data import figures, scene
from pose_jax.data.figures import FigureSource

COUNT = 150
INDEX = skeletons.COCO.index


@pytest.fixture(scope="module")
def people():
    source = FigureSource(COUNT)
    return [source.render(i) for i in range(COUNT)]


def same(a, b):
    return (
        np.array_equal(a.image, b.image)
        and np.array_equal(a.keypoints, b.keypoints)
        and np.array_equal(a.visible, b.visible)
        and np.array_equal(a.box, b.box)
        and a.area == b.area
    )


def test_a_picture_depends_on_seed_and_index_alone(people):
    other = FigureSource(10**9)
    assert all(same(other.render(i), people[i]) for i in (7, 3, 7, 0))
    assert not same(FigureSource(COUNT, seed=1).render(3), people[3])
    assert not same(people[3], people[4])
    assert FigureSource(10**9).render(10**9 - 1).area > 0


def test_another_process_draws_the_same_bits(people):
    # A bare package: the real one would import jax for seconds.
    code = (
        "import hashlib, runpy, sys, types\n"
        "sys.modules['pose_jax'] = bare = types.ModuleType('pose_jax')\n"
        f"bare.__path__ = {list(pose_jax.__path__)!r}\n"
        f"source = runpy.run_path({figures.__file__!r})['FigureSource'](9)\n"
        "print(hashlib.sha256(source.render(5).image.tobytes()).hexdigest())"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.split()[-1] == hashlib.sha256(people[5].image.tobytes()).hexdigest()


def test_the_scene_does_not_move_the_person(people):
    plain = FigureSource(COUNT, clutter=0, occlusion=0)
    crowd = FigureSource(COUNT, people=3)
    for i in range(5):
        for other in (plain.render(i), crowd.render(i)):
            assert np.array_equal(other.keypoints, people[i].keypoints)
            assert np.array_equal(other.box, people[i].box)
    changed = [(crowd.render(i).image != people[i].image).any() for i in range(5)]
    assert all(changed)


def test_labels_are_inside_the_picture_and_the_box(people):
    for figure in people:
        assert figure.image.shape == (192, 160, 3) and figure.image.dtype == np.uint8
        labelled = figure.visible > 0
        points = figure.keypoints[labelled]
        assert (figure.keypoints[~labelled] == 0).all()
        assert set(figure.visible) <= {0, 1, 2}
        assert (points >= -0.5).all() and (points <= (159.5, 191.5)).all()
        x, y, w, h = figure.box
        assert x >= 0 and y >= 0 and x + w <= 160 and y + h <= 192
        assert (points >= (x - 1, y - 1)).all()
        assert (points <= (x + w, y + h)).all()
        assert 0.1 * w * h < figure.area <= w * h


def test_truncation_cuts_and_its_absence_does_not():
    whole = FigureSource(40, truncation=0, clutter=0)
    cut = FigureSource(40, truncation=1, clutter=0)
    assert all((whole.render(i).visible > 0).all() for i in range(40))
    flags = np.array([cut.render(i).visible for i in range(40)])
    assert 0.1 < (flags == 0).mean() < 0.5
    assert ((flags > 0).sum(axis=1) >= 3).all()


def test_occluders_hide_joints(people):
    share = np.mean([figure.visible == 1 for figure in people])
    assert 0.1 < share < 0.35
    free = FigureSource(60, clutter=0, truncation=0, occlusion=0)
    hidden = FigureSource(60, clutter=0, truncation=0, occlusion=1)
    more = 0
    for i in range(60):
        a, b = free.render(i), hidden.render(i)
        assert np.array_equal(a.keypoints, b.keypoints) and a.area == b.area
        # An object can only hide, and where it hides a joint it changed that pixel.
        assert (b.visible <= a.visible).all()
        for x, y in np.rint(b.keypoints[b.visible < a.visible]).astype(int):
            more += 1
            assert (a.image[y, x] != b.image[y, x]).any()
    assert more > 60


@pytest.mark.parametrize("name", sorted(skeletons.SKELETONS))
def test_every_skeleton_is_placed_by_name(name):
    skeleton = skeletons.get(name)
    figure = FigureSource(5, skeleton=name, clutter=0).render(2)
    coco = FigureSource(5, clutter=0).render(2)
    assert figure.keypoints.shape == (skeleton.num_keypoints, 2)
    assert np.array_equal(figure.image, coco.image)
    shared = skeletons.mapping("coco", name)
    assert np.array_equal(
        figure.keypoints[shared.target], coco.keypoints[shared.source]
    )


def test_poses_views_and_sizes_vary(people):
    whole = [f for f in people if (f.visible > 0).all()]
    shapes = np.array([(f.keypoints - f.box[:2]) / f.box[3] for f in whole])
    assert shapes.std(axis=0).min() > 0.05
    nearest = min(
        np.abs(shapes[i] - shapes[j]).max() for i in range(40) for j in range(i)
    )
    assert nearest > 0.02
    heights = [f.box[3] for f in whole]
    assert max(heights) > 1.8 * min(heights)
    wrists = INDEX("left_wrist"), INDEX("right_wrist")
    raised = [f.keypoints[list(wrists), 1].min() < f.keypoints[0, 1] for f in whole]
    assert 0.05 < np.mean(raised) < 0.4


def views(count=400):
    """Upright whole people: +1 where the face looks out, -1 where it is turned away."""
    source = FigureSource(count, clutter=0, occlusion=0, truncation=0)
    nose, eyes = INDEX("nose"), [INDEX("left_eye"), INDEX("right_eye")]
    ears = [INDEX("left_ear"), INDEX("right_ear")]
    shoulders = INDEX("left_shoulder"), INDEX("right_shoulder")
    for i in range(count):
        figure = source.render(i)
        x, y = figure.keypoints.T
        if y[INDEX("left_hip")] - y[shoulders[0]] < 0.2 * figure.box[3]:
            continue
        seen = figure.visible == 2
        if seen[[nose, *eyes, *ears]].all():
            yield 1, x[shoulders[0]] - x[shoulders[1]]
        elif seen[ears].all() and not seen[[nose, *eyes]].any():
            yield -1, x[shoulders[0]] - x[shoulders[1]]


def test_left_is_the_persons_left():
    seen = list(views())
    front = [across for view, across in seen if view > 0]
    back = [across for view, across in seen if view < 0]
    assert len(front) > 40 and len(back) > 20
    # The head may be turned against the trunk, so a few profiles slip in.
    assert np.mean(np.array(front) > 0) > 0.95
    assert np.mean(np.array(back) < 0) > 0.95


def test_visible_joints_lie_on_their_limb(monkeypatch):
    skin = np.array([250.0, 0.0, 250.0])
    green = np.array([0.0, 200.0, 0.0])
    bare = SimpleNamespace(
        skin=skin, hair=green, shirt=green, trousers=green, shoes=green,
        sleeve_reach=0.0, leg_reach=0.0, long_hair=False,
    )  # fmt: skip
    monkeypatch.setattr(scene, "style", lambda rng: bare)
    source = FigureSource(40, size=(384, 320), clutter=0, truncation=0)
    joints = [
        INDEX(f"{side}_{joint}")
        for side in ("left", "right")
        for joint in ("elbow", "wrist", "knee")
    ]
    on_skin = []
    for i in range(40):
        figure = source.render(i)
        for k in joints:
            if figure.visible[k] == 2:
                x, y = np.rint(figure.keypoints[k]).astype(int)
                on_skin.append(np.abs(figure.image[y, x] - skin).max() < 3)
    # The soft edge of a nearer limb may touch a joint that still counts as visible.
    assert len(on_skin) > 120 and np.mean(on_skin) > 0.97


@pytest.mark.parametrize("centre", [(40.0, 30.0), (40.3, 30.7), (39.5, 31.5)])
def test_drawing_is_exact_to_a_fraction_of_a_pixel(centre):
    image, parts = np.zeros((64, 80, 3), np.uint8), np.zeros((64, 80), np.uint8)
    shape = [(np.array(centre), 9.0)], np.full(3, 250.0), 1
    scene.paint(image, parts, [shape], np.zeros(2))
    weight = image[..., 0] / image[..., 0].sum()
    y, x = np.mgrid[:64, :80]
    assert abs((weight * x).sum() - centre[0]) < 0.05
    assert abs((weight * y).sum() - centre[1]) < 0.05
    assert parts.sum() == pytest.approx(np.pi * 81, rel=0.1)


def test_rotations_are_right_handed():
    turned = scene.turn(np.eye(3), y=90.0)
    np.testing.assert_allclose(turned @ (0, 0, 1), (1, 0, 0), atol=1e-12)
    frame = scene.turn(np.eye(3), x=20.0, z=-70.0, y=130.0)
    np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-12)


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"count": -1}, "count=-1"),
        ({"count": 1, "people": 0}, "people=0"),
        ({"count": 1, "seed": -3}, "seed=-3"),
        ({"count": 1, "occlusion": 1.5}, "occlusion=1.5"),
        ({"count": 1, "size": (20, 160)}, "size="),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        FigureSource(**fields)


def test_unknown_skeletons_and_joints_are_refused(monkeypatch):
    with pytest.raises(KeyError, match="unknown skeleton"):
        FigureSource(1, skeleton="cocoo")
    hands = skeletons.from_names(("nose", "left_thumb"), name="hands")
    monkeypatch.setitem(skeletons.SKELETONS, "hands", hands)
    with pytest.raises(ValueError, match="cannot place.*left_thumb"):
        FigureSource(1, skeleton="hands")


@pytest.mark.parametrize("index", [-1, 4])
def test_the_index_has_limits(index):
    source = FigureSource(4)
    assert len(source) == 4
    with pytest.raises(IndexError, match=r"0 \.\. 3"):
        source.render(index)
