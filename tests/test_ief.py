"""Iterative error feedback: what it draws, where it starts, the ideal path, the iteration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_people import regression_config
from test_training import make_batch

from pose_jax import models, recipe
from pose_jax.models import Edit, ief
from pose_jax.pixels import ColourJitter, normalise
from pose_jax.training.objectives import correction

K = 5
TINY = dict(name="ief", depth=18, width=4, steps=3)


@pytest.fixture(scope="module")
def tiny():
    module = models.build(TINY, num_keypoints=K)
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    variables = jax.jit(module.init)(jax.random.key(0, impl="unsafe_rbg"), images)
    start = jax.random.uniform(jax.random.key(2), (K, 2)) * 31
    variables["batch_stats"]["start_mean"] = start
    head = variables["params"]["step"]["head"]
    head["kernel"] = head["kernel"] * 30
    return module, variables, images


def build_objective(**fields):
    c = regression_config(dict(TINY, **fields), objective="correction")
    r = recipe.recipe(c)
    return correction.make(c.objective, r.module, r.spec, r.codec, ColourJitter())


def test_published_size():
    """A ResNet-50 whose first layer sees 17 maps more; our own count."""
    module = models.build(dict(name="ief"), num_keypoints=17)
    images = jnp.zeros((1, 224, 224, 3))
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert count == 23_508_032 + 7 * 7 * 17 * 64 + 2048 * 34 + 34 == 23_631_010
    assert jax.eval_shape(module.apply, variables, images).coordinates.shape == (
        4, 1, 17, 2
    )  # fmt: skip


def test_maps_against_the_published_rendering():
    """100 exp(-0.001 d^2) - 50 on 224 pixels; half of that distance on 112."""
    pose = np.array([[[60.0, 100.5], [-10.0, 30.0]]], "f")
    maps = ief.render(pose, (224, 224)) * 255 * 0.226
    small = ief.render(pose / 2, (112, 112)) * 255 * 0.226
    for row, column, joint in ((100, 60, 0), (101, 60, 0), (40, 20, 1), (223, 0, 1)):
        squared = (column - pose[0, joint, 0]) ** 2 + (row - pose[0, joint, 1]) ** 2
        wanted = 100 * np.exp(-0.001 * squared) - 50
        np.testing.assert_allclose(maps[0, row, column, joint], wanted, atol=1e-3)
        if row % 2 == column % 2 == 0:
            half = small[0, row // 2, column // 2, joint]
            np.testing.assert_allclose(half, wanted, atol=1e-3)


def test_ideal_path_against_a_loop():
    """y += min(L, |u|) u / |u|, step after step (Carreira et al., section 2)."""
    generator = np.random.default_rng(0)
    start, truth = generator.uniform(0, 60, (2, 4, 6, 2)).astype("f")
    start[0, 0] = truth[0, 0]  # Nothing left to go.
    pose = start.astype(float)
    for step in range(6):
        way = truth - pose
        length = np.linalg.norm(way, axis=-1, keepdims=True)
        wanted = np.minimum(length, 9.0) * way / np.maximum(length, 1e-9)
        here, taught = ief.ideal_path(start, truth, step, 9.0)
        np.testing.assert_allclose(here, pose, atol=1e-4)
        np.testing.assert_allclose(taught, wanted, atol=1e-4)
        pose = pose + wanted
    # One step number per person.
    each, _ = ief.ideal_path(start, truth, np.arange(4), 9.0)
    np.testing.assert_allclose(each[3], ief.ideal_path(start, truth, 3, 9.0)[0][3])


def test_the_start_is_the_mean_of_labelled_poses():
    generator = np.random.default_rng(0)
    poses = generator.normal(30, 9, (5, 8, 3, 2)).astype("f")
    labelled = generator.random((5, 8, 3)) < 0.6
    labelled[..., 2] = False
    poses[~labelled] = np.nan
    mean, count = jnp.full((3, 2), 15.5), jnp.zeros(3)
    for batch, known in zip(poses, labelled):
        mean, count = ief.observe(mean, count, batch, known)
    for joint in (0, 1):
        chosen = poses[:, :, joint][labelled[:, :, joint]]
        np.testing.assert_allclose(mean[joint], chosen.mean(0), rtol=1e-5)
        assert count[joint] == len(chosen)
    np.testing.assert_array_equal(mean[2], [15.5, 15.5])  # Never labelled.
    full = jnp.array([ief.FIRST_POSES - 1.0, ief.FIRST_POSES, 0.0])
    after, total = ief.observe(
        mean, full, poses[0], np.ones((8, 3), bool) & labelled[0]
    )
    assert not np.allclose(after[0], mean[0])
    np.testing.assert_array_equal(after[1], mean[1])
    assert total[1] == full[1]


def test_the_iteration_repeats_one_correction(tiny):
    module, variables, images = tiny
    apply = jax.jit(module.apply)
    outputs = apply(variables, images)
    assert outputs.coordinates.shape == (3, 2, K, 2)
    start = variables["batch_stats"]["start_mean"]
    pose = jnp.broadcast_to(start, (2, K, 2))
    for step in range(3):
        once = apply(variables, images, pose=pose)
        assert once.coordinates.shape == (1, 2, K, 2)
        pose = once.coordinates[0]
        np.testing.assert_allclose(outputs.coordinates[step], pose, atol=1e-3)
        for name, tap in once.taps.items():
            np.testing.assert_allclose(
                outputs.taps[name][:, step], tap[:, 0], atol=1e-2
            )
    assert np.abs(np.diff(outputs.coordinates, axis=0)).max() > 0.05


def test_edits_of_all_steps_and_of_one(tiny):
    """Every tap can be written; with an axis of steps, one step of it."""
    module, variables, images = tiny
    names = sorted(jax.eval_shape(module.apply, variables, images).taps)

    @jax.jit
    @jax.vmap
    def run(shifts):
        edits = {n: Edit(1.0, shift) for n, shift in zip(names, shifts)}
        return module.apply(variables, images, edits=edits)

    count = len(names)
    moved = run(np.eye(count + 1, count))
    for index, name in enumerate(names):
        away = np.abs(moved.coordinates[index] - moved.coordinates[-1])
        assert away[-1].max() > 1e-5, name
        first, clean = moved.taps[name][index][:, 0], moved.taps[name][-1][:, 0]
        np.testing.assert_allclose(first, clean + 1, atol=1e-2)
    only = np.zeros((1, 3, 1, 1))
    only[0, 1] = 4.0
    edits = {"coordinates": Edit(1.0, only)}
    found = module.apply(variables, images, edits=edits)
    clean = moved.coordinates[-1]
    np.testing.assert_allclose(found.coordinates[0], clean[0], atol=1e-3)
    np.testing.assert_allclose(found.coordinates[1], clean[1] + 4, atol=1e-3)
    with pytest.raises(ValueError, match="unknown taps"):
        module.apply(variables, images, edits={"stage0": Edit(0.0)})


def test_loss_of_a_batch_by_hand():
    """Each person at its own step of the path, unlabelled joints at the start; the start
    follows the labels; the loss is in units of the longest correction."""
    objective = build_objective(bound_px=35.0)
    batch = make_batch(count=6)
    batch["mask"][5] = False
    batch["keypoints"][batch["visible"] == 0] = np.nan
    batch["weight"][0] *= 2
    key = jax.random.key(5)
    variables = objective.init(jax.random.key(0, impl="unsafe_rbg"), batch)
    loss, (metrics, stats) = objective.loss(variables, batch, key=key)
    known = (batch["visible"] > 0) & batch["mask"][:, None]
    truth = np.where(known[..., None], batch["keypoints"], 0)
    start = truth.sum(0) / known.sum(0)[:, None]
    np.testing.assert_allclose(stats["start_mean"], start, rtol=1e-4)
    np.testing.assert_array_equal(stats["start_count"], known.sum(0))
    longest = 35 / 224 * 32
    steps = np.asarray(jax.random.randint(jax.random.fold_in(key, 2), (6,), 0, 3))
    assert len(set(steps)) > 1
    aim = np.where(known[..., None], truth, start)
    pose, wanted = ief.ideal_path(
        np.broadcast_to(start, aim.shape), aim, steps, longest
    )
    np.testing.assert_allclose(pose[5], start, atol=1e-4)
    outputs, _ = objective.module.apply(
        variables, normalise(batch["image"], objective.spec), train=True, pose=pose,
        mutable=["batch_stats"],
    )  # fmt: skip
    weight = batch["weight"] * known
    for name, away in (
        ("loss", outputs.coordinates[0] - pose - wanted), ("zero_map_loss", wanted)
    ):  # fmt: skip
        each = np.square(np.asarray(away) / longest).mean(-1)
        total = (each * weight).sum() / weight.sum()
        np.testing.assert_allclose(metrics[name].compute(), total, rtol=1e-4)
    assert np.isfinite(loss.sum) and loss.count == weight.sum()


def test_what_is_refused():
    with pytest.raises(ValueError, match="must be positive"):
        models.build(dict(TINY, steps=0), num_keypoints=K)
    c = regression_config(dict(name="regression", depth=18, width=4))
    r = recipe.recipe(c)
    with pytest.raises(ValueError, match="set model.name='ief'"):
        correction.make(c.objective, r.module, r.spec, r.codec, ColourJitter())
    folded = models.build(dict(TINY, folded=True), num_keypoints=K)
    with pytest.raises(ValueError, match="folded"):
        folded.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=True)
