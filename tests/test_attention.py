"""Attention as evidence: the published maps, rollouts, gradients, and what is made of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from test_transformers import SIZE, TINY, build, filled

from pose_jax import answers, heatmaps, models, recipe, regions
from pose_jax.analysis import attention as statistics
from pose_jax.config import default
from pose_jax.explain import attention, scores, shapley
from pose_jax.explain.attention import Tokens
from pose_jax.heatmaps import Codec
from pose_jax.models import Edit
from pose_jax.pixels import normalise

CODEC = Codec(encode="unbiased", decode="dark", sigma_px=2.0)
K = 5


@functools.cache
def tiny(name):
    """Module, variables, pictures; heads that answer more than rounding."""
    module = build(name)
    images = np.random.default_rng(1).normal(size=(2, *SIZE, 3)).astype(np.float32)
    return module, filled(module), images


@functools.cache
def weights_of(name):
    """[l, a, n, n] of the first picture."""
    module, variables, images = tiny(name)
    return attention.read(jax.jit(module.apply)(variables, images[:1]).taps)


def score(outputs):
    """Something smooth of every map."""
    maps = outputs.heatmaps[-1, 0]
    pattern = jnp.cos(jnp.arange(maps[..., 0].size)).reshape(maps.shape[:2])
    return jnp.einsum("yxk,yx->k", maps, pattern)


def stochastic(generator, *shape):
    found = generator.gamma(0.5, size=shape)
    return (found / found.sum(-1, keepdims=True)).astype(np.float32)


# --- tokens -----------------------------------------------------------------------------


def test_token_under_a_joint(generator):
    """int((location x 4 + 0.5) / 8) in rows of a 32 x 24 grid: TransPose-R at 256 x 192."""
    tokens = Tokens((256, 192), (32, 24))
    location = generator.uniform(0, (47, 63), (50, 2))
    found = tokens.of((location * 4).astype(np.float32))
    for (x, y), token in zip(location, np.asarray(found)):
        assert token == int((y * 4 + 0.5) / 8) * 24 + int((x * 4 + 0.5) / 8)


def test_joints_outside_have_the_nearest_token():
    tokens = Tokens((64, 48), (4, 3))
    points = np.array([[-9.0, -9.0], [500.0, 20.0], [47.9, 63.9]], np.float32)
    assert tokens.of(points).tolist() == [0, 5, 11]


def test_keypoint_tokens_stand_for_themselves():
    tokens = Tokens((64, 48), (4, 3), keypoints=3)
    assert tokens.of(np.zeros((3, 2), np.float32)).tolist() == [0, 1, 2]
    assert tokens.count == 15
    rows = np.arange(15.0)[None]
    assert (
        tokens.patches(rows).tolist() == (np.arange(12.0) + 3).reshape(1, 4, 3).tolist()
    )
    with pytest.raises(ValueError, match="one point per token"):
        tokens.of(np.zeros((4, 2), np.float32))


def test_upsampling_keeps_place_and_mass(generator):
    tokens = Tokens((64, 48), (8, 6))
    spot = np.zeros((8, 6), np.float32)
    spot[3, 2] = 1
    large = np.asarray(tokens.upsample(spot))
    # Half-pixel centres: the middle of token (3, 2) is pixel (27.5, 19.5).
    y, x = np.mgrid[:64, :48]
    np.testing.assert_allclose((large * y).sum() / large.sum(), 27.5, atol=1e-4)
    np.testing.assert_allclose((large * x).sum() / large.sum(), 19.5, atol=1e-4)
    np.testing.assert_allclose(large.sum(), 64, rtol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_tokens_of(name):
    found = attention.tokens_of(tiny(name)[0], SIZE)
    assert found.count == weights_of(name).shape[-1]
    assert found.keypoints == (K if name == "tokenpose" else 0)


# --- maps -------------------------------------------------------------------------------


def slow_published(weights, location, grid, stride, mode):
    """The published recipe, one keypoint after the other."""
    rows, columns = grid
    layers, heads = weights.shape[:2]
    maps = []
    for layer in range(layers):
        mean = sum(weights[layer, h] for h in range(heads)) / heads
        square = mean.reshape(rows, columns, rows, columns)
        found = []
        for x, y in location * 4 + 0.5:
            row, column = int(y / stride), int(x / stride)
            if mode == "dependency":
                found.append(square[row, column])
            else:
                found.append(square[:, :, row, column])
        maps.append(found)
    return np.array(maps)


@pytest.mark.parametrize("mode", ["dependency", "affect"])
def test_published_maps_against_a_slow_loop(mode, generator):
    weights = np.asarray(weights_of("transpose"))
    module = tiny("transpose")[0]
    places = attention.tokens_of(module, SIZE)
    location = generator.uniform(0, (11, 15), (K, 2))
    wanted = slow_published(weights, location, places.grid, module.config.stride, mode)
    tokens = places.of((location * 4).astype(np.float32))
    found = places.patches(getattr(attention, mode)(weights.mean(1), tokens))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_heads_are_kept_where_they_are_asked_for():
    weights = weights_of("transpose")
    tokens = jnp.array([3, 0])
    found = attention.dependency(weights, tokens)
    assert found.shape == (2, 2, 2, weights.shape[-1])
    np.testing.assert_array_equal(found[1, 1, 0], weights[1, 1, 3])
    assert np.abs(np.asarray(found[:, 0] - found[:, 1])).max() > 1e-3


def test_keypoint_tokens_read_patches_and_each_other():
    weights = weights_of("tokenpose")
    places = attention.tokens_of(tiny("tokenpose")[0], SIZE)
    tokens = places.of(np.zeros((K, 2), np.float32))
    to_patch = places.patches(attention.dependency(weights, tokens))
    to_joint = attention.joint_to_joint(weights, places)
    assert to_patch.shape == (2, 2, K, *places.grid) and to_joint.shape == (2, 2, K, K)
    np.testing.assert_array_equal(to_joint[1, 0, 2], weights[1, 0, 2, :K])
    total = to_patch.sum((-1, -2)) + to_joint.sum(-1)
    np.testing.assert_allclose(total, 1, rtol=1e-5)


def test_only_tokenpose_has_joint_tokens():
    places = attention.tokens_of(tiny("vitpose")[0], SIZE)
    with pytest.raises(ValueError, match="needs tokenpose"):
        attention.joint_to_joint(weights_of("vitpose"), places)


def test_rollout_against_matrix_products(generator):
    weights = stochastic(generator, 4, 9, 9)
    weights[2] *= 0.5  # Edited weights do not sum to one.
    product = np.eye(9)
    for layer in weights.astype(float):
        mixed = (layer + np.eye(9)) / 2
        product = (mixed / mixed.sum(1, keepdims=True)) @ product
    found = attention.rollout(weights, jnp.array([4, 0, 8]))
    np.testing.assert_allclose(found, product[[4, 0, 8]], rtol=1e-5)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)


def test_relevance_rollout_against_the_update_rule(generator):
    """R <- R + A R, from R = I, layer by layer."""
    relevance = stochastic(generator, 3, 7, 7)
    wanted = np.eye(7)
    for layer in relevance.astype(float):
        wanted = wanted + layer @ wanted
    found = attention.relevance_rollout(relevance, jnp.asarray(5))
    np.testing.assert_allclose(found, (wanted - np.eye(7))[5], rtol=1e-5)


# --- gradients --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["transpose", "tokenpose"])
def test_gradient_against_finite_differences(name, x64):
    """One layer's relevance of a few entries, from the score under an edit of one entry. In
    double precision: steps have to be small beside the kinks of ReLU."""
    _, variables, images = tiny(name)
    module, last, step = build(name, dtype="float64"), "layer1/attention", 1e-4
    variables = jax.tree.map(np.float64, variables)
    pixels = images[:1].astype(np.float64)
    weights = weights_of(name)
    heads, n = weights.shape[1:3]
    entries = [(0, 1), (2, 2), (n - 1, 0), (3, n - 2)]

    def scored(outputs):  # `heatmaps` are float32, the tap is not.
        maps = outputs.taps["stack0/heatmaps"][None]
        return score(outputs.replace(heatmaps=maps))

    @jax.jit
    @jax.vmap
    def shifted(shift):
        edits = {last: Edit(shift=shift)}
        return scored(module.apply(variables, pixels, edits=edits))

    shifts = np.zeros((len(entries), heads, 1, heads, n, n))
    for e, (i, j) in enumerate(entries):
        for head in range(heads):
            shifts[e, head, 0, head, i, j] = step
    shifts = shifts.reshape(-1, 1, heads, n, n)
    slope = np.asarray(shifted(shifts) - shifted(-shifts)) / (2 * step)
    slope = slope.reshape(len(entries), heads, K)
    each = np.stack([weights[-1, :, i, j] for i, j in entries])[..., None]
    wanted = np.maximum(slope * each, 0).mean(1)

    # The last layer alone: its row is the row of its relevance.
    def apply(variables, pixels, edits=None):
        edits = edits and {last: edits["layer0/attention"]}
        outputs = module.apply(variables, pixels, edits=edits)
        taps = {**outputs.taps, "layer0/attention": outputs.taps[last]}
        del taps[last]
        return outputs.replace(taps=taps)

    rows = jax.jit(functools.partial(attention.gradient_rollout, apply, score=scored))
    for (i, j), row in zip(entries, wanted):
        found = rows(variables, pixels[0], tokens=jnp.full(K, i))
        np.testing.assert_allclose(
            found[:, j], row, rtol=2e-3, atol=1e-4 * np.max(wanted)
        )
    assert np.max(wanted) > 1e-6


def test_gradients_of_all_layers_are_rolled_out():
    """The whole method from jax.grad of each joint and layer, and the update rule."""
    module, variables, images = tiny("transpose")
    pixels = images[:1]
    weights = np.asarray(weights_of("transpose"))
    names = ("layer0/attention", "layer1/attention")

    def one(shifts, t):
        edits = {name: Edit(shift=s) for name, s in zip(names, shifts)}
        return score(module.apply(variables, pixels, edits=edits))[t]

    slope = jax.jit(jax.grad(one))
    zeros = tuple(jnp.zeros(weights[:1].shape) for _ in names)
    tokens = jnp.array([0, 7, 3, 40, 11])
    wanted = []
    for t, token in enumerate(tokens.tolist()):
        product = np.eye(weights.shape[-1])
        for grads, layer in zip(slope(zeros, t), weights):
            product += np.maximum(np.asarray(grads[0]) * layer, 0).mean(0) @ product
        wanted.append((product - np.eye(len(product)))[token])
    explain = functools.partial(attention.gradient_rollout, module.apply, score=score)
    for at_once in (0, 2):
        rows = jax.jit(functools.partial(explain, at_once=at_once))
        found = rows(variables, images[0], tokens=tokens)
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5 * np.max(wanted))
    assert np.max(wanted) > 1e-5


def test_gradient_needs_one_score_per_keypoint():
    module, variables, images = tiny("transpose")
    with pytest.raises(ValueError, match="one per keypoint"):
        jax.eval_shape(
            lambda v, x: attention.gradient_rollout(
                module.apply, v, x, score, jnp.arange(3)
            ),
            variables,
            images[0],
        )


# --- explanations of maps ---------------------------------------------------------------


@pytest.mark.parametrize(
    "name,kind",
    [
        ("tokenpose", "gradient"),
        ("vitpose", "affect"),
        ("tokenpose", "rollout"),
    ],
)
def test_vmapped_batch_equals_singles(name, kind):
    module, variables, images = tiny(name)
    explain = attention.make_explainer(kind, module, CODEC, SIZE)

    def call(image):
        return explain(module.apply, variables, image, score, key=None)

    both = jax.jit(jax.vmap(call))(images)
    assert both.shape == (2, K, *SIZE) and np.min(both) >= 0
    np.testing.assert_allclose(
        both[1], jax.jit(call)(images[1]), rtol=1e-3, atol=1e-5 * np.max(both)
    )
    assert np.abs(np.asarray(both[0] - both[1])).max() > 1e-2 * np.max(both)


def test_explainer_reads_the_token_of_its_own_answer():
    """Dependency of one layer and head, by hand from the decoded heatmaps."""
    module, variables, images = tiny("transpose")
    outputs = jax.jit(module.apply)(variables, images[:1])
    places = attention.tokens_of(module, SIZE)
    points = np.asarray(heatmaps.locate(outputs.heatmaps[-1, 0], CODEC)) * 2
    tokens = places.of(points.astype(np.float32))
    explain = attention.make_explainer(
        "dependency", module, CODEC, SIZE, layer=0, head=1
    )
    call = functools.partial(explain, module.apply, score=score, key=None)
    found = jax.jit(call)(variables, images[0])
    assert outputs.heatmaps.shape[2] * 2 == SIZE[0]
    wanted = weights_of("transpose")[0, 1][tokens].reshape(K, *places.grid)
    np.testing.assert_allclose(found, places.upsample(wanted), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "call,message",
    [
        (
            lambda m, v, x: attention.make_explainer("grad", m, CODEC, SIZE),
            "use one of",
        ),
        (
            lambda m, v, x: attention.make_explainer(
                "dependency", m, CODEC, SIZE, layer=2
            )(m.apply, v, x, score, key=None),
            "2 layers of 2 heads",
        ),
        (
            lambda m, v, x: attention.make_explainer("affect", m, CODEC, SIZE, head=-1)(
                m.apply, v, x, score, key=None
            ),
            "2 layers of 2 heads",
        ),
        (
            lambda m, v, x: attention.read(
                {"layer0/attention": jnp.zeros((2, 1, 3, 3))}
            ),
            "use jax.vmap",
        ),
        (lambda m, v, x: attention.read({"stem": jnp.zeros(3)}), "transpose, vitpose"),
    ],
)
def test_refusals(call, message):
    module, variables, images = tiny("transpose")
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(call, module), variables, images[0])


def test_networks_without_attention_are_refused():
    module = models.build(
        dict(name="hourglass", stacks=1, depth=2, features=8, stem=(4, 4, 8)),
        num_keypoints=K,
    )
    with pytest.raises(ValueError, match="Hourglass computes no attention.*tokenpose"):
        attention.tokens_of(module, SIZE)


def test_taps_are_read_in_the_order_of_layers():
    taps = {f"layer{i}/attention": jnp.full((1, 1, 2, 2), float(i)) for i in (10, 2, 0)}
    assert attention.read(taps)[:, 0, 0, 0].tolist() == [0, 2, 10]


# --- matrices and agreement -------------------------------------------------------------


def planted():
    """Discs of three players on a 64 x 48 crop of 8 x 6 tokens."""
    centres = np.array([[12.0, 12.0], [36.0, 12.0], [24.0, 50.0]], np.float32)
    owners = regions.keypoint_owners(centres, np.ones(3, bool), (64, 48), side_px=24.0)
    return Tokens((64, 48), (8, 6)), centres, owners


def test_matrix_names_the_region_that_is_read():
    """Tokens of joint 0, 1, 2 look at the middles of players 2, 0 and nothing."""
    places, centres, owners = planted()
    tokens = np.asarray(places.of(centres))
    weights = np.full((1, 48, 48), 1e-6, np.float32)
    weights[0, tokens[0], tokens[2]] = 1
    weights[0, tokens[1], tokens[0]] = 1
    weights[0, tokens[2], 24] = 1  # (row 4, column 0): background.
    maps = places.patches(attention.dependency(weights[0], tokens))
    found = np.asarray(statistics.region_shares(places.upsample(maps), owners, 3))
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    assert found.argmax(1).tolist() == [2, 0, 3]
    assert found.max(1).min() > 0.9


def test_region_shares_against_counting(generator):
    owners = generator.integers(-1, 3, (6, 5))
    maps = generator.uniform(size=(2, 6, 5)).astype(np.float32)
    maps[1] = 0
    found = np.asarray(statistics.region_shares(maps, owners, 4))
    for p, column in ((0, 0), (2, 2), (-1, 4)):
        wanted = maps[0][owners == p].sum() / maps[0].sum()
        np.testing.assert_allclose(found[0, column], wanted, rtol=1e-5)
    assert found[0, 3] == 0 and np.isnan(found[1]).all()


@functools.cache
def evidence_of(name):
    c = default()
    c.input.size = SIZE
    c.codec.update(encode="unbiased", decode="dark", flip="none", sigma_px=1.0)
    c.model = dict(name=name, **TINY[name])
    described = recipe.recipe(c)
    variables = filled(described.module)
    generator = np.random.default_rng(3)
    centres = generator.uniform(8, 40, (17, 2)).astype(np.float32)
    owners = regions.keypoint_owners(centres, np.ones(17, bool), SIZE, side_px=12.0)
    image = generator.uniform(0, 255, (*SIZE, 3)).astype(np.float32)
    reference = scores.from_points(
        centres / 4, np.ones(17, bool), described.skeleton, 100.0
    )
    make = statistics.make_evidence(described, "matched_filter", 17, at_once=4)
    given = (variables, image, reference, jnp.asarray(centres), owners)
    return described, given, jax.jit(make)(*given)


@pytest.mark.parametrize("name", ["tokenpose"])
def test_evidence_is_that_of_its_parts(name):
    described, (variables, image, reference, points, owners), found = evidence_of(name)
    module = described.module
    pixels = normalise(image, described.spec)
    taps = jax.jit(module.apply)(variables, pixels[None]).taps
    weights = attention.read(taps).mean(1)
    places = attention.tokens_of(module, SIZE)
    tokens = places.of(points)
    wanted = places.patches(attention.dependency(weights, tokens))
    np.testing.assert_allclose(found["layers"], wanted, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(found["layers"][-1], found["maps"]["last_layer"])
    rolled = places.patches(attention.rollout(weights, tokens))
    np.testing.assert_allclose(found["maps"]["rollout"], rolled, rtol=1e-4, atol=1e-7)

    def asked(outputs):
        maps = answers.maps(outputs, described.codec, SIZE)[0]
        return scores.make_score("matched_filter", described.codec)(maps, reference)

    rows = functools.partial(attention.gradient_rollout, module.apply, score=asked)
    slopes = jax.jit(rows)(variables, pixels, tokens=tokens)
    slopes = places.patches(slopes)
    np.testing.assert_allclose(
        found["maps"]["gradient"], slopes, rtol=1e-2, atol=1e-6 * np.max(slopes)
    )
    for kind, maps in found["maps"].items():
        shares = statistics.region_shares(places.upsample(maps), owners, 17)
        np.testing.assert_allclose(
            found["matrices"][kind], shares, rtol=1e-3, atol=1e-6
        )
    between = found["matrices"].get("joint_tokens")
    if name == "transpose":
        assert between is None
    else:
        np.testing.assert_allclose(between[:, :17], weights[-1, :17, :17], rtol=1e-4)
        np.testing.assert_allclose(between.sum(1), 1, rtol=1e-5)


def test_rows_with_one_player_hidden():
    clusters = ((0, 2), (1,), (3, 4))
    rows = shapley.grouped_coalitions(clusters, "gsv")
    for player, row in enumerate(statistics.without_one(rows)):
        assert np.flatnonzero(~rows[row]).tolist() == [player]
    with pytest.raises(ValueError, match="single player hidden"):
        statistics.without_one(rows[:3])


def test_compared_players_have_a_place_and_are_not_the_target():
    valid, present = np.array([[True, False, True]]), np.array([[True, True, False]])
    found = statistics.comparable(valid, present, (0, 1, -1))
    wanted = [[[False, True, False], [False] * 3, [True, True, False]]]
    assert found.tolist() == wanted


@pytest.mark.parametrize(
    "name,function", [("spearman", stats.spearmanr), ("kendall", stats.kendalltau)]
)
def test_agreement_against_scipy(name, function, generator):
    first, second = generator.normal(size=(2, 3, 4, 6))
    second[..., :3] += first[..., :3]
    compared = generator.random((3, 4, 6)) < 0.8
    compared[0, 0], first[0, 1] = [True, True, False, False, False, False], 0.25
    second[1, 1, 0] = np.nan
    compared[1, 1] = True
    found = statistics.agreement(first, second, compared, name)
    assert np.isnan(found[0, :2]).all()  # Two players; all alike.
    both = function(first[1, 1, 1:], second[1, 1, 1:]).statistic
    np.testing.assert_allclose(found[1, 1], both)
    for m, k in ((2, 0), (2, 3)):
        there = compared[m, k]
        wanted = function(first[m, k][there], second[m, k][there]).statistic
        np.testing.assert_allclose(found[m, k], wanted)
    with pytest.raises(ValueError, match="spearman or kendall"):
        statistics.agreement(first, second, compared, "pearson")


def test_means_over_targets_and_people():
    values = np.array([[0.5, np.nan, 0.1], [np.nan] * 3, [1.0, 0.0, 0.5]])
    means = statistics.per_person(values)
    np.testing.assert_allclose(means, [0.3, np.nan, 0.5])
    found = statistics.summary(means, ["a", "b", "c"], resamples=50)
    assert found["value"] == pytest.approx(0.4) and found["people"] == 2
    assert 0.3 <= found["low"] <= 0.4 <= found["high"] <= 0.5
    assert statistics.summary(means[:1], ["a"])["low"] is None
    assert statistics.summary(means[1:2], ["a"])["value"] is None


def test_partners_come_from_other_pictures():
    groups = ["a", "a", "b", "c", "c", "c"]
    found = statistics.partners(groups, seed=3)
    assert all(groups[i] != groups[j] for i, j in enumerate(found))
    assert statistics.partners(["a", "a"]).tolist() == [-1, -1]


def test_shuffled_pairs_compare_somebody_else(generator):
    second = generator.normal(size=(3, 2, 6))
    first, pairs = second[[1, 2, 0]], np.array([1, 2, 0])
    compared = np.ones(first.shape, bool)
    compared[0, 0, :4] = False
    found = statistics.shuffled(first, second, compared, pairs)
    # Person 0's partner 1 is exactly what person 0 holds; too few players stay for target 0.
    assert np.isnan(found[0, 0]) and np.isnan(found[2, 0])
    np.testing.assert_allclose(found[[0, 1, 2], 1], 1)
    nobody = statistics.shuffled(first, second, compared, np.array([1, -1, 0]))
    assert np.isnan(nobody[1]).all()
