"""From pictures to explanations: who plays, what adds up, what is refused."""

import itertools
import math

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from pose_jax import geometry, heatmaps, models, partitions, regions, skeletons
from pose_jax import recipe as recipe_
from pose_jax.estimator import Estimator
from pose_jax.explain import games
from pose_jax.explain.explainer import Crops, Explainer
from pose_jax.explain.explanation import Explanation, stack
from pose_jax.explain.games import PoseGame
from pose_jax.explain.perturbation import hidden_scores
from pose_jax.heatmaps import Codec
from pose_jax.pixels import InputSpec, normalise

# Five joints: exact values by all 120 orders are affordable.
SKELETON = skeletons.from_names(
    ["left_shoulder", "left_elbow", "right_shoulder", "right_elbow", "nose"],
    limbs=(
        ("left_shoulder", "left_elbow"), ("right_shoulder", "right_elbow"),
        ("left_shoulder", "right_shoulder"),
    ),
)  # fmt: skip
CLUSTERS = [["left_shoulder", "left_elbow"], [2, 3], ["nose"]]
PARTITION = partitions.from_lists("own", CLUSTERS, SKELETON)
K = 5
BOXES = np.array([[4.0, 6, 30, 40], [10, 2, 36, 30]])
POINTS = np.array([
    [[12.0, 14], [14, 25], [26, 15], [28, 24], [20, 9]],
    [[18.0, 8], [20, 18], [36, 9], [40, 20], [300, 9]],
])  # fmt: skip


@pytest.fixture(scope="module")
def estimator():
    c = tiny_config()
    model = recipe_.to_plain(c.model)
    model["stem"] = tuple(model["stem"])
    described = recipe_.Recipe(
        module=models.build(model, num_keypoints=K),
        spec=InputSpec(**recipe_.to_tuples(recipe_.to_plain(c.input))),
        codec=Codec(**recipe_.to_plain(c.codec)),
        skeleton=SKELETON,
        model=model,
    )
    images = np.zeros((1, 32, 32, 3), np.float32)
    init = jax.jit(lambda k: described.module.init(k, images, train=True))
    variables = jax.device_get(init(jax.random.key(3, impl="unsafe_rbg")))
    # Peaks of an untrained network are faint: sharpen them, so that joints matter.
    head = variables["params"]["stack0_heatmaps"]
    head["kernel"] = head["kernel"] * 8
    return Estimator(described, variables, flip_test=False)


@pytest.fixture(scope="module")
def picture():
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (12, 12, 3)).astype(np.uint8)
    return cv2.resize(small, (52, 48), interpolation=cv2.INTER_CUBIC)


def ask(estimator, picture, boxes=BOXES, **options) -> list[Explanation]:
    options = {"clusters": CLUSTERS, "side": 0.2, **options}
    return estimator.explain(picture, boxes, **options)


@pytest.fixture(scope="module")
def explained(estimator, picture):
    return {k: ask(estimator, picture, kind=k) for k in ("gsv", "owen", "decoupled")}


# --- inputs -----------------------------------------------------------------------------


def test_inputs(estimator, picture, explained, tmp_path):
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), picture[:, :, ::-1])
    first, second = explained["gsv"]
    (whole,) = ask(estimator, picture, None)
    np.testing.assert_array_equal(whole.box, [0, 0, 52, 48])
    assert ask(estimator, picture, []) == []
    assert ask(estimator, [], None) == []
    (by_path,) = ask(estimator, str(path), BOXES[1])
    np.testing.assert_allclose(
        by_path.influence, second.influence, rtol=1e-5, atol=1e-5
    )
    many = ask(estimator, [picture, path, picture], [BOXES, [], BOXES[:1]])
    assert [len(m) for m in many] == [2, 0, 1]
    np.testing.assert_allclose(many[2][0].table, first.table, rtol=1e-5, atol=1e-5)


