"""Every method of maps on every family, and crops to records."""

import dataclasses
import functools
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import TINY, config_of
from tiny import tiny_config

from pose_jax import answers, heatmaps
from pose_jax import recipe as recipe_
from pose_jax.explain import attention, games, maps, scores
from pose_jax.explain.explainer import Crops
from pose_jax.explain.maps import METHODS, MapExplainer
from pose_jax.heatmaps import Codec
from pose_jax.models import Outputs, Taps
from pose_jax.models.rectifier import rectify
from pose_jax.pixels import normalise

K = 17
FEW = dict(
    smooth_grad=dict(samples=2), integrated_gradients=dict(steps=2),
    blur_integrated_gradients=dict(steps=2, taps=5), rise=dict(masks=4, grid=4),
    occlusion=dict(patch_px=16, stride_px=16),
)  # fmt: skip
"""Options that keep methods short."""


class Small(nn.Module):
    """Two layers that compile at once, with the taps of a network."""

    @nn.compact
    def __call__(self, images, train=False, edits=None):
        taps = Taps(edits)
        x = taps("stem", rectify(nn.Conv(6, (4, 4), 4, name="stem")(images)))
        x = taps("features", rectify(nn.Conv(8, (3, 3), name="features")(x)))
        maps = taps("stack0/heatmaps", nn.Dense(K, name="final")(x))
        return Outputs(heatmaps=maps[None], taps=taps.finish())


@functools.cache
def tiny(name="small"):
    """(recipe, variables) of a small network with weights that say something."""
    described = recipe_.recipe(tiny_config() if name == "small" else config_of(name))
    if name == "small":
        codec = dataclasses.replace(described.codec, activation="none", decode="udp")
        described = dataclasses.replace(described, module=Small(), codec=codec)
        shapes = jax.eval_shape(
            described.module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
        )
    else:
        shapes = described.shapes()
    generator = np.random.default_rng(0)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, x: fill(str(path[-1]), x, generator), shapes
    )
    return described, variables


def fill(name, leaf, generator):
    if "var" in name or "scale" in name:
        return np.ones(leaf.shape, leaf.dtype)
    size = 0.1 if "bias" in name else max(np.prod(leaf.shape[:-1]), 1) ** -0.5
    return (size * generator.normal(size=leaf.shape)).astype(leaf.dtype)


@functools.cache
def crops(count=2, side=32, labels=True):
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (count, side, side, 3)).astype(np.uint8)
    boxes = np.tile(np.array([5.0, 6, 2 * side, 2 * side]), (count, 1))
    matrix = np.array([[0.5, 0, -2.5], [0, 0.5, -3], [0, 0, 1]])
    points = generator.uniform(4, side - 4, (count, K, 2)) if labels else None
    visible = generator.integers(0, 3, (count, K)) if labels else None
    return Crops(images, np.stack([matrix] * count), boxes, points, visible)


# --- every method on every family -------------------------------------------------------


EVERY_DAY = ("hourglass", "tokenpose", "regression")
"""Families that are traced in the daily run: maps, tokens, coordinates."""


class Traced:
    """`module.apply`, traced once for all methods."""

    def __init__(self, module):
        self.__self__ = module
        self._call = jax.jit(module.apply)

    def __call__(self, variables, images, edits=None):
        return self._call(variables, images, edits=edits)


def ask(described, method, apply=None):
    """The map of one picture as a function of (variables, image, points, key)."""
    codec, size = described.codec, described.spec.size

    def call(variables, image, points, key):
        reference = scores.from_points(
            points, jnp.ones(K, bool), described.skeleton, jnp.asarray(50.0)
        )
        options = dict(FEW.get(method, {}))
        if "attention" in METHODS[method].needs:
            options["codec"] = codec
        score = maps.bound_score("likelihood", reference, codec, size)
        run = described.module.apply if apply is None else apply
        return maps.explain_maps(
            method, run, variables, image, score, key=key, **options
        )

    return call


