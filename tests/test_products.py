"""Products with gradients of their own against XLA's, in every mode of differentiation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pose_jax import models
from pose_jax.models import layers, products

IMAGE = (2, 6, 8, 5)


def draw(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape)


def xla_convolution(x, kernel, size=1, strides=1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        ((size, size), (size, size)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


FORMS = {
    "dense": (products.dense, lambda x, kernel: x @ kernel, (5, 4)),
    "convolve3": (products.convolve3, xla_convolution, (3, 3, 5, 4)),
}


def squash(function):
    """A loss whose second derivatives are not zero."""
    return lambda x, kernel: (
        jnp.sin(function(x, kernel)) * draw(2, (*IMAGE[:-1], 4))
    ).sum()


def gradient(function, x, kernel):
    return jax.jit(jax.grad(squash(function), (0, 1)))(x, kernel)


def forward_over_reverse(function, x, kernel):
    tangents = draw(5, x.shape), draw(6, kernel.shape)
    return jax.jvp(jax.grad(squash(function), (0, 1)), (x, kernel), tangents)[1]


def reverse_over_reverse(function, x, kernel):
    def size(kernel):
        return (jax.grad(squash(function), 1)(x, kernel) ** 2).sum()

    return jax.grad(size)(kernel)


def batched(function, x, kernel):
    several = jnp.stack([x, 2 * x, x - 1])
    return jax.vmap(jax.grad(squash(function), (0, 1)), (0, None))(several, kernel)


@pytest.mark.parametrize(
    "mode", [gradient, forward_over_reverse, reverse_over_reverse, batched]
)
@pytest.mark.parametrize("form", FORMS)
def test_derivatives_equal_xlas(form, mode):
    ours, theirs, shape = FORMS[form]
    x, kernel = draw(0, IMAGE), draw(1, shape)
    np.testing.assert_allclose(ours(x, kernel), theirs(x, kernel), rtol=1e-5, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3),
        mode(ours, x, kernel),
        mode(theirs, x, kernel),
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_keep_their_type(form, dtype):
    ours, _, shape = FORMS[form]
    x, kernel = draw(0, IMAGE).astype(dtype), draw(1, shape).astype(dtype)
    grads = jax.grad(lambda x, k: ours(x, k).astype(jnp.float32).sum(), (0, 1))
    assert [g.dtype for g in grads(x, kernel)] == [dtype, dtype]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("size,strides", [(3, 1), (7, 2), (5, 1), (3, 2), (1, 1)])
def test_layers_take_the_fast_form_where_it_applies(size, strides, train):
    """3x3 with stride 1, and 1x1 as a product, in training; XLA's own everywhere else."""
    x = draw(0, IMAGE)
    if size == 1:
        kernel = draw(1, (5, 4))
        module = layers.conv1x1(4, "c", jnp.float32, train=train)
        expected = x @ kernel
    else:
        kernel = draw(1, (size, size, 5, 4))
        module = layers.conv(4, size, "c", jnp.float32, strides=strides, train=train)
        expected = xla_convolution(x, kernel, size // 2, strides)
    variables = {"params": {"kernel": kernel, "bias": jnp.zeros(4)}}
    found = module.apply(variables, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    program = str(jax.make_jaxpr(module.apply)(variables, x))
    fast = train and (size, strides) in ((3, 1), (1, 1))
    assert ("custom_vjp" in program) == fast


@pytest.mark.parametrize(
    "options",
    [
        dict(lhs_dilation=(2, 2)),
        dict(rhs_dilation=(2, 2)),
        dict(precision=jax.lax.Precision.HIGHEST),
        dict(preferred_element_type=jnp.float32),
    ],
)
def test_unusual_options_go_to_xla(options):
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), **options}

    def ours(x, kernel):
        padding = ((1, 1), (1, 1))
        return products.conv_general_dilated(x, kernel, (1, 1), padding, **options)

    def xla(x, kernel):
        padding = ((1, 1), (1, 1))
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, **options)

    x, kernel = draw(0, IMAGE), draw(1, (3, 3, 5, 4))
    np.testing.assert_array_equal(ours(x, kernel), xla(x, kernel))
    assert "custom_vjp" not in str(jax.make_jaxpr(ours)(x, kernel))


@pytest.mark.parametrize("platform,convolutions", [("cpu", 2), ("tpu", 3), ("cuda", 3)])
def test_accelerators_keep_their_own_convolution(platform, convolutions):
    """The shifted form of the kernel's gradient is the CPU's alone."""
    run = jax.jit(jax.grad(squash(products.convolve3), (0, 1)))
    traced = run.trace(draw(0, IMAGE), draw(1, (3, 3, 5, 4)))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == convolutions


def test_pooling_shares_gradients_at_ties():
    x = jnp.round(2 * draw(0, (2, 8, 8, 3)))  # Many ties.
    g = draw(1, (2, 4, 4, 3))
    results = [
        jax.vjp(lambda x, t=train: layers.max_pool2(x, train=t), x)[1](g)[0]
        for train in (True, False)
    ]
    np.testing.assert_allclose(*results, rtol=1e-6)
    np.testing.assert_allclose(results[0].sum(), g.sum(), rtol=1e-4)


def windows3(x):
    return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


