"""Layer-wise learning rate decay and weight decay: which parameter gets which factor."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pose_jax import models
from pose_jax.config import default
from pose_jax.models import vitpose
from pose_jax.training.optimiser import make_optimiser, scale_by_layer
from pose_jax.trees import flat_names

LAYERS, DECAY = 3, 0.5


@pytest.fixture(scope="module")
def network():
    fields = dict(
        input_size=(32, 32), width=8, heads=2, layers=LAYERS, mlp=8, deconv=(4, 4)
    )
    module = models.build(dict(name="vitpose", **fields), num_keypoints=3)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes["params"])
    return module, params


def published_layer(name: str) -> int:
    """The rule of ViTPose's optimiser constructor, on our names."""
    if name.startswith(("encoder/positions", "encoder/patches")):
        return 0
    block = re.match(r"encoder/layer(\d+)/", name)
    return int(block[1]) + 1 if block else LAYERS + 1


def section(**fields):
    c = default().optimiser
    c.update(learning_rate=0.1, **fields)
    return c


def step(transform, params, grads):
    @jax.jit
    def run(params, grads):
        updates, _ = transform.update(grads, transform.init(params), params)
        return optax.apply_updates(params, updates)

    # As numpy: one by one, comparisons of every shape would be compiled.
    return {k: np.asarray(v) for k, v in flat_names(run(params, grads)).items()}


def test_layers_are_the_published_ones(network):
    module, params = network
    names = flat_names(params)
    assert {published_layer(name) for name in names} == set(range(LAYERS + 2))
    for name in names:
        assert module.layer_index(name) == published_layer(name), name
    assert module.num_layers == LAYERS
    # The last normalisation and the whole head learn at the full rate.
    assert module.layer_index("encoder/norm/scale") == LAYERS + 1
    assert module.layer_index("head/final/kernel") == LAYERS + 1


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_step_is_scaled(network, name):
    """Every parameter moves by the same step times decay ** (layers + 1 - layer)."""
    module, params = network
    grads = jax.tree.map(lambda p: 0.3 * np.ones_like(p), params)
    fields = dict(name=name, layer_decay=DECAY, momentum=0.0)
    transform, _ = make_optimiser(section(**fields), 10, lambda _: True, module=module)
    moved = step(transform, params, grads)
    top = 1 - float(moved["head/final/bias"][0])
    assert top > 0.02
    for path, value in moved.items():
        factor = DECAY ** (LAYERS + 1 - published_layer(path))
        np.testing.assert_allclose(1 - value, top * factor, rtol=1e-4, err_msg=path)
    assert DECAY ** (LAYERS + 1) == 1 / 16


def test_weight_decay_is_scaled_and_spares_positions(network):
    """Without gradients adamw moves by rate x decay x factor: kernels alone, no 1-d array,
    no position table."""
    module, params = network
    zeros = jax.tree.map(np.zeros_like, params)
    fields = dict(name="adamw", weight_decay=0.2, layer_decay=DECAY)
    transform, _ = make_optimiser(section(**fields), 10, lambda _: True, module=module)
    for path, value in step(transform, params, zeros).items():
        spared = value.ndim == 1 or path == "encoder/positions"
        factor = DECAY ** (LAYERS + 1 - published_layer(path))
        expected = 0.0 if spared else 0.1 * 0.2 * factor
        np.testing.assert_allclose(1 - value, expected, atol=1e-6, err_msg=path)


def test_gradients_are_clipped_before_they_are_scaled(network):
    """The norm is that of all gradients, as the published code clips."""
    module, params = network
    grads = jax.tree.map(lambda p: 5 * np.ones_like(p), params)
    norm = sum(np.sum(g**2) for g in jax.tree.leaves(grads)) ** 0.5
    fields = dict(name="sgd", layer_decay=DECAY, clip=1.0, momentum=0.0)
    transform, _ = make_optimiser(section(**fields), 10, lambda _: True, module=module)
    for path, value in step(transform, params, grads).items():
        factor = DECAY ** (LAYERS + 1 - published_layer(path))
        np.testing.assert_allclose(1 - value, 0.1 * 5 / norm * factor, rtol=1e-2)


def test_frozen_stay_and_zero_is_off(network):
    module, params = network
    grads = jax.tree.map(np.ones_like, params)
    fields = dict(name="sgd", layer_decay=DECAY, freeze=("layer1/",))
    transform, _ = make_optimiser(section(**fields), 10, lambda _: True, module=module)
    for path, value in step(transform, params, grads).items():
        assert (value == 1).all() == ("layer1/" in path)
    transform, _ = make_optimiser(section(name="sgd"), 10, lambda _: True)
    for value in step(transform, params, grads).values():
        np.testing.assert_allclose(value, 0.9)


def test_refusals(network):
    module, _ = network
    with pytest.raises(ValueError, match="factor in"):
        scale_by_layer(1.5, module)
    fields = dict(name="adamw", layer_decay=0.75)
    hourglass = models.build(dict(name="hourglass"), num_keypoints=3)
    with pytest.raises(ValueError, match="Hourglass has none"):
        make_optimiser(section(**fields), 10, lambda _: True, module=hourglass)


def test_published_sizes():
    """Depths of the published recipes: 12, 12, 24 and 32 layers."""
    depths = {name: fields["layers"] for name, fields in vitpose.SIZES.items()}
    assert [depths[size] for size in "sblh"] == [12, 12, 24, 32]
