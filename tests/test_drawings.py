"""Drawings: what is drawn, where, and what is said when nothing can be."""

import cv2
import matplotlib
import numpy as np
import pytest

from pose_jax import skeletons
from pose_jax.data.figures import FigureSource
from pose_jax.report import drawings
from pose_jax.report.drawings import (
    compare,
    contact_sheet,
    draw_pose,
    learning_curve,
    write_image,
)

STICK = skeletons.from_names(
    ("left_hip", "left_knee", "right_hip", "right_knee", "head_top"),
    name="stick",
    limbs=(
        ("left_hip", "left_knee"),
        ("right_hip", "right_knee"),
        ("left_hip", "right_hip"),
    ),
)
POINTS = np.array(
    [[[70.25, 30.5], [75.0, 80.0], [30.0, 30.0], [25.0, 80.0], [50.0, 8.0]]]
)
GREY = np.full((100, 120, 3), 127, np.uint8)


def changed(image, before=GREY):
    return (image != before).any(axis=-1)


def distance(a, b):
    """Distance of every pixel centre of GREY from a segment."""
    grid = np.stack(np.meshgrid(np.arange(120), np.arange(100)), axis=-1)
    along = ((grid - a) @ (b - a) / max((b - a) @ (b - a), 1e-9)).clip(0, 1)
    return np.linalg.norm(grid - (a + along[..., None] * (b - a)), axis=-1)


def test_pixels_change_near_limbs_and_nowhere_else():
    image = draw_pose(GREY, POINTS, STICK, thickness=2)
    far = [distance(*POINTS[0, list(limb)]) for limb in STICK.limb_indices]
    far.append(distance(POINTS[0, 4], POINTS[0, 4]))
    near = np.min(far, axis=0)
    assert not changed(image)[near > 5].any()
    assert changed(image)[near < 0.8].all()
    assert (GREY == 127).all()


def test_sides_have_their_colours():
    image = draw_pose(GREY, POINTS, STICK, thickness=4)
    assert tuple(image[55, 73]) == drawings.LEFT
    assert tuple(image[55, 27]) == drawings.RIGHT
    assert tuple(image[30, 50]) == drawings.MIDDLE


def test_lines_are_exact_to_a_fraction_of_a_pixel():
    black = np.zeros((60, 60, 3), np.uint8)
    line = skeletons.from_names(("a", "b"), limbs=(("a", "b"),))
    for x in (30.0, 30.25, 30.5):
        points = np.array([[[x, 5.0], [x, 55.0]]])
        row = draw_pose(black, points, line, thickness=3)[30].sum(axis=-1)
        assert (row * np.arange(60)).sum() / row.sum() == pytest.approx(x, abs=0.1)


def test_low_scores_fade():
    strength = []
    for score in (0.05, 0.4, 0.7, 1.0):
        image = draw_pose(GREY, POINTS, STICK, scores=np.full((1, 5), score))
        strength.append(np.abs(image.astype(int) - 127).sum())
    assert 0 < strength[0] < strength[1] < strength[2] < strength[3]
    full = draw_pose(GREY, POINTS, STICK)
    assert np.array_equal(image, full)
    assert np.array_equal(
        draw_pose(GREY, POINTS, STICK, scores=np.full((1, 5), 7.0)), full
    )


def test_threshold_hides_points_and_their_limbs():
    scores = np.array([[0.9, 0.9, 0.2, 0.9, 0.9]])
    image = draw_pose(GREY, POINTS, STICK, scores=scores, threshold=0.3)
    assert not changed(image)[40:70, 20:35].any()  # right thigh
    assert not changed(image)[25:35, 40:60].any()  # between the hips
    assert changed(image)[55, 73] and changed(image)[80, 25]
    none = draw_pose(GREY, POINTS, STICK, scores=scores, threshold=0.95)
    assert not changed(none).any()
    lost = scores.copy()
    lost[:] = np.nan
    assert not changed(draw_pose(GREY, POINTS, STICK, scores=lost)).any()


def test_invisible_and_wild_points_are_left_out():
    flags = np.array([[2, 2, 0, 2, 1]])
    image = draw_pose(GREY, POINTS, STICK, visible=flags, thickness=4)
    assert not changed(image)[40:70, 20:35].any()
    assert changed(image)[80, 25]
    assert not changed(image)[8, 50]  # a ring, empty in the middle
    assert changed(image)[4:13, 45:56].any()
    wild = POINTS.copy()
    wild[0, 0] = np.nan
    wild[0, 3] = -1e12, 1e9
    assert changed(draw_pose(GREY, wild, STICK)).any()
    outside = draw_pose(GREY, POINTS + 5000, STICK)
    assert not changed(outside).any()


def test_boxes_frame_their_pixels():
    nobody = np.zeros((1, 5, 2))
    image = draw_pose(
        GREY, nobody, STICK, boxes=np.array([[10.0, 20.0, 50.0, 30.0]]),
        visible=np.zeros((1, 5), int),
    )  # fmt: skip
    rows, columns = np.nonzero(changed(image))
    assert (rows.min(), rows.max()) == (20, 49)
    assert (columns.min(), columns.max()) == (10, 59)
    assert not changed(image)[25:45, 15:55].any()


