"""Hourglass: published sizes, taps and edits, layers against Flax's own, first weights."""

import functools
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from pose_jax import models
from pose_jax.heatmaps import Codec
from pose_jax.models import NEWELL, THESIS, Edit, initialise, layers, zoo
from pose_jax.models.outputs import Taps
from pose_jax.pixels import InputSpec, normalise
from pose_jax.training.objectives.heatmap import HeatmapObjective
from pose_jax.trees import flat_names

TINY = dict(name="hourglass", stacks=2, depth=1, features=8, stem=(4, 4, 8))


@functools.cache
def _shapes(section, k, side):
    section = dict(section)
    module = models.build(dict(name="hourglass", **section), num_keypoints=k)
    images = jnp.zeros((1, side, side, 3))
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    return variables, jax.eval_shape(module.apply, variables, images)


def shapes(section, k, side=256):
    return _shapes(tuple(section.items()), k, side)


def parameters(variables):
    return sum(x.size for x in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    "section,k,count",
    [
        (dict(NEWELL, stacks=1), 16, 3_426_448),
        (dict(NEWELL, stacks=2), 16, 6_570_400),
        (dict(NEWELL, stacks=8), 16, 25_434_112),
        (dict(NEWELL, stacks=1), 17, 3_426_705),
        (dict(NEWELL, stacks=2), 17, 6_571_170),
        (dict(NEWELL, stacks=8), 17, 25_437_960),
        (dict(THESIS, features=256), 17, 14_526_053),
    ],
)
def test_parameter_counts(section, k, count):
    variables, outputs = shapes(section, k)
    assert parameters(variables) == count
    assert outputs.heatmaps.shape == (section.get("stacks", 1), 1, 64, 64, k)
    assert outputs.heatmaps.dtype == jnp.float32


def test_thesis_latent_and_layers():
    variables, outputs = shapes(dict(THESIS, features=256), 17)
    assert outputs.taps["stack0/bottleneck"].shape == (1, 4, 4, 256)
    assert "stack0/decoder0" in outputs.taps
    kernels = [x for x in jax.tree.leaves(variables["params"]) if x.ndim > 1]
    norms = jax.tree.leaves(variables["batch_stats"])
    assert len(kernels) == 75 and len(norms) == 2 * 56


def lowered(member):
    module = models.build(member.section, num_keypoints=member.num_keypoints)
    images = jax.ShapeDtypeStruct((1, *member.input_size, 3), jnp.float32)
    return module, jax.eval_shape(module.init, jax.random.key(0), images), images


@pytest.mark.parametrize("member", zoo.list_models(), ids=lambda m: m.name)
def test_listed_parameters(member):
    assert parameters(lowered(member)[1]) == member.parameters


LOWERED_DAILY = ("hourglass-2", "mobile-hourglass", "transpose-r-a3", "tokenpose-t")


@pytest.mark.parametrize(
    "member",
    [
        m if m.name in LOWERED_DAILY else pytest.param(m, marks=pytest.mark.slow)
        for m in zoo.list_models()
    ],
    ids=lambda m: m.name,
)
def test_listed_operations(member):
    """Operations as XLA counts them (without padding and with sums), and the taps."""
    module, variables, images = lowered(member)
    # Coordinates of regressors, heatmaps of the others.
    run = jax.jit(lambda v, x: jax.tree.leaves(module.apply(v, x).replace(taps={})))
    flops = run.lower(variables, images).cost_analysis()["flops"]
    np.testing.assert_allclose(flops / 1e9, member.gflops, rtol=0.06)
    assert len(member.taps) > 5


def test_listed_members_have_their_own_names_and_families():
    members = zoo.list_models()
    assert len({m.name for m in members}) == len(members)
    assert {m.section["name"] for m in members} == set(models.FAMILIES)


def test_description_lists_every_member():
    text = zoo.describe()
    for member in zoo.list_models():
        assert f"{member.name} " in text and f"{member.parameters:,}" in text
    assert "layer{i}/attention" in text


@pytest.fixture(scope="module")
def tiny():
    module = models.build(TINY, num_keypoints=3)
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    variables = jax.jit(module.init)(jax.random.key(0, impl="unsafe_rbg"), images)
    return module, variables, images


def test_every_tap_is_writable(tiny):
    """All taps are edited by numbers in one program: nothing is recompiled per tap."""
    module, variables, images = tiny
    names = sorted(jax.eval_shape(module.apply, variables, images).taps)

    @jax.jit
    def run(scales, shifts):
        edits = {n: Edit(a, b) for n, a, b in zip(names, scales, shifts)}
        return module.apply(variables, images, edits=edits)

    ones, zeros = [1.0] * len(names), [0.0] * len(names)
    clean = run(ones, zeros)
    np.testing.assert_allclose(
        clean.heatmaps, jax.jit(module.apply)(variables, images).heatmaps, atol=1e-5
    )
    for index, name in enumerate(names):
        moved = run(ones, [float(i == index) for i in range(len(names))])
        assert not np.allclose(moved.heatmaps[-1], clean.heatmaps[-1]), name
        np.testing.assert_allclose(moved.taps[name], clean.taps[name] + 1, atol=1e-5)
        blank = run([float(i != index) for i in range(len(names))], zeros)
        assert np.all(np.asarray(blank.taps[name]) == 0), name


