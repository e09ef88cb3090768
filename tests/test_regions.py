"""Ownership of pixels and removal: a partition, untouched elsewhere, against slow references."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pose_jax import regions
from pose_jax.pixels import InputSpec

SIZE = (20, 24)
CENTRES = np.array([[4.0, 5.0], [7.5, 5.0], [18.0, 12.0], [30.0, 3.0]])
PRESENT = np.array([True, True, True, False])


def slow_owners(centres, present, shape, reach):
    owners = np.full(SIZE, -1)
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            best = np.inf
            for n, (cx, cy) in enumerate(centres):
                dx, dy = abs(x - cx), abs(y - cy)
                distance = np.hypot(dx, dy) if shape == "disc" else max(dx, dy)
                if present[n] and distance <= reach and distance < best:
                    best, owners[y, x] = distance, n
    return owners


@pytest.mark.parametrize("shape", ["disc", "box"])
def test_owners_are_voronoi_cells_inside_regions(shape):
    owners = regions.keypoint_owners(CENTRES, PRESENT, SIZE, side_px=7.0, shape=shape)
    np.testing.assert_array_equal(owners, slow_owners(CENTRES, PRESENT, shape, 3.5))
    assert set(np.unique(owners)) == {-1, 0, 1, 2}


def test_absent_keypoints_own_nothing_and_leave_their_pixels_to_others():
    alone = regions.keypoint_owners(
        CENTRES, np.array([False, True, False, False]), SIZE, side_px=7.0
    )
    both = regions.keypoint_owners(CENTRES, PRESENT, SIZE, side_px=7.0)
    assert (np.asarray(alone) == 1).sum() > (np.asarray(both) == 1).sum()
    nobody = regions.keypoint_owners(CENTRES, np.zeros(4, bool), SIZE, side_px=7.0)
    assert (np.asarray(nobody) == regions.FREE).all()


def test_limbs_own_capsules():
    limbs = ((0, 2), (1, 3))
    owners = regions.limb_owners(CENTRES, PRESENT, limbs, SIZE, width_px=4.0)
    start, end = CENTRES[0], CENTRES[2]
    inside = np.zeros(SIZE, bool)
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            t = np.linspace(0, 1, 2001)[:, None]
            inside[y, x] = np.hypot(*(start + t * (end - start) - (x, y)).T).min() <= 2
    np.testing.assert_array_equal(np.asarray(owners) == 0, inside)
    assert not (np.asarray(owners) == 1).any()  # One end of the second limb is absent.


def test_removal_leaves_all_other_pixels_bit_for_bit():
    image = jax.random.uniform(jax.random.key(0), (*SIZE, 3)) * 255
    fill = jnp.broadcast_to(jnp.array([1.0, 2.0, 3.0]), image.shape)
    owners = regions.keypoint_owners(CENTRES, PRESENT, SIZE, side_px=7.0)
    full = regions.hidden(owners, jnp.ones(4, bool))
    assert not full.any()
    coalition = jnp.array([True, False, True, True])
    hidden = np.asarray(regions.hidden(owners, coalition))
    np.testing.assert_array_equal(hidden, np.asarray(owners) == 1)
    result = np.asarray(regions.remove(image, fill, hidden))
    np.testing.assert_array_equal(result[~hidden], np.asarray(image)[~hidden])
    np.testing.assert_array_equal(
        result[hidden], np.tile([1.0, 2, 3], (hidden.sum(), 1))
    )


def test_masks_become_owners():
    masks = np.zeros((2, *SIZE), bool)
    masks[0, :4], masks[1, 2:6] = True, True
    owners = np.asarray(regions.mask_owners(masks))
    assert (owners[:4] == 0).all() and (owners[4:6] == 1).all()
    assert (owners[6:] == regions.FREE).all()


def test_blur_equals_opencv_and_noise_is_the_keys():
    image = np.random.default_rng(0).uniform(0, 255, (*SIZE, 3)).astype(np.float32)
    ours = regions.blur_fill(image, sigma_px=2.0)
    theirs = cv2.GaussianBlur(image, (17, 17), 2.0, borderType=cv2.BORDER_REPLICATE)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-2)
    draws = [regions.noise_fill(image, key=jax.random.key(n)) for n in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()


def test_inpainting_touches_owned_pixels_only():
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    owners = np.asarray(regions.keypoint_owners(CENTRES, PRESENT, SIZE, side_px=5.0))
    fill = regions.inpaint_fill(image, owners)
    free = owners == regions.FREE
    np.testing.assert_array_equal(fill[free], image[free])
    assert (fill[~free] != image[~free]).any()


def test_inside_counts_whole_pixels():
    points = np.array([[-0.5, 0], [23.4, 19.4], [23.5, 0], [0, -0.6]])
    np.testing.assert_array_equal(
        regions.inside(points, SIZE), [True, True, False, False]
    )


def test_unknown_shapes_are_explained():
    with pytest.raises(ValueError, match="disc"):
        regions.keypoint_owners(CENTRES, PRESENT, SIZE, side_px=3.0, shape="star")


def test_mean_fill_is_zero_after_normalisation():
    spec = InputSpec(SIZE)
    fill = regions.mean_fill(jnp.zeros((*SIZE, 3)), spec.mean)
    np.testing.assert_allclose(
        (fill / 255 - np.array(spec.mean)) / np.array(spec.std), 0, atol=1e-6
    )


def test_places_that_are_not_numbers_own_nothing():
    centres = np.array([[4.0, 5.0], [np.nan, 3.0]])
    owners = regions.keypoint_owners(centres, np.ones(2, bool), SIZE, side_px=7.0)
    assert set(np.unique(owners)) == {regions.FREE, 0}


def test_a_blur_needs_a_width():
    with pytest.raises(ValueError, match="positive"):
        regions.blur_fill(jnp.zeros((*SIZE, 3)), sigma_px=0.0)
