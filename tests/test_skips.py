"""Skip ablation: every subset equals the edits it stands for; CKA and Shapley values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from pose_jax import heatmaps, models, skeletons
from pose_jax.analysis import latent, redundancy, skips, taps
from pose_jax.models import Edit
from pose_jax.pixels import normalise
from pose_jax.recipe import recipe
from pose_jax.trees import flat_names

GATES = ("stack0/skip0", "stack0/skip1")
DECODERS = ("stack0/decoder1", "stack0/decoder0")
TAP = "stack0/bottleneck"


@pytest.fixture(scope="module")
def network():
    described = recipe(tiny_config())
    k = described.skeleton.num_keypoints
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 255, (5, 32, 32, 3)).astype(np.uint8),
        "keypoints": rng.uniform(0, 31, (5, k, 2)).astype(np.float32),
        "visible": rng.integers(0, 3, (5, k)).astype(np.int32),
        "mask": np.ones(5, bool),
    }
    images = normalise(jnp.asarray(batch["image"]), described.spec)
    init = jax.jit(described.module.init)
    variables = init(jax.random.key(0, impl="unsafe_rbg"), images)
    outputs = jax.jit(described.module.apply)(variables, images)
    return described, variables, batch, images, outputs


def keypoints(described, outputs):
    maps = heatmaps.activate(outputs.heatmaps[-1], described.codec)
    size = described.spec.size
    return jax.vmap(lambda m: heatmaps.decode(m, described.codec, size))(maps)[0]


@pytest.mark.parametrize("style", skips.STYLES)
def test_every_subset_is_its_edits(network, style):
    """Rows follow the coalition order; the last is the untouched network."""
    described, variables, batch, images, outputs = network
    means = {g: np.asarray(outputs.taps[g]).mean(0) for g in GATES}
    ablate = jax.jit(skips.make_ablation(described, GATES, DECODERS, style))
    found = ablate(variables, batch, means)
    assert found["keypoints"].shape[:2] == (4, 5)
    for row in range(4):
        edits = {}
        for i, gate in enumerate(GATES):
            if row >> i & 1:
                continue
            instead = {
                "zero": 0.0,
                "mean": means[gate],
                "other": np.roll(outputs.taps[gate], 1, axis=0),
            }[style]
            edits[gate] = Edit(0.0, instead)
        want = described.module.apply(variables, images, edits=edits)
        np.testing.assert_allclose(
            found["keypoints"][row], keypoints(described, want), atol=1e-3
        )
        for n, name in enumerate(DECODERS):
            change = skips.relative_change(outputs.taps[name], want.taps[name])
            np.testing.assert_allclose(found["changes"][row, n], change, atol=2e-5)
            hsic = skips.hsics(outputs.taps[name], want.taps[name])
            np.testing.assert_allclose(found["hsic"][row, n], hsic, rtol=2e-3)
    assert np.abs(found["changes"][-1]).max() < 1e-5
    assert np.abs(skips.cka(np.asarray(found["hsic"]))[-1] - 1).max() < 1e-5
    assert np.asarray(found["changes"])[:-1].max() > 1e-3


def test_no_edits_is_the_network_bit_for_bit(network):
    """Open gates and edits that change nothing leave every bit as it was."""
    described, variables, _, images, outputs = network
    nothing = {name: Edit(1.0, 0.0) for name in outputs.taps}
    again = jax.jit(described.module.apply)(variables, images, edits=nothing)
    for a, b in zip(jax.tree.leaves(outputs), jax.tree.leaves(again)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kept", [(), (0,), (1,)])
def test_closed_gates_equal_a_network_without_them(network, kept):
    described, variables, _, images, _ = network
    small = models.build({**described.model, "skips": kept}, num_keypoints=17)
    shapes = flat_names(jax.eval_shape(small.init, jax.random.key(0), images))
    names = flat_names(variables)
    missing = {n for n in names if any(f"skip{g}" in n for g in {0, 1} - set(kept))}
    assert set(shapes) == set(names) - missing and missing
    closed = {f"stack0/skip{g}": Edit(0.0) for g in {0, 1} - set(kept)}
    want = described.module.apply(variables, images, edits=closed)
    found = small.apply(variables, images)
    np.testing.assert_allclose(found.heatmaps, want.heatmaps, atol=1e-6)


def test_unknown_style_and_gate(network):
    described = network[0]
    with pytest.raises(ValueError, match="use one of zero, mean, other"):
        skips.make_ablation(described, GATES, (), "noise")
    with pytest.raises(ValueError, match="no tap 'skip9'"):
        taps.skip_taps(described, ("skip9",))


def test_summed_hsic_is_cka_of_the_whole():
    """Batches of one sample give nearly the CKA of all of it; identity, rotation and scale
    give 1, independence about 0 (Kornblith et al. 2019)."""
    rng = np.random.default_rng(1)
    a = rng.normal(size=(600, 6)).astype(np.float32)
    mixing = rng.normal(size=(6, 9)).astype(np.float32)
    b = a @ mixing + 2 * rng.normal(size=(600, 9)).astype(np.float32)

    def summed(x, y, size):
        parts = [
            skips.hsics(x[i : i + size], y[i : i + size]) for i in range(0, 600, size)
        ]
        return float(skips.cka(np.sum(parts, 0)))

    centred_a, centred_b = a - a.mean(0), b - b.mean(0)
    cross = np.linalg.norm(centred_a.T @ centred_b) ** 2
    own = np.linalg.norm(centred_a.T @ centred_a) * np.linalg.norm(
        centred_b.T @ centred_b
    )
    assert abs(summed(a, b, 600) - cross / own) < 0.02
    assert abs(summed(a, b, 12) - summed(a, b, 600)) < 0.05
    turned = 3 * a @ np.linalg.qr(rng.normal(size=(6, 6)))[0].astype(np.float32) + 5
    assert abs(summed(a, turned, 12) - 1) < 1e-3
    assert abs(summed(a, rng.normal(size=(600, 5)).astype(np.float32), 12)) < 0.05


def test_hsic_is_the_u_statistic():
    """Against the definition: the mean over ordered quadruples of different samples."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
    k, l = x @ x.T, y @ y.T
    total, count = 0.0, 0
    for i in range(6):
        for j in range(6):
            for q in range(6):
                for r in range(6):
                    if len({i, j, q, r}) == 4:
                        total += k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
                        count += 1
    found = float(skips.hsics(jnp.asarray(x), jnp.asarray(y))[0])
    np.testing.assert_allclose(found, total / count, rtol=2e-4, atol=1e-5)


