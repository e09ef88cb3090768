"""Pictures that networks like best: by hand where the network is a filter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pose_jax import answers, heatmaps
from pose_jax.explain import activation_max
from pose_jax.heatmaps import Codec
from pose_jax.models import Outputs
from pose_jax.pixels import InputSpec

SIZE, K = (16, 12), 3
SPEC = InputSpec(size=SIZE)
CODEC = Codec(encode="unbiased", decode="argmax", sigma_px=1.0, activation="softmax")
POINTS = np.array([[4.0, 4.0], [8.0, 8.0], [4.0, 12.0]], np.float32)


def filters(kernel, images, edits=None):
    """Heatmaps at half the size: `kernel [4, 4, 3, k]` over the picture, nothing else."""
    maps = jax.lax.conv_general_dilated(
        images, kernel, (2, 2), ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    return Outputs(heatmaps=maps[None])


@pytest.fixture
def kernel(generator):
    return generator.normal(size=(4, 4, 3, K)).astype(np.float32)


def plain(**options):
    """Without what smooths the picture."""
    return {
        "decay": 0.0, "variation": 0.0, "jitter_px": 0, "blur_sigma_px": 0.0, **options
    }  # fmt: skip


def test_score_reads_raw_maps_between_pixels(kernel, generator):
    images = generator.normal(size=(1, *SIZE, 3)).astype(np.float32)
    outputs = filters(kernel, images)
    maps = np.asarray(outputs.heatmaps[-1, 0])
    for k in range(K):
        score = activation_max.template_score(
            POINTS, np.eye(K, dtype=np.float32)[k], CODEC, SIZE
        )
        x, y = (POINTS[k] / 2).astype(int)
        np.testing.assert_allclose(score(outputs), maps[y, x, k], rtol=1e-5)
    whole = activation_max.template_score(
        POINTS + 1, np.ones(K, np.float32), CODEC, SIZE
    )
    wanted = sum(
        maps[y : y + 2, x : x + 2, k].mean()
        for k, (x, y) in enumerate((POINTS / 2).astype(int))
    )
    np.testing.assert_allclose(whole(outputs), wanted, rtol=1e-4)
    outside = activation_max.template_score(
        np.full((K, 2), 99.0, np.float32), np.ones(K, np.float32), CODEC, SIZE
    )
    np.testing.assert_allclose(outside(outputs), maps[-1, -1].sum(), rtol=1e-4)


def test_regressors_are_asked_by_their_drawn_maps():
    points = jnp.asarray(POINTS)[None, None]
    outputs = Outputs(coordinates=points)
    maps = answers.maps(outputs, CODEC, SIZE)[0]
    score = activation_max.template_score(POINTS, np.ones(K, np.float32), CODEC, SIZE)
    np.testing.assert_allclose(score(outputs), maps.max((0, 1)).sum(), rtol=1e-5)
    step = heatmaps.stride(CODEC, SIZE, maps.shape[:2])
    assert step.tolist() == [4, 4]


def test_the_best_picture_of_a_filter_is_the_filter(kernel):
    """With a penalty lambda mean(x^2) the maximum is kernel / (2 lambda / n) under the point
    and zero elsewhere, so far as pixels go."""
    k, decay = 1, 3e3
    ask = functools.partial(
        activation_max.maximise, filters, spec=SPEC, codec=CODEC,
        **plain(decay=decay, steps=400, learning_rate=0.02),
    )  # fmt: skip
    weights = np.eye(K, dtype=np.float32)[k]
    call = jax.jit(lambda v, key: ask(v, POINTS, weights, key=key))
    found = call(kernel, jax.random.key(0))
    n = SIZE[0] * SIZE[1] * 3
    x, y = POINTS[k].astype(int) - 1
    wanted = np.zeros((*SIZE, 3), np.float32)
    wanted[y : y + 4, x : x + 4] = kernel[..., k] * n / (2 * decay)
    normalised = (found.image / 255 - np.array(SPEC.mean)) / np.array(SPEC.std)
    np.testing.assert_allclose(normalised, wanted, atol=0.02)
    assert found.scores.shape == (401,)
    assert found.scores[0] == 0
    np.testing.assert_allclose(
        found.scores[-1], (kernel[..., k] ** 2).sum() * n / (2 * decay), rtol=0.02
    )
    # Nothing is drawn without jitter.
    again = call(kernel, jax.random.key(1))
    np.testing.assert_array_equal(again.image, found.image)


def test_pixels_stay_pixels(kernel):
    """Without penalties every pixel that matters ends up black or white."""
    found = activation_max.maximise(
        filters, kernel, POINTS, np.ones(K, np.float32), spec=SPEC, codec=CODEC,
        key=jax.random.key(0), **plain(steps=120, learning_rate=0.1),
    )  # fmt: skip
    image = np.asarray(found.image)
    x, y = POINTS[0].astype(int) - 1
    part = image[y : y + 4, x : x + 4]
    assert image.min() >= 0 and image.max() <= 255
    np.testing.assert_array_equal(part > 127, kernel[..., 0] > 0)
    assert np.minimum(part, 255 - part).max() < 1
    # What no joint reads keeps the mean colour.
    np.testing.assert_allclose(image[0, 0], 255 * np.array(SPEC.mean), rtol=1e-5)


def test_channels_of_bgr_networks_come_back_as_rgb(kernel):
    spec = InputSpec(size=SIZE, channel_order="bgr")
    red = np.zeros_like(kernel)
    red[:, :, 2] = 1  # The last channel that the network reads.
    found = activation_max.maximise(
        filters, red, POINTS, np.ones(K, np.float32), spec=spec, codec=CODEC,
        key=jax.random.key(0), **plain(steps=80, learning_rate=0.1),
    )  # fmt: skip
    x, y = POINTS[0].astype(int)
    np.testing.assert_allclose(found.image[y, x, 0], 255, atol=1)
    np.testing.assert_allclose(
        found.image[y, x, 1:], 255 * np.array(spec.mean[1:]), 1e-4
    )


def test_jitter_moves_what_is_asked_with_the_picture(kernel):
    """A filter far from every border does not know where it stands: jitter by whole map
    pixels alone would change nothing, and the pattern stays under the point."""
    k, decay = 1, 3e3
    found = activation_max.maximise(
        filters, kernel, POINTS, np.eye(K, dtype=np.float32)[k], spec=SPEC, codec=CODEC,
        key=jax.random.key(0), **plain(decay=decay, steps=200, jitter_px=2),
    )  # fmt: skip
    image = np.asarray(found.image) / 255 - np.array(SPEC.mean)
    energy = (image**2).sum(-1)
    y, x = np.unravel_index(energy.argmax(), energy.shape)
    assert np.abs(np.array([x, y]) - POINTS[k]).max() <= 4
    assert found.scores[-1] > 5 * abs(found.scores[0]) and found.scores[-1] > 0.1


def test_smoothness_is_bought(kernel):
    def rough(**options):
        found = activation_max.maximise(
            filters, kernel, POINTS, np.ones(K, np.float32), spec=SPEC, codec=CODEC,
            key=jax.random.key(0), **plain(steps=60, **options),
        )  # fmt: skip
        image = np.asarray(found.image)
        return (np.diff(image, axis=0) ** 2).mean()

    free = rough()
    assert rough(variation=1e3) < 0.7 * free
    assert rough(blur_sigma_px=1.0, blur_every=2) < 0.7 * free


def test_vmapped_joints_are_those_one_by_one(kernel):
    ask = functools.partial(
        activation_max.maximise,
        filters,
        kernel,
        POINTS,
        spec=SPEC,
        codec=CODEC,
        steps=8,
    )
    rows = np.eye(K, dtype=np.float32)
    keys = jax.random.split(jax.random.key(2), K)
    every = jax.jit(jax.vmap(lambda w, key: ask(w, key=key)))(rows, keys)
    assert every.image.shape == (K, *SIZE, 3) and every.scores.shape == (K, 9)
    one = ask(rows[1], key=keys[1])
    np.testing.assert_allclose(every.image[1], one.image, atol=0.05)
    np.testing.assert_allclose(every.scores[1], one.scores, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "options,message",
    [(dict(steps=0), "steps=0"), (dict(decay=-1.0), "must not be negative")],
)
def test_refusals(kernel, options, message):
    with pytest.raises(ValueError, match=message):
        activation_max.maximise(
            filters, kernel, POINTS, np.ones(K, np.float32),
            spec=SPEC, codec=CODEC, key=jax.random.key(0), **options,
        )  # fmt: skip
