"""The task `explain` with maps, and `Estimator.explain` with their names."""

import jax
import numpy as np
import pytest
from tiny import tiny_config

from pose_jax import Estimator, checkpoint, data, geometry
from pose_jax.config import UserError
from pose_jax.explain import maps
from pose_jax.recipe import recipe
from pose_jax.report import map_figures
from pose_jax.tasks import explain
from pose_jax.tasks.arrays import load_arrays
from pose_jax.tasks.workdir import claim
from pose_jax.writer import read_json

K = 14


def config(**changes):
    c = tiny_config()
    c.skeleton = "lsp"
    c.data.eval.count = 5
    c.explain.update(count=5, batch=2, figures=2, method="gradient")
    c.explain.update(changes)
    return c


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    c = config()
    claim(c, str(folder))
    described = recipe(c)
    images = np.zeros((1, 32, 32, 3), np.float32)
    init = jax.jit(lambda k: described.module.init(k, images, train=True))
    variables = jax.device_get(init(jax.random.key(2, impl="unsafe_rbg")))
    checkpoint.save_variables(folder, variables, info={})
    return folder


@pytest.fixture(scope="module")
def ran(workdir):
    explain.run(config(), str(workdir))
    return workdir / "explain" / "gradient-value-val"


def test_files_numbers_and_figures(ran, workdir):
    record, arrays = read_json(ran / "maps.json"), load_arrays(ran / "maps.npz")
    assert record is not None and record["people"] == 5
    assert arrays["mass"].shape == arrays["density"].shape == (5, K + 1, K)
    valid = arrays["target_valid"] & ~arrays["constant"]
    np.testing.assert_allclose(arrays["mass"].sum(1)[valid], 1, atol=1e-5)
    mean = np.array(record["own_mass"]["mean"], float)
    own = arrays["mass"][:, np.arange(K), np.arange(K)]
    expected = [own[valid[:, t], t].mean() for t in range(K)]
    np.testing.assert_allclose(mean, expected, atol=1e-5)
    points = np.array(record["points_at_own"]["mean"], float)
    hits = arrays["points_at"] == np.arange(K)
    np.testing.assert_allclose(points, [hits[valid[:, t], t].mean() for t in range(K)])
    assert "score value against predicted" in record["protocol"]
    pictures = load_arrays(ran / "pictures.npz")
    assert pictures["of"].tolist() == [0, 4]
    assert pictures["maps"].shape == (2, K, 32, 32)
    names = {p.name for p in (ran / "figures").iterdir()}
    assert names == {"where.png", "person-0.png", "person-1.png", "index.json"}


def test_maps_are_those_of_the_estimator(ran, workdir):
    c = config()
    people = data.open_source(c.data.eval, root=None, skeleton="lsp")
    person = people.person(0)
    estimator = Estimator.load(workdir)
    (found,) = estimator.explain(
        people.image(0), boxes=[person.box], method="gradient",
    )  # fmt: skip
    assert isinstance(found, maps.MapExplanation)
    stored = load_arrays(ran / "pictures.npz")
    np.testing.assert_allclose(stored["maps"][0], found.maps, rtol=1e-3, atol=1e-6)
    inside = geometry.transform(np.asarray(found.keypoints, float), found.matrix)
    np.testing.assert_allclose(stored["points"][0], inside, atol=1e-3)


def test_the_same_command_resumes(ran, workdir):
    (ran / "part-0001.npz").unlink()
    stamp = (ran / "part-0000.npz").stat().st_mtime_ns
    before = load_arrays(ran / "maps.npz")
    explain.run(config(), str(workdir))
    assert (ran / "part-0000.npz").stat().st_mtime_ns == stamp
    after = load_arrays(ran / "maps.npz")
    for name, values in before.items():
        np.testing.assert_array_equal(values, after[name])


def test_a_tap_and_options(workdir):
    explain.run(
        config(method="grad_cam", tap="stack0/bottleneck", count=2), str(workdir)
    )
    record = read_json(workdir / "explain" / "grad_cam-value-val" / "maps.json")
    assert record is not None and record["tap"] == "stack0/bottleneck"
    assert "tap stack0/bottleneck" in record["protocol"]
    explain.run(
        config(count=2, method="smooth_grad", options={"samples": 2}), str(workdir)
    )
    index = read_json(workdir / "explain" / "smooth_grad-value-val" / "index.json")
    assert index is not None and index["options"] == {"samples": 2}


@pytest.mark.parametrize(
    "changes,error,message",
    [
        (dict(method="lime"), UserError, "'lime' is unknown; use group_shapley"),
        (dict(method="attention"), ValueError, "needs attention"),
        (dict(method="grad_cam", tap="nose"), ValueError, "tap 'nose' is no map"),
        (dict(method="saliency", tap="stem"), ValueError, "reads no tap"),
        (dict(score="similarity"), ValueError, "has no gradient"),
        (dict(count=4), UserError, "answers another question .count, people differ."),
    ],
)
def test_mistakes(ran, workdir, changes, error, message):
    with pytest.raises(error, match=message):
        explain.run(config(**changes), str(workdir))


def test_a_folder_without_maps(tmp_path):
    with pytest.raises(ValueError, match="run the task explain first"):
        list(map_figures.figures(tmp_path))