def test_the_answer_that_is_explained_is_the_prediction(estimator, picture, explained):
    pose = estimator.predict(picture, BOXES)
    for n, found in enumerate(explained["gsv"]):
        np.testing.assert_allclose(found.keypoints, pose.keypoints[n], atol=1e-3)
        np.testing.assert_array_equal(found.box, BOXES[n])
        crop = geometry.warp(picture, found.matrix, (32, 32))
        np.testing.assert_array_equal(found.image, crop)
        there = geometry.transform(found.keypoints[None], found.matrix[None])[0]
        np.testing.assert_allclose(found.centres, there, atol=1e-3)
        np.testing.assert_allclose(
            found.keypoint_scores.clip(0, 1), pose.keypoint_scores[n], atol=1e-5
        )


# --- sums -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gsv", "owen", "decoupled"])
def test_contributions_add_up(explained, kind):
    for found in explained[kind]:
        assert found.kind == kind and found.method == "group_shapley"
        assert np.abs(found.gap).max() > 1e-3
        for t, name in enumerate(SKELETON.keypoints):
            parts = found.contributions(name)
            own = PARTITION.clusters[PARTITION.owner[t]]
            members = {SKELETON.keypoints[i] for i in own}
            assert members <= set(parts) and len(parts) == len(own) + 2
            assert list(parts.values()) == sorted(parts.values(), reverse=True)
            total, goal = sum(parts.values()), found.gap[t]
            if kind == "decoupled":
                total = sum(parts[m] for m in members)
                goal = found.full[t] - found.baseline[t]
            assert total == pytest.approx(goal, abs=1e-5)
        np.testing.assert_allclose(found.influence.sum(0), found.gap, atol=1e-5)
        np.testing.assert_allclose(found.quotient_values.sum(0), found.gap, atol=1e-5)
        assert np.abs(found.residual).max() < 1e-5
        assert np.abs(found.quotient_residual).max() < 1e-5
        assert found.target_valid.all() and found.reference == "predicted"


def test_the_table_is_that_of_the_masked_pictures(estimator, explained):
    """Every coalition's picture put together by hand and sent through the network."""
    described, variables = estimator.inference
    found = explained["gsv"][0]
    run = jax.jit(
        lambda x: heatmaps.activate(
            described.module.apply(variables, normalise(x, described.spec)).heatmaps[
                -1
            ],
            described.codec,
        )
    )
    pictures = []
    for row in found.players.coalitions:
        hidden = (found.owners >= 0) & ~row[np.maximum(found.owners, 0)]
        picture = found.image.astype(np.float32)
        picture[hidden] = 255 * np.float32(described.spec.mean)
        pictures.append(picture)
    maps = np.asarray(run(np.stack(pictures)))
    full = maps[found.players.coalitions.all(1)][0]
    step = heatmaps.stride(described.codec, (32, 32), full.shape[:2])
    # A refined peak may lie half a pixel outside of the map.
    x, y = np.round(found.centres / step).astype(int).clip(0, 7).T
    values = maps[:, y, x, np.arange(K)]
    np.testing.assert_allclose(found.table, values, atol=1e-5)
    np.testing.assert_allclose(found.full, full[y, x, np.arange(K)], atol=1e-5)
    context = found.table[~found.players.coalitions.any(1)]
    np.testing.assert_array_equal(found.empty, context[0])
    assert len(found.table) == 2**2 * (2 + 2 + 2 + 0)


def slow_shapley(table, n):
    values = np.zeros((n, *table.shape[1:]))
    for order in itertools.permutations(range(n)):
        row = 0
        for player in order:
            values[player] += table[row | 1 << player] - table[row]
            row |= 1 << player
    return values / math.factorial(n)


