"""Grad-CAM and HiRes-CAM: by hand, at every sort of tap, and where they say nothing."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import TINY, config_of

from pose_jax import recipe as recipe_
from pose_jax.explain import grad_cam
from pose_jax.explain.attention import Tokens, tokens_of
from pose_jax.models import Outputs, Taps

K, SIDE = 3, 8


class Small(nn.Module):
    """Two taps: `a`, squared pixels at half the size, and `b`, a 3x3 convolution of them;
    then 1x1 to heatmaps. `a` also goes on as tokens."""

    @nn.compact
    def __call__(self, images, train=False, edits=None):
        taps = Taps(edits)
        x = taps("a", nn.Conv(4, (2, 2), 2, name="a")(images) ** 2)
        x = taps("tokens", x.reshape(len(x), 16, 4)).reshape(x.shape)
        x = taps("b", jnp.tanh(nn.Conv(5, (3, 3), name="b")(x)))
        maps = taps("maps", nn.Dense(K, name="final")(x))
        taps("vector", maps.mean((1, 2)))
        return Outputs(heatmaps=maps[None], taps=taps.finish())


POINTS = ((1, 2), (3, 0), (2, 2))


def score(outputs):
    """`value` at fixed pixels."""
    maps = outputs.heatmaps[-1, 0]
    return jnp.stack([maps[y, x, k] for k, (y, x) in enumerate(POINTS)])


@functools.cache
def small():
    module = Small()
    image = np.random.default_rng(0).normal(size=(SIDE, SIDE, 3)).astype(np.float32)
    variables = module.init(jax.random.key(1), image[None])
    return module, variables, image


def upsampled(maps):
    return jax.image.resize(jnp.asarray(maps), (K, SIDE, SIDE), "bilinear")


def by_hand(tap):
    """(values [y, x, c], gradients [k, y, x, c]) through the layers behind a tap."""
    module, variables, image = small()
    p = variables["params"]
    taps = module.apply(variables, image[None]).taps

    def behind(value):
        x = value
        if tap == "a":
            convolution = jax.lax.conv_general_dilated(
                x[None], p["b"]["kernel"], (1, 1), "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )  # fmt: skip
            x = jnp.tanh(convolution[0] + p["b"]["bias"])
        maps = x @ p["final"]["kernel"] + p["final"]["bias"]
        return jnp.stack([maps[y, x, k] for k, (y, x) in enumerate(POINTS)])

    return taps[tap][0], jax.jacobian(behind)(taps[tap][0])


# --- definitions ------------------------------------------------------------------------


@pytest.mark.parametrize("tap", ["a", "b"])
@pytest.mark.parametrize("chunk", [0, 2])
def test_grad_cam_by_hand(tap, chunk):
    module, variables, image = small()
    values, slopes = by_hand(tap)
    weights = np.asarray(slopes).mean((1, 2))
    maps = np.stack([(values * w).sum(-1) for w in weights])
    found = grad_cam.grad_cam(
        module.apply, variables, image, score, tap=tap, chunk=chunk
    )
    np.testing.assert_allclose(found, upsampled(maps), rtol=1e-4, atol=1e-6)
    assert found.min() < 0 < found.max()
    published = grad_cam.grad_cam(
        module.apply, variables, image, score, tap=tap, positive=True
    )
    np.testing.assert_allclose(
        published, upsampled(np.maximum(maps, 0)), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("tap", ["a", "b"])
def test_hires_cam_by_hand(tap):
    module, variables, image = small()
    values, slopes = by_hand(tap)
    maps = np.asarray((slopes * values).sum(-1))
    found = grad_cam.hires_cam(module.apply, variables, image, score, tap=tap)
    np.testing.assert_allclose(found, upsampled(maps), rtol=1e-4, atol=1e-6)


def test_hires_cam_is_complete_on_a_linear_head():
    """Behind `b` all is linear: the map sums to the score without its bias, and lies on the
    one pixel that the score reads."""
    module, variables, image = small()
    found = grad_cam.hires_cam(module.apply, variables, image, score, tap="b")
    outputs = module.apply(variables, image[None])
    bias = variables["params"]["final"]["bias"]
    # Bilinear upsampling by two keeps the mean of an inner pixel: four times the sum.
    inner = np.asarray(found)[[0, 2]].sum((1, 2)) / 4
    np.testing.assert_allclose(
        inner, (score(outputs) - bias)[np.array([0, 2])], rtol=1e-4
    )
    y, x = POINTS[2]
    far = np.array(found[2])
    far[2 * y - 1 : 2 * y + 3, 2 * x - 1 : 2 * x + 3] = 0
    np.testing.assert_allclose(far, 0, atol=1e-7)


# --- what says nothing ------------------------------------------------------------------


def test_before_the_last_layer_the_map_is_the_heatmap():
    module, variables, image = small()
    heatmaps = module.apply(variables, image[None]).heatmaps[-1, 0]
    maps = {
        tap: grad_cam.grad_cam(module.apply, variables, image, score, tap=tap)
        for tap in ("a", "b")
    }
    for k in range(K):
        wanted = upsampled(np.moveaxis(heatmaps, -1, 0))[k].ravel()
        assert np.corrcoef(maps["b"][k].ravel(), wanted)[0, 1] > 0.9999
    assert grad_cam.repeats_heatmap(maps["b"], heatmaps).tolist() == [True] * K
    assert not grad_cam.repeats_heatmap(maps["a"], heatmaps).any()
    hires = grad_cam.hires_cam(module.apply, variables, image, score, tap="b")
    assert not grad_cam.repeats_heatmap(hires, heatmaps).any()
    # Neither scale nor offset counts; the other sign does, and a constant repeats nothing.
    changed = maps["b"] * 1e-6 + 3e-6
    assert grad_cam.repeats_heatmap(changed, heatmaps).all()
    assert not grad_cam.repeats_heatmap(-changed, heatmaps).any()
    assert not grad_cam.repeats_heatmap(0 * changed, heatmaps).any()


# --- taps -------------------------------------------------------------------------------


def test_tokens_are_maps_where_their_grid_is_known():
    module, variables, image = small()
    ask = functools.partial(grad_cam.grad_cam, module.apply, variables, image, score)
    plain = ask(tap="a")
    grid = Tokens((SIDE, SIDE), (4, 4))
    np.testing.assert_allclose(ask(tap="tokens", tokens=grid), plain, rtol=1e-5)
    with pytest.raises(ValueError, match="'tokens' is no map.*use one of a, b, maps$"):
        ask(tap="tokens")


def test_keypoint_tokens_are_left_out():
    module, variables, image = small()

    def apply(variables, images, edits=None):
        """Three tokens in front of the patches, which nothing reads."""
        edit = dict(edits or {})
        shift = edit.pop("all").shift if "all" in edit else 0.0
        outputs = module.apply(variables, images)
        value = outputs.taps["tokens"]
        many = jnp.concatenate([jnp.full((1, K, 4), 7.0), value], 1) + shift
        x = many[:, K:].reshape(1, 4, 4, 4)
        p = variables["params"]
        x = jnp.tanh(nn.Conv(5, (3, 3)).apply({"params": p["b"]}, x))
        maps = nn.Dense(K).apply({"params": p["final"]}, x)
        return Outputs(heatmaps=maps[None], taps={**outputs.taps, "all": many})

    tokens = Tokens((SIDE, SIDE), (4, 4), keypoints=K)
    found = grad_cam.grad_cam(apply, variables, image, score, tap="all", tokens=tokens)
    plain = grad_cam.grad_cam(module.apply, variables, image, score, tap="a")
    np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-6)


def test_a_tap_of_every_stage_counts_stages_as_channels():
    """The same weights twice: both corrections read the tap, their maps add up."""
    generator = np.random.default_rng(1)
    image = generator.normal(size=(4, 4, 3)).astype(np.float32)
    weights = generator.normal(size=(2, 4, 4, 3, K)).astype(np.float32)

    def apply(weights, images, edits=None):
        taps = Taps(edits)
        x = taps("seen", jnp.stack([images, images**2], 1))
        found = jnp.einsum("bsyxc,syxck->bk", x, weights)
        points = jnp.stack([found, found], -1)
        return Outputs(coordinates=jnp.stack([points, points]), taps=taps.finish())

    found = grad_cam.grad_cam(
        apply, weights, image, lambda o: o.coordinates[-1, 0, :, 0], tap="seen"
    )
    mean = weights.mean((1, 2))
    wanted = np.einsum("yxc,ck->kyx", image, mean[0])
    wanted = wanted + np.einsum("yxc,ck->kyx", image**2, mean[1])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


DEFAULTS = {
    "hourglass": "stack1/bottleneck", "simple_baseline": "deconv0", "vitpose": "tokens",
    "tokenpose": "layer0/tokens", "ief": "layer3", "hrnet": "stage3/branch2",
}  # fmt: skip
"""At 64 pixels: the last stage of a ResNet has four cells only."""


@pytest.mark.parametrize("family", TINY)
def test_usable_taps_of_every_family(family):
    described = recipe_.recipe(config_of(family))
    shape = jax.ShapeDtypeStruct((64, 64, 3), jnp.float32)
    variables = described.shapes()
    taps = grad_cam.taps_of(described.module.apply, variables, shape)
    assert taps and not any(name.endswith("attention") for name in taps)
    tokens = None
    if hasattr(described.module, "token_grid"):
        tokens = tokens_of(described.module, (64, 64))
    chosen = grad_cam.default_tap(taps, tokens)
    assert chosen == DEFAULTS.get(family, chosen), list(taps)


def test_default_is_the_last_of_the_coarsest():
    taps = {
        "stem": (1, 16, 16, 4), "deep": (1, 4, 4, 8), "tokens": (1, 16, 8),
        "point": (1, 1, 1, 9), "fine": (1, 8, 8, 3),
    }  # fmt: skip
    grid = Tokens((32, 32), (4, 4))
    assert grad_cam.default_tap(taps, grid) == "tokens"
    del taps["tokens"]
    assert grad_cam.default_tap(taps) == "deep"
    assert grad_cam.default_tap({"point": (1, 1, 1, 9)}) == "point"
    with pytest.raises(ValueError, match="use another method"):
        grad_cam.default_tap({})


def test_refusals():
    module, variables, image = small()
    for tap in ("nothing", "vector"):
        with pytest.raises(
            ValueError, match="is no map of this network; use one of a,"
        ):
            grad_cam.hires_cam(module.apply, variables, image, score, tap=tap)
