"""Crop matrices: conventions, exact agreement of pixels and points, inverses."""

import cv2
import numpy as np
import pytest

from pose_jax import geometry
from pose_jax.geometry import crop_matrix, invert, transform, warp

BOX = np.array([40.0, 30.0, 60.0, 100.0])


def test_box_fills_the_crop():
    plain = crop_matrix(BOX, (256, 192), padding=1.0)
    centre = transform(np.array([[70.0, 80.0]]), plain)
    np.testing.assert_allclose(centre, [[96, 128]])
    # The 3:4 crop grows the box to 75 wide; 100 px high become 256.
    np.testing.assert_allclose(plain[0, 0], 256 / 100)
    unit = crop_matrix(BOX, (256, 256), padding=1.0, unit=True)
    np.testing.assert_allclose(
        transform(np.array([[70.0, 30.0], [70.0, 130.0]]), unit)[:, 1], [0, 255]
    )


def test_area_crop_is_what_cutting_and_resizing_gives(generator):
    """A box cut out and resized by OpenCV (half-pixel centres), pixel for pixel."""
    image = generator.integers(0, 256, (40, 40, 3)).astype(np.uint8)
    box = np.array([8.0, 4.0, 16.0, 16.0])
    matrix = crop_matrix(box, (64, 64), padding=1.0, area=True)
    crop = warp(image, matrix, (64, 64)).astype(int)
    cut = cv2.resize(image[4:20, 8:24], (64, 64), interpolation=cv2.INTER_LINEAR)
    inner = slice(
        4, -4
    )  # Outside the cut the picture goes on, a resize repeats its edge.
    assert np.abs(crop[inner, inner] - cut.astype(int)[inner, inner]).max() <= 3
    edge = transform(np.array([[7.5, 3.5]]), matrix)
    np.testing.assert_allclose(edge, [[-0.5, -0.5]])


@pytest.mark.parametrize("unit", [False, True])
def test_points_return(generator, unit):
    matrix = crop_matrix(
        BOX,
        (128, 96),
        unit=unit,
        rotation_deg=33,
        scale=1.2,
        shift=(0.1, -0.2),
        flip=True,
    )
    points = generator.uniform(-50, 300, (20, 2))
    np.testing.assert_allclose(invert(transform(points, matrix), matrix), points)


def test_pixels_and_points_move_alike(generator):
    """A bright dot at a keypoint is still at the keypoint after every kind of motion."""
    for trial in range(20):
        image = np.zeros((200, 180, 3), np.uint8)
        x, y = generator.integers(60, 90), generator.integers(60, 100)
        image[y - 1 : y + 2, x - 1 : x + 2] = 255
        matrix = crop_matrix(
            BOX, (160, 128),
            rotation_deg=generator.uniform(-90, 90),
            scale=generator.uniform(0.8, 1.3),
            flip=bool(trial % 2),
            unit=bool(trial % 3),
        )  # fmt: skip
        crop = warp(image, matrix, (160, 128)).astype(float).sum(-1)
        rows, columns = np.mgrid[:160, :128]
        found = np.array([(crop * columns).sum(), (crop * rows).sum()]) / crop.sum()
        expected = transform(np.array([[x, y]], float), matrix)[0]
        np.testing.assert_allclose(found, expected, atol=0.12)


def test_flip_is_a_mirror_of_the_crop():
    matrix = crop_matrix(BOX, (64, 48))
    mirrored = crop_matrix(BOX, (64, 48), flip=True)
    point = np.array([[55.0, 77.0]])
    a, b = transform(point, matrix)[0], transform(point, mirrored)[0]
    np.testing.assert_allclose([47 - a[0], a[1]], b)


@pytest.mark.parametrize("box", [[0, 0, 0, 5], [0, 0, 5, -1], [0, float("nan"), 5, 5]])
def test_bad_boxes_are_named(box):
    with pytest.raises(ValueError, match="positive width"):
        crop_matrix(np.array(box, float), (64, 64))


def test_keypoint_box():
    points = np.array([[1.0, 2.0], [11.0, 22.0], [500.0, 500.0]])
    box = geometry.keypoint_box(points, np.array([True, True, False]), margin=0.1)
    np.testing.assert_allclose(box, [0.5, 1.0, 11.0, 22.0])
    with pytest.raises(ValueError, match="at least one"):
        geometry.keypoint_box(points, np.zeros(3, bool))
