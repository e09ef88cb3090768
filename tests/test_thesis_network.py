"""The full-size network beside the thesis's public PyTorch code, and its training step.

`thesis_reference.json` holds the keys and shapes of the original's state dicts and 32 numbers
of each output, computed by that code from weights that are made from the keys' names.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import thesis_keys

from pose_jax import models
from pose_jax.models import THESIS, Edit
from pose_jax.trees import flat_names, unflatten_names

REFERENCE = json.loads((Path(__file__).parent / "thesis_reference.json").read_text())


def network(**fields):
    section = {"name": "hourglass", **THESIS, "features": 256, **fields}
    return models.build(section, num_keypoints=17)


@pytest.fixture(scope="module")
def variables():
    """Every key of both state dicts in its place; nothing is left over."""
    module = network(autoencoder="convolutional")
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 256, 256, 3)))
    leaves = {name: leaf.shape for name, leaf in flat_names(shapes).items()}
    values = {}
    for group, inside in (("keys", False), ("autoencoder_keys", True)):
        within = {n: s for n, s in leaves.items() if ("autoencoder" in n) == inside}
        for key, shape in REFERENCE[group].items():
            value = thesis_keys.make(key, tuple(shape))
            name, value = thesis_keys.to_flax(key.removeprefix("AE."), value, within)
            assert name not in values
            values[name] = value
    assert set(values) == set(leaves)
    return unflatten_names(shapes, values)


def picked(array):
    flat = np.asarray(array).ravel()
    return flat[np.linspace(0, flat.size - 1, 32).astype(int)]


def close(array, name):
    want = np.array(REFERENCE["outputs"][name])
    np.testing.assert_allclose(picked(array), want, atol=2e-5 * np.abs(want).max())


def without(variables, word):
    kept = {k: v for k, v in variables["params"].items() if word not in k}
    stats = {k: v for k, v in variables["batch_stats"].items() if word not in k}
    return {"params": kept, "batch_stats": stats}


def test_forward_parity_with_the_original(variables):
    """Heatmaps, latent, skips off and with the autoencoder plugged in."""
    images = jnp.asarray(thesis_keys.image())
    both = jax.jit(network(autoencoder="convolutional").apply)(variables, images)
    close(both.taps["stack0/bottleneck"], "stack0/bottleneck")
    close(both.taps["stack0/code"], "stack0/code")
    close(both.taps["stack0/heatmaps"], "with autoencoder")
    # The original turns its latent channels first; positions are what is compared.
    close(both.taps["stack0/reconstruction"], "stack0/reconstruction")
    # The plain network is the same one with the latent handed on as it is.
    plain = without(variables, "autoencoder")
    gates = {f"stack0/skip{level}": 1.0 for level in range(4)}

    def forward(variables, images, scale):
        edits = {gate: Edit(scale=scale) for gate in gates}
        return network().apply(variables, images, edits=edits).heatmaps[-1]

    forward = jax.jit(forward)
    close(forward(plain, images, 1.0), "stack0/heatmaps")
    close(forward(plain, images, 0.0), "without skips")


@pytest.mark.slow
def test_fifty_steps_of_the_full_size_network():
    """The thesis's loss, targets and RMSprop on one batch: the loss falls all the way (.465 to
    .054 when this was written; the zero answer comes later), every number stays finite."""
    from pose_jax.heatmaps import Codec
    from pose_jax.pixels import InputSpec
    from pose_jax.training import step as step_
    from pose_jax.training.objectives.heatmap import HeatmapObjective

    objective = HeatmapObjective(
        network(), InputSpec((256, 256), mean=(0.41025, 0.37406, 0.35355), std=(1, 1, 1)),
        Codec("thesis", "argmax", 1.0, "none"), unlabelled_as_empty=True,
    )  # fmt: skip
    rule = optax.rmsprop(2.5e-4, decay=0.99, eps=1e-8, eps_in_sqrt=False)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 255, (2, 256, 256, 3)).astype(np.uint8),
        "keypoints": rng.integers(20, 236, (2, 17, 2)).astype(np.float32),
        "visible": rng.integers(0, 3, (2, 17)).astype(np.int32),
        "weight": np.ones((2, 17), np.float32),
        "id": np.arange(2, dtype=np.int32),
        "mask": np.ones(2, bool),
    }
    init = step_.make_init(objective, rule, average=False)
    state = jax.jit(init)(jax.random.key(0, impl="unsafe_rbg"), batch)
    step = jax.jit(
        step_.make_train_step(objective, rule, optax.constant_schedule(2.5e-4), seed=0),
        donate_argnums=0,
    )
    losses = []
    for _ in range(50):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    every_tenth = losses[::10]
    assert np.all(np.diff(every_tenth) < 0), every_tenth
    assert losses[-1] < losses[0] / 5, every_tenth
