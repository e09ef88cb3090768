"""Maps from hiding pixels: exact on linear models, converging where they draw."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pose_jax.explain import occlusion, scores
from pose_jax.heatmaps import Codec
from pose_jax.models import Outputs

H, W, K = 8, 12, 3
CODEC = Codec(encode="unbiased", decode="argmax", sigma_px=1.0)


def linear(weights, images, edits=None):
    maps = jnp.einsum("bhwc,khwc->bk", images, weights)
    return Outputs(heatmaps=maps[None, :, None, None])


def score(outputs):
    return outputs.heatmaps[-1, 0, 0, 0]


@pytest.fixture
def weights(generator):
    return generator.normal(size=(K, H, W, 3)).astype(np.float32)


@pytest.fixture
def image(generator):
    return generator.normal(size=(H, W, 3)).astype(np.float32)


# --- occlusion --------------------------------------------------------------------------


def slow_windows(patch, stride):
    """Corners (row, column), the last ones at the border."""

    def along(length):
        starts = list(range(0, length - patch, stride)) + [length - patch]
        return sorted(set(starts))

    return [(y, x) for y in along(H) for x in along(W)]


@pytest.mark.parametrize("patch,stride", [(3, 2), (4, 4), (5, 3), (1, 1)])
@pytest.mark.parametrize("fill", ["number", "picture"])
def test_occlusion_of_a_linear_model(weights, image, generator, patch, stride, fill):
    """The drop is the window's share of the sum, to the last window."""
    shown = 0.4
    if fill == "picture":
        shown = generator.normal(size=image.shape).astype(np.float32)
    effect = (weights * (image - shown)).sum(-1)
    total, count = np.zeros((K, H, W)), np.zeros((H, W))
    for y, x in slow_windows(patch, stride):
        part = slice(y, y + patch), slice(x, x + patch)
        total[:, *part] += effect[:, *part].sum((1, 2))[:, None, None]
        count[part] += 1
    for chunk in (5, 1000):
        found = occlusion.occlusion(
            linear, weights, image, score,
            patch_px=patch, stride_px=stride, fill=shown, chunk=chunk,
        )  # fmt: skip
        np.testing.assert_allclose(found, total / count, rtol=1e-3, atol=1e-4)


def test_single_pixels_of_a_linear_model(weights, image):
    found = occlusion.occlusion(linear, weights, image, score, patch_px=1, stride_px=1)
    np.testing.assert_allclose(found, (weights * image).sum(-1), rtol=1e-3, atol=1e-4)


def test_windows_of_256_pixels():
    rows, columns = occlusion._windows((256, 256), None, None)
    assert rows.shape == columns.shape == (29, 256)
    assert rows.shape[0] * columns.shape[0] == 841
    assert (rows.sum(1) == 32).all() and rows.any(0).all()
    rows, columns = occlusion._windows((128, 96), None, None)
    assert (rows.sum(1) == 16).all() and (columns.sum(1) == 16).all()
    assert rows.shape[0] == 29 and columns.shape[0] == 21


# --- the table --------------------------------------------------------------------------


def blobs(variables, images, edits=None):
    """A joint is seen where its own channel is brightest; hidden, it jumps to the corner."""
    maps = images[:, ::2, ::2]
    corner = jnp.zeros(maps.shape[1:]).at[0, 0].set(0.1)
    return Outputs(heatmaps=(maps + corner)[None])


PLACES = np.array([[2, 2], [8, 2], [10, 6]])  # (x, y) crop pixels, on even ones.


@pytest.fixture
def seen():
    image = np.zeros((H, W, 3), np.float32)
    for k, (x, y) in enumerate(PLACES):
        image[y, x, k] = 1 + k
    return image


@pytest.fixture
def table(seen):
    reference = scores.Reference(
        jnp.asarray(PLACES / 2, jnp.float32), jnp.ones(K, bool), jnp.asarray(40.0),
        jnp.full(K, 0.1), jnp.arange(K),
    )  # fmt: skip
    return occlusion.occlusion_table(
        blobs, None, seen, lambda o: scores.make_score("value", CODEC)(
            o.heatmaps[-1, 0], reference
        ),
        codec=CODEC, reference=reference, patch_px=3, stride_px=1,
    ), reference  # fmt: skip