def test_edits_are_traced_and_vmap(tiny):
    module, variables, images = tiny
    traces = []

    @jax.jit
    def gate(scale):
        traces.append(1)
        return module.apply(
            variables, images, edits={"stack0/skip0": Edit(scale)}
        ).heatmaps[-1]

    open_, shut = gate(1.0), gate(0.0)
    both = jax.vmap(gate)(jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(both[0], open_, atol=1e-5)
    np.testing.assert_allclose(both[1], shut, atol=1e-5)
    assert not np.allclose(open_, shut)
    assert len(traces) == 2  # Once alone, once under vmap; never per value.


def test_unknown_tap_is_named(tiny):
    module, variables, images = tiny
    with pytest.raises(ValueError, match="unknown taps.*stack0/skpi"):
        module.apply(variables, images, edits={"stack0/skpi": Edit(0.0)})
    assert Taps().finish() == {}


def test_remat_changes_nothing(tiny):
    module, variables, images = tiny
    other = models.build(dict(TINY, remat=True), num_keypoints=3)

    def loss(module, params):
        variables_ = {"params": params, "batch_stats": variables["batch_stats"]}
        out, _ = module.apply(variables_, images, train=True, mutable=["batch_stats"])
        return jnp.square(out.heatmaps).mean()

    a = jax.jit(jax.grad(lambda p: loss(module, p)))(variables["params"])
    b = jax.jit(jax.grad(lambda p: loss(other, p)))(variables["params"])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)


def test_bfloat16_keeps_parameters_and_statistics_in_float32(tiny):
    _, variables, images = tiny
    module = models.build(dict(TINY, dtype="bfloat16"), num_keypoints=3)
    outputs, updated = jax.jit(
        lambda v: module.apply(v, images, train=True, mutable=["batch_stats"])
    )(variables)
    assert outputs.heatmaps.dtype == jnp.float32
    assert outputs.taps["stack0/skip0"].dtype == jnp.bfloat16
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(updated))


@pytest.mark.parametrize(
    "section,message",
    [
        (dict(name="hourglas"), "choose one of hourglass"),
        (dict(name="hourglass", stack=2), "did you mean model.stacks"),
        (dict(name="hourglass", shortcut="conv"), "model.shortcut"),
        (dict(name="hourglass", stem=(1, 2)), "three widths"),
        (dict(name="hourglass", stacks=0), "at least 1"),
        (dict(name="hourglass", init="xavier"), "'xavier'; use glorot or pytorch"),
    ],
)
def test_bad_sections_are_explained(section, message):
    with pytest.raises(ValueError, match=message):
        models.build(section, num_keypoints=3)


def test_odd_maps_are_explained():
    module = models.build(TINY, num_keypoints=3)
    with pytest.raises(ValueError, match="divisible by"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 36, 36, 3)))


class _Reference(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")
        return nn.relu(norm(x))


class _Ours(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return layers.NormRelu(name="norm")(x, train=train)


@pytest.mark.parametrize("train", [True, False])
def test_norm_relu_equals_flax(train):
    x = 3 * jax.random.normal(jax.random.key(2), (4, 5, 6, 7)) + 1
    variables = _Ours().init(jax.random.key(0), x, train=True)
    variables = jax.tree.map(
        lambda a: a + 0.3 * jax.random.uniform(jax.random.key(3), a.shape), variables
    )

    def run(module):
        def loss(params, x):
            v = {"params": params, "batch_stats": variables["batch_stats"]}
            y, updated = module.apply(v, x, train=train, mutable=["batch_stats"])
            return (y * jnp.cos(y + x)).sum(), updated

        grad = jax.value_and_grad(loss, (0, 1), has_aux=True)
        return jax.jit(grad)(variables["params"], x)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5),
        run(_Ours()),
        run(_Reference()),
    )


def test_pool_and_upsample_equal_flax():
    x = jax.random.normal(jax.random.key(0), (2, 6, 8, 3))
    np.testing.assert_array_equal(layers.max_pool2(x), nn.max_pool(x, (2, 2), (2, 2)))
    np.testing.assert_array_equal(
        layers.upsample2(x), jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
    )


# Weights before training


FRESH = dict(
    THESIS, name="hourglass", depth=1, features=32, stem=(32, 32, 32), init="pytorch",
    bottleneck_residuals=1, autoencoder="convolutional", code=5,
)  # fmt: skip