def test_entropy():
    maps = np.zeros((1, 4, 4, 3), np.float32)
    maps[0, 1, 2, 0] = 5.0
    maps[0, :, :, 1] = 2.0
    maps[0, :, :, 2] = -1.0
    np.testing.assert_allclose(
        skips.map_entropy(jnp.asarray(maps))[0], [0, np.log(16), np.log(16)], atol=1e-5
    )


def test_size_classes():
    classes = skips.size_classes(skeletons.COCO)
    names = skeletons.COCO.keypoints
    assert [names[j] for j in classes["small"]] == list(names[:5])
    assert {names[j][6:] if "right" in names[j] else names[j][5:] for j in classes["large"]} == {
        "hip", "knee", "ankle",
    }  # fmt: skip
    assert sorted(j for c in classes.values() for j in c) == list(range(17))
    assert "small" not in skips.size_classes(skeletons.get("lsp"))


def test_values_of_skips():
    """Two gates, one person, two joints: joint 0 needs both gates, joint 1 gate 1 alone."""
    correct = np.zeros((4, 1, 3), bool)
    correct[3, 0, 0] = True
    correct[[2, 3], 0, 1] = True
    correct[:, 0, 2] = True
    labelled = np.array([[True, True, False]])
    values, empty, residual = skips.skip_values(correct, labelled)
    np.testing.assert_allclose(values[:, 0], [[0.5, 0, 0], [0.5, 1, 0]], atol=1e-6)
    assert not empty.any() and residual < 1e-6


def test_person_pck():
    correct = np.array([[True, False, True], [True, True, True]])
    labelled = np.array([[True, True, False], [False, False, False]])
    found = skips.person_pck(correct, labelled)
    assert found[0] == 0.5 and np.isnan(found[1])


# --- the latent, moved and cut down -------------------------------------------------------


def test_decoding_a_persons_own_latent_is_the_network(network):
    described, variables, batch, _, outputs = network
    own = np.asarray(outputs.taps[TAP])[2].reshape(1, -1)
    decode = jax.jit(latent.make_decode(described, TAP))
    found = decode(variables, batch["image"][2], own)
    want = keypoints(described, outputs)[2]
    np.testing.assert_allclose(found["keypoints"][0], want, atol=1e-3)
    closed = jax.jit(latent.make_decode(described, TAP, GATES))
    other = closed(variables, batch["image"][2], own)
    edits = {g: Edit(0.0) for g in GATES}
    want = keypoints(
        described, described.module.apply(variables, network[3], edits=edits)
    )
    np.testing.assert_allclose(other["keypoints"][0], want[2], atol=1e-3)


def test_displacement(network):
    described, variables, batch, images, outputs = network
    size = np.asarray(outputs.taps[TAP][0]).size
    moves = np.stack([np.zeros(size), np.full(size, 3.0)]).astype(np.float32)
    displace = jax.jit(latent.make_displacement(described, TAP))
    found = np.asarray(displace(variables, batch, moves))
    assert np.abs(found[0]).max() < 1e-3
    moved = described.module.apply(variables, images, edits={TAP: Edit(1.0, 3.0)})
    want = keypoints(described, moved) - keypoints(described, outputs)
    np.testing.assert_allclose(found[1], np.linalg.norm(want, axis=-1), atol=1e-3)