def pooled(function, x, g):
    """The maxima and the gradient of their product with `g`, in one program."""

    def both(x, g):
        y, pull = jax.vjp(function, x)
        return y, pull(g)[0]

    return jax.jit(both)(x, g)


@pytest.mark.parametrize("shape", [(1, 8, 6, 3), (1, 2, 2, 4), (1, 7, 9, 3)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("train", [True, False])
def test_pooling_of_three_equals_xlas_windows(shape, dtype, train):
    """Without ties both gradients are XLA's bit for bit; all below zero, so padding shows."""
    generator = np.random.default_rng(0)
    count = np.prod(shape)
    x = jnp.asarray(generator.permutation(count).reshape(shape) - count, dtype)
    g = (shape[0], (shape[1] + 1) // 2, (shape[2] + 1) // 2, shape[3])
    g = jnp.asarray(generator.integers(-8, 9, g), dtype)  # Sums of these are exact.
    y, theirs = pooled(windows3, x, g)
    found, ours = pooled(lambda x: layers.max_pool3(x, train=train), x, g)
    np.testing.assert_array_equal(found, y)
    np.testing.assert_array_equal(ours, theirs)
    assert found.dtype == dtype


def test_pooling_of_three_gives_ties_to_the_first_pixel():
    """As PyTorch and XLA do; in evaluation equals may share."""
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.integers(-2, 3, (2, 8, 12, 3)), jnp.float32)
    g = jnp.asarray(generator.integers(-8, 9, (2, 4, 6, 3)), jnp.float32)
    _, found = pooled(lambda x: layers.max_pool3(x, train=True), x, g)
    np.testing.assert_array_equal(found, pooled(windows3, x, g)[1])
    _, shared = pooled(layers.max_pool3, x, g)
    np.testing.assert_allclose(shared.sum(), g.sum(), rtol=1e-5)


@pytest.mark.parametrize("train", [True, False])
def test_pooling_of_three_carries_not_a_number_and_batches(train):
    x = np.random.default_rng(0).normal(size=(3, 2, 8, 8, 3)).astype(np.float32)
    x[1, 0, 3, 3, 1] = np.nan
    found = jax.jit(jax.vmap(lambda x: layers.max_pool3(x, train=train)))(x)
    expected = jax.jit(jax.vmap(windows3))(x)
    np.testing.assert_array_equal(found, expected)
    assert np.isnan(np.asarray(found)).sum() == 4


@pytest.mark.parametrize("platform,windows", [("cpu", 0), ("tpu", 1), ("cuda", 1)])
def test_accelerators_keep_their_own_pooling(platform, windows):
    def loss(x):
        return layers.max_pool3(x, train=True).sum()

    traced = jax.jit(jax.grad(loss)).trace(draw(0, (1, 8, 8, 3)))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("select_and_scatter") == windows


def test_evaluation_has_a_forward_mode():
    """Explanations may push tangents through the network; only training may not."""
    section = dict(name="hourglass", stacks=1, depth=1, features=8, stem=(4, 4, 8))
    module = models.build(section, num_keypoints=3)
    x, direction = draw(0, (1, 16, 16, 3)), draw(1, (1, 16, 16, 3))
    variables = module.init(jax.random.key(0), x)

    def maps(x):
        return module.apply(variables, x).heatmaps

    y, pushed = jax.jvp(maps, (x,), (direction,))
    g = draw(2, y.shape)
    (pulled,) = jax.vjp(maps, x)[1](g)
    np.testing.assert_allclose(
        (pushed * g).sum(), (pulled * direction).sum(), rtol=1e-3
    )


def test_stored_changes_no_bit():
    x = draw(0, (2, 5, 7, 3)).at[0, 0, 0].set([jnp.nan, jnp.inf, -0.0])
    for dtype in (jnp.float32, jnp.bfloat16):
        here = x.astype(dtype)
        found = np.asarray(jax.jit(layers.stored)(here))
        assert found.tobytes() == np.asarray(here).tobytes()
    g = jax.jit(jax.grad(lambda x: (layers.stored(x) * draw(1, x.shape)).sum()))(x)
    np.testing.assert_array_equal(g, draw(1, x.shape))


@pytest.mark.parametrize("platform,divisions", [("cpu", 1), ("tpu", 0), ("cuda", 0)])
def test_accelerators_store_as_they_like(platform, divisions):
    traced = jax.jit(layers.stored).trace(draw(0, (2, 3)))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.divide") == divisions


@pytest.mark.parametrize("store,grows", [(layers.stored, False), (lambda x: x, True)])
def test_a_residual_stream_is_summed_up_once(store, grows):
    """Work behind each product of a chain: the same at every depth, or once more per block."""
    kernels = draw(1, (8, 16, 16))

    def work(depth):
        def stream(x):
            for kernel in kernels[:depth]:
                x = store(jax.nn.relu(x + x @ kernel))
            return x

        compiled = jax.jit(stream).lower(draw(0, (64, 16))).compile()
        fusions = [
            line.split(" fusion(")[1].split("calls=")[0].count("%")
            for line in compiled.as_text().splitlines()
            if " fusion(" in line
        ]
        return max(fusions, default=0)

    assert (work(8) > work(3) + 1) == grows
