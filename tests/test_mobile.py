"""The mobile networks: published heatmaps, layers against slow references, loading."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pose_jax import checkpoint, config, models
from pose_jax.convert import mobile, tflite
from pose_jax.estimator import Estimator
from pose_jax.models import Edit
from pose_jax.models import mobile_layers as layers
from pose_jax.pixels import InputSpec, normalise
from pose_jax.recipe import recipe
from pose_jax.trees import flat_names
from pose_jax.writer import write_json

TINY = {
    "mobile_hourglass": dict(
        stem=4, shallow_blocks=1, features=4, blocks=2, depth=1, expansion=2
    ),
    "mobile_pose_machine": dict(
        stem=4, widths=(4, 4, 4), blocks=(1, 1, 1), expansion=2, feature_level=1,
        stages=2, stage_features=4, stage_expansion=(2,), sizes=(3, 5), heads=(5, 6),
        upsample=2,
    ),
}  # fmt: skip
FILES = {"mobile_hourglass": "hourglass_model", "mobile_pose_machine": "cpm_model"}
both = pytest.mark.parametrize("family", list(TINY))


@functools.cache
def tiny(family):
    """(module, variables, pixels); weights are moved so that no unit is off everywhere."""
    module = models.build(dict(name=family, **TINY[family]), num_keypoints=3)
    images = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3), maxval=255.0)
    variables = jax.jit(module.init)(jax.random.key(0), images)
    leaves, tree = jax.tree.flatten(variables)
    generator = np.random.default_rng(0)
    moved = [x + generator.uniform(0, 0.1, x.shape).astype("f4") for x in leaves]
    return module, jax.tree.unflatten(tree, moved), images


# --- published weights ------------------------------------------------------------------


@both
def test_heatmaps_equal_the_published_ones(data_root, family):
    """Against the TFLite runtime on three crops (RGB) of COCO people."""
    golden = np.load(data_root / "pretrained" / "golden_outputs.npz")
    path = data_root / "pretrained" / f"{FILES[family]}_tensors.npz"
    found, variables = mobile.load(path)
    section = mobile.model_section(found)
    module = models.build(section["model"], num_keypoints=14)
    spec = InputSpec(**section["input"])
    run = jax.jit(lambda v, x: module.apply(v, normalise(x, spec)).heatmaps)
    heatmaps = run(variables, golden["crops_rgb_uint8"])
    assert found == family
    assert len(heatmaps) == (1 if family == "mobile_hourglass" else 6)
    wanted = golden[f"{FILES[family]}_heatmaps"]
    assert np.abs(wanted).max() > 0.4
    np.testing.assert_allclose(heatmaps[-1], wanted, atol=1e-4)


def test_both_forms_give_the_same_weights(data_root):
    folder = data_root / "pretrained"
    plain = mobile.load(folder / "cpm_model_tensors.npz")
    file = mobile.load(folder / "cpm_model.tflite")
    assert plain[0] == file[0] == "mobile_pose_machine"
    jax.tree.map(np.testing.assert_array_equal, plain[1], file[1])


# --- loading a network that is made up here ---------------------------------------------


@functools.cache
def graph_of(family, keypoints=14):
    """A graph with the family's convolutions, random constants and everything else."""
    generator = np.random.default_rng(0)
    picture = tflite.Tensor("image", (1, 192, 192, 3), "float32")
    tensors, operators = [picture], []

    def add(shape, data=True):
        values = generator.normal(size=shape).astype("f4") if data else None
        tensors.append(tflite.Tensor(f"t{len(tensors)}", shape, "float32", values))
        return len(tensors) - 1

    for layer in mobile.layers_of(family, keypoints):
        options = dict(
            padding="SAME", stride_h=layer.stride, stride_w=layer.stride,
            dilation_h_factor=1, dilation_w_factor=1,
            fused_activation_function=mobile.ACTIVATION[layer.kind],
        )  # fmt: skip
        last = len(tensors) - 1
        inputs = last, add(layer.file_shape), add(layer.shape[-1:])
        outputs = (add((1, 6, 6, layer.shape[-1]), data=False),)
        operators.append(tflite.Operator(layer.kind, inputs, outputs, options))
    end = (len(tensors) - 1,)
    for kind, count in mobile.OTHERS[family].items():
        options = dict(align_corners=False) if kind.startswith("RESIZE") else {}
        operators += [tflite.Operator(kind, end, end, options)] * count
    return tflite.Graph(tuple(tensors), tuple(operators), (0,), end)