def test_projection(network):
    """All axes are the whole, no axes are the mean; without none is the whole."""
    described, variables, batch, images, outputs = network
    flat = np.asarray(outputs.taps[TAP]).reshape(5, -1)
    d, mean = flat.shape[1], flat.mean(0)
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))[0].astype(
        np.float32
    )
    kept = np.zeros((3, d), bool)
    kept[1, :2], kept[2] = True, True
    project = jax.jit(latent.make_projection(described, TAP))
    found = project(variables, batch, mean, axes, kept)
    whole = keypoints(described, outputs)
    np.testing.assert_allclose(found["whole"], whole, atol=1e-3)
    np.testing.assert_allclose(found["only"][2], whole, atol=2e-2)
    np.testing.assert_allclose(found["without"][0], whole, atol=1e-3)

    def answer(new):
        edit = {TAP: Edit(0.0, new.reshape(outputs.taps[TAP].shape).astype(np.float32))}
        return keypoints(
            described, described.module.apply(variables, images, edits=edit)
        )

    part = (flat - mean) @ axes[:2].T @ axes[:2]
    np.testing.assert_allclose(found["only"][1], answer(mean + part), atol=2e-2)
    np.testing.assert_allclose(found["without"][1], answer(flat - part), atol=2e-2)
    only_mean = answer(np.repeat(mean[None], 5, 0))
    np.testing.assert_allclose(found["only"][0], only_mean, atol=2e-2)


# --- redundancy ---------------------------------------------------------------------------


def test_moments_are_of_real_people(network):
    described, variables, batch, _, outputs = network
    half = {**batch, "mask": np.array([True, True, False, True, False])}
    moments = jax.jit(redundancy.make_moments(described, [TAP]))
    count, sums, products = moments(variables, half)[TAP]
    x = np.asarray(outputs.taps[TAP])[[0, 1, 3]].reshape(-1, 8)
    assert count == len(x)
    np.testing.assert_allclose(sums, x.sum(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(products, x.T @ x, rtol=1e-3, atol=1e-4)
    sums, products = np.asarray(sums, float), np.asarray(products, float)
    variance = redundancy.spectrum(float(count), sums, products)
    want = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    np.testing.assert_allclose(variance, want, rtol=1e-2, atol=1e-5)


def test_axes_for():
    assert redundancy.axes_for(np.array([90.0, 5.0, 4.0, 1.0])) == 2
    assert redundancy.axes_for(np.array([90.0, 4.9, 4.1, 1.0])) == 3
    assert redundancy.axes_for(np.zeros(3)) == 0


def test_rankings():
    mean, variance = np.array([3.0, 0.0, 1.0]), np.array([0.1, 4.0, 1.0])
    assert redundancy.rank_channels(mean, variance, "energy").tolist() == [2, 1, 0]
    assert redundancy.rank_channels(mean, variance, "reversed").tolist() == [0, 1, 2]
    assert redundancy.rank_channels(mean, variance, "variance").tolist() == [0, 2, 1]
    with pytest.raises(ValueError, match="use one of"):
        redundancy.rank_channels(mean, variance, "size")


def test_pruned_channels_carry_constants(network):
    described, variables, batch, images, outputs = network
    kept = np.ones((2, 8), bool)
    kept[1, [0, 5]] = False
    instead = np.arange(8, dtype=np.float32)
    found = jax.jit(redundancy.make_pruned(described, TAP))(
        variables, batch, kept, instead
    )
    whole = keypoints(described, outputs)
    np.testing.assert_allclose(found["keypoints"][0], whole, atol=1e-3)
    tap = np.array(outputs.taps[TAP])
    tap[..., [0, 5]] = [0.0, 5.0]
    want = described.module.apply(variables, images, edits={TAP: Edit(0.0, tap)})
    np.testing.assert_allclose(
        found["keypoints"][1], keypoints(described, want), atol=1e-3
    )


def test_idle_parameters(network):
    """Closing all channels of the latent frees all that comes before it and reaches nothing
    else: the encoder below the last skip."""
    described, variables, batch, _, _ = network
    count = jax.jit(redundancy.make_idle_parameters(described, TAP))
    key = jax.random.key(1)
    images = batch["image"][:2]
    masks = [np.ones(8, bool), np.arange(8) > 3, np.zeros(8, bool)]
    zeros = np.zeros(8, np.float32)
    numbers = [int(count(variables, images, m, zeros, key=key)) for m in masks]
    params = variables["params"]
    below = sum(
        x.size
        for name in ("stack0_encoder1", "stack0_bottleneck")
        for x in jax.tree.leaves(params[name])
    )
    assert numbers[0] == 0 and numbers[1] < numbers[2] and numbers[2] >= 0.9 * below