def unset(**fields):
    """The parameters of a network by shape, all 7."""
    module = models.build({**FRESH, **fields}, num_keypoints=3)
    images = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    return jax.tree.map(lambda x: np.full(x.shape, 7, x.dtype), shapes)


_redraw = jax.jit(lambda params, key: initialise.pytorch(params, key=key))


def redrawn(params, seed=0):
    found = _redraw(params, jax.random.key(seed, impl="unsafe_rbg"))
    return {name: np.asarray(x) for name, x in flat_names(found).items()}


@functools.cache
def drawn():
    return redrawn(unset())


def fans(kernel):
    window = np.prod(kernel.shape[:-2])
    return window * kernel.shape[-2], window * kernel.shape[-1]


def test_pytorch_weights_are_glorot_normal_without_an_end():
    """Kernels of all kinds: the stem's, 1x1, 3x3, dense and convolutions of the autoencoder."""
    kernels = {name: x for name, x in drawn().items() if name.endswith("/kernel")}
    assert {4, 2} == {x.ndim for x in kernels.values()}
    assert any("autoencoder/code" in n for n in kernels)
    units = []
    for name, x in kernels.items():
        unit = (x / np.sqrt(2 / sum(fans(x)))).ravel()
        assert abs(unit.mean()) < 5 / np.sqrt(x.size), name
        assert abs(unit.std() - 1) < 5 / np.sqrt(2 * x.size), name
        units.append(unit)
    big = max(units, key=len)
    assert np.abs(big).max() > 3.5
    units = np.concatenate(units)
    assert units.size > 100_000
    assert stats.kstest(units, "norm").pvalue > 1e-3
    assert stats.kurtosis(units) == pytest.approx(0, abs=0.1)


def test_the_layers_own_weights_have_an_end():
    """Why the thesis's are drawn anew: the same variance, cut at 2 sigma and widened."""
    draw = layers.conv(64, 3, "conv", jnp.float32).kernel_init
    x = draw(jax.random.key(0), (3, 3, 64, 64), jnp.float32)
    unit = np.asarray(x) / np.sqrt(2 / sum(fans(x)))
    assert abs(unit.std() - 1) < 0.02 and 2.2 < np.abs(unit).max() < 2.3


def test_pytorch_biases_are_uniform_by_fan_in():
    found, units = drawn(), []
    for name, x in found.items():
        kernel = found.get(f"{name.removesuffix('/bias')}/kernel")
        if name.endswith("/bias") and kernel is not None:
            units.append(x * np.sqrt(fans(kernel)[0]))
            assert np.abs(units[-1]).max() <= 1 + 1e-6, name
    units = np.concatenate(units)
    assert units.size > 900 and np.abs(units).max() > 0.99
    assert stats.kstest(units, stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_nothing_else_is_drawn_anew():
    """Normalisations and fitted projections."""
    found, before = drawn(), flat_names(unset())
    assert found.keys() == before.keys()
    stay = {n for n in found if f"{n.rpartition('/')[0]}/kernel" not in found}
    assert sum("norm" in n for n in stay) > 20
    for name, x in found.items():
        assert (x.shape, x.dtype) == (before[name].shape, before[name].dtype)
        assert (x == 7).all() if name in stay else not (x == 7).any(), name
    fitted = {"stack0_autoencoder": unset(autoencoder="pca")["stack0_autoencoder"]}
    found = redrawn(fitted)
    assert len(found) == 2 and all((x == 7).all() for x in found.values())


def test_draws_depend_on_the_key_and_the_name():
    found, other, params = drawn(), redrawn(unset(), seed=1), unset()
    names = ("stem1", "stack0_heatmaps")
    fewer = redrawn({name: params[name] for name in names})
    assert len(fewer) == 16
    for name, x in fewer.items():  # What two networks share starts alike.
        np.testing.assert_array_equal(x, found[name], err_msg=name)
    kernels = [name for name in found if name.endswith("/kernel")]
    assert not any((found[name] == other[name]).any() for name in kernels)
    assert len({found[name].tobytes() for name in kernels}) == len(kernels)


class _Norm(nn.Module):
    config: Any

    @nn.compact
    def __call__(self, x, train):
        return nn.BatchNorm(not train)(nn.Dense(4, name="dense")(x))


@pytest.mark.parametrize("init", ["glorot", "pytorch", None])
def test_training_starts_as_the_network_says(init):
    config = SimpleNamespace(init=init) if init else SimpleNamespace()
    module, spec = _Norm(config), InputSpec(size=(8, 8))
    batch = {"image": np.zeros((1, 8, 8, 3), np.uint8)}
    key = jax.random.key(3)
    found = HeatmapObjective(module, spec, Codec()).init(key, batch)
    wanted = module.init(key, normalise(batch["image"], spec), train=True)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    if init == "pytorch":
        assert found["params"]["dense"]["bias"].any()
        wanted["params"] = initialise.pytorch(wanted["params"], key=key)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
