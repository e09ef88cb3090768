"""Maps from gradients: hand-made networks, completeness, exchanged backward rules."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pose_jax.explain import gradients, memory
from pose_jax.explain.gradients import joint_gradients
from pose_jax.explain.layouts import laid_out
from pose_jax.models import Outputs, build, rectifier
from pose_jax.models.layers import max_pool2, max_pool3
from pose_jax.models.rectifier import rectify

H, W, K = 6, 5, 3


def linear(weights, image):
    """Maps [1, 1, 1, 1, k]: a sum of pixels, nothing else."""
    maps = jnp.einsum("bhwc,khwc->bk", image, weights)
    return Outputs(heatmaps=maps[None, :, None, None])


def curved(weights, image):
    """Smooth, not linear: sum over pixels of w sin(x) + (w . x)^2 / 10."""
    inner = jnp.einsum("bhwc,khwc->bk", image, weights)
    waves = jnp.einsum("bhwc,khwc->bk", jnp.sin(image), weights)
    return Outputs(heatmaps=(waves + inner**2 / 10)[None, :, None, None])


def score(outputs):
    return outputs.heatmaps[-1, 0, 0, 0]


@pytest.fixture
def weights(generator):
    return generator.normal(size=(K, H, W, 3)).astype(np.float32)


@pytest.fixture
def image(generator):
    return generator.normal(size=(H, W, 3)).astype(np.float32)


# --- plain gradients --------------------------------------------------------------------


def test_maps_of_a_sum_of_pixels(weights, image):
    np.testing.assert_allclose(
        gradients.saliency(linear, weights, image, score),
        np.abs(weights).max(-1),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        gradients.gradient(linear, weights, image, score),
        weights.sum(-1),
        rtol=1e-4,
        atol=1e-6,
    )
    found = gradients.gradient_x_input(linear, weights, image, score)
    np.testing.assert_allclose(found, (weights * image).sum(-1), rtol=1e-4, atol=1e-6)
    # Of a linear function gradient times input is complete.
    np.testing.assert_allclose(
        found.sum((1, 2)), score(linear(weights, image[None])), rtol=1e-4
    )


@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_all_joints_at_once_are_those_one_by_one(weights, image, chunk):
    def one(image, k):
        return score(curved(weights, image[None]))[k]

    wanted = np.stack([jax.grad(one)(image, k).sum(-1) for k in range(K)])
    found = gradients.gradient(curved, weights, image, score, chunk=chunk)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_one_forward_pass_serves_all_joints(weights, image):
    """The forward operation stands once in the program, and is not repeated in a loop."""
    text = str(
        jax.make_jaxpr(lambda x: gradients.gradient(curved, weights, x, score))(image)
    )
    assert text.count(" sin ") == 1


def test_a_score_has_to_be_a_vector(weights, image):
    with pytest.raises(ValueError, match="one number per keypoint"):
        gradients.saliency(linear, weights, image, lambda o: score(o).sum())


# --- noise ------------------------------------------------------------------------------


def test_smooth_grad_is_the_mean_over_its_noise(weights, image):
    key, samples, sigma = jax.random.key(3), 5, 0.2
    scale = sigma * (image.max() - image.min())

    @jax.jit
    def noisy(key):
        picture = image + scale * jax.random.normal(key, image.shape)
        return gradients.gradient(curved, weights, picture, score)

    @functools.partial(jax.jit, static_argnums=1)
    def smooth(key, at_once):
        return gradients.smooth_grad(
            curved, weights, image, score,
            key=key, samples=samples, sigma=sigma, at_once=at_once,
        )  # fmt: skip

    wanted = np.mean([noisy(k) for k in jax.random.split(key, samples)], axis=0)
    for at_once in (1, 2, 9):
        np.testing.assert_allclose(smooth(key, at_once), wanted, rtol=1e-4, atol=1e-5)
    other = smooth(jax.random.key(4), 2)
    assert np.abs(np.asarray(other) - wanted).max() > 1e-2
    with pytest.raises(ValueError, match="give key"):
        gradients.smooth_grad(curved, weights, image, score)


# --- paths ------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["midpoint", "gauss_legendre"])
def test_integrated_gradients_are_complete(weights, image, generator, rule):
    baseline = generator.normal(size=image.shape).astype(np.float32)
    gap = score(curved(weights, image[None])) - score(curved(weights, baseline[None]))
    for at_once in (1, 7):
        found = gradients.integrated_gradients(
            curved, weights, image, score,
            baseline=baseline, steps=40, rule=rule, at_once=at_once,
        )  # fmt: skip
        np.testing.assert_allclose(found.sum((1, 2)), gap, rtol=2e-3, atol=2e-3)
    # The error of three steps tells the rules apart.
    few = gradients.integrated_gradients(
        curved, weights, image, score, baseline=baseline, steps=3, rule=rule
    )
    error = np.abs(few.sum((1, 2)) - gap).max()
    assert (error < 1e-2) == (rule == "gauss_legendre")


def test_integrated_gradients_by_hand(weights, image):
    """sin: the mean of cos over the way is (sin x - sin b) / (x - b)."""
    baseline = 0.3
    inner = np.einsum("hwc,khwc->k", image, weights)
    start = np.einsum("hwc,khwc->k", np.full_like(image, baseline), weights)
    part = weights * (np.sin(image) - np.sin(baseline))
    part = (
        part
        + weights * (image - baseline) * ((inner + start) / 10)[:, None, None, None]
    )
    found = gradients.integrated_gradients(
        curved, weights, image, score, baseline=baseline, steps=8
    )
    np.testing.assert_allclose(found, part.sum(-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("at", ["middle", "start"])
def test_blur_path_is_complete(weights, image, at):
    options = dict(sigma_px=2.0, taps=5)
    blurred = gradients.blurred(image, 2.0, 5)
    gap = score(curved(weights, image[None])) - score(curved(weights, blurred[None]))
    errors = []
    for steps in (20, 80):
        call = functools.partial(
            gradients.blur_integrated_gradients, curved, weights,
            score=score, steps=steps, at=at, at_once=3, **options,
        )  # fmt: skip
        found = jax.jit(call)(image)
        errors.append(np.abs(found.sum((1, 2)) - gap).max())
    # First order falls fourfold, second order sixteenfold.
    if at == "start":
        assert 2.5 < errors[0] / errors[1] < 6
    else:
        assert errors[0] / errors[1] > 8 and errors[1] < 1e-3 * np.abs(gap).max()
    np.testing.assert_allclose(gradients.blurred(image, 0.0, 5), image, rtol=1e-6)


def test_blur_against_scipy(image):
    from scipy.ndimage import convolve1d

    offsets = np.arange(-3, 4)
    kernel = np.exp(-(offsets**2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    wanted = image
    for axis in (0, 1):
        wanted = convolve1d(wanted, kernel, axis=axis, mode="mirror")
    np.testing.assert_allclose(
        gradients.blurred(image, 1.5, 7), wanted, rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda *a: gradients.integrated_gradients(*a, rule="simpson"), "midpoint or"),
        (lambda *a: gradients.integrated_gradients(*a, steps=0), "at least 1"),
        (lambda *a: gradients.integrated_gradients(*a, at_once=0), "at_once=0"),
        (lambda *a: gradients.blur_integrated_gradients(*a, at="end"), "middle or"),
        (lambda *a: gradients.blur_integrated_gradients(*a, taps=4), "taps=4 odd"),
        (
            lambda *a: gradients.smooth_grad(*a, key=jax.random.key(0), samples=0),
            "samples=0",
        ),
        (lambda *a: rectifier.rule("relu"), "deconvnet, guided"),
    ],
)
def test_refusals(weights, image, call, message):
    with pytest.raises(ValueError, match=message):
        call(linear, weights, image, score)


# --- exchanged rules --------------------------------------------------------------------


class Two(nn.Module):
    """ReLU(x A) B on single pixels; NormRelu-free, so that gates can be counted by hand."""

    kind: str = "relu"

    @nn.compact
    def __call__(self, images, train=False, edits=None):
        x = nn.Dense(4, name="a")(images)
        x = nn.Dense(K, name="b")(rectify(x, self.kind))
        return Outputs(heatmaps=x[None])


def pixel_score(outputs):
    return outputs.heatmaps[-1, 0].sum((0, 1))


@functools.cache
def maps_of(name):
    method = getattr(gradients, name)
    return jax.jit(lambda m, v, x: method(m.apply, v, x, pixel_score), static_argnums=0)


def two(generator, kind="relu", positive=False):
    module = Two(kind)
    image = generator.normal(size=(2, 3, 3)).astype(np.float32)
    variables = module.init(jax.random.key(0), image[None])
    shapes = jax.tree.map(lambda x: x.shape, variables)
    variables = jax.tree.map(
        lambda s: generator.normal(size=s).astype(np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    if positive:
        variables, image = jax.tree.map(np.abs, variables), np.abs(image)
    return module, variables, image


@pytest.mark.parametrize("kind", ["relu", "relu6", "leaky_relu", "gelu"])
def test_rules_by_hand(generator, kind):
    """One hidden layer: the signal at it is B, whatever the pixel."""
    module, variables, image = two(generator, kind)
    image = image * 4  # ReLU6 has to cut some off.
    p = variables["params"]
    hidden = image @ p["a"]["kernel"] + p["a"]["bias"]
    slope = np.asarray(jax.grad(lambda x: rectifier.KINDS[kind](x).sum())(hidden))
    b, a = p["b"]["kernel"].T, p["a"]["kernel"].sum(0)
    plain = np.einsum("yxd,kd->kyxd", slope, b)
    cut = np.broadcast_to(np.maximum(b, 0)[:, None, None], plain.shape)
    wanted = {
        "gradient": plain,
        "deconvnet": cut,
        "guided_backprop": np.maximum(slope, 0) * cut,
    }
    found = {}
    for name, signal in wanted.items():
        found[name] = maps_of(name)(module, variables, image)
        np.testing.assert_allclose(found[name], signal @ a, rtol=1e-4, atol=1e-5)
    assert np.abs(found["gradient"] - found["deconvnet"]).max() > 0.1
    assert np.abs(found["gradient"] - found["guided_backprop"]).max() > 0.1
    assert np.abs(found["deconvnet"] - found["guided_backprop"]).max() > 0.1


def test_rules_agree_where_nothing_is_negative(generator):
    module, variables, image = two(generator, positive=True)
    names = ("gradient", "deconvnet", "guided_backprop")
    maps = [maps_of(name)(module, variables, image) for name in names]
    assert np.abs(maps[0]).max() > 0.1
    np.testing.assert_allclose(maps[1], maps[0], rtol=1e-6)
    np.testing.assert_allclose(maps[2], maps[0], rtol=1e-6)


def test_rules_keep_the_values(generator):
    for kind in rectifier.KINDS:
        module, variables, image = two(generator, kind)
        plain = module.apply(variables, image[None]).heatmaps
        with rectifier.rule("guided"):
            ruled = module.apply(variables, image[None]).heatmaps
        np.testing.assert_array_equal(plain, ruled)


def test_compiled_functions_do_not_leak_a_rule(generator):
    """The same compiled `apply`, first plain, then under each rule, then plain again; and
    the other way round."""
    module, variables, image = two(generator)
    methods = (gradients.gradient, gradients.deconvnet, gradients.guided_backprop)
    wanted = [maps_of(m.__name__)(module, variables, image) for m in methods]
    for order in ((0, 1, 2, 0), (2, 0, 1, 2)):
        apply = jax.jit(module.apply)
        for i in order:
            found = methods[i](apply, variables, image, pixel_score)
            np.testing.assert_allclose(found, wanted[i], rtol=1e-5, atol=1e-6)
    compiled = jax.jit(
        lambda x: gradients.deconvnet(module.apply, variables, x, pixel_score)
    )
    np.testing.assert_allclose(compiled(image), wanted[1], rtol=1e-5, atol=1e-6)
    slope = jax.jit(
        jax.grad(lambda x: -pixel_score(module.apply(variables, x[None])).sum())
    )
    before = slope(image)
    with rectifier.rule("guided"):
        inside = slope(image)
    np.testing.assert_array_equal(slope(image), before)
    assert np.abs(inside - before).max() > 1e-2


def test_a_rule_ends_with_its_block_even_after_an_error():
    x = jnp.array([-1.0, 2.0])
    with pytest.raises(RuntimeError), rectifier.rule("deconvnet"):
        raise RuntimeError
    slope = jax.grad(lambda x: rectify(x).sum())
    np.testing.assert_array_equal(slope(x), [0, 1])
    with rectifier.rule("guided"):
        with rectifier.rule("deconvnet"):
            np.testing.assert_array_equal(slope(x), [1, 1])
        np.testing.assert_array_equal(slope(x), [0, 1])


def test_older_jax_has_a_context_of_its_own():
    variable = rectifier._Variable("gradient")
    with variable("guided"):
        assert variable.value == "guided"
    assert variable.value == "gradient"


# --- switches ---------------------------------------------------------------------------


@pytest.mark.parametrize("pool,cells", [(max_pool2, 1), (max_pool3, 1)])
def test_pooling_sends_signals_to_its_maxima(generator, pool, cells):
    """Unpooling with switches: every signal lands on the pixel that was the largest."""
    x = generator.permutation(64).reshape(1, 8, 8, 1).astype(np.float32)
    y, pull = jax.vjp(pool, x)
    signal = np.arange(1.0, y.size + 1, dtype=np.float32).reshape(y.shape)
    (found,) = pull(signal)
    wanted = np.zeros_like(x)
    for i in range(4):
        for j in range(4):
            if pool is max_pool2:
                rows, columns = slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2)
            else:
                rows = slice(max(2 * i - 1, 0), 2 * i + 2)
                columns = slice(max(2 * j - 1, 0), 2 * j + 2)
            part = x[0, rows, columns, 0]
            a, b = np.unravel_index(part.argmax(), part.shape)
            wanted[0, rows.start + a, columns.start + b, 0] += signal[0, i, j, 0]
    np.testing.assert_allclose(found, wanted)


@pytest.mark.parametrize("pool", [max_pool2, max_pool3])
def test_pooling_shares_signals_between_equal_maxima(pool):
    y, pull = jax.vjp(pool, jnp.zeros((1, 4, 4, 1)))
    np.testing.assert_allclose(pull(jnp.ones_like(y))[0].sum(), y.size)


# --- networks ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hourglass():
    module = build(
        dict(name="hourglass", stacks=1, depth=1, features=8, stem=(4, 4, 8)),
        num_keypoints=K,
    )
    image = np.random.default_rng(2).normal(size=(32, 32, 3)).astype(np.float32)
    variables = jax.jit(module.init)(jax.random.key(0, impl="unsafe_rbg"), image[None])
    return module, variables, image


def map_score(outputs):
    return outputs.heatmaps[-1, 0, 3, 4]


def test_rules_reach_every_relu_of_a_network(hourglass):
    """An hourglass whose weights are all positive has no negative signal: no rule changes
    anything. With its own weights all three differ."""
    module, variables, image = hourglass

    @jax.jit
    def maps(variables, image):
        return [
            f(module.apply, variables, image, map_score)
            for f in (
                gradients.gradient,
                gradients.deconvnet,
                gradients.guided_backprop,
            )
        ]

    positive = jax.tree.map(np.abs, variables)
    plain, *others = maps(positive, np.abs(image))
    assert np.abs(plain).max() > 0
    for other in others:
        np.testing.assert_allclose(other, plain, rtol=1e-4)
    different = maps(variables, image)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        a, b = np.ravel(different[i]), np.ravel(different[j])
        assert np.corrcoef(a, b)[0, 1] < 0.95
    text = str(
        jax.make_jaxpr(
            lambda x: gradients.deconvnet(module.apply, variables, x, map_score)
        )(image)
    )
    assert "relu" in text


def test_loops_take_the_fast_convolution(hourglass):
    """What `laid_out` changes: the order of the kernel's axes inside of loops, no number."""
    module, variables, image = hourglass

    def scanned(wrap):
        def one(image):
            return jax.grad(
                lambda x: map_score(module.apply(variables, x[None])).sum()
            )(image)

        def call(image):
            step = wrap(one)
            shares = jnp.array([0.2, 1.0])
            return jax.lax.map(lambda share: step(share * image), shares)

        return jax.jit(call).lower(image).compile()

    plain, wrapped = scanned(lambda f: f), scanned(laid_out)
    np.testing.assert_allclose(
        wrapped(image), plain(image), rtol=1e-3, atol=1e-5 * np.abs(plain(image)).max()
    )
    text = wrapped.as_text()
    assert "01io->" in text and "01oi->" not in text


