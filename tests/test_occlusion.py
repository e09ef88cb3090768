"""The occlusion sweep: which joints are hidden, and what its record counts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from pose_jax import checkpoint, data, inference, occlusion, regions, sharding
from pose_jax.data.pipeline import make_sample
from pose_jax.occlusion import OcclusionSweep, occlusion_sweep, removed_joints
from pose_jax.recipe import recipe
from pose_jax.tasks import evaluate
from pose_jax.tasks.arrays import load_arrays
from pose_jax.tasks.workdir import claim


@pytest.fixture(scope="module")
def model():
    """An untrained network and eleven figures."""
    c = tiny_config()
    c.data.eval.count = 11
    described = recipe(c)
    images = np.zeros((1, 32, 32, 3), np.float32)
    init = jax.jit(lambda k: described.module.init(k, images, train=True))
    variables = init(jax.random.key(1, impl="unsafe_rbg"))
    source = data.open_source(c.data.eval, root=None, skeleton="coco")
    return c, *described.inference(variables), source, variables


@pytest.fixture(scope="module")
def swept(model):
    _, described, variables, source, _ = model
    return occlusion_sweep(
        described, variables, source,
        mesh=sharding.make_mesh(), batch=4, flip_test=False, counts=(0, 3, 1, 30),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_hidden_joints_are_labelled_nested_and_counted(seed, generator):
    visible = jnp.asarray(generator.integers(0, 3, 17))
    labelled = np.asarray(visible > 0)
    key = jax.random.key(seed)
    before = np.zeros(17, bool)
    for count in range(20):
        hidden = np.asarray(removed_joints(visible, count, key=key))
        assert not hidden[~labelled].any()
        assert hidden.sum() == min(count, labelled.sum())
        assert hidden[before].all()
        before = hidden
    assert not removed_joints(jnp.zeros(17, int), 3, key=key).any()


def test_every_joint_is_hidden_as_often():
    visible = jnp.full(5, 2)
    keys = jax.random.split(jax.random.key(0), 2000)
    found = jax.vmap(lambda key: removed_joints(visible, 2, key=key))(keys)
    np.testing.assert_allclose(np.asarray(found).mean(0), 0.4, atol=0.04)


def test_nothing_hidden_is_the_plain_prediction(model, swept):
    _, described, variables, source, _ = model
    plain = inference.predict_source(
        described,
        variables,
        source,
        mesh=sharding.make_mesh(),
        batch=4,
        flip_test=False,
    )
    people = [source.person(n) for n in range(11)]
    true = np.stack([p.keypoints for p in people])
    longer = np.stack([max(p.box[2:]) for p in people])
    error = np.linalg.norm(plain.keypoints - true, axis=-1) / longer[:, None]
    np.testing.assert_allclose(swept.error[0], error, atol=1e-5)
    assert not swept.hidden[0].any()
    assert (swept.error[1] != error).any() and (swept.error[3] != error).any()


def test_the_program_hides_what_the_record_says(model, swept):
    """Person by person: the regions of the recorded joints, over the very same crop, give
    the recorded errors."""
    _, described, variables, source, _ = model
    predict = jax.jit(inference.make_predict(described, flip_test=False))
    counted = 0
    for row in (0, 4, 10):
        sample = make_sample(source, row, described.view)
        seen = sample["visible"] > 0
        for number, count in enumerate(swept.counts):
            hidden = swept.hidden[number, row]
            assert hidden.sum() == min(count, seen.sum()) and not hidden[~seen].any()
            owners = regions.keypoint_owners(
                jnp.asarray(sample["keypoints"]), jnp.asarray(seen), (32, 32),
                side_px=regions.SIDE * 32,
            )  # fmt: skip
            image = sample["image"].astype(np.float32)
            fill = 255 * np.asarray(described.spec.mean, np.float32)
            gone = np.isin(np.asarray(owners), np.flatnonzero(hidden))
            image[gone] = fill
            found = predict(variables, {"image": image[None]})["keypoints"]
            points = np.asarray(found[0], float)
            inverse = np.linalg.inv(sample["matrix"])
            there = points @ inverse[:2, :2].T + inverse[:2, 2]
            person = source.person(row)
            error = np.linalg.norm(there - person.keypoints, axis=1) / max(
                person.box[2:]
            )
            np.testing.assert_allclose(swept.error[number, row], error, atol=1e-4)
            counted += int(hidden.sum())
    assert counted > 20


def test_batches_do_not_matter(model, swept):
    _, described, variables, source, _ = model
    other = occlusion_sweep(
        described, variables, source,
        mesh=sharding.make_mesh(), batch=11, flip_test=False, counts=(3,),
    )  # fmt: skip
    np.testing.assert_array_equal(other.hidden[0], swept.hidden[1])
    np.testing.assert_allclose(other.error[0], swept.error[1], atol=1e-4)


def test_record_by_hand():
    visible = np.array([[2, 1, 0], [2, 2, 2]])
    error = np.array([[[0.05, 0.2, 0.0], [0.05, 0.3, 0.0]]] * 2)
    hidden = np.array([[[0, 0, 0], [0, 0, 0]], [[0, 1, 0], [1, 1, 0]]], bool)
    record = OcclusionSweep((0, 2), error, hidden, visible, ("a", "b")).record(50)
    assert record["threshold"] == 0.1
    first, second = record["rows"]
    assert first["removed"] == 0
    assert first["hidden"] == {"joints": 0, "pck": None}
    assert first["seen"]["joints"] == 5 and first["seen"]["pck"] == 3 / 5
    assert second["hidden"]["joints"] == 3 and second["hidden"]["pck"] == 1 / 3
    assert second["seen"]["joints"] == 2 and second["seen"]["pck"] == 1.0
    low, high = second["hidden"]["interval_95"]
    assert 0 <= low <= 1 / 3 <= high <= 0.5
    json.dumps(record)


@pytest.mark.parametrize("counts", [(), (2, -1)])
def test_impossible_counts(model, counts):
    _, described, variables, source, _ = model
    with pytest.raises(ValueError, match="evaluate.occlusion=.*numbers of joints"):
        occlusion_sweep(
            described, variables, source,
            mesh=sharding.make_mesh(), batch=4, flip_test=False, counts=counts,
        )  # fmt: skip


def test_evaluate_stores_it(model, swept, tmp_path, capsys):
    c, _, _, source, variables = model
    c = c.copy_and_resolve_references()
    c.evaluate.update(
        metrics=("pck", "occlusion"),
        occlusion=(3, 1),
        flip_test=False,
        batch=4,
        overlays=0,
    )
    claim(c, str(tmp_path))
    checkpoint.save_variables(tmp_path, variables, info={})
    evaluate.run(c, str(tmp_path))
    assert "PCK@0.1 with joints hidden" in capsys.readouterr().out
    stored = load_arrays(tmp_path / "errors" / "val-gt-noflip-0.npz")
    np.testing.assert_array_equal(stored["occluded_hidden"], swept.hidden[[1, 2]])
    np.testing.assert_allclose(stored["occluded_error"], swept.error[[1, 2]], atol=1e-4)
    np.testing.assert_allclose(stored["error"], swept.error[0], atol=1e-4)
    np.testing.assert_array_equal(stored["visible"], swept.visible)
    assert stored["id"].tolist() == [str(source.person(n).id) for n in range(11)]
    results = json.loads((tmp_path / "results.json").read_text())["val-gt-noflip-0"]
    assert [row["removed"] for row in results["occlusion"]["rows"]] == [3, 1]
    assert results["occlusion"]["rows"][1]["hidden"]["joints"] == 11
    assert occlusion.THRESHOLD == 0.1