@pytest.mark.parametrize(
    "family",
    [f if f in EVERY_DAY else pytest.param(f, marks=pytest.mark.slow) for f in TINY],
)
def test_shapes_of_every_method(family):
    described = recipe_.recipe(config_of(family))
    apply = Traced(described.module)
    possible = maps.applicable(described.module)
    attends = TINY[family]["name"] in attention.FAMILIES
    assert len(possible) == (15 if attends else 12)
    arguments = (
        described.shapes(),
        jax.ShapeDtypeStruct((64, 64, 3), jnp.float32),
        jax.ShapeDtypeStruct((K, 2), jnp.float32),
        jax.eval_shape(jax.random.key, 0),
    )
    for method in METHODS:
        call = ask(described, method, apply)
        if method in possible:
            found = jax.eval_shape(call, *arguments)
            assert found.shape == (K, 64, 64) and found.dtype == jnp.float32, method
        else:
            with pytest.raises(ValueError, match="needs attention.*one of saliency"):
                jax.eval_shape(call, *arguments)


def check_compiled(family, method):
    """On weights that answer: finite, not constant, joints differ."""
    described, variables = tiny(family)
    image = np.random.default_rng(3).normal(size=(64, 64, 3)).astype(np.float32)
    points = np.random.default_rng(4).uniform(2, 14, (K, 2)).astype(np.float32)
    call = jax.jit(ask(described, method))
    found = np.asarray(call(variables, image, points, jax.random.key(0)))
    assert np.isfinite(found).all(), method
    assert not maps._constant(found[None]).all(), method
    if method not in ("attention", "attention_rollout"):
        assert np.abs(found - found[0]).max() > 0, method


@pytest.mark.parametrize(
    "family,method",
    [("hourglass", "guided_backprop"), ("vitpose", "gradient_x_attention")],
)
def test_methods_say_something(family, method):
    check_compiled(family, method)


@pytest.mark.slow
@pytest.mark.parametrize("family", TINY)
def test_every_method_says_something(family):
    for method in maps.applicable(tiny(family)[0].module):
        check_compiled(family, method)


# --- scores -----------------------------------------------------------------------------


def test_scores_are_those_of_the_pose_game():
    described, variables = tiny()
    codec, size = described.codec, described.spec.size
    image = np.asarray(crops().images[0], np.float32)
    numbers = [name for name in scores.SCORES if name != "heatmap"]

    @jax.jit
    def both(variables, image):
        outputs = described.module.apply(
            variables, normalise(image[None], described.spec)
        )
        here = answers.maps(outputs, codec, size)[0]
        reference = scores.from_clean(here, codec, described.skeleton, 20.0)
        person = games.Person(image, image, jnp.full(size, -1), reference)
        every = jnp.ones(K, bool)
        return {
            name: (
                maps.bound_score(name, reference, codec, size)(outputs),
                games.PoseGame(described.module, described.spec, codec, name)(
                    every, variables, person
                ),
            )
            for name in numbers
        }

    for name, (found, wanted) in both(variables, image).items():
        assert found.shape == (K,)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6, err_msg=name)


def test_no_gradient_goes_through_the_reference():
    """A joint that moves right with x, found where it stands: without the stop the likelihood
    would not change, as map and reference move together."""
    codec = Codec(encode="unbiased", decode="soft_argmax", sigma_px=1.0)
    skeleton = tiny()[0].skeleton

    def likelihood(x, fixed):
        points = jnp.tile(jnp.stack([x, 4.0])[None], (K, 1))
        drawn = heatmaps.render(points, jnp.full(K, 2), codec, (9, 9), (9, 9))
        here = fixed if fixed is not None else drawn
        reference = scores.from_clean(here, codec, skeleton, jnp.asarray(9.0))
        reference = reference._replace(points=reference.points + 1)
        score = maps.bound_score("position_x", reference, codec, (9, 9))
        near = maps.bound_score("likelihood", reference, codec, (9, 9))
        outputs = Outputs(heatmaps=drawn[None, None])
        return score(outputs)[0], near(outputs)[0]

    fixed = heatmaps.render(
        jnp.full((K, 2), 4.0), jnp.full(K, 2), codec, (9, 9), (9, 9)
    )
    own = jax.jacobian(lambda x: jnp.stack(likelihood(x, None)))(4.0)
    wanted = jax.jacobian(lambda x: jnp.stack(likelihood(x, fixed)))(4.0)
    np.testing.assert_allclose(own, wanted, rtol=1e-4)
    assert own[0] > 0.9 and own[1] > 0.1


# --- crops to records -------------------------------------------------------------------