def test_table_says_what_every_window_did(table):
    found, reference = table
    assert found.drop.shape == (6 * 10, K) and found.centres.shape == (60, 2)
    np.testing.assert_allclose(found.clean, [1, 2, 3])
    assert found.centres[0].tolist() == [1, 1] and found.centres[1].tolist() == [2, 1]
    assert found.centres[-1].tolist() == [10, 6]
    hides = np.abs(np.asarray(found.centres)[:, None] - PLACES).max(-1) <= 1
    assert 0 < hides.sum() < hides.size
    np.testing.assert_allclose(found.drop, hides * np.array([1.0, 2, 3]), atol=1e-6)
    far = np.linalg.norm(PLACES, axis=1)
    np.testing.assert_allclose(found.displacement_px, hides * far, rtol=1e-5)
    loss = 1 - np.exp(-((far / 2) ** 2) / (2 * 40 * 0.2**2))
    np.testing.assert_allclose(
        found.similarity_loss, hides * loss, rtol=1e-4, atol=1e-6
    )


def test_parts_and_joints(table):
    """Hiding a joint hurts it alone: the matrix is diagonal, rows are parts."""
    found, _ = table
    matrix = occlusion.part_to_joint(found.drop, found.centres, PLACES * 1.0, 1.0)
    wanted = np.diag([1.0, 2, 3])
    np.testing.assert_allclose(matrix, wanted, atol=1e-6)
    swapped = occlusion.part_to_joint(
        found.drop, found.centres, PLACES[[1, 0]] * 1.0, 1.0
    )
    np.testing.assert_allclose(swapped, wanted[[1, 0]], atol=1e-6)
    wide = occlusion.part_to_joint(found.drop, found.centres, PLACES * 1.0, 2.0)
    near = (np.linalg.norm(found.centres - PLACES[0], axis=1) <= 2).astype(float)
    np.testing.assert_allclose(
        wide[0], near @ np.asarray(found.drop) / near.sum(), rtol=1e-5
    )
    nowhere = occlusion.part_to_joint(
        found.drop, found.centres, np.array([[-50.0, 0]]), 1.0
    )
    assert np.isnan(nowhere).all()


# --- RISE -------------------------------------------------------------------------------


def test_rise_of_single_cells_converges_to_occlusion(weights, image):
    """Cells of one pixel on a linear model: the centred map is every pixel's own effect."""
    square = image[:, :H]
    ask = functools.partial(
        occlusion.rise, linear, weights[:, :, :H], square, score,
        key=jax.random.key(0), grid=H, share=0.4, fill=0.3, chunk=500,
    )  # fmt: skip
    wanted = (weights[:, :, :H] * (square - 0.3)).sum(-1)
    errors = [
        np.sqrt(np.mean((np.asarray(ask(masks=m)) - wanted) ** 2))
        for m in (1000, 16000)
    ]
    assert errors[1] < 0.15 * wanted.std()
    assert 2.5 < errors[0] / errors[1] < 6.5  # The root of 16 is 4.


