"""Folded networks answer as the networks that they are copies of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from pose_jax import checkpoint, config, geometry, inference, models
from pose_jax.estimator import Estimator, Pose
from pose_jax.models import THESIS, Edit, layers
from pose_jax.recipe import recipe
from pose_jax.tasks import evaluate
from pose_jax.trees import flat_names, unflatten_names
from pose_jax.writer import read_json, write_json

SMALL = dict(name="hourglass", depth=1, features=8, stem=(4, 4, 8))
NETWORKS = {
    "one": dict(SMALL, stacks=1, residuals=2, remat=True),
    "two": dict(SMALL, stacks=2),
    "thesis": dict(THESIS, **SMALL),
}


def random_variables(shapes, seed=0):
    """Weights and statistics as after training; every sixth channel is nearly silent, so
    that the constant below the root counts."""
    generator = np.random.default_rng(seed)

    def draw(name, shape):
        kind = name.rsplit("/", 1)[1]
        if kind == "kernel":
            return generator.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
        if kind == "scale":
            return generator.uniform(0.5, 1.5, shape) * generator.choice([-1, 1], shape)
        if kind == "var":
            silent = np.arange(shape[0]) % 6 == 5
            return np.where(silent, 1e-2, generator.uniform(0.3, 2.0, shape))
        return 0.3 * generator.normal(size=shape)

    drawn = {n: draw(n, s.shape).astype("f") for n, s in flat_names(shapes).items()}
    return unflatten_names(shapes, drawn)


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request):
    """(module, variables), its folded copy, pictures."""
    module = models.build(NETWORKS[request.param], num_keypoints=3)
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    variables = random_variables(shapes)
    return (module, variables), models.fold(module, variables), images


def close(a, b):
    """Equal to 1e-5 of the range."""
    assert a.shape == b.shape and a.dtype == b.dtype
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(np.ptp(a)))


def test_heatmaps_and_taps_are_equal(pair):
    (module, variables), (copy, folded), images = pair
    plain = jax.jit(module.apply)(variables, images)
    after = jax.jit(copy.apply)(folded, images)
    assert np.ptp(plain.heatmaps) > 0.1 and plain.taps.keys() == after.taps.keys()
    close(plain.heatmaps, after.heatmaps)
    for name, value in plain.taps.items():
        close(value, after.taps[name])


def test_edits_mean_the_same(pair):
    """An edit of every tap, one after the other in one program: `features` stands behind a
    folded normalisation, `input` before one that stays."""
    (module, variables), (copy, folded), images = pair
    names = sorted(jax.eval_shape(module.apply, variables, images).taps)

    def runner(module):
        @jax.jit
        @jax.vmap
        def run(chosen):
            edits = {n: Edit(1 - 0.4 * c, 0.3 * c) for n, c in zip(names, chosen)}
            return module.apply(given[module], images, edits=edits).heatmaps[-1]

        return run

    given = {module: variables, copy: folded}
    each = jnp.eye(len(names))
    plain, after = runner(module)(each), runner(copy)(each)
    # `stem` and the first `input` are the same map.
    assert len({p.tobytes() for p in np.asarray(plain)}) == len(names) - 1
    for a, b in zip(plain, after):
        close(a, b)


def test_only_norms_behind_sums_stay(pair):
    """The copy has the variables that its module declares, in the types of the original."""
    (_, variables), (copy, folded), images = pair
    declared = jax.eval_shape(copy.init, jax.random.key(0), images)
    described = jax.tree.map(lambda x: (x.shape, x.dtype), folded)
    assert described == jax.tree.map(lambda x: (x.shape, x.dtype), declared)
    norms = {name.split("/")[-2] for name in flat_names(folded["batch_stats"])}
    assert norms == {"norm1"}
    before = len(jax.tree.leaves(variables["batch_stats"]))
    assert len(jax.tree.leaves(folded["batch_stats"])) < 0.4 * before


def test_original_is_left_alone(pair):
    (module, variables), (copy, folded), _ = pair
    again = random_variables(variables)
    jax.tree.map(np.testing.assert_array_equal, variables, again)
    assert not module.config.folded and copy.config.folded
    assert models.fold(copy, folded) == (copy, folded)


def test_training_a_folded_network_is_refused(pair):
    _, (copy, folded), images = pair
    with pytest.raises(ValueError, match="no batch statistics to train with"):
        jax.eval_shape(lambda v: copy.apply(v, images, train=True), folded)


def test_faulty_variables_are_explained(pair):
    (module, variables), (_, folded), _ = pair
    with pytest.raises(ValueError, match="hold none of the normalisations"):
        models.fold(module, folded)
    with pytest.raises(
        ValueError, match="have no batch_stats/.*/mean; give params and"
    ):
        models.fold(module, {"params": variables["params"]})


def test_folding_against_the_formula():
    """One convolution, double precision, written out per channel."""
    module = models.build(NETWORKS["two"], num_keypoints=3)
    images = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    variables = random_variables(shapes)
    before = {k: np.asarray(v, float) for k, v in flat_names(variables).items()}
    after = flat_names(models.fold(module, variables)[1])
    for norm, name in (
        ("stem_norm", "stem_conv"),
        ("stack1_last/norm3", "stack1_last/conv2"),
        ("stack0_norm", "stack0_features"),
    ):
        for c in range(before[f"params/{norm}/scale"].size):
            mean = before[f"batch_stats/{norm}/mean"][c]
            root = (before[f"batch_stats/{norm}/var"][c] + layers.EPSILON) ** 0.5
            slope = before[f"params/{norm}/scale"][c] / root
            kernel = before[f"params/{name}/kernel"][..., c] * slope
            bias = (before[f"params/{name}/bias"][c] - mean) * slope
            bias += before[f"params/{norm}/bias"][c]
            found = after[f"params/{name}/kernel"][..., c]
            np.testing.assert_allclose(found, kernel, rtol=1e-6)
            found = after[f"params/{name}/bias"][c]
            np.testing.assert_allclose(found, bias, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("family", ["mobile_hourglass", "mobile_pose_machine"])
def test_networks_without_normalisation_come_back(family):
    module = models.build(dict(name=family), num_keypoints=3)
    variables = {"params": {"stem": {"kernel": np.ones(3)}}}
    assert models.fold(module, variables) == (module, variables)
    assert models.fold(module, variables)[1] is variables


# --- in use: predictions, evaluation, configs -------------------------------------------


def same_points(a, b):
    """Equal to 1e-4 px; a random network has a few flat peaks, found to 1e-3 px only."""
    distance = np.linalg.norm(a - b, axis=-1)
    assert distance.max() < 1e-3 and (distance < 1e-4).mean() > 0.97, distance.max()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of the tiny network with statistics as after training."""
    folder = tmp_path_factory.mktemp("folding")
    c = tiny_config()
    c.evaluate.update(metrics=("pck",), checkpoint="last")
    described = recipe(c)
    variables = random_variables(described.shapes())
    write_json(folder / "config.json", config.to_plain(c))
    checkpoint.save_variables(folder, variables, info={})
    return folder, c, described, variables