def test_laid_out_functions_keep_structure_calls_and_constants():
    """Trees, compiled functions, rules of their own, loops and literals."""

    @jax.jit
    def inner(x):
        return jax.nn.relu(x) + 1

    def function(tree, y):
        total, _ = jax.lax.scan(lambda c, z: (c + inner(z), None), y, tree["a"])
        return {"sum": total, "pair": (rectify(y) * np.arange(3.0), 2.0)}

    tree = {"a": jnp.arange(6.0).reshape(2, 3) - 2}
    y = jnp.array([-1.0, 0.5, 2.0])
    with rectifier.rule("guided"):
        found = laid_out(function)(tree, y)
    wanted = function(tree, y)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_allclose, found, wanted)


def test_folded_networks_have_the_same_maps(hourglass):
    from pose_jax.models import fold

    module, variables, image = hourglass
    folded, copy = fold(module, variables)

    def maps(module, variables):
        call = jax.jit(
            lambda v, x: gradients.guided_backprop(module.apply, v, x, map_score)
        )
        return call(variables, image)

    plain = maps(module, variables)
    np.testing.assert_allclose(
        maps(folded, copy), plain, rtol=1e-3, atol=1e-5 * np.abs(plain).max()
    )


def test_memory_is_foreseen(hourglass):
    """Within a factor of two of what XLA plans, for one chunk and for all joints."""
    module, variables, image = hourglass

    def maps(chunk):
        def call(variables, image):
            slopes = joint_gradients(
                gradients.of_image(module.apply, variables, map_score),
                image,
                chunk=chunk,
            )
            return slopes[1]

        plan = jax.jit(call).lower(variables, image).compile().memory_analysis()
        return plan.temp_size_in_bytes + plan.output_size_in_bytes

    for chunk in (1, 0):
        wanted = maps(chunk)
        found = memory.gradient_bytes(
            module.apply, variables, image, map_score, chunk=chunk
        )
        assert wanted / 2 < found < 2 * wanted, (chunk, wanted, found)