def test_rise_of_blotches_is_the_smoothed_effect(weights, image):
    """E[(f - mean)(M - p)] / var M = sum over pixels of effect times correlation of masks,
    the correlation taken from masks drawn here."""
    options = dict(grid=3, share=0.5, chunk=500)
    found = occlusion.rise(
        linear, weights, image, score, key=jax.random.key(1), masks=12000, **options
    )
    # A model that answers single pixels gives the masks away.
    generator = np.random.default_rng(5)
    size = -(-H // 3), -(-W // 3)
    counts = -(-H // size[0]) + 1, -(-W // size[1]) + 1
    ups = [occlusion._upsampling(n, c) for n, c in zip(counts, size)]
    masks = []
    for _ in range(12000):
        cells = (generator.random(counts) < 0.5).astype(float)
        y, x = generator.integers(0, size[0]), generator.integers(0, size[1])
        masks.append(ups[0][y : y + H] @ cells @ ups[1][x : x + W].T)
    flat = np.reshape(masks, (len(masks), -1))
    covariance = np.cov(flat.T)
    effect = (weights * image).sum(-1).reshape(K, -1)
    wanted = effect @ covariance / np.diag(covariance)
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.99
    slope = (found.ravel() * wanted.ravel()).sum() / (wanted**2).sum()
    assert slope == pytest.approx(1, abs=0.05)
    # The foreseen variance is that of the masks.
    variance = 0.25 * occlusion._variance(ups, size, (H, W))
    np.testing.assert_allclose(
        variance.ravel(), np.diag(covariance), rtol=0.1, atol=0.005
    )


def test_published_rise_is_the_mean_of_scores_times_masks(image):
    """A score that does not depend on the picture: the map is that score everywhere, and
    zero where the level is taken off."""

    def constant(weights, images, edits=None):
        return Outputs(heatmaps=jnp.ones((1, 1, 1, 1, K)) * jnp.arange(1.0, K + 1))

    ask = functools.partial(
        occlusion.rise, constant, None, image, score,
        key=jax.random.key(0), masks=3000, chunk=1000,
    )  # fmt: skip
    published = np.asarray(ask(centred=False))
    for k in range(K):
        np.testing.assert_allclose(published[k], k + 1, rtol=0.1)
    np.testing.assert_allclose(ask(), 0, atol=1e-5)
    # Of a constant score the published map is the mean mask itself, which fluctuates.
    few = np.asarray(ask(centred=False, masks=20))
    np.testing.assert_allclose(few[1], 2 * few[0], rtol=1e-4)
    assert 0.03 < few[0].std() < 0.5


def test_rise_takes_the_level_off_with_the_masks_own_mean(image):
    """A score that is 100 on every mask but 0 on their mean, where sums start: no pixel
    matters, to rounding, however few the masks are."""

    def jump(variables, images, edits=None):
        flat = images.max((1, 2, 3)) - images.min((1, 2, 3)) < 1e-3
        found = jnp.where(flat, 0.0, 100.0)[None, :, None, None, None]
        return Outputs(heatmaps=found.repeat(K, -1))

    ones = np.ones_like(image)
    found = occlusion.rise(jump, None, ones, score, key=jax.random.key(0), masks=10)
    np.testing.assert_allclose(found, 0, atol=1e-3)


@pytest.mark.parametrize("centred", [True, False])
def test_rise_does_not_depend_on_chunks_but_on_its_key(weights, image, centred):
    ask = functools.partial(
        occlusion.rise, linear, weights, image, score, masks=45, centred=centred
    )
    key = jax.random.key(0)
    first = ask(key=key, chunk=45)
    assert np.abs(np.asarray(ask(key=jax.random.key(1))) - first).max() > 0.1
    for chunk in (9, 20):
        found = ask(key=key, chunk=chunk)
        np.testing.assert_allclose(found, first, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(ask(key=key, chunk=45), first)


# --- refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda *a: occlusion.occlusion(*a, patch_px=9), "9 pixels does not fit.*8x12"),
        (lambda *a: occlusion.occlusion(*a, patch_px=0), "0 pixels does not fit"),
        (lambda *a: occlusion.occlusion(*a, patch_px=3, stride_px=4), r"use 1\.\.3"),
        (lambda *a: occlusion.rise(*a), "give key"),
        (lambda *a: occlusion.rise(*a, key=jax.random.key(0), share=1.0), "share=1 "),
        (lambda *a: occlusion.rise(*a, key=jax.random.key(0), masks=1), "masks=1 "),
        (lambda *a: occlusion.rise(*a, key=jax.random.key(0), grid=9), "grid=9 "),
    ],
)
def test_refusals(weights, image, call, message):
    with pytest.raises(ValueError, match=message):
        call(linear, weights, image, score)
