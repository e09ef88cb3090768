"""Coordinates read as heatmaps are: drawn, decoded, flipped, explained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pose_jax import answers, heatmaps
from pose_jax.heatmaps import Codec
from pose_jax.models import Outputs
from pose_jax.skeletons import get

UDP = Codec()
DARK = Codec(encode="unbiased", decode="dark")
SIZE = (96, 64)
PAIRS = get("lsp").mirrored


def points_inside(count=3, k=14, seed=0, margin=12.0):
    """Far enough from the border for either decoder."""
    low, high = margin, np.array(SIZE[::-1]) - 1 - margin
    return np.random.default_rng(seed).uniform(low, high, (2, count, k, 2)).astype("f")


@pytest.mark.parametrize("codec", [UDP, DARK], ids=["udp", "dark"])
def test_decoding_a_drawn_map_gives_the_coordinate(codec):
    points = points_inside()
    drawn = answers.maps(Outputs(coordinates=points), codec, SIZE)
    assert drawn.shape == (3, 24, 16, 14) and drawn.dtype == jnp.float32
    decode = jax.vmap(lambda m: heatmaps.decode(m, codec, SIZE)[0])
    np.testing.assert_allclose(decode(drawn), points[-1], atol=1e-2)


@pytest.mark.parametrize("codec", [UDP, DARK], ids=["udp", "dark"])
def test_outside_of_the_crop(codec):
    """The map says the border, to half a map pixel; the keypoint is what the network said."""
    points = np.array([[[-30.0, 50.0], [32.0, 400.0], [64.5, -0.4], [20.0, 40.0]]], "f")
    answer = answers.read(Outputs(coordinates=points[None]), codec, SIZE)
    np.testing.assert_array_equal(answer.keypoints, points)
    decode = jax.vmap(lambda m: heatmaps.decode(m, codec, SIZE)[0])
    scale = heatmaps.stride(codec, SIZE, (24, 16))
    wanted = np.clip(points, 0, (np.array([16, 24]) - 1) * scale)
    away = np.abs(decode(answer.maps) - wanted)
    assert (away < 0.51 * scale).all() and (away[0, 3] < 1e-2).all()
    peaks = jax.vmap(heatmaps.argmax)(answer.maps)[0]
    assert peaks[0, 0] == 0 and peaks[1, 1] == 23 and tuple(peaks[2]) == (15, 0)


def test_a_drawn_map_against_a_slow_reference():
    """Per pixel; half of the height where sigma is half of the crop."""
    points = points_inside(1, 2)
    spread = np.array([[[[32.0, 48.0], [6.4, 28.8]]]], "f")
    answer = answers.read(Outputs(coordinates=points[-1:], spread=spread), DARK, SIZE)
    np.testing.assert_allclose(answer.scores, [[0.5, 0.8]], atol=1e-6)
    for joint, height in enumerate((0.5, 0.8)):
        x, y = points[-1, 0, joint] / 4
        for row, column in np.ndindex(24, 16):
            squared = (column - x) ** 2 + (row - y) ** 2
            np.testing.assert_allclose(
                answer.maps[0, row, column, joint],
                height * np.exp(-squared / (2 * 2.0**2)),
                atol=1e-6,
            )


def test_drawing_is_differentiable():
    """Where a map goes, against differences; the height too."""

    def value(points, spread):
        outputs = Outputs(coordinates=points, spread=spread)
        return answers.maps(outputs, UDP, SIZE)[0, 10, 7, 0]

    points = jnp.array([[[[30.0, 44.0]]]])
    spread = jnp.full((1, 1, 1, 2), 9.0)
    gradients = jax.grad(value, (0, 1))(points, spread)
    assert all(np.abs(g).min() > 1e-4 for g in gradients)
    for argument, found in enumerate(gradients):
        for axis in (0, 1):
            move = jnp.zeros((1, 1, 1, 2)).at[..., axis].set(0.05)
            given = [points, spread]
            given[argument] = given[argument] + move
            up = value(*given)
            given[argument] = given[argument] - 2 * move
            slope = (up - value(*given)) / 0.1
            np.testing.assert_allclose(found[..., axis], slope, rtol=5e-3)


def test_flip_test_averages_coordinates():
    """A network that sees mirrored people perfectly: the average is what it saw."""
    points = points_inside()[-1]
    seen = np.stack([SIZE[1] - 1 - points[..., 0], points[..., 1]], -1)[:, PAIRS]
    spread = np.full((1, *points.shape), 6.4, "f")

    def read(here, there, codec, spread=None):
        more = {} if spread is None else dict(spread=spread)
        return answers.read_flipped(
            Outputs(coordinates=here[None], **more),
            Outputs(coordinates=there[None]), PAIRS, codec, SIZE,
        )  # fmt: skip

    for codec in (UDP, DARK):
        answer = read(points, seen, codec)
        np.testing.assert_allclose(answer.keypoints, points, atol=1e-4)
    # Two pixels off in the mirrored picture is one off here, the other way.
    answer = read(points, seen + np.array([2.0, 0.0], "f"), UDP, spread)
    np.testing.assert_allclose(answer.keypoints, points - [1.0, 0.0], atol=1e-4)
    np.testing.assert_allclose(answer.scores, (1 + 1 - 6.4 * (1 / 64 + 1 / 96) / 2) / 2)
    decode = jax.vmap(lambda m: heatmaps.decode(m, UDP, SIZE)[0])
    np.testing.assert_allclose(decode(answer.maps), answer.keypoints, atol=1e-2)


@pytest.mark.parametrize("codec", [UDP, DARK, Codec(activation="softmax")])
def test_heatmaps_are_read_as_before(codec):
    maps = jax.random.normal(jax.random.key(0), (2, 3, 24, 16, 14))
    outputs = Outputs(heatmaps=maps)
    other = Outputs(heatmaps=maps[:, :, ::-1])
    answer = answers.read(outputs, codec, SIZE)
    active = heatmaps.activate(maps[-1], codec)
    points, scores = jax.vmap(lambda m: heatmaps.decode(m, codec, SIZE))(active)
    for found, wanted in zip(answer, (active, points, scores)):
        np.testing.assert_array_equal(found, wanted)
    cells, peaks = answers.locate(outputs, codec, SIZE)
    place = jax.vmap(lambda m: heatmaps.locate(m, codec))
    np.testing.assert_array_equal(cells, place(active))
    np.testing.assert_array_equal(peaks, active.max((1, 2)))
    flipped = answers.read_flipped(outputs, other, PAIRS, codec, SIZE)
    back = heatmaps.unflip(
        heatmaps.activate(maps[-1, :, ::-1], codec), PAIRS, codec, SIZE
    )
    np.testing.assert_array_equal(flipped.maps, (active + back) / 2)
    np.testing.assert_array_equal(answers.raw(outputs), maps[-1])


def test_positions_in_map_pixels():
    """The same joints as `read`, with the height that it scores."""
    points = points_inside()
    outputs = Outputs(coordinates=points, spread=np.full(points.shape, 10.0, "f"))
    for codec in (UDP, DARK):
        cells, peaks = answers.locate(outputs, codec, SIZE)
        answer = answers.read(outputs, codec, SIZE)
        scale = heatmaps.stride(codec, SIZE, (24, 16))
        np.testing.assert_allclose(cells * scale, answer.keypoints, atol=1e-4)
        np.testing.assert_array_equal(peaks, answer.scores)
    np.testing.assert_array_equal(answers.raw(outputs), points[-1])


def test_what_cannot_be_read():
    with pytest.raises(ValueError, match="neither heatmaps nor coordinates"):
        answers.read(Outputs(), UDP, SIZE)
    broken = Outputs(coordinates=np.full((1, 1, 2, 2), np.nan, "f"))
    assert np.isnan(answers.maps(broken, UDP, SIZE)).all()