def test_many_people_and_no_people():
    two = draw_pose(GREY, np.concatenate([POINTS - 8, POINTS + 8]), STICK)
    assert changed(two).sum() > 1.5 * changed(draw_pose(GREY, POINTS, STICK)).sum()
    assert np.array_equal(draw_pose(GREY, np.zeros((0, 5, 2)), STICK), GREY)


def test_lines_grow_with_the_picture():
    small = np.zeros((100, 100, 3), np.uint8)
    large = np.zeros((800, 800, 3), np.uint8)
    points = np.full((1, 5, 2), 50.0)
    points[0, 1] = 50.0, 90.0
    thin = changed(draw_pose(small, points, STICK), small)[70].sum()
    assert changed(draw_pose(large, points * 8, STICK), large)[560].sum() > 2 * thin


def test_compare_draws_the_truth_white_under_the_prediction():
    true = POINTS + (0, 12)
    image = compare(GREY, POINTS, true, STICK, thickness=4)
    white = (image == 255).all(axis=-1)
    assert white[42, 50]
    assert tuple(image[30, 50]) == drawings.MIDDLE
    alone = compare(
        GREY, POINTS, true, STICK, visible=np.zeros((1, 5), int), thickness=4
    )
    assert np.array_equal(alone, draw_pose(GREY, POINTS, STICK, thickness=4))
    covered = compare(GREY, POINTS, POINTS, STICK, thickness=6)
    assert not (covered == 255).all(axis=-1).any()


def test_real_skeletons_are_drawn():
    for name in skeletons.SKELETONS:
        figure = FigureSource(3, skeleton=name).render(1)
        image = draw_pose(
            figure.image, figure.keypoints[None], name, visible=figure.visible[None]
        )
        assert 0.005 < changed(image, figure.image).mean() < 0.2


def test_contact_sheets_keep_the_pictures_shape():
    wide = np.full((50, 100, 3), 200, np.uint8)
    tall = np.full((100, 50, 3), 90, np.uint8)
    sheet = contact_sheet([wide, tall, wide], columns=2, tile=(80, 60))
    assert sheet.shape == (160, 120, 3)
    assert (sheet[:80, :60] == 200).all(axis=-1).sum() == 30 * 60
    assert (sheet[:80, 60:] == 90).all(axis=-1).sum() == 80 * 40
    assert (sheet[80:, 60:] < 50).all()
    titled = contact_sheet([wide, tall, wide], 2, (80, 60), ["a", "bb", "c" * 99])
    assert titled.shape == (160 + 2 * 16, 120, 3)
    assert titled[:16, :60].max() > 150 and titled[16:96, :60].max() == 200
    assert titled[96:112, 60:].max() < 50  # the long title stays in its own tile
    assert contact_sheet([wide], columns=6, tile=(80, 60)).shape == (80, 60, 3)


def test_pictures_survive_the_disk(tmp_path):
    image = FigureSource(1).render(0).image
    path = tmp_path / "new" / "folder" / "figure.png"
    write_image(path, image)
    assert np.array_equal(cv2.imread(str(path))[:, :, ::-1], image)


def test_what_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write .*choose another place"):
        write_image(tmp_path / "file" / "figure.png", GREY)
    with pytest.raises(OSError, match="no picture format '.xyz'; use .png"):
        write_image(tmp_path / "figure.xyz", GREY)
    with pytest.raises(OSError, match="no picture format ''"):
        write_image(tmp_path / "figure", GREY)


def rows():
    for step in range(0, 100, 10):
        yield {"step": step, "train/loss_ratio": 1.2 - step / 100, "train/loss": 3.0}
    yield {"step": 50, "select/ap": 0.2}
    yield {"step": 90, "select/ap": None}


def test_learning_curves_show_loss_and_metric(tmp_path):
    before = dict(matplotlib.rcParams)
    learning_curve(list(rows()), tmp_path / "a" / "curve.png", title="run")
    learning_curve(list(rows())[:10], tmp_path / "plain.png")
    assert dict(matplotlib.rcParams) == before
    image = cv2.imread(str(tmp_path / "a" / "curve.png"))[:, :, ::-1].astype(int)
    plain = cv2.imread(str(tmp_path / "plain.png"))[:, :, ::-1].astype(int)

    def pixels(picture, colour):
        return (np.abs(picture - colour).max(axis=-1) < 8).sum()

    blue, red = (0, 0x72, 0xB2), (0xD5, 0x5E, 0x00)
    assert pixels(image, blue) > 200 and pixels(image, red) > 20
    assert pixels(plain, blue) > 200 and pixels(plain, red) == 0


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="5 keypoints but skeleton 'coco' has 17"):
        draw_pose(GREY, POINTS, "coco")
    with pytest.raises(ValueError, match="uint8 RGB"):
        drawings._canvas(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="needs a picture"):
        contact_sheet([])
    with pytest.raises(ValueError, match="1 titles for 2 pictures"):
        contact_sheet([GREY, GREY], titles=["a"])
    with pytest.raises(ValueError, match="uint8 RGB"):
        contact_sheet([GREY[..., 0]])
    with pytest.raises(ValueError, match="no row has 'loss'.*train/loss"):
        learning_curve(list(rows()), tmp_path / "curve.png", loss="loss")
    with pytest.raises(ValueError, match="no row has 'pck'"):
        learning_curve(list(rows()), tmp_path / "curve.png", metric="pck")
