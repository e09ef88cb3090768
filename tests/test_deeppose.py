"""The cascade: layers, boxes, where later stages look in training, what they learn."""

import dataclasses
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_people import regression_config
from test_training import make_batch

from pose_jax import models, recipe
from pose_jax.models import Edit, deeppose
from pose_jax.models.deeppose import DeepPoseConfig
from pose_jax.pixels import ColourJitter
from pose_jax.training.objectives import regression

K, SIDE = 5, 44
TINY = dict(name="deeppose", torso=(0, 3), **deeppose.TINY)


@pytest.fixture(scope="module")
def tiny():
    module = models.build(TINY, num_keypoints=K)
    images = jax.random.normal(jax.random.key(1), (2, SIDE, SIDE, 3))
    variables = jax.jit(module.init)(jax.random.key(0, impl="unsafe_rbg"), images)
    # The heads of a fresh network say next to nothing; poses shall differ.
    for stage in variables["params"].values():
        stage["head"]["kernel"] = stage["head"]["kernel"] * 30
    return module, variables, images


def test_published_network():
    """About 40 M parameters a stage (published; the exact numbers are ours), 55, 27 and 13
    pixels wide maps."""
    module = models.build(dict(name="deeppose"), num_keypoints=14)
    images = jnp.zeros((1, 220, 220, 3))
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    counts = {
        name: sum(x.size for x in jax.tree.leaves(stage))
        for name, stage in variables["params"].items()
    }
    assert counts == {"stage0": 37_424_540, "stage1": 37_375_362, "stage2": 37_375_362}
    assert all(round(n / 1e6, -1) == 40 for n in counts.values())
    outputs = jax.eval_shape(module.apply, variables, images)
    assert outputs.coordinates.shape == (3, 1, 14, 2) and outputs.heatmaps is None
    shapes = [outputs.taps[f"stage0/conv{i}"].shape[1:] for i in range(1, 6)]
    assert shapes == [
        (55, 55, 96), (27, 27, 256), (13, 13, 384), (13, 13, 384), (13, 13, 256)
    ]  # fmt: skip
    assert outputs.taps["stage2/fc2"].shape == (1, 14, 4096)


def test_local_response_norm_against_loops():
    x = np.random.default_rng(0).normal(0, 60, (2, 3, 7)).astype("f")
    found = deeppose.local_response_norm(x)
    for place in np.ndindex(2, 3):
        for c in range(7):
            window = x[place][max(c - 2, 0) : c + 3].astype(float)
            wanted = x[place][c] / (2 + 1e-4 * (window**2).sum()) ** 0.75
            np.testing.assert_allclose(found[place][c], wanted, rtol=1e-5)