def test_estimator_predicts_as_before(workdir, generator):
    folder, _, described, variables = workdir
    estimator = Estimator.load(folder)
    jax.tree.map(np.testing.assert_array_equal, estimator.variables, variables)
    assert not estimator.recipe.module.config.folded
    assert "folded" not in estimator.recipe.model
    used, folded = estimator.inference
    assert used.module.config.folded
    described_shapes = jax.tree.map(lambda x: x.shape, used.shapes())
    assert described_shapes == jax.tree.map(lambda x: x.shape, folded)
    image = generator.integers(0, 256, (64, 48, 3)).astype(np.uint8)
    boxes = np.array([[0.0, 0, 40, 60], [5, 6, 30, 30], [10, 2, 36, 61]])
    pose = estimator.predict(image, boxes)
    spec = described.spec
    matrices = [
        geometry.crop_matrix(
            b, spec.size, padding=spec.padding, unit=described.codec.unit
        )
        for b in boxes
    ]
    crops = np.stack([geometry.warp(image, m, spec.size) for m in matrices])
    predict = jax.jit(inference.make_predict(described, flip_test=True))
    found = predict(variables, {"image": crops})
    points = geometry.invert(np.asarray(found["keypoints"], float), np.stack(matrices))
    assert isinstance(pose, Pose)
    same_points(pose.keypoints, points)
    np.testing.assert_allclose(pose.keypoint_scores, found["scores"], atol=1e-6)


def test_evaluation_is_as_before(workdir, monkeypatch):
    folder, c, described, variables = workdir
    calls, original = [], inference.predict_source

    def spy(recipe, *args, **named):
        calls.append(((recipe, *args), named, original(recipe, *args, **named)))
        return calls[-1][-1]

    monkeypatch.setattr(inference, "predict_source", spy)
    evaluate.run(c, str(folder))
    [((used, _, source), named, found)] = calls
    assert used.module.config.folded
    named.pop("report")
    plain = original(described, variables, source, **named)
    same_points(found.keypoints, plain.keypoints)
    assert found.map_side == plain.map_side
    assert read_json(folder / "config.json") == config.to_plain(c)


def test_configs_know_nothing_of_folding(workdir):
    """A saved identity has no such field; asking for one is another run, and a folded
    network cannot be started."""
    _, c, _, _ = workdir
    asked = c.copy_and_resolve_references()
    assert not any("folded" in key for key in config.identity(c))
    assert config.differences(config.to_plain(c), asked) == []
    asked.model.folded = True
    assert len(config.differences(config.to_plain(c), asked)) == 1
    module = recipe(asked).module
    with pytest.raises(ValueError, match="model.folded=False"):
        jax.eval_shape(
            lambda key: module.init(key, jnp.zeros((1, 32, 32, 3)), train=True),
            jax.random.key(0),
        )
