"""One step pinned, optimiser rules against slow references, accumulation, freezing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from pose_jax import recipe as recipe_
from pose_jax import sharding
from pose_jax.pixels import ColourJitter
from pose_jax.skeletons import get
from pose_jax.training import optimiser, transfer
from pose_jax.training import state as state_
from pose_jax.training import step as step_
from pose_jax.training.objectives import heatmap
from pose_jax.trees import flat_names


def make_batch(count=8, side=32, k=17, seed=0):
    generator = np.random.default_rng(seed)
    batch = {
        n: np.array(v) for n, v in step_.example_batch((side, side), k, count).items()
    }
    batch["image"] = generator.integers(0, 256, batch["image"].shape).astype(np.uint8)
    batch["keypoints"] = generator.uniform(0, side - 1, (count, k, 2)).astype(
        np.float32
    )
    batch["visible"] = generator.integers(0, 3, (count, k)).astype(np.int32)
    batch["weight"] = (batch["visible"] > 0).astype(np.float32)
    batch["mask"][:] = True
    return batch


def build(c, **step_fields):
    described = recipe_.recipe(c)
    objective = heatmap.make(
        c.objective, described.module, described.spec, described.codec, ColourJitter()
    )
    transform, schedule = optimiser.make_optimiser(
        c.optimiser, c.train.steps, objective.trainable
    )
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1), jax.devices()[:1])
    init = step_.make_init(
        objective, transform, average=step_fields.get("decay", 0) > 0
    )
    state, shardings = step_.create_state(
        init,
        jax.random.key(0, impl="unsafe_rbg"),
        step_.example_batch((32, 32), 17),
        mesh,
        fsdp=False,
    )
    step = step_.make_train_step(objective, transform, schedule, seed=0, **step_fields)
    return objective, state, shardings, step, mesh


# Values of one step of the tiny network, float32. A change here means that the
# mathematics of a step changed: find out which part before touching the numbers.
GOLDEN = {
    "cross_entropy": {
        "loss": 4.2071795,
        "loss_after_a_step": 4.1758494,
        "zero_map_loss": 4.1588817,
        "gradient_norm": 0.8448700,
        "update_norm": 0.0844870,
        "parameter_norm": 17.0738010,
        "correct": 0.0103093,
    },
    "mse": {
        "loss": 0.2100769,
        "loss_after_a_step": 0.1920290,
        "zero_map_loss": 0.0470377,
        "gradient_norm": 0.6201953,
        "update_norm": 0.0620195,
        "parameter_norm": 17.0710945,
        "correct": 0.0103093,
    },
}


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_golden_step(loss):
    c = tiny_config()
    c.objective.loss = loss
    # Plain descent: Adam would follow the sign of gradients that are zero but for rounding
    # (biases before a normalisation), which differs between programs.
    c.optimiser.update(name="sgd", learning_rate=0.1)
    if loss == "mse":
        c.codec.activation = "none"
    _, state, shardings, step, mesh = build(c)
    # Weights from numpy: JAX's generators may change between versions and backends.
    generator = np.random.default_rng(7)
    params = jax.tree.map(
        lambda p: (
            generator.normal(0, 0.2, p.shape).astype(np.float32)
            if p.ndim > 1
            else np.asarray(p)
        ),
        state.params,
    )
    state = jax.device_put(state.replace(params=params), shardings)
    compiled = step_.compile_step(step, shardings, mesh)
    batch = sharding.put_batch(make_batch(), mesh)
    state, first = compiled(state, batch)
    state, second = compiled(state, batch)
    assert compiled._cache_size() == 1
    assert int(state.step) == 2
    found = {
        "loss": first["loss"],
        "loss_after_a_step": second["loss"],
        "zero_map_loss": first["zero_map_loss"],
        "gradient_norm": first["gradient_norm"],
        "update_norm": first["update_norm"],
        "parameter_norm": first["parameter_norm"],
        "correct": first["correct"],
    }
    for name, value in GOLDEN[loss].items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=name)


def test_accumulation_gives_the_gradient_of_the_whole_batch():
    """With frozen statistics the micro-batches see the same function, so sums must agree."""
    c = tiny_config()
    c.optimiser.update(name="sgd", learning_rate=0.1)
    objective, state, _, _, _ = build(c)

    class Still:
        """The objective in inference mode: no batch statistics couple the rows."""

        def loss(self, variables, batch, *, key):
            outputs = objective.module.apply(
                variables, batch["image"].astype(jnp.float32) / 255
            )
            loss, zero = objective.supervise(outputs, batch)
            metrics = {"loss": loss, "zero_map_loss": zero}
            return loss, (metrics, variables["batch_stats"])

    transform, schedule = optimiser.make_optimiser(c.optimiser, 10, lambda _: True)
    state = state.replace(opt_state=transform.init(state.params))
    results = []
    for accumulation in (1, 4):
        step = step_.make_train_step(
            Still(), transform, schedule, seed=0, accumulation=accumulation
        )
        new, metrics = jax.jit(step)(state, make_batch())
        results.append((new.params, metrics["loss"]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *results
    )


def test_rmsprop_is_pytorchs():
    """w -= lr g / (sqrt(v) + eps), v from zero, epsilon outside the root."""
    c = tiny_config()
    c.optimiser.update(name="rmsprop", learning_rate=0.01, decay=0.99)
    transform, _ = optimiser.make_optimiser(c.optimiser, 10, lambda _: True)
    params = {"w": jnp.array([1.0, -2.0])}
    opt_state, v, w = transform.init(params), np.zeros(2), np.array([1.0, -2.0])
    for gradient in ([1e-6, 3.0], [-2e-6, 1.0], [1e-6, -4.0]):
        updates, opt_state = transform.update(
            {"w": jnp.array(gradient)}, opt_state, params
        )
        params = {"w": params["w"] + updates["w"]}
        g = np.array(gradient)
        v = 0.99 * v + 0.01 * g * g
        w = w - 0.01 * g / (np.sqrt(v) + 1e-8)
    np.testing.assert_allclose(params["w"], w, rtol=1e-5)


def test_adagrad_divides_by_the_root_of_all_squares(x64):
    """Against a loop (Duchi et al. 2011); the first step is the rate itself."""
    section = tiny_config().optimiser
    section.update(name="adagrad", learning_rate=0.5)
    transform, _ = optimiser.make_optimiser(section, 9, lambda _: True)
    gradients = np.random.default_rng(0).normal(size=(9, 4))
    params = {"w": np.zeros(4)}
    state, total = transform.init(params), np.zeros(4)
    for gradient in gradients:
        updates, state = transform.update({"w": gradient}, state, params)
        total += gradient**2
        np.testing.assert_allclose(
            updates["w"], -0.5 * gradient / np.sqrt(total), rtol=1e-6
        )


def test_plateau_follows_pytorch():
    """Patience 2: the third reading without improvement drops; never below the floor."""
    plateau = state_.plateau_start()
    scales = []
    for metric in [0.1, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.3, 0.1, 0.1, 0.1]:
        plateau = state_.plateau_update(
            plateau, metric, factor=0.2, patience=2, floor_scale=0.1
        )
        scales.append(round(float(plateau.scale), 4))
    assert scales == [1, 1, 1, 1, 0.2, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1]


def test_frozen_parameters_and_statistics_stay():
    c = tiny_config()
    c.optimiser.freeze = ("^stem",)
    _, state, _, step, _ = build(c, freeze=("^stem",))
    new, _ = jax.jit(step)(state, make_batch())
    for tree in ("params", "batch_stats"):
        before, after = flat_names(getattr(state, tree)), flat_names(getattr(new, tree))
        for name in before:
            same = bool(np.array_equal(before[name], after[name]))
            if name.startswith("stem"):
                assert same, name
        assert any(not np.array_equal(before[n], after[n]) for n in before)


def test_average_follows_the_parameters():
    _, state, _, step, _ = build(tiny_config(), decay=0.5)
    new, _ = jax.jit(step)(state, make_batch())
    keep = 0.1  # (1 + 0) / (10 + 0) < 0.5 at the first step.
    expected = jax.tree.map(
        lambda a, b: keep * a + (1 - keep) * b, state.params, new.params
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.average, expected
    )
    assert new.variables["params"] is new.average


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_loss_against_a_slow_reference(loss):
    """Loops over rows, joints and pixels; unlabelled joints and padding do not count."""
    c = tiny_config()
    c.objective.update(loss=loss, occluded_weight=0.5)
    if loss == "mse":
        c.codec.activation = "none"
    objective, *_ = build(c)
    batch = make_batch(count=3)
    batch["mask"][2] = False
    maps = np.random.default_rng(1).normal(size=(2, 3, 8, 8, 17)).astype(np.float32)
    found, zero = objective.supervise(_outputs(maps), batch)
    targets = np.asarray(objective.render(batch, (8, 8)), np.float64)
    total = nothing = count = 0.0
    for row in range(2):
        for joint in range(17):
            label = batch["visible"][row, joint]
            weight = {0: 0.0, 1: 0.5, 2: 1.0}[int(label)]
            count += weight
            target = targets[row, :, :, joint]
            for stage in range(2):
                each = maps[stage, row, :, :, joint].astype(np.float64)
                if loss == "mse":
                    total += weight * ((each - target) ** 2).mean()
                    nothing += weight * (target**2).mean()
                elif label:
                    mass = target / target.sum()
                    log_p = each - np.log(np.exp(each).sum())
                    total -= weight * (mass * log_p).sum()
                    nothing += weight * np.log(64)
    np.testing.assert_allclose(found.compute(), total / count, rtol=1e-5)
    np.testing.assert_allclose(zero.compute(), nothing / count, rtol=1e-5)


def _outputs(maps):
    from pose_jax.models import Outputs

    return Outputs(heatmaps=jnp.asarray(maps))


def test_unlabelled_as_empty_supervises_silence():
    c = tiny_config()
    c.codec.activation = "none"
    c.objective.update(loss="mse", unlabelled_as_empty=True)
    objective, *_ = build(c)
    batch = make_batch(count=2)
    batch["visible"][:], batch["weight"][:] = 0, 0
    loss, zero = objective.supervise(
        _outputs(np.ones((1, 2, 8, 8, 17), np.float32)), batch
    )
    np.testing.assert_allclose([loss.compute(), zero.compute()], [1.0, 0.0])


@pytest.mark.parametrize(
    "changes,message",
    [
        (dict(loss="l2"), "objective.loss"),
        (dict(loss="mse"), "codec.activation='none'"),
        (dict(unlabelled_as_empty=True), "softmax cannot be empty"),
        (dict(joint_weights=(1.0, 2.0)), "17 keypoints"),
    ],
)
def test_bad_objectives_are_explained(changes, message):
    c = tiny_config()
    c.objective.update(changes)
    with pytest.raises(ValueError, match=message):
        build(c)


def test_transfer_maps_joints_by_name():
    c = tiny_config()
    coco = recipe_.recipe(c)
    c.skeleton = "lsp"
    lsp = recipe_.recipe(c)
    axes = transfer.keypoint_axes(coco.shapes(17), coco.shapes(18), 17)
    counted = {name: a for name, a in axes.items() if a}
    assert set(counted) == {
        "params/stack0_heatmaps/kernel", "params/stack0_heatmaps/bias",
    }  # fmt: skip
    generator = np.random.default_rng(0)
    old = {
        n: generator.normal(size=x.shape) for n, x in flat_names(lsp.shapes()).items()
    }
    new = {n: np.zeros(x.shape) for n, x in flat_names(coco.shapes()).items()}
    result = transfer.transfer(new, old, axes, get("lsp"), get("coco"))
    head = "params/stack0_heatmaps/bias"
    assert (
        result.leaves[head][get("coco").index("left_knee")]
        == old[head][get("lsp").index("left_knee")]
    )
    assert result.leaves[head][get("coco").index("nose")] == 0
    assert set(result.mapped) == set(counted) and not result.fresh
    only = transfer.transfer(
        new, old, axes, get("lsp"), get("coco"), backbone_only=True
    )
    assert set(only.fresh) == set(counted)
    old.popitem()
    old["params/stem_conv/kernel"] = np.zeros((3, 3, 3, 4))
    with pytest.raises(ValueError, match="params/stem_conv/kernel has shape"):
        transfer.transfer(new, old, axes, get("lsp"), get("coco"))


def test_transfer_leaves_mixed_channels_fresh():
    """The pose machine feeds maps and features into one convolution: those input channels
    cannot be matched by joint, so another skeleton starts them anew."""
    c = tiny_config()
    c.skeleton, c.input.size, c.codec.activation = "mobile", (64, 64), "none"
    c.model = dict(name="mobile_pose_machine")
    mobile = recipe_.recipe(c)
    axes = transfer.keypoint_axes(mobile.shapes(14), mobile.shapes(15), 14)
    mixed = {name for name, where in axes.items() if transfer.MIXED in where}
    assert mixed and any(where == (0,) for where in axes.values())
    arrays = {n: np.zeros(x.shape) for n, x in flat_names(mobile.shapes()).items()}
    other = transfer.transfer(arrays, arrays, axes, get("mobile"), get("aic"))
    assert set(other.fresh) == mixed
    alike = transfer.transfer(arrays, arrays, axes, get("mobile"), get("mobile"))
    assert not alike.fresh