def test_boxes_are_cut_as_opencv_cuts_them():
    """Bilinear, zero outside, pixel centres at integers, and the whole picture is itself."""
    generator = np.random.default_rng(0)
    picture = generator.normal(size=(2, 44, 44, 3)).astype("f")
    centres = np.array([[[20.0, 30.0], [2.5, 40.0]], [[21.5, 21.5], [60.0, 60.0]]], "f")
    sides = np.array([17.0, 44.0], "f")
    found = deeppose.crop_boxes(picture, centres, sides)
    assert found.shape == (2, 2, 44, 44, 3)
    np.testing.assert_allclose(found[1, 0], picture[1], atol=1e-5)
    for n, joint in np.ndindex(2, 2):
        zoom = sides[n] / 44  # Picture pixels per pixel of the box.
        x, y = centres[n, joint] - (44 - 1) / 2 * zoom
        matrix = np.array([[zoom, 0, x], [0, zoom, y]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        padded = cv2.copyMakeBorder(picture[n], 40, 40, 40, 40, cv2.BORDER_CONSTANT)
        matrix[:, 2] += 40
        wanted = cv2.warpAffine(padded, matrix, (44, 44), flags=flags)
        # OpenCV counts in 32nds of a pixel; the outermost line blends with the outside there.
        inside = cv2.warpAffine(
            np.pad(np.ones((42, 42), "f"), 41), matrix, (44, 44), flags=flags
        )
        close = np.abs(found[n, joint] - wanted).max(-1) < 0.15
        assert close[(inside == 1) | (inside == 0)].mean() > 0.93
        assert close[inside == 1].all()


def test_diameter_of_a_pose():
    pose = np.array([[[0.0, 0], [30, 2], [5, 5], [3, 4]]], "f")
    np.testing.assert_allclose(deeppose.diameter(pose, (0, 3)), [5.0], rtol=1e-5)
    np.testing.assert_allclose(deeppose.diameter(pose, ()), [15.0])
    still = jax.grad(lambda p: deeppose.diameter(p, (0, 1)).sum())(np.zeros((1, 2, 2)))
    assert np.isfinite(still).all()


def test_later_stages_see_boxes_around_the_estimate(tiny):
    """Stage 1 by hand: its box, its residual in shares of the box."""
    module, variables, images = tiny
    out = jax.jit(module.apply)(variables, images)
    assert (
        out.coordinates.shape == (3, 2, K, 2) and out.coordinates.dtype == jnp.float32
    )
    first, second, taps = out.coordinates[0], out.coordinates[1], out.taps
    np.testing.assert_array_equal(taps["stage1/centres"], first)
    torso = np.linalg.norm(first[:, 0] - first[:, 3], axis=-1)
    wanted = np.maximum(2.0 * torso, 0.05 * SIDE)
    np.testing.assert_allclose(taps["stage1/side"], wanted, rtol=1e-4)
    boxes = deeppose.crop_boxes(images, first, taps["stage1/side"])
    stage = deeppose.Regressor(module.config, (2,), K)
    params = {"params": variables["params"]["stage1"]}
    shares: jax.Array = stage.apply(params, boxes, False, models.Taps())  # pyright: ignore
    moved = first + shares * taps["stage1/side"][:, None, None]
    np.testing.assert_allclose(second, moved, atol=1e-4)
    assert np.abs(second - first).max() > 0.1
    # Joints in one place are told apart by their code alone.
    same = jnp.broadcast_to(boxes[:, :1], boxes.shape)
    each = np.asarray(stage.apply(params, same, False, models.Taps()))
    assert np.ptp(each, axis=1).min() > 1e-6


def test_every_tap_is_writable(tiny):
    """All taps are edited by numbers in one program."""
    module, variables, images = tiny
    names = sorted(jax.eval_shape(module.apply, variables, images).taps)

    @jax.jit
    @jax.vmap
    def run(scales, shifts):
        edits = {n: Edit(a, b) for n, a, b in zip(names, scales, shifts)}
        return module.apply(variables, images, edits=edits)

    count = len(names)
    moved = run(np.ones((count + 1, count)), np.eye(count + 1, count))
    clean = moved.coordinates[-1]
    for index, name in enumerate(names):
        assert np.abs(moved.coordinates[index, -1] - clean[-1]).max() > 1e-7, name
        before, after = moved.taps[name][-1], moved.taps[name][index]
        np.testing.assert_allclose(after, before + 1, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="unknown taps"):
        module.apply(variables, images, edits={"stage9/fc1": Edit(0.0)})


def test_given_centres_are_used(tiny):
    module, variables, images = tiny
    there = jnp.full((2, K, 2), 11.0).at[:, 3].set(30.0)
    asked = []

    def centres(stage, before):
        asked.append((stage, before.shape))
        return there

    out = module.apply(variables, images, centres=centres)
    assert asked == [(1, (2, K, 2)), (2, (2, K, 2))]
    np.testing.assert_array_equal(out.taps["stage2/centres"], there)
    clean = module.apply(variables, images)
    np.testing.assert_allclose(out.coordinates[0], clean.coordinates[0], atol=1e-4)


def test_simulated_boxes_miss_as_the_stage_before_did():
    """Mean and deviation of the errors per joint, over many people; labels decide, and no
    gradient passes."""
    batch = make_batch(count=4000, side=SIDE, k=2)
    batch["visible"][:] = 2
    batch["visible"][::4, 0] = 0
    batch["keypoints"][::4, 0] = np.nan  # Anything may stand where there is no label.
    generator = np.random.default_rng(0)
    mean, deviation = np.array([[3.0, -1], [0, 8]]), np.array([[1.0, 2], [0.1, 5]])
    error = generator.normal(mean, deviation, (4000, 2, 2)).astype("f")
    before = np.nan_to_num(batch["keypoints"]) + error
    centres = regression.simulated_centres(batch, key=jax.random.key(0))
    found = np.asarray(centres(1, before))
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[::4, 0], before[::4, 0])
    known = batch["visible"] > 0
    for joint in (0, 1):
        away = (found - batch["keypoints"])[known[:, joint], joint]
        np.testing.assert_allclose(away.mean(0), mean[joint], atol=0.25)
        np.testing.assert_allclose(away.std(0), deviation[joint], rtol=0.06)
    assert not np.allclose(found[1::4], np.asarray(centres(2, before))[1::4])
    slope = jax.grad(lambda b: centres(1, b).sum())(before)
    assert np.all(np.asarray(slope) == 0)


def test_loss_counts_every_stage_in_its_own_unit():
    """By loops: shares of the crop, then of the boxes; "nothing" is the middle of either."""
    c = regression_config(dict(TINY, stages=2), side=SIDE)
    described = recipe.recipe(c)
    objective = regression.make(
        c.objective, described.module, described.spec, described.codec, ColourJitter()
    )
    batch = make_batch(count=3, side=SIDE)
    batch["mask"][2] = False
    generator = np.random.default_rng(1)
    points = generator.uniform(0, 43, (2, 3, 17, 2)).astype("f")
    centres = generator.uniform(0, 43, (3, 17, 2)).astype("f")
    side = np.array([10.0, 20.0, 30.0], "f")
    outputs = models.Outputs(
        coordinates=points, taps={"stage1/centres": centres, "stage1/side": side}
    )
    found, zero = objective.supervise(outputs, batch)
    total = nothing = count = 0.0
    for row, joint in np.ndindex(2, 17):
        if batch["visible"][row, joint]:
            truth, count = batch["keypoints"][row, joint].astype(float), count + 1
            total += (((points[0, row, joint] - truth) / 44) ** 2).mean()
            total += (((points[1, row, joint] - truth) / side[row]) ** 2).mean()
            nothing += (((21.5 - truth) / 44) ** 2).mean()
            nothing += (((centres[row, joint] - truth) / side[row]) ** 2).mean()
    np.testing.assert_allclose(found.compute(), total / count, rtol=1e-5)
    np.testing.assert_allclose(zero.compute(), nothing / count, rtol=1e-5)
    assert found.count == count


def test_dropout_in_training_alone(tiny):
    module, variables, images = tiny
    config = dataclasses.replace(module.config, dropout=0.6)
    module = module.clone(config=config)
    run = jax.jit(
        lambda train, key: module.apply(
            variables, images, train, rngs={"dropout": key}
        ).coordinates[0],
        static_argnums=0,
    )
    a, b = jax.random.key(0), jax.random.key(1)
    assert np.array_equal(run(False, a), run(False, b))
    assert not np.allclose(run(True, a), run(True, b))


def test_what_is_refused():
    refused: list[tuple[dict[str, Any], str]] = [
        (dict(channels=(8, 8)), "five widths"),
        (dict(torso=(1,)), "two keypoints"),
        (dict(stages=0), "at least 1"),
        (dict(dropout=1.0), "dropout"),
    ]
    for fields, words in refused:
        with pytest.raises(ValueError, match=words):
            DeepPoseConfig(**fields)
    module = models.build(dict(TINY, torso=(0, 9)), num_keypoints=K)
    with pytest.raises(ValueError, match="beyond the 5"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))