@both
def test_weights_land_where_they_run(family):
    """Order, layout and number of keypoints; 0.40 M and 0.56 M weights with 14."""
    graph = graph_of(family)
    found, variables = mobile.variables_of(graph, "graph")
    count = sum(x.size for x in jax.tree.leaves(variables))
    assert found == family
    assert (
        count == {"mobile_hourglass": 401_316, "mobile_pose_machine": 564_100}[family]
    )
    flat = flat_names(variables["params"])
    for layer, operator in zip(mobile.layers_of(family, 14), graph.operators):
        kernel = graph.tensors[operator.inputs[1]].data
        mine = flat[f"{layer.path}/kernel"]
        if layer.kind == "DEPTHWISE_CONV_2D":
            np.testing.assert_array_equal(mine[:, :, 0], kernel[0])
        elif mine.ndim == 2:
            np.testing.assert_array_equal(mine, kernel[:, 0, 0].T)
        else:
            np.testing.assert_array_equal(mine[1, 2, 0], kernel[:, 1, 2, 0])
    seventeen = mobile.variables_of(graph_of(family, 17), "graph")[1]["params"]
    last = (
        "skip0_block4/project" if "hourglass" in family else "stage5_heatmaps/pointwise"
    )
    assert flat_names(seventeen)[f"{last}/bias"].shape == (17,)


def change(graph, index, **fields):
    operators = list(graph.operators)
    operators[index] = dataclasses.replace(operators[index], **fields)
    return dataclasses.replace(graph, operators=tuple(operators))


def faults():
    graph = graph_of("mobile_hourglass")
    first, last = graph.operators[0], len(graph.operators) - 1
    unused = tflite.Tensor("spare", (2,), "float32", np.zeros(2, "f4"))
    narrow = dataclasses.replace(graph.tensors[1], shape=(8, 3, 3, 3))
    tensors = (graph.tensors[0], narrow, *graph.tensors[2:])
    return {
        "'spare' .0 times": dataclasses.replace(graph, tensors=(*graph.tensors, unused)),
        "'t1' .2 times": change(graph, 1, inputs=(3, 1, 5)),
        r"convolution 0 \(stem\) has kernel and bias \(\(8, 3, 3, 3\)":
            dataclasses.replace(graph, tensors=tensors),
        "is a DEPTHWISE_CONV_2D there": change(graph, 0, kind="DEPTHWISE_CONV_2D"),
        "stride_h=1 instead of 2": change(
            graph, 0, options={**first.options, "stride_h": 1}
        ),
        "fused_activation_function='NONE'": change(
            graph, 1, options={**first.options, "stride_h": 1, "stride_w": 1,
                               "fused_activation_function": "NONE"}
        ),
        "aligned corners": change(graph, last, options=dict(align_corners=True)),
        "operators .* instead of": dataclasses.replace(
            graph, operators=graph.operators[:-1]
        ),
        "has outputs of shapes": dataclasses.replace(graph, outputs=()),
    }  # fmt: skip


@pytest.mark.parametrize("message", list(faults()))
def test_other_networks_are_explained(message):
    with pytest.raises(ValueError, match=message):
        mobile.variables_of(faults()[message], "graph")


def test_other_paths_are_explained(tmp_path):
    for name, error, message in (
        ("model.onnx", ValueError, "give a .tflite file"),
        ("model.npz", FileNotFoundError, "must be called <name>_tensors.npz"),
        ("a_tensors.npz", FileNotFoundError, "a_graph.json|_graph.json beside it"),
        ("none.tflite", FileNotFoundError, "none.tflite"),
    ):
        with pytest.raises(error, match=message):
            mobile.load(tmp_path / name)
    np.savez(tmp_path / "b_tensors.npz", t0=np.zeros(3))
    (tmp_path / "b_graph.json").write_text('{"tensors": [{"index": 0}]}')
    with pytest.raises(ValueError, match="b_graph.json do not describe a network"):
        mobile.load(tmp_path / "b_tensors.npz")
    with pytest.raises(ValueError, match="unknown family 'hourglass'"):
        mobile.model_section("hourglass")


