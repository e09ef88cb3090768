"""Keypoint removal: which pixels each kind takes, and what the training step does with them."""

import dataclasses
import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from test_run import same, weights
from test_sharding import child
from test_training import build, make_batch
from tiny import tiny_config

from pose_jax import partitions, regions, skeletons
from pose_jax.config import UserError
from pose_jax.data.removal import (
    KINDS,
    NOTHING,
    KeypointRemoval,
    removal_mask,
    remove_keypoints,
)
from pose_jax.pixels import normalise
from pose_jax.tasks import train
from pose_jax.tasks.removal import make_removal
from pose_jax.tasks.workdir import claim
from pose_jax.training import optimiser
from pose_jax.training import step as step_

COCO = skeletons.get("coco")
LIMBS = partitions.get("limbs-v1", COCO).clusters
SIZE = (64, 56)
# A grid: every keypoint 11 px from the next, more than the longest half side (7.3 px).
TINY, TINY_GRID = (
    (24, 22),
    np.array([(2.0 + 4 * (n % 5), 2.0 + 5 * (n // 5)) for n in range(17)]),
)
GRID = np.array([(6.0 + 11 * (n % 5), 8.0 + 15 * (n // 5)) for n in range(17)])
CLUSTERED = ("gkr", "gkr_strong", "gkr_shuffled_clusters", "whole_cluster")


def removal_of(kind, **fields):
    fields = {"probability": 1.0, "jitter_px": 0.0, "clusters": LIMBS, **fields}
    if kind == "gkr_value_weighted":
        fields.setdefault("weights", (1.0,) * 17)
    return KeypointRemoval(kind=kind, **fields)


def draw(removal, count=200, points=GRID, visible=None, size=SIZE):
    """[count, h, w] masks of one person under many keys."""
    visible = np.full(len(points), 2) if visible is None else np.asarray(visible)
    keys = jax.random.split(jax.random.key(0), count)
    points = jnp.asarray(points, jnp.float32)
    return np.asarray(program(removal, size)(points, jnp.asarray(visible), keys))


@functools.cache
def program(removal, size):
    def one(points, visible, key):
        return removal_mask(points, visible, size, removal, key=key)

    return jax.jit(jax.vmap(one, (None, None, 0)))


def hits(masks, points=GRID):
    """[count, k] whether the pixel of a keypoint is gone."""
    x, y = np.round(points).astype(int).T
    return masks[:, y, x]


@pytest.mark.parametrize("kind", KINDS[1:-1])
def test_only_labelled_keypoints_are_removed(kind, generator):
    visible = np.array([0, 1, 2] * 6)[:17]
    found = hits(draw(removal_of(kind), visible=visible))
    assert found.any(1).all()  # Certain: several clusters have two labels.
    assert not found[:, visible == 0].any()
    assert found[:, visible > 0].any(0).sum() >= 8
    # Nothing but boxes around what was hit is gone.
    masks = draw(removal_of(kind), 20, visible=visible)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    for mask, hit in zip(masks, hits(masks)):
        far = np.abs(np.stack([x, y], -1)[:, :, None] - GRID[hit]).max(-1).min(-1)
        assert not mask[far > 8].any()


@pytest.mark.parametrize(
    "kind,count",
    [("gkr", 1), ("gkr_value_weighted", 1), ("random_keypoint", 1), ("gkr_strong", 5)],
)
def test_how_many_are_removed(kind, count):
    found = hits(draw(removal_of(kind)))
    assert (found.sum(1) == count).all()
    assert found.any(0).all()
    if kind == "gkr_strong":
        for members in LIMBS:
            assert (found[:, list(members)].sum(1) == 1).all()


def test_whole_cluster_takes_all_of_one():
    found = hits(draw(removal_of("whole_cluster")))
    for row in found:
        (cluster,) = (c for c in LIMBS if row[list(c)].any())
        assert row[list(cluster)].all() and row.sum() == len(cluster)
    visible = np.full(17, 2)
    visible[list(LIMBS[1][:1])] = 0
    found = hits(draw(removal_of("whole_cluster"), visible=visible))
    assert not found[:, LIMBS[1][0]].any() and found[:, LIMBS[1][1]].any()


@pytest.mark.parametrize("kind", CLUSTERED)
def test_a_keypoint_without_a_labelled_partner_is_left_alone(kind):
    visible = np.zeros(17, int)
    for members in LIMBS[:-1]:
        visible[members[0]] = 2
    assert not draw(removal_of(kind), visible=visible).any()
    assert not draw(removal_of("cutout_equal_area"), visible=visible).any()
    visible[list(LIMBS[-1])] = 1
    found = hits(draw(removal_of(kind), visible=visible))
    assert found[:, list(LIMBS[-1])].any(1).all()
    assert not np.delete(found, LIMBS[-1], 1).any()
    # The control that knows no clusters takes any of them.
    found = hits(draw(removal_of("random_keypoint"), visible=visible))
    assert found[:, visible > 0].any(0).all()


@pytest.mark.parametrize("kind", ["gkr", "gkr_strong", "gkr_value_weighted"])
def test_partners_are_never_covered(kind, generator):
    """Joints a few pixels apart, big boxes and jitter: the box shrinks, and only then."""
    removal = removal_of(kind, jitter_px=3.0, area=(0.02, 0.1))
    free = removal_of("random_keypoint", jitter_px=3.0, area=(0.02, 0.1))
    for members in LIMBS[0], LIMBS[1]:
        points = generator.uniform(20, 40, (17, 2))
        visible = np.zeros(17, int)  # One cluster: the boxes of others may lie over it.
        visible[list(members)] = generator.integers(1, 3, len(members))
        masks = draw(removal, 300, points, visible)
        gone = hits(masks, points)[:, list(members)].sum(1)
        assert gone.max() == 1
        assert masks.mean() > 0.001
        larger = draw(free, 300, points, visible)
        assert hits(larger, points)[:, list(members)].sum(1).max() > 1
        assert masks.mean() < 0.9 * larger.mean()


def test_the_partner_is_spared_to_the_pixel():
    """Two joints, one of them drawn by weight: the other's pixel stays under every key, and
    the box reaches the pixel before it under some."""
    points = np.array([(30.3, 30.0), (34.6, 30.2)])
    removal = removal_of(
        "gkr_value_weighted", clusters=((0, 1),), weights=(1.0, 1e-9), area=(0.02, 0.04)
    )
    masks = draw(removal, 300, points)
    assert masks[:, 30, 30].all()
    assert not masks[:, 30, 35].any()
    assert masks[:, 30, 33].any() and masks[:, 36, 30].any()
    # Without a label there is nothing to spare.
    free = removal_of("random_keypoint", area=(0.02, 0.04))
    assert draw(free, 300, points, np.array([2, 0]))[:, 30, 35].any()


def test_equal_areas():
    """Cutout takes the box of gkr elsewhere: as many pixels, but for where they begin."""
    inner = np.where(((10 < GRID) & (GRID < np.array(SIZE[::-1]) - 10)).all(1), 2, 0)
    gkr = draw(removal_of("gkr"), 1000, visible=inner).sum((1, 2)).astype(float)
    cutout = draw(removal_of("cutout_equal_area"), 1000, visible=inner)
    area = cutout.sum((1, 2)).astype(float)
    sides = np.stack([cutout.any(1).sum(1), cutout.any(2).sum(1)])
    assert (area == sides.prod(0)).all()  # One box, wholly inside.
    assert (np.abs(gkr - area) <= sides.sum(0) + 1).all()
    error = (gkr - area).std() / np.sqrt(len(gkr))
    assert abs(gkr.mean() - area.mean()) < 4 * error
    assert np.corrcoef(gkr, area)[0, 1] > 0.9
    assert abs((area / np.prod(SIZE)).mean() - 0.019) < 0.001
    covered = cutout.mean(0)
    assert (covered[12:-12, 12:-12] > 0).all()
    # Also where the joints force gkr to shrink.
    points = GRID / 4 + 22
    small = draw(removal_of("gkr"), 1000, points).sum((1, 2)).mean()
    other = draw(removal_of("cutout_equal_area"), 1000, points).sum((1, 2)).mean()
    assert small < 0.8 * gkr.mean()
    assert other == pytest.approx(small, rel=0.05)


def test_one_key_one_box_in_every_kind():
    """Arms of a study differ in the rule: a keypoint's box is the same in all of them."""
    strong, whole = (draw(removal_of(k)) for k in ("gkr_strong", "whole_cluster"))
    single = draw(removal_of("random_keypoint"))
    gkr = draw(removal_of("gkr"))
    assert (gkr <= strong).all() and (gkr <= whole).all()
    both = hits(single) & hits(gkr)
    agreed = both.any(1)
    assert agreed.sum() > 10
    np.testing.assert_array_equal(single[agreed], gkr[agreed])


@pytest.mark.parametrize("kind", ["gkr", "random_keypoint", "cutout_equal_area"])
def test_probability(kind):
    for p in (0.0, 0.25, 1.0):
        lost = draw(removal_of(kind, probability=p), 1000).any((1, 2)).mean()
        assert abs(lost - p) <= 4 * np.sqrt(p * (1 - p) / 1000)


def test_draws_are_uniform_or_follow_the_weights():
    """Chi-square: clusters alike, joints alike within them; joints by weight where given."""

    def counts(removal):
        masks = draw(removal, 2000, TINY_GRID, size=TINY)
        return hits(masks, TINY_GRID).sum(0)

    found = counts(removal_of("gkr"))
    expected = np.zeros(17)
    for members in LIMBS:
        expected[list(members)] = 2000 / len(LIMBS) / len(members)
    assert stats.chisquare(found, expected).pvalue > 0.01
    given = np.linspace(0.05, 1.05, 17)
    removal = removal_of("gkr_value_weighted", weights=tuple(given))
    weighted = counts(removal)
    wanted = np.zeros(17)
    for members in map(list, LIMBS):
        wanted[members] = 2000 / len(LIMBS) * given[members] / given[members].sum()
    assert stats.chisquare(weighted, wanted).pvalue > 0.01
    assert stats.chisquare(weighted, expected).pvalue < 1e-6
    alike = counts(removal_of("random_keypoint"))
    assert stats.chisquare(alike).pvalue > 0.01


def test_shuffled_clusters_have_the_same_sizes_and_other_members():
    c = tiny_config()
    c.data.train.removal.kind = "gkr_shuffled_clusters"
    deals = [make_removal(c.data.train.removal, COCO, seed) for seed in range(4)]
    for deal in deals:
        assert sorted(map(len, deal.clusters)) == sorted(map(len, LIMBS))
        assert sorted(i for members in deal.clusters for i in members) == list(
            range(17)
        )
        assert set(deal.clusters) != set(LIMBS)
    assert len({deal.clusters for deal in deals}) == 4
    assert deals[0] == make_removal(c.data.train.removal, COCO, 0)


# --- pixels -----------------------------------------------------------------------------

MEAN = (0.5, 0.25, 0.125)


@pytest.mark.parametrize("fill", ["mean", "blur", "noise"])
def test_untouched_pixels_stay_and_others_show_the_fill(fill, generator):
    images = generator.uniform(0, 255, (3, *SIZE, 3)).astype(np.float32)
    points = np.broadcast_to(GRID, (3, 17, 2)).astype(np.float32)
    visible = np.full((3, 17), 2)
    visible[2] = 0
    removal = removal_of("gkr_strong", fill=fill)
    key = jax.random.key(4)
    remove = jax.jit(remove_keypoints, static_argnums=(3, 4))
    found, share = remove(images, points, visible, removal, MEAN, key=key)
    found = np.asarray(found)
    changed = (found != images).any(-1)
    np.testing.assert_allclose(share, changed.mean((1, 2)), atol=1e-6)
    assert share[0] > 0.01 and share[2] == 0
    np.testing.assert_array_equal(found[2], images[2])
    if fill == "mean":
        assert (found[changed] == 255 * np.float32(MEAN)).all()
        assert not np.array_equal(
            changed[0], changed[1]
        )  # Every crop draws for itself.
    elif fill == "blur":
        for n in range(2):
            blurred = np.asarray(regions.blur_fill(images[n], sigma_px=SIZE[0] / 12))
            where = changed[n]
            np.testing.assert_allclose(found[n][where], blurred[where], atol=1e-2)
    else:
        shown = found[changed]
        assert 0 <= shown.min() < 10 and 245 < shown.max() <= 255
    again, _ = remove(images, points, visible, removal, MEAN, key=key)
    np.testing.assert_array_equal(again, found)


# --- in the step ------------------------------------------------------------------------

REMOVAL = removal_of("gkr_strong")


@pytest.fixture(scope="module")
def built():
    objective, state, *_ = build(tiny_config())
    return objective, state, {"params": state.params, "batch_stats": state.batch_stats}


def test_removed_joints_stay_supervised(built):
    """The loss is that of the ordinary targets and weights on the pictures with holes."""
    plain, _, variables = built
    objective = dataclasses.replace(plain, removal=REMOVAL)
    batch = make_batch()
    batch["mask"][7] = False
    key = jax.random.key(3)
    loss, (metrics, _) = jax.jit(objective.loss)(variables, batch, key=key)

    @jax.jit
    def by_hand(variables, batch):
        images, share = remove_keypoints(
            batch["image"].astype(jnp.float32), batch["keypoints"], batch["visible"],
            REMOVAL, objective.spec.mean, key=jax.random.fold_in(key, 1),
        )  # fmt: skip
        outputs, _ = objective.module.apply(
            variables, normalise(images, objective.spec), train=True,
            mutable=["batch_stats"],
        )  # fmt: skip
        return *objective.supervise(outputs, batch), share

    expected, zero, share = by_hand(variables, batch)
    np.testing.assert_allclose(loss.sum, expected.sum, rtol=1e-6)
    assert loss.count == expected.count == (batch["visible"][:7] > 0).sum()
    np.testing.assert_allclose(metrics["zero_map_loss"].sum, zero.sum, rtol=1e-6)
    # Padding does not count; something went, and what the share says.
    area = metrics["removed_area"].compute()
    np.testing.assert_allclose(area, np.asarray(share)[:7].mean(), rtol=1e-5)
    assert 0.005 < area < 0.2
    without, _ = jax.jit(plain.loss)(variables, batch, key=key)
    assert without.count == loss.count and without.sum != loss.sum


def test_without_removal_the_step_is_as_before(built):
    objective, _, variables = built
    assert objective.removal == NOTHING
    c = tiny_config()
    assert make_removal(c.data.train.removal, COCO, 0) == KeypointRemoval()
    batch, key = make_batch(), jax.random.key(0)
    loss, (metrics, _) = jax.jit(objective.loss)(variables, batch, key=key)
    assert "removed_area" not in metrics

    @jax.jit
    def by_hand(variables, batch):
        pixels = normalise(batch["image"], objective.spec)
        outputs, _ = objective.module.apply(
            variables, pixels, train=True, mutable=["batch_stats"]
        )
        return objective.supervise(outputs, batch)[0]

    assert loss.sum == by_hand(variables, batch).sum
    never = dataclasses.replace(objective, removal=removal_of("gkr", probability=0.0))
    found = jax.jit(never.loss)(variables, batch, key=key)[0]
    np.testing.assert_allclose(found.sum, loss.sum, rtol=1e-6)
    mask = removal_mask(
        jnp.asarray(GRID, jnp.float32), jnp.full(17, 2), SIZE, NOTHING, key=key
    )
    assert not mask.any()


def test_one_trace_and_a_draw_that_depends_on_the_step_alone(built):
    objective, state, _ = built
    objective = dataclasses.replace(objective, removal=REMOVAL)
    traces = []

    class Counted:
        def loss(self, *args, **kwargs):
            traces.append(1)
            return objective.loss(*args, **kwargs)

    transform, schedule = optimiser.make_optimiser(
        tiny_config().optimiser, 9, objective.trainable
    )
    step = jax.jit(step_.make_train_step(Counted(), transform, schedule, seed=0))
    batch = make_batch()
    first, a = step(state, batch)
    _, b = step(first, batch)
    _, again = step(state, batch)
    assert len(traces) == 1
    assert a["removed_area"] == again["removed_area"] and a["loss"] == again["loss"]
    assert a["removed_area"] != b["removed_area"]


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_the_step_lowers_for_accelerators(platform, built):
    objective, _, variables = built
    removal = removal_of("cutout_equal_area", fill="blur")
    objective = dataclasses.replace(objective, removal=removal)
    program = jax.jit(lambda v, b: objective.loss(v, b, key=jax.random.key(0))[0].sum)
    exported = jax.export.export(program, platforms=[platform])(variables, make_batch())
    assert exported.platforms == (platform,)


@pytest.mark.slow
def test_resume_equals_uninterrupted(tmp_path):
    """Stopped after two of four steps and resumed: bit for bit the same weights."""

    def config():
        c = tiny_config(steps=4, eval_every=0)
        c.data.train.removal.update(kind="gkr", probability=1.0, fill="noise")
        return c

    claim(config(), str(tmp_path / "straight"))
    train.run(config(), str(tmp_path / "straight"))
    loop = train.Loop(config(), str(tmp_path / "stopped"))
    original, count = loop.train_step, 0

    def step(state, batch):
        nonlocal count
        count += 1
        if count == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(state, batch)

    loop.train_step = step
    with pytest.raises(UserError, match="at step 2"):
        loop.run()
    train.run(config(), str(tmp_path / "stopped"))
    a, b = weights(tmp_path / "straight")[0], weights(tmp_path / "stopped")[0]
    assert same(a, b)
    rows = [
        json.loads(row)
        for row in (tmp_path / "straight" / "metrics.jsonl").read_text().splitlines()
    ]
    assert all(0 < r["train/removed_area"] < 0.05 for r in rows if "train/loss" in r)


@pytest.mark.slow
def test_eight_devices_equal_one(environment):
    result = child(
        """
import dataclasses
from pose_jax.data.removal import KeypointRemoval
from pose_jax import partitions, skeletons

made = heatmap.make
clusters = partitions.get("limbs-v1", skeletons.get("coco")).clusters
removal = KeypointRemoval("gkr", probability=0.7, fill="noise", clusters=clusters)
heatmap.make = lambda *a: dataclasses.replace(made(*a), removal=removal)
devices = jax.devices()
found = []
for count in (1, 8):
    mesh = sharding.make_mesh(sharding.MeshConfig(data=count), devices[:count])
    state, losses, _ = run(mesh)
    found.append((losses, np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params)])))
print(json.dumps(dict(losses=[f[0] for f in found],
    worst=float(np.abs(found[0][1] - found[1][1]).max()))))
""",
        environment,
    )
    one, eight = result["losses"]
    np.testing.assert_allclose(one, eight, rtol=1e-5)
    assert result["worst"] < 1e-5


# --- mistakes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields,message",
    [
        (dict(kind="gkrr"), "removal.kind is 'gkrr'; use none, gkr"),
        (dict(fill="black"), "removal.fill is 'black'; use mean, blur, noise"),
        (dict(probability=1.5), "between 0 and 1"),
        (dict(area=(0.0, 0.1)), r"removal.area=\(0.0, 0.1\) is no range"),
        (dict(area=(0.2, 0.1)), "removal.area"),
        (dict(area=(0.2, 2.0)), "up to 1"),
        (dict(aspect=(0.5, float("nan"))), "removal.aspect"),
        (dict(jitter_px=-1.0), "jitter_px is 0 or more"),
        (dict(clusters=()), "'gkr' needs clusters"),
        (dict(weights=(1.0,) * 17), "belongs to kind='gkr_value_weighted'"),
        (dict(kind="gkr_value_weighted"), "removal.influence"),
        (dict(kind="gkr_value_weighted", weights=(0.0,) * 17), "are positive"),
    ],
)
def test_impossible_fields_are_explained(fields, message):
    with pytest.raises(ValueError, match=message):
        KeypointRemoval(**{"kind": "gkr", "clusters": LIMBS, **fields})


def test_files_of_a_removal(tmp_path):
    c = tiny_config()
    section = c.data.train.removal
    influence, clusters = tmp_path / "influence.json", tmp_path / "clusters.json"
    section.update(kind="gkr_value_weighted", influence="")
    with pytest.raises(UserError, match="influence=''.*task explain wrote"):
        make_removal(section, COCO, 0)
    section.influence = str(influence)
    for content, message in (
        ([1], "no interdependence.json"),
        (dict(keypoints=["nose"], influence=[[1]]), "other keypoints than 'coco'"),
        (dict(keypoints=COCO.keypoints, influence=[[1]]), r"shape \[1, 1\]"),
        (dict(keypoints=COCO.keypoints, influence=(-np.ones((17, 17))).tolist()),
         "no positive influence"),
    ):  # fmt: skip
        influence.write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            make_removal(section, COCO, 0)
    # Row mass within the cluster counts, not the diagonal, not other clusters.
    matrix = np.zeros((17, 17)).tolist()
    arm = COCO.index("left_wrist"), COCO.index("left_elbow")
    matrix[arm[0]][arm[1]] = 0.5
    matrix[arm[1]][arm[1]], matrix[arm[1]][0], matrix[0][1] = 9, 9, None
    influence.write_text(json.dumps(dict(keypoints=COCO.keypoints, influence=matrix)))
    found = np.array(make_removal(section, COCO, 0).weights)
    assert np.argmax(found) == arm[0]
    np.testing.assert_allclose(np.delete(found, arm[0]), 0.05, atol=1e-9)
    section.update(kind="gkr", clusters="limbs")
    with pytest.raises(
        UserError, match=r"'limbs' is unknown; use one of limbs-v1.*json"
    ):
        make_removal(section, COCO, 0)
    section.clusters = str(clusters)
    with pytest.raises(UserError, match="no such clusters file"):
        make_removal(section, COCO, 0)
    for content in (
        [1],
        {"clusters": 3},
        {"clusters": {"a": 3}},
        {"clusters": {"a": [1]}},
    ):
        clusters.write_text(json.dumps(content))
        with pytest.raises(UserError, match="clusters.json: a clusters file holds"):
            make_removal(section, COCO, 0)
    halves = partitions.get("halves-v1", COCO)
    clusters.write_text(json.dumps(halves.record(COCO)))
    assert make_removal(section, COCO, 0).clusters == halves.clusters
