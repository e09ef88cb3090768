"""Regressed coordinates: counts, the flow, losses, whole runs, explanations, learning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from small_people import held_out, learn, regression_config
from test_training import make_batch

from pose_jax import models, partitions, recipe
from pose_jax.explain import games
from pose_jax.explain.explainer import Crops, Explainer
from pose_jax.models import Edit, deeppose
from pose_jax.models.flow import RealNVP
from pose_jax.pixels import ColourJitter
from pose_jax.tasks import evaluate, predict, train
from pose_jax.tasks.workdir import claim
from pose_jax.training.objectives import regression
from pose_jax.writer import read_json

SMALL = dict(name="regression", depth=18, width=4)
RLE = dict(SMALL, likelihood="rle")
MEMBERS = {
    "regression": (SMALL, {}),
    "rle": (RLE, dict(loss="rle")),
    "deeppose": (
        dict(name="deeppose", torso=(5, 12), stages=2, **deeppose.TINY),
        dict(side=44),
    ),
    "ief": (
        dict(name="ief", depth=18, width=4, steps=2),
        dict(objective="correction"),
    ),
}


def slowly(name):
    return pytest.param(name, marks=pytest.mark.slow)


SLOWLY = [slowly(name) for name in ("rle", "deeppose", "ief")]


def member_config(name, **train):
    model, fields = MEMBERS[name]
    return regression_config(model, **{**fields, **train})


def build_objective(c):
    r = recipe.recipe(c)
    return regression.make(c.objective, r.module, r.spec, r.codec, ColourJitter())


def flow_variables(seed=0):
    """Far from the identity, where a fresh flow lies."""
    variables = RealNVP().init(jax.random.key(seed), jnp.zeros((1, 2)))
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: generator.normal(0, 0.25, p.shape).astype("f"), variables
    )


# --- networks ---------------------------------------------------------------------------


def test_sizes():
    """ResNet-50's 23,508,032 (torchvision's without its classifier), and our own heads."""
    for fields, head in (
        (dict(depth=50), 2048 * 34 + 34),
        (dict(depth=50, likelihood="rle"), 2048 * 68 + 68 + 6 * 2 * (192 + 4160 + 130)),
    ):
        module = models.build(dict(name="regression", **fields), num_keypoints=17)
        images = jnp.zeros((1, 256, 192, 3))
        variables = jax.eval_shape(module.init, jax.random.key(0), images)
        count = sum(x.size for x in jax.tree.leaves(variables["params"]))
        assert count == 23_508_032 + head
        outputs = jax.eval_shape(module.apply, variables, images)
        assert outputs.coordinates.shape == (1, 1, 17, 2) and outputs.heatmaps is None
        assert outputs.taps["layer4"].shape == (1, 8, 6, 2048)


def test_fresh_networks_answer_near_the_middle():
    """In pixels, on a crop that is no square; every tap can be written."""
    module = models.build(RLE, num_keypoints=3)
    images = jax.random.normal(jax.random.key(1), (2, 64, 32, 3))
    variables = jax.jit(module.init)(jax.random.key(0, impl="unsafe_rbg"), images)
    names = sorted(jax.eval_shape(module.apply, variables, images).taps)

    @jax.jit
    @jax.vmap
    def run(shifts):
        edits = {n: Edit(1.0, s) for n, s in zip(names, shifts)}
        return module.apply(variables, images, edits=edits)

    found = run(np.eye(len(names) + 1, len(names)))
    clean = found.coordinates[-1, 0]
    assert np.abs(clean - np.array([15.5, 31.5])).max() < 8
    shares = np.asarray(found.spread[-1]) / np.array([32, 64])
    np.testing.assert_allclose(shares, 0.5, rtol=0.2)
    for index, name in enumerate(names):
        before = np.concatenate([clean, found.spread[-1, 0]], -1)
        after = [found.coordinates[index, 0], found.spread[index, 0]]
        assert np.abs(np.concatenate(after, -1) - before).max() > 1e-5, name
        np.testing.assert_allclose(
            found.taps[name][index], found.taps[name][-1] + 1, atol=1e-4
        )
    assert not any(name.startswith("flow") for name in names)


def test_what_is_refused():
    for fields, words in (
        (dict(SMALL, depth=20), "have 18, 34, 50"),
        (dict(SMALL, likelihood="laplace"), "none or rle"),
        (dict(SMALL, width=0), "positive"),
    ):
        with pytest.raises(ValueError, match=words):
            models.build(fields, num_keypoints=3)
    with pytest.raises(ValueError, match="belong together"):
        build_objective(regression_config(SMALL, loss="rle"))
    with pytest.raises(ValueError, match="mse, smooth_l1, rle"):
        build_objective(regression_config(SMALL, loss="cross_entropy"))
    folded = models.build(dict(SMALL, folded=True), num_keypoints=3)
    with pytest.raises(ValueError, match="folded"):
        folded.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=True)
    plain = models.build(SMALL, num_keypoints=3)
    with pytest.raises(ValueError, match="no flow"):
        plain.apply({}, jnp.zeros((1, 2)), method="log_density")
    hourglass = dict(name="hourglass", stacks=1, depth=1, features=8, stem=(4, 4, 8))
    objective = build_objective(regression_config(hourglass))
    with pytest.raises(ValueError, match="this one gives heatmaps"):
        jax.eval_shape(
            objective.init, jax.random.key(0), make_batch(count=1)
        )  # fmt: skip


# --- the flow ---------------------------------------------------------------------------


def test_the_flow_is_a_density():
    """It integrates to one, and is no longer normal."""
    variables = flow_variables()
    line = np.linspace(-14, 14, 401)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), -1).astype("f")
    log: jax.Array = jax.jit(RealNVP().apply)(variables, grid)  # pyright: ignore
    density = np.exp(np.asarray(log, float))
    rows = scipy.integrate.simpson(density, x=line)
    assert abs(scipy.integrate.simpson(rows, x=line) - 1) < 2e-3
    normal = np.exp(-(grid**2).sum(-1) / 2) / (2 * np.pi)
    assert np.abs(density - normal).max() > 0.02


def test_a_fresh_flow_is_nearly_normal():
    variables = RealNVP().init(jax.random.key(0), jnp.zeros((1, 2)))
    points = np.random.default_rng(0).normal(size=(50, 2)).astype("f")
    wanted = -(points**2).sum(-1) / 2 - np.log(2 * np.pi)
    found: jax.Array = RealNVP().apply(variables, points)  # pyright: ignore
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_log_density_against_the_jacobian():
    """By the change of variables: coupling after coupling in float64, the area from
    differences."""
    variables = flow_variables(1)
    tree = variables["params"]

    def mlp(weights, x, bounded):
        for layer in ("hidden0", "hidden1"):
            x = x @ weights[layer]["kernel"].astype(float) + weights[layer]["bias"]
            x = np.where(x > 0, x, 0.01 * x)
        x = x @ weights["out"]["kernel"].astype(float) + weights["out"]["bias"]
        return np.tanh(x) if bounded else x

    def inverse(z):
        for i in reversed(range(6)):
            axis = i % 2  # Number 0 keeps y and moves x.
            seen = np.where(np.arange(2) == axis, 0, z)
            scale = mlp(tree[f"scale{i}"], seen, True)[axis]
            shift = mlp(tree[f"shift{i}"], seen, False)[axis]
            z = z.copy()
            z[axis] = (z[axis] - shift) * np.exp(-scale)
        return z

    for point in np.random.default_rng(2).normal(size=(5, 2)):
        moves = np.eye(2) * 1e-5
        columns = [(inverse(point + m) - inverse(point - m)) / 2e-5 for m in moves]
        area = np.log(abs(np.linalg.det(np.stack(columns, 1))))
        base = inverse(point)
        wanted = area - (base**2).sum() / 2 - np.log(2 * np.pi)
        found: jax.Array = RealNVP().apply(variables, point.astype("f"))  # pyright: ignore
        np.testing.assert_allclose(found, wanted, atol=1e-3)


# --- losses -----------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["mse", "smooth_l1", "rle"])
def test_loss_against_a_slow_reference(loss):
    """Loops over rows and joints; unlabelled joints and padding do not count, whatever
    number stands there."""
    c = regression_config(RLE if loss == "rle" else SMALL, loss=loss)
    c.input.size = (64, 32)
    c.objective.occluded_weight = 0.5
    objective = build_objective(c)
    batch = make_batch(count=3)
    batch["mask"][2] = False
    batch["keypoints"][batch["visible"] == 0] = np.nan
    generator = np.random.default_rng(1)
    # Errors beyond one crop: the linear part of smooth L1.
    points = generator.uniform(-60, 120, (1, 3, 17, 2)).astype("f")
    spread = generator.uniform(1, 30, (1, 3, 17, 2)).astype("f")
    variables = None
    outputs = models.Outputs(coordinates=points)
    if loss == "rle":
        variables = {"params": {"flow": flow_variables()["params"]}}
        outputs = models.Outputs(coordinates=points, spread=spread)
    found, zero = objective.supervise(outputs, batch, variables)
    size = np.array([32.0, 64.0])

    def one(answer, truth, sigma):
        error = (answer - truth) / size
        if loss == "mse":
            return (error**2).mean()
        if loss == "smooth_l1":
            small = np.abs(error) < 1
            return np.where(small, error**2 / 2, np.abs(error) - 0.5).mean()
        residual = error / sigma
        log_phi: jax.Array = RealNVP().apply(  # pyright: ignore
            flow_variables(), residual.astype("f")
        )
        flow = np.log(sigma) - float(log_phi)
        return (flow + np.log(2 * sigma) + np.abs(residual)).sum()

    total = nothing = count = 0.0
    for row, joint in np.ndindex(2, 17):
        weight = {0: 0.0, 1: 0.5, 2: 1.0}[int(batch["visible"][row, joint])]
        if weight:
            truth, count = batch["keypoints"][row, joint].astype(float), count + weight
            sigma = spread[0, row, joint] / size
            total += weight * one(points[0, row, joint], truth, sigma)
            nothing += weight * one(np.array([15.5, 31.5]), truth, np.full(2, 0.5))
    np.testing.assert_allclose(found.compute(), total / count, rtol=1e-4)
    np.testing.assert_allclose(zero.compute(), nothing / count, rtol=1e-4)


def test_gradients_reach_the_flow_and_stay_finite():
    c = regression_config(RLE, loss="rle")
    objective = build_objective(c)
    batch = make_batch(count=4)
    batch["keypoints"][batch["visible"] == 0] = np.nan
    variables = objective.init(jax.random.key(0, impl="unsafe_rbg"), batch)

    @jax.jit
    @jax.grad
    def gradient(params):
        given = {**variables, "params": params}
        return objective.loss(given, batch, key=jax.random.key(0))[0].sum

    for name, tree in gradient(variables["params"]).items():
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
        assert all(np.isfinite(leaf).all() for leaf in leaves), name
        assert any(np.abs(leaf).max() > 1e-6 for leaf in leaves), name


# --- whole runs -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["regression", *SLOWLY])
def test_train_evaluate_predict(name, tmp_path):
    """Through the tasks: curves, a resumed run, records with the flip test, overlays."""
    c = member_config(name, steps=2, batch=4, save_every=2, eval_every=2, log_every=1)
    c.data.select.count = c.data.eval.count = 8
    workdir = str(tmp_path)
    claim(c, workdir)
    train.run(c, workdir)
    with c.unlocked():
        c.train.keep_last = 3  # Free to change: the same run goes on, and is complete.
    loop = train.Loop(c, workdir)
    assert loop.start == 2
    evaluate.run(c, workdir)
    predict.run(c, workdir)
    (record,) = read_json(tmp_path / "results.json").values()
    assert record["pck"]["entries"] == 8 and record["mean_pose"]
    assert (tmp_path / "figures" / "learning_curve.png").exists()


@pytest.mark.parametrize("name", ["ief", *SLOWLY[:2], slowly("regression")])
def test_exact_group_shapley(name):
    """Values of a network without heatmaps add up, and depend on the picture."""
    described = recipe.recipe(member_config(name))
    side = described.spec.size[0]
    images = jnp.zeros((1, side, side, 3))
    init = jax.jit(described.module.init)
    variables = init(jax.random.key(3, impl="unsafe_rbg"), images)
    # A fresh head says the middle of everything.
    variables = jax.tree_util.tree_map_with_path(
        lambda path, p: p * 30 if "head" in str(path) else p, variables
    )
    generator = np.random.default_rng(0)
    crops = Crops(
        images=generator.integers(0, 256, (1, side, side, 3)).astype(np.uint8),
        matrices=np.eye(3)[None],
        boxes=np.array([[0.0, 0, side, side]]),
        keypoints=generator.uniform(4, side - 5, (1, 17, 2)).astype("f"),
        areas=np.array([side * side / 2.0]),
    )
    parts: list = [list(range(5)), list(range(5, 11)), list(range(11, 17))]
    partition = partitions.from_lists("three", parts, described.skeleton)
    players = games.keypoint_players(described.skeleton, partition, side=0.2)
    ask = Explainer(described, variables, players, score="likelihood", chunk_size=64)
    (found,) = ask(crops)
    total = found.member_values.sum(0) + found.cluster_values.sum(0)
    np.testing.assert_allclose(total, found.full - found.empty, atol=1e-4)
    assert np.abs(found.member_values).max() > 1e-5
    assert np.abs(found.residual).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name,steps", [("regression", 700)])
def test_learns(name, steps):
    """The loss falls, and people never seen are placed better than by the mean pose."""
    c = member_config(name)
    c.model.width = 8
    c.optimiser.update(learning_rate=3e-3, schedule="cosine", warmup_steps=20, clip=5.0)
    described, variables, rows = learn(c, steps=steps)
    assert rows["loss"][-20:].mean() < 0.6 * rows["loss"][:20].mean()
    assert rows["loss_ratio"][-20:].mean() < 0.5
    reached, mean_pose = held_out(described, variables)
    assert reached > mean_pose + 0.01