def test_shapley_is_that_of_all_orders(estimator, picture, explained):
    found, every = ask(estimator, picture, method="shapley"), np.arange(32)
    for person, grouped in zip(found, explained["owen"]):
        assert person.kind == "exact" and person.table.shape == (32, K)
        exact = slow_shapley(person.table.astype(np.float64), K)
        np.testing.assert_allclose(person.influence, exact, atol=1e-5)
        own = PARTITION.owner[:, None] == PARTITION.owner
        np.testing.assert_allclose(person.member_values, exact * own, atol=1e-5)
        for t, name in enumerate(SKELETON.keypoints):
            parts = person.contributions(name)
            assert sum(parts.values()) == pytest.approx(person.gap[t], abs=1e-5)
            arm = "[left_shoulder+left_elbow]"
            if arm in parts:
                assert parts[arm] == pytest.approx(exact[:2, t].sum(), abs=1e-5)
        rows = grouped.players.coalitions @ (1 << np.arange(K))
        np.testing.assert_allclose(person.table[rows], grouped.table, atol=1e-5)
        np.testing.assert_allclose(
            person.quotient_values, grouped.quotient_values, atol=1e-5
        )
        # The target never seen, always seen: the table with its bit cleared or set.
        for name, change in (
            ("hidden", lambda rows, t: rows & ~(1 << t)),
            ("visible", lambda rows, t: rows | 1 << t),
        ):
            values = getattr(person, f"{name}_values")
            for t in range(K):
                table = person.table[change(every, t), t].astype(np.float64)
                np.testing.assert_allclose(
                    values[:, t], slow_shapley(table, K), atol=1e-5
                )
            grouped_values = getattr(grouped, f"{name}_values")
            assert np.abs(np.diag(grouped_values)).max() < 1e-6


def test_evaluations_count_forward_passes(estimator, picture, explained):
    """A joint without a place halves the pictures that differ."""
    assert explained["gsv"][0].evaluations <= 24
    (person,) = ask(estimator, picture, BOXES[1:], keypoints=POINTS[1:], score="value")
    assert person.present.tolist() == [True] * 4 + [False]
    assert person.evaluations == 2 * (2 + 2 + 2)  # Two clusters of two are left.
    assert np.abs(person.influence[4]).max() < 1e-6


# --- labels -----------------------------------------------------------------------------


def test_labels_are_centres_and_reference(estimator, picture):
    visible = np.full((2, K), 2)
    visible[0, 3] = 0
    points = POINTS.copy()
    points[0, 3] = np.nan  # Files hold anything where there is no label.
    first, second = ask(estimator, picture, keypoints=points, visible=visible)
    assert (first.score, first.reference) == ("similarity", "labels")
    there = geometry.transform(POINTS[:1], first.matrix[None])[0]
    np.testing.assert_allclose(first.centres[:3], there[:3], atol=1e-4)
    assert first.present.tolist() == [True, True, True, False, True]
    assert first.target_valid.tolist() == [True, True, True, False, True]
    assert 3 not in first.owners and set(first.owners.ravel()) == {-1, 0, 1, 2, 4}
    with pytest.raises(ValueError, match="right_elbow has no label in this picture"):
        first.contributions("right_elbow")
    assert np.isfinite(first.influence).all() and not first.influence[:, 3].any()
    assert not second.present[4] and second.target_valid.all()  # Beyond the crop.
    assert 0 <= first.full.min() and first.full.max() <= 1
    # Similarity by hand: exp(-d^2 / (2 area (2 sigma)^2)) in image pixels.
    distance2 = ((first.keypoints - points[0]) ** 2).sum(-1)
    area = 0.53 * BOXES[0, 2] * BOXES[0, 3]
    similarity = np.exp(-distance2 / (2 * area * (2 * np.array(SKELETON.sigmas)) ** 2))
    valid = first.target_valid
    np.testing.assert_allclose(
        first.full[valid], similarity[valid], rtol=1e-3, atol=1e-6
    )


def test_heights_are_read_where_the_model_put_the_joint(estimator, picture):
    (labelled,) = ask(
        estimator, picture, BOXES[:1], keypoints=POINTS[:1], score="value"
    )
    assert labelled.reference == "predicted"
    (plain,) = ask(estimator, picture, BOXES[:1])
    np.testing.assert_allclose(labelled.full, plain.full, atol=1e-6)
    assert (labelled.owners != plain.owners).any()


def crops_of(estimator, picture, **fields):
    matrices = np.stack(estimator._matrices(BOXES))
    images = np.stack([geometry.warp(picture, m, (32, 32)) for m in matrices])
    return Crops(images, matrices, BOXES, **fields)


def explainer_of(estimator, players=None, **options):
    players = players or games.keypoint_players(SKELETON, PARTITION, side=0.2)
    return Explainer(*estimator.inference, players, **options)