# --- layers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size,stride,shape",
    [(3, 1, (5, 6)), (3, 2, (6, 8)), (3, 2, (5, 7)), (7, 1, (4, 5))],
)
def test_shifted_depthwise_equals_native(size, stride, shape):
    """Values and gradients; "SAME" pads even sides at the end only under stride 2."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, *shape, 3))
    kernel = jax.random.normal(keys[1], (size, size, 1, 3))

    def run(convolve):
        def loss(x, kernel):
            y = convolve(x, kernel, stride)
            return (y * jnp.cos(y)).sum(), y

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, kernel)

    (_, y), gradients = run(layers.depthwise_shifted)
    (_, wanted), expected = run(layers.depthwise_native)
    assert y.shape == wanted.shape
    np.testing.assert_allclose(y, wanted, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradients, expected
    )


def test_methods_of_the_layer(monkeypatch):
    """`auto` is shifted on CPU and native elsewhere; parameters and values are the same."""
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 2))
    used = []
    for name in ("shifted", "native"):
        convolve = getattr(layers, f"depthwise_{name}")

        def spy(*arguments, name=name, convolve=convolve):
            used.append(name)
            return convolve(*arguments)

        monkeypatch.setattr(layers, f"depthwise_{name}", spy)

    def run(method):
        layer = layers.Depthwise(3, 2, method, jnp.float32)
        return layer.init_with_output(jax.random.key(1), x)

    shifted, native = run("shifted"), run("native")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), shifted, native
    )
    for backend in ("cpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        run("auto")
    assert used == ["shifted", "native", "shifted", "native"]


@pytest.mark.parametrize("factor", [2, 4])
def test_upsampling_equals_a_slow_reference(factor):
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype("f4")
    _, height, width, _ = x.shape
    wanted = np.zeros((2, factor * height, factor * width, 5))
    for i, j in np.ndindex(wanted.shape[1:3]):
        top, left = i // factor, j // factor
        down, right = i / factor - top, j / factor - left
        below, beside = min(top + 1, height - 1), min(left + 1, width - 1)
        wanted[:, i, j] = (
            (1 - down) * (1 - right) * x[:, top, left]
            + (1 - down) * right * x[:, top, beside]
            + down * (1 - right) * x[:, below, left]
            + down * right * x[:, below, beside]
        )
    got = layers.upsample_bilinear(jnp.asarray(x), factor)
    np.testing.assert_allclose(got, wanted, atol=1e-6)


# --- contracts --------------------------------------------------------------------------


@both
def test_every_tap_is_writable(family):
    module, variables, images = tiny(family)
    names = sorted(jax.eval_shape(module.apply, variables, images).taps)

    @jax.jit
    def run(shifts):
        edits = {n: Edit(shift=s) for n, s in zip(names, shifts)}
        return module.apply(variables, images, edits=edits)

    clean = run([0.0] * len(names))
    for index, name in enumerate(names):
        moved = run([float(i == index) for i in range(len(names))])
        # One program and the same numbers but one: any difference is the tap's.
        assert np.any(moved.heatmaps[-1] != clean.heatmaps[-1]), name
        np.testing.assert_allclose(moved.taps[name], clean.taps[name] + 1, rtol=1e-5)
    blocks = sum("project" in n for n in flat_names(variables)) // 2
    assert len(names) > blocks  # Every inverted residual is one of them.


def test_taps_of_the_published_sizes():
    shapes = {}
    for family in TINY:
        module = models.build(dict(name=family), num_keypoints=14)
        images = jnp.zeros((1, 192, 192, 3))
        variables = jax.eval_shape(module.init, jax.random.key(0), images)
        taps = jax.eval_shape(module.apply, variables, images).taps
        shapes[family] = {name: x.shape[1:] for name, x in taps.items()}
    hourglass, machine = shapes["mobile_hourglass"], shapes["mobile_pose_machine"]
    assert hourglass["stack0/bottleneck"] == (3, 3, 24)
    assert hourglass["stack0/skip0"] == hourglass["stack0/heatmaps"] == (48, 48, 14)
    assert hourglass["stack0/encoder3/block0"] == (3, 3, 24)
    assert {f"stack0/skip{i}" for i in range(4)} <= set(hourglass)
    assert machine["features"] == (24, 24, 116)
    assert [machine[f"skip{i}"][-1] for i in range(5)] == [8, 12, 16, 32, 48]
    assert all(machine[f"stage{i}/bottleneck"] == (24, 24, 24) for i in range(6))
    assert all(machine[f"stage{i}/heatmaps"] == (24, 24, 14) for i in range(6))


@both
def test_fresh_networks_learn(family):
    """Gradients of fresh weights are finite, and Adam's first steps lower the loss of every
    joint; the heatmaps stay alive."""
    module, _, images = tiny(family)
    params = jax.jit(module.init)(jax.random.key(0), images)["params"]
    size = jax.eval_shape(module.apply, {"params": params}, images).heatmaps.shape[2]
    target = np.zeros((2, size, size, 3), "f4")
    target[:, 1:3, 1:3] = 1.0

    def loss(params):
        maps = module.apply({"params": params}, images, train=True).heatmaps
        return jnp.square(maps - target).mean((1, 2, 3)).sum(0).mean(), maps[-1]

    @jax.jit
    def step(params, moments, count):
        (value, maps), grads = jax.value_and_grad(loss, has_aux=True)(params)
        mean, square = moments
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, grads)
        square = jax.tree.map(lambda s, g: 0.99 * s + 0.01 * g * g, square, grads)
        rate = 1e-2 * jnp.sqrt(1 - 0.99**count) / (1 - 0.9**count)
        params = jax.tree.map(
            lambda p, m, s: p - rate * m / (jnp.sqrt(s) + 1e-8), params, mean, square
        )
        return params, (mean, square), value, maps, grads

    moments = (jax.tree.map(jnp.zeros_like, params),) * 2
    values = []
    for count in range(1, 41):
        params, moments, value, maps, grads = step(params, moments, count)
        values.append(float(value))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads)), count
    assert values[-1] < 0.6 * values[0]
    assert (np.asarray(maps).max((1, 2)) > 0).all()


def test_bfloat16_keeps_parameters_and_heatmaps_in_float32():
    section = dict(TINY["mobile_hourglass"], name="mobile_hourglass", dtype="bfloat16")
    module = models.build(section, num_keypoints=3)
    images = jnp.zeros((1, 16, 16, 3))
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    outputs = jax.eval_shape(module.apply, variables, images)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert outputs.heatmaps.dtype == jnp.float32
    assert outputs.taps["stack0/skip0"].dtype == jnp.bfloat16


def test_estimator_without_statistics(tmp_path):
    """Variables without `batch_stats` are saved, checked, loaded and used."""
    family = "mobile_hourglass"
    section = mobile.model_section(family)
    c = config.default()
    c.skeleton = section["skeleton"]
    c.input.update(section["input"])
    c.input.size = (16, 16)
    c.codec.update(section["codec"])
    c.model = dict(section["model"], **TINY[family])
    described = recipe(c)
    assert set(described.shapes()) == {"params"}
    shapes = jax.tree.leaves_with_path(described.shapes())
    keys = jax.random.split(jax.random.key(0), len(shapes))
    leaves = [0.3 * jax.random.normal(k, x.shape) for k, (_, x) in zip(keys, shapes)]
    variables = jax.tree.unflatten(jax.tree.structure(described.shapes()), leaves)
    write_json(tmp_path / "config.json", config.to_plain(c))
    checkpoint.save_variables(tmp_path, variables, info={})
    estimator = Estimator.load(tmp_path, flip_test=False)
    jax.tree.map(np.testing.assert_array_equal, dict(estimator.variables), variables)
    pose = estimator.predict(np.full((20, 30, 3), 99, np.uint8), [[2, 2, 20, 16]])
    assert pose.keypoints.shape == (1, 14, 2) and pose.skeleton.name == "mobile"


@pytest.mark.parametrize(
    "section,message",
    [
        (dict(name="mobile_hourglass", depthwise="fast"), "model.depthwise is 'fast'"),
        (dict(name="mobile_hourglass", depth=0), "model.depth must be at least 1"),
        (dict(name="mobile_pose_machine", widths=(8, 8)), "one positive number per"),
        (dict(name="mobile_pose_machine", feature_level=5), "feature_level is 0..4"),
        (dict(name="mobile_pose_machine", heads=(8,)), "hold two numbers"),
    ],
)
def test_bad_sections_are_explained(section, message):
    with pytest.raises(ValueError, match=message):
        models.build(section, num_keypoints=3)


@both
def test_bad_sizes_are_explained(family):
    module = models.build(dict(name=family), num_keypoints=3)
    with pytest.raises(ValueError, match="input.size divisible by (64|32)"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 192, 200, 3)))