@functools.cache
def explained(method="integrated_gradients", **options):
    described, variables = tiny()
    explainer = MapExplainer(described, variables, method=method, **options)
    return explainer, explainer(crops())


def test_records_hold_the_maps_of_their_crops():
    """By hand from the function of one picture, with the reference of the clean answer."""
    explainer, found = explained(steps=8)
    described, variables = tiny()
    codec, size = described.codec, described.spec.size
    assert len(found) == 2 and explainer.tap is None
    for n, record in enumerate(found):
        assert (record.score, record.reference) == ("value", "predicted")
        assert (record.method, record.removal) == ("integrated_gradients", "mean")
        assert record.options == {"steps": 8}
        assert record.maps.shape == (K, 32, 32) and record.maps.dtype == np.float32
        image = normalise(np.asarray(crops().images[n], np.float32), described.spec)
        outputs = described.module.apply(variables, image[None])
        points, peaks = answers.locate(outputs, codec, size)
        reference = scores.from_points(
            points[0], np.ones(K, bool), described.skeleton, 1.0
        )
        score = maps.bound_score("value", reference, codec, size)
        wanted = jax.jit(
            lambda v, x, s=score: maps.explain_maps(
                "integrated_gradients", described.module.apply, v, x, s, steps=8
            )
        )(variables, image)
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(record.maps, wanted, rtol=1e-3, atol=1e-4 * scale)
        np.testing.assert_allclose(record.full, score(outputs), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(record.keypoint_scores, peaks[0], rtol=1e-4)
        step = heatmaps.stride(codec, size, (8, 8))
        back = (np.asarray(points[0]) * step + [2.5, 3]) / 0.5
        np.testing.assert_allclose(record.keypoints, back, rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(record.image, crops().images[n])
        np.testing.assert_array_equal(
            record.target_valid, np.asarray(crops().visible[n]) > 0
        )
        assert not record.constant.any() and not record.repeats_heatmap.any()
        # Baseline is the removed picture: complete.
        gap = record.full - record.empty
        np.testing.assert_allclose(
            record.maps.sum((1, 2)), gap, atol=0.05 * np.abs(gap).max()
        )


def test_one_program_for_other_weights_and_fewer_people():
    described, variables = tiny()
    explainer = MapExplainer(described, variables, method="gradient")
    first = explainer(crops())
    program = maps._program(explainer._asked("value"))
    assert program._cache_size() == 1
    other = jax.tree.map(lambda x: x * 1.5, variables)
    second = MapExplainer(described, other, method="gradient")
    changed = second(crops())
    one = Crops(*(x[:1] for x in crops()[:5]))
    alone = explainer(one, room=2)
    assert maps._program(second._asked("value")) is program
    assert program._cache_size() == 1
    assert np.abs(changed[0].maps - first[0].maps).max() > 1e-4
    np.testing.assert_allclose(alone[0].maps, first[0].maps, rtol=1e-4, atol=1e-6)
    assert explainer(crops()._replace(images=crops().images[:0])) == []


def test_gradients_are_asked_of_what_has_them():
    described, variables = tiny()
    for labelled in (True, False):
        assert MapExplainer(described, variables).asks(labelled) == (
            "value", "predicted",
        )  # fmt: skip
        forward = MapExplainer(described, variables, method="occlusion")
        wanted = ("similarity", "labels") if labelled else ("value", "predicted")
        assert forward.asks(labelled) == wanted
    smooth = MapExplainer(described, variables, score="likelihood")
    assert smooth.asks(True) == ("likelihood", "labels")


def test_grad_cam_at_the_last_tap_is_found_out():
    described, variables = tiny()
    last = MapExplainer(
        described, variables, method="grad_cam", tap="features", score="value"
    )
    with pytest.warns(UserWarning, match="repeats the heatmaps"):
        found = last(crops(labels=False))
    assert all(record.repeats_heatmap.all() for record in found)
    assert found[0].tap == "features"
    early = MapExplainer(described, variables, method="grad_cam", tap="stem")
    assert early.tap == "stem"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = early(crops(labels=False))
    assert not any(record.repeats_heatmap.any() for record in found)


def test_constant_maps_are_flagged():
    """A network that answers its bias, whatever it sees."""
    described, variables = tiny()
    dead = jax.tree_util.tree_map_with_path(
        lambda path, x: x * 0 if "features" in str(path) else x, variables
    )
    explainer = MapExplainer(described, dead, method="gradient")
    for record in explainer(crops()):
        assert record.constant.all()
        np.testing.assert_array_equal(record.maps, 0)
    assert maps._constant(np.full((1, 1, 2, 2), 3.3)).tolist() == [[True]]
    nearly = np.full((1, 1, 2, 2), 3.3)
    nearly[0, 0, 0, 0] += 1e-6
    assert maps._constant(nearly).tolist() == [[False]]


def test_keys_make_drawn_maps_repeatable():
    described, variables = tiny()

    def draw(seed, room=0):
        explainer = MapExplainer(
            described, variables, method="smooth_grad", samples=3,
            key=jax.random.key(seed),
        )  # fmt: skip
        return explainer(crops(labels=False), room=room)

    first, again, other = draw(0), draw(0, room=2), draw(1)
    for a, b, c in zip(first, again, other):
        np.testing.assert_array_equal(a.maps, b.maps)
        assert np.abs(a.maps - c.maps).max() > 1e-4


def test_occlusion_and_rise_share_the_fill_of_the_game():
    described, variables = tiny()
    found = {}
    for removal in ("mean", "blur"):
        explainer = MapExplainer(
            described, variables, method="occlusion", removal=removal, score="value"
        )
        found[removal] = explainer(crops(labels=False))[0]
    assert np.abs(found["mean"].maps - found["blur"].maps).max() > 1e-4
    assert np.abs(found["mean"].empty - found["blur"].empty).max() > 1e-4


def test_records_are_frozen():
    _, (record, _) = explained(steps=8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.maps = None


# --- refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options,message",
    [
        (dict(method="lime"), "'lime' is unknown; use one of saliency"),
        (dict(method="attention"), "which Small does not compute; use one of"),
        (dict(method="rise"), "give key"),
        (dict(method="smooth_grad"), "give key"),
        (dict(score="heatmap"), "not one number per joint"),
        (dict(score="best"), "choose one of"),
        (dict(score="similarity"), "no gradient for integrated_gradients"),
        (dict(method="grad_cam", score="thresholded"), "no gradient for grad_cam"),
        (dict(method="grad_cam", tap="nothing"), "is no map of this network"),
        (dict(method="gradient", tap="stem"), "use grad_cam or hires_cam"),
        (dict(sigma=3), "has no option 'sigma'; it has baseline, steps"),
        (dict(baseline=0.5), "what removal and recipe say"),
        (dict(steps=[1, 2]), "a number or a name"),
        (dict(removal="white"), "'white' is unknown"),
        (dict(people_at_once=0), "at least 1"),
    ],
)
def test_explainers_refuse(options, message):
    described, variables = tiny()
    with pytest.raises(ValueError, match=message):
        MapExplainer(described, variables, **options)


def test_labels_are_needed_where_they_are_asked():
    described, variables = tiny()
    explainer = MapExplainer(described, variables, reference="labels", score="value")
    with pytest.raises(ValueError, match="need labelled people"):
        explainer(crops(labels=False))


def test_patches_have_to_fit():
    described, variables = tiny()
    explainer = MapExplainer(described, variables, method="occlusion", patch_px=40)
    with pytest.raises(ValueError, match="does not fit a picture of 32x32"):
        explainer(crops(labels=False))


def test_functions_refuse_as_well():
    described, variables = tiny()
    image = np.zeros((32, 32, 3), np.float32)
    run = functools.partial(
        maps.explain_maps,
        apply=described.module.apply,
        variables=variables,
        image=image,
        score=lambda outputs: outputs.heatmaps[-1, 0, 0, 0],
    )
    for arguments, message in (
        (dict(method="lime"), "'lime' is unknown"),
        (dict(method="rise"), "rise draws; give key"),
        (dict(method="attention_rollout"), "Small does not compute"),
        (dict(method="gradient", steps=3), "gradient has no option 'steps'"),
    ):
        with pytest.raises(ValueError, match=message):
            run(**arguments)


def test_every_method_is_described():
    for name, method in METHODS.items():
        assert set(method.needs) <= set(maps.NEEDS) and method.needs, name
        assert method.text and "\n" not in method.text
        assert not method.start or method.start in method.options
        assert ("tap" in method.needs) == ("tap" in method.options)