def test_reference_and_centres_on_demand(estimator, picture):
    labels = geometry.transform(POINTS, np.stack(estimator._matrices(BOXES)))
    crops = crops_of(estimator, picture, keypoints=labels, visible=np.full((2, K), 2))
    there = explainer_of(estimator, centres="predicted")(crops)[0]
    assert there.reference == "labels"
    np.testing.assert_allclose(
        there.centres, geometry.transform(there.keypoints[None], there.matrix[None])[0],
        atol=1e-3,
    )  # fmt: skip
    # Every joint counts as labelled where nobody says otherwise.
    silent = crops_of(estimator, picture, keypoints=labels)
    again = explainer_of(estimator, centres="predicted")(silent)[0]
    np.testing.assert_array_equal(again.table, there.table)
    own = explainer_of(estimator, reference="predicted")(crops)[0]
    assert (own.score, own.reference) == ("similarity", "predicted")
    np.testing.assert_allclose(own.full, 1, atol=1e-6)
    with pytest.raises(ValueError, match="'labels' need labelled people"):
        explainer_of(estimator, centres="labels")(crops_of(estimator, picture))


# --- what must not matter ---------------------------------------------------------------


def test_batches_chunks_and_room_change_nothing(estimator, picture, explained):
    crops = crops_of(estimator, picture)
    for options, room in (({}, 5), ({"chunk_size": 3}, 0), ({"chunk_size": 7}, 3)):
        found = explainer_of(estimator, **options)(crops, room=room)
        for a, b in zip(found, explained["gsv"]):
            np.testing.assert_allclose(a.table, b.table, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(
                a.member_values, b.member_values, rtol=1e-5, atol=1e-5
            )
            assert a.evaluations == b.evaluations
    (alone,) = ask(estimator, picture, BOXES[1:])
    np.testing.assert_allclose(
        alone.table, explained["gsv"][1].table, rtol=1e-5, atol=1e-5
    )
    assert explainer_of(estimator)(Crops(*(x[:0] for x in crops[:3]))) == []


def test_the_same_question_again_compiles_nothing(
    estimator, picture, explained, caplog
):
    with jax.log_compiles(), caplog.at_level("WARNING"):
        ask(estimator, picture)
        networks = [r for r in caplog.records if "Compiling jit(evaluate)" in r.message
                    or "Compiling jit(one)" in r.message]  # fmt: skip
    assert not networks


# --- players and fills ------------------------------------------------------------------


@pytest.mark.parametrize("removal", games.REMOVALS)
def test_fills(estimator, picture, explained, removal):
    other = picture[::-1].copy() if removal == "other" else None
    found = ask(estimator, picture, removal=removal, other=other)[0]
    assert found.removal == removal
    np.testing.assert_array_equal(found.owners, explained["gsv"][0].owners)
    np.testing.assert_allclose(
        found.full, explained["gsv"][0].full, rtol=1e-5, atol=1e-6
    )
    mean = 255 * np.array(estimator.recipe.spec.mean)
    same = removal == "mean"
    assert np.allclose(found.fill, mean, atol=0.51) == same
    assert np.allclose(found.empty, explained["gsv"][0].empty, atol=1e-7) == same
    if removal == "inpaint":
        free = found.owners < 0
        np.testing.assert_array_equal(found.fill[free], found.image[free])
    if removal == "noise":
        again = ask(estimator, picture, removal=removal, key=jax.random.key(9))[0]
        assert (again.fill != found.fill).any()
    np.testing.assert_allclose(found.influence.sum(0), found.gap, atol=1e-5)


def test_with_another_fill_or_score(estimator, picture, explained):
    crops = crops_of(estimator, picture)
    asked = explainer_of(estimator, kind="owen")
    blurred = asked.with_removal("blur")(crops)[0]
    assert (blurred.removal, blurred.kind, blurred.score) == ("blur", "owen", "value")
    direct = ask(estimator, picture, removal="blur", kind="owen")[0]
    np.testing.assert_array_equal(blurred.table, direct.table)
    peaks = asked.with_score("peak")(crops)[0]
    np.testing.assert_allclose(peaks.full, peaks.keypoint_scores, rtol=1e-5, atol=1e-6)


def test_box_players(estimator, picture, explained):
    found = ask(estimator, picture, players="box")[0]
    owned, disc = (f.owners >= 0 for f in (found, explained["gsv"][0]))
    assert owned[disc].all() and owned.sum() > disc.sum()
    assert found.players.kind == "box"


def test_limb_players(estimator, picture):
    found = ask(estimator, picture, players="limbs", clusters=[[0, 1], [2, 3, 4]])[0]
    assert found.players.names[2] == "left_shoulder-right_shoulder"
    assert found.players.cluster_names[-1] == "trunk"
    np.testing.assert_allclose(found.influence.sum(0), found.gap, atol=1e-5)
    assert np.isnan(found.hidden_values).all() and np.isnan(found.visible_values).all()
    parts = found.contributions("left_elbow")
    assert set(parts) == {
        "left_shoulder-left_elbow", "[trunk]", "[right_shoulder+right_elbow+...]",
    }  # fmt: skip
    exact = ask(
        estimator, picture, players="limbs", clusters=[[0, 1], [2, 3, 4]],
        method="shapley",
    )[0]  # fmt: skip
    assert exact.table.shape == (8, K)
    np.testing.assert_allclose(exact.influence.sum(0), exact.gap, atol=1e-5)


def test_mask_players(estimator, picture):
    masks = np.zeros((2, 4, 32, 32), bool)
    masks[:, 0, :16, :16], masks[:, 1, :16, 16:] = True, True
    masks[:, 2, 16:, :16], masks[:, 3, 16:, 16:] = True, True
    players = games.mask_players([[0, 1], [2, 3]], [0, 0, 0, 0, 1])
    crops = crops_of(estimator, picture, masks=masks)
    found = explainer_of(estimator, players)(crops)
    for person in found:
        np.testing.assert_allclose(person.influence.sum(0), person.gap, atol=1e-5)
        assert (person.owners >= 0).all()
    assert list(found[0].contributions("nose"))  # Cluster 1: masks 2 and 3, [group0].
    assert set(found[0].contributions("nose")) == {"mask2", "mask3", "[group0]"}
    with pytest.raises(
        ValueError, match="masks have shape None; needed is one per player"
    ):
        explainer_of(estimator, players)(crops_of(estimator, picture))


def test_stacked_arrays(explained):
    arrays = stack(explained["gsv"])
    assert arrays["influence"].shape == (2, K, K)
    assert arrays["image"].shape == (2, 32, 32, 3)
    assert arrays["evaluations"].tolist() == [e.evaluations for e in explained["gsv"]]


def test_scores_with_one_box_hidden(estimator, picture):
    """The data of Perturbation Influence against boxes painted by hand."""
    described, variables = estimator.inference
    crops = crops_of(estimator, picture)
    people, seen = explainer_of(estimator, score="value").people(crops)
    present = np.array([[True, True, False, True, True], [True] * 5])
    game = games.BoxGame(described.module, described.spec, described.codec, "value")
    key, options = jax.random.key(5), dict(masks=3, area=(0.02, 0.06))
    clean, masked = hidden_scores(
        game, variables, people, seen["centres"], present, key=key, **options
    )
    assert clean.shape == (2, K) and masked.shape == (2, K, 3, K)
    assert np.isnan(masked[0, 2]).all() and np.isfinite(masked[present]).all()
    keys = jax.random.split(key, (2, K, 3))
    whole = PoseGame(described.module, described.spec, described.codec, "value")
    y, x = np.mgrid[:32, :32]
    run = jax.jit(lambda person: whole(jnp.zeros(1, bool), variables, person))
    for m, j, r in ((0, 0, 0), (0, 4, 2), (1, 2, 1)):
        offsets = np.abs(np.stack([x, y], -1) - seen["centres"][m, j])
        half = regions.random_half_sides((32, 32), area=(0.02, 0.06), key=keys[m, j, r])
        inside = (offsets < np.asarray(half)).all(-1)
        person = jax.tree.map(lambda leaf, m=m: np.asarray(leaf)[m], people)
        person = person._replace(owners=np.where(inside, 0, -1).astype(np.int32))
        np.testing.assert_allclose(masked[m, j, r], run(person), rtol=1e-5, atol=1e-5)
        free = person._replace(owners=np.full((32, 32), -1, np.int32))
        np.testing.assert_allclose(clean[m], run(free), rtol=1e-5, atol=1e-5)
    assert (masked[1] != clean[1]).any()
    again = hidden_scores(
        game, variables, people, seen["centres"], present, key=key, room=7, chunk_size=5,
        **options,
    )  # fmt: skip
    np.testing.assert_allclose(again[1], masked, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="masks=0; at least one box per joint"):
        hidden_scores(
            game, variables, people, seen["centres"], present, key=key, masks=0
        )


# --- mistakes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options,message",
    [
        (
            dict(method="gradcam"),
            "method 'gradcam' is unknown; use group_shapley, shapley",
        ),
        (dict(kind="shapley"), "kind 'shapley' is unknown; use gsv, owen or decoupled"),
        (dict(score="accuracy"), "score 'accuracy' is unknown; choose one of value"),
        (dict(score="heatmap"), "whole heatmaps are explained with"),
        (dict(removal="black"), "removal 'black' is unknown; use mean, blur"),
        (dict(removal="other"), "removal='other' needs another crop"),
        (
            dict(players="masks"),
            "call explain.explainer.Explainer with games.mask_players",
        ),
        (dict(players="joints"), "players .joints. are unknown"),
        (dict(side=0.0), "side=0 is a share of the crop's height"),
        (dict(tap="stem"), "tap has no meaning"),
        (dict(clusters="limbs"), "partition 'limbs' is unknown; use one of limbs-v1"),
        (dict(clusters=None), "no anatomical clusters"),
        (dict(clusters=[[0, 1], [2, 3]]), r"missing \['nose'\]"),
        (dict(clusters=[[0, 1], [2, 3, 9]]), "no keypoint 9"),
        (dict(keypoints=POINTS[:1]), "keypoints have shape .1, 5, 2.*2 boxes need"),
        (dict(boxes=[[0, 0, 10, -1]]), "positive width and height"),
        (dict(keypoints=POINTS, visible=np.ones((2, 4))), r"visible \[2, 4\]"),
    ],
)
def test_mistakes_are_one_clear_line(estimator, picture, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        ask(estimator, picture, **{"boxes": BOXES, **options})
    assert "\n" not in str(caught.value)


def test_more_mistakes(estimator, picture, explained):
    with pytest.raises(ValueError, match="2 pictures need as many lists of boxes"):
        ask(estimator, [picture, picture], [BOXES])
    with pytest.raises(ValueError, match="uint8 RGB"):
        ask(estimator, picture.astype(np.float32))
    with pytest.raises(KeyError, match="did you mean 'left_elbow'"):
        explained["gsv"][0].contributions("left_elbo")
    for name in ("reference", "centres"):
        with pytest.raises(
            ValueError, match=f"{name}='truth'; use one of auto, labels"
        ):
            explainer_of(estimator, **{name: "truth"})
    coco = skeletons.get("coco")
    players = games.keypoint_players(coco, partitions.get("limbs-v1", coco))
    with pytest.raises(ValueError, match=r"2\*\*17 = 131,072 forward.*\(896 passes\)"):
        explainer_of(estimator, players, method="shapley")


def test_nan_weights_are_refused(estimator, picture):
    described, variables = estimator.recipe, jax.tree.map(np.array, estimator.variables)
    variables["params"]["stack0_heatmaps"]["bias"][1] = np.nan
    broken = Estimator(described, variables, flip_test=False)
    with pytest.raises(ValueError, match="not finite: the weights hold NaN"):
        ask(broken, picture)


def test_defaults(estimator, picture):
    found = estimator.explain(picture, clusters=PARTITION)[0]
    assert found.players.side == regions.SIDE and found.players.kind == "disc"
    assert found.players.clusters == PARTITION.clusters
    assert (found.kind, found.removal, found.score) == ("gsv", "mean", "value")
