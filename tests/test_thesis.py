"""The thesis's protocol: crops, targets, zero-map loss, optimiser, plateau, resuming."""

import importlib.util
import json
import os
import signal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from folders import annotation, dataset, write_coco
from ml_collections import ConfigDict
from tiny import tiny_config

from pose_jax import checkpoint, config, data, heatmaps
from pose_jax.config import UserError
from pose_jax.data import pipeline, thesis
from pose_jax.data.checks import DataError
from pose_jax.data.crops import CropSettings, CropsSource
from pose_jax.data.sources import NO_VISIBLE, Filters
from pose_jax.data.thesis import (
    NO_LABEL,
    NO_PICTURE,
    NOT_CENTRED,
    NOT_CONTAINED,
    crop_box,
)
from pose_jax.geometry import transform
from pose_jax.heatmaps import Codec
from pose_jax.models import Outputs
from pose_jax.models.hourglass import THESIS
from pose_jax.pixels import InputSpec
from pose_jax.tasks.analyse import STUDIES
from pose_jax.tasks.crops_store import write_store
from pose_jax.training import optimiser
from pose_jax.training import state as state_
from pose_jax.training.objectives.heatmap import HeatmapObjective
from pose_jax.trees import flat_names


def two(x, y):
    """Two labelled keypoints that span x and y, and one that is not labelled."""
    points = np.array([[x[0], y[1]], [999.0, -50.0], [x[1], y[0]]], float)
    return points, np.array([2, 0, 1])


# Crops


@pytest.mark.parametrize(
    "x,y,size,box",
    [
        # Extent 40 x 100 around (120, 150): a square of 110.
        ((100, 140), (100, 200), (300, 400), (65, 95, 110, 110)),
        # The longer side may be the width.
        ((100, 200), (100, 140), (300, 400), (95, 65, 110, 110)),
        # It would start at y = -3 (and end at 302): it slides.
        ((100, 140), (2, 102), (300, 400), (65, 0, 110, 110)),
        ((100, 140), (197, 297), (300, 400), (65, 190, 110, 110)),
        # 52 px to the left, 54 to the right edge: 104 and 108 px instead of 110.
        ((32, 72), (100, 200), (300, 400), (0, 98, 104, 104)),
        ((326, 366), (100, 200), (300, 400), (292, 96, 108, 108)),
        # A picture 105 px high: shrunk to it, x-centre kept.
        ((100, 140), (3, 103), (105, 400), (67.5, 0, 105, 105)),
        # Shrunk as far as it goes: the square touches the keypoints.
        ((10, 30), (0, 40), (40, 100), (0, 0, 40, 40)),
    ],
)
def test_crops_by_hand(x, y, size, box):
    points, visible = two(x, y)
    np.testing.assert_allclose(crop_box(points, visible, size), box, atol=1e-9)


@pytest.mark.parametrize(
    "x,y,size,reason",
    [
        # 49 px to the edge, 50 needed for a square as high as the keypoints.
        ((29, 69), (100, 200), (300, 400), NOT_CENTRED),
        ((331, 371), (100, 200), (300, 400), NOT_CENTRED),
        # 200 px wide in a picture 100 px high.
        ((100, 300), (10, 20), (100, 400), NOT_CONTAINED),
        # Above and below the picture, as a label at 0 is after 1 px was subtracted.
        ((100, 140), (-1, 99), (300, 400), NOT_CONTAINED),
        ((100, 140), (250, 301), (300, 400), NOT_CONTAINED),
        # One point: an empty crop.
        ((100, 100), (50, 50), (300, 400), NOT_CONTAINED),
    ],
)
def test_rejections_by_hand(x, y, size, reason):
    points, visible = two(x, y)
    assert crop_box(points, visible, size) == reason
    assert crop_box(points, visible * 0, size) == NO_LABEL


def test_crops_keep_their_promises(generator):
    """Square, inside the picture, x-centre kept, all keypoints inside, never too large."""
    kinds = []
    for _ in range(500):
        size = tuple(int(v) for v in generator.integers(60, 200, 2))
        spread = generator.uniform(1, 160, 2)
        middle = generator.uniform(0, size[::-1])
        points = middle + generator.uniform(-0.5, 0.5, (5, 2)) * spread
        points = points.clip(0, size[::-1])
        box = crop_box(points, np.full(5, 2), size)
        kinds.append(box if isinstance(box, str) else "")
        if isinstance(box, str):
            continue
        low, high = points.min(0), points.max(0)
        assert box[2] == box[3] <= 1.1 * (high - low).max() + 1e-9
        assert (box[:2] >= -1e-6).all() and (low >= box[:2] - 1e-6).all()
        assert (box[:2] + box[2:] <= np.array(size[::-1]) + 1e-6).all()
        assert (high <= box[:2] + box[2:] + 1e-6).all()
        assert box[0] + box[2] / 2 == pytest.approx((low[0] + high[0]) / 2)
    assert kinds.count("") > 100 and kinds.count(NOT_CENTRED) > 50
    assert kinds.count(NOT_CONTAINED) > 5


@pytest.fixture
def people(tmp_path):
    """Six people in two pictures of 320 x 240; the crop of each is worked out by hand."""

    def person(number, image, *points):
        labels = np.zeros((17, 2)), np.zeros(17, int)
        for joint, point in enumerate(points):
            labels[0][joint], labels[1][joint] = point, 2
        return annotation(number, image, (5, 5, 50, 60), *labels)

    content = dataset(pictures=2, people=0)
    content["annotations"] = [
        person(1, 10, (101, 101), (141, 201)),
        person(2, 10),
        person(3, 20, (30, 101), (70, 201)),
        person(4, 20, (51, 51)),
        person(5, 20, (0, 50), (30, 50)),
        person(6, 20, (201, 101), (241, 201)),
    ]
    write_coco(tmp_path, content)
    return tmp_path


def opened(root, name="coco", **fields):
    section = config.source(name, path="people.json", images="images", **fields)
    return data.open_source(section, root=root, skeleton="coco")


def change_images(root, change):
    content = json.loads((root / "people.json").read_text())
    for image in content["images"]:
        change(image)
    (root / "people.json").write_text(json.dumps(content))


def test_sources_are_cropped_and_rejections_counted(people):
    plain, source = opened(people), opened(people, crop="thesis")
    assert len(plain) == 5 and [p.id for p in source.people] == [1, 6]
    assert source.dropped == {NO_LABEL: 1, NOT_CENTRED: 1, NOT_CONTAINED: 2}
    first = source.person(0)
    np.testing.assert_allclose(first.box, (65, 95, 110, 110))
    np.testing.assert_array_equal(first.keypoints[:2], [[100, 100], [140, 200]])
    assert not first.keypoints[2:].any()
    assert first.area == plain.person(0).area
    assert source.name == f"{plain.name} (thesis crops)"
    assert source.ground_truth == plain.ground_truth


def test_the_crop_matrix_is_the_square(people):
    source = opened(people, crop="thesis")
    view = pipeline.View(
        InputSpec(size=(220, 220), padding=1.0), False, source.skeleton
    )
    sample = pipeline.make_sample(source, 0, view)
    np.testing.assert_allclose(sample["keypoints"][:2], [[70, 10], [150, 210]])
    corners = np.array([[65.0, 95.0], [175.0, 205.0]])
    np.testing.assert_allclose(
        transform(corners, sample["matrix"]), [[0, 0], [220, 220]], atol=1e-9
    )


def test_limits_count_people_that_are_left(people):
    section = config.source("coco", path="people.json", crop="thesis", limit=2)
    source = data.open_source(section, root=people, skeleton="coco")
    assert [p.id for p in source.people] == [1, 6] and section.limit == 2
    assert len(opened(people, crop="thesis", limit=1)) == 1


@pytest.fixture
def crowd(tmp_path):
    """Twelve people with occluded joints; number 3 has no visible one."""
    content = dataset(pictures=6, people=2)
    labels = content["annotations"][2]["keypoints"]
    labels[2::3] = [min(v, 1) for v in labels[2::3]]
    write_coco(tmp_path, content)
    return tmp_path


def test_squares_are_those_of_all_labels(crowd):
    """Who trains on visible joints alone sees the windows of the others."""
    full = opened(crowd, crop="thesis")
    seen = opened(crowd, crop="thesis", labels="visible")
    expected = [p for p in full.people if (p.visible == 2).any()]
    assert [p.id for p in seen.people] == [p.id for p in expected]
    assert len(expected) == len(full) - 1 > 5
    assert seen.dropped == {**full.dropped, NO_VISIBLE: 1}
    tighter = 0
    for person, before in zip(seen.people, expected, strict=True):
        kept = before.visible == 2
        np.testing.assert_array_equal(person.box, before.box)
        np.testing.assert_array_equal(person.visible, np.where(kept, 2, 0))
        np.testing.assert_array_equal(
            person.keypoints, np.where(kept[:, None], before.keypoints, 0)
        )
        own = crop_box(person.keypoints, person.visible, (240, 320))
        tighter += isinstance(own, str) or not np.allclose(own, person.box)
    assert tighter > 3  # Squares of the visible joints would be others.
    assert seen.ground_truth == opened(crowd, labels="visible").ground_truth
    assert len(opened(crowd, crop="thesis", labels="visible", limit=3)) == 3
    least = sorted(int((p.visible == 2).sum()) for p in expected)[3]
    few = opened(crowd, crop="thesis", labels="visible", min_keypoints=least)
    assert few.people and [p.id for p in few.people] == [
        p.id for p in expected if (p.visible == 2).sum() >= least
    ]


def test_sizes_are_those_of_annotated_boxes(crowd):
    full = opened(crowd, crop="thesis")
    boxes = {p.id: p.box for p in opened(crowd).people}
    for field, side in (("min_side_px", max), ("min_height_px", lambda wh: wh[1])):
        sizes = {p.id: float(side(boxes[p.id][2:])) for p in full.people}
        least = sorted(sizes.values())[len(sizes) // 2]
        large = opened(crowd, crop="thesis", **{field: least})
        assert [p.id for p in large.people] == [i for i in sizes if sizes[i] >= least]
        assert 0 < len(large) < len(full)


@pytest.mark.parametrize("when", ["prepared", "read"])
def test_a_store_of_such_crops_holds_the_same_people(crowd, when):
    source = opened(
        crowd, crop="thesis", labels="visible" if when == "prepared" else "all"
    )
    # Corners at whole pixels are cut exactly, without scaling, so only JPEG is between.
    write_store(source, crowd / "store", CropSettings(400, 1.2, 100), {})
    store = CropsSource(crowd / "store", Filters(labels="visible"))
    raw = opened(crowd, crop="thesis", labels="visible")
    assert len(store) == len(raw) and store.dropped == raw.dropped
    view = pipeline.View(InputSpec(size=(64, 64), padding=1.0), False, raw.skeleton)
    rows = {raw.person(row).id: row for row in range(len(raw))}
    for row in range(len(store)):
        mine = pipeline.make_sample(store, row, view)
        theirs = pipeline.make_sample(raw, rows[store.person(row).id], view)
        np.testing.assert_array_equal(mine["visible"], theirs["visible"])
        labelled = mine["visible"] > 0
        np.testing.assert_allclose(
            mine["keypoints"][labelled], theirs["keypoints"][labelled], atol=1e-3
        )
        difference = mine["image"].astype(float) - theirs["image"]
        assert np.abs(difference[1:-1, 1:-1]).mean() < 2


def test_sizes_come_from_the_file_or_from_the_pictures(people):
    expected = opened(people, crop="thesis")
    change_images(people, lambda image: image.update(width=225))
    narrow = opened(people, crop="thesis")
    assert [p.id for p in narrow.people] == [1]  # The file's word counts ...
    change_images(people, lambda image: image.pop("width"))
    found = opened(people, crop="thesis")  # ... and the picture's, where it has none.
    assert [p.id for p in found.people] == [1, 6] and found.dropped == expected.dropped
    (people / "images" / "0001.jpg").write_bytes(b"rubbish")
    found = opened(people, crop="thesis")
    assert [p.id for p in found.people] == [6] and found.dropped[NO_PICTURE] == 1


def test_crops_that_cannot_be_are_refused(people):
    with pytest.raises(ValueError, match="crop is 'square'; use ''.* or 'thesis'"):
        opened(people, crop="square")
    with pytest.raises(DataError, match="'figures' lacks; use coco, mpii or lsp"):
        opened(people, "figures", crop="thesis", count=3)
    change_images(people, lambda image: image.update(width=50))
    with pytest.raises(DataError, match=f"no usable person .*3 {NOT_CENTRED}"):
        opened(people, crop="thesis")


def test_only_coco_labels_are_moved(people):
    plain = opened(people)
    still = thesis.thesis_crops(plain, first_pixel=0.0)
    np.testing.assert_array_equal(still.person(0).keypoints, plain.person(0).keypoints)
    np.testing.assert_allclose(still.person(0).box, (66, 96, 110, 110))


@pytest.mark.parametrize("part,people", [("train", 596), ("val", 170)])
def test_counts_of_real_people(data_root, part, people):
    """The thesis kept 5,064 of the 6,352 people of val2017 (80 %)."""
    section = config.source(
        "coco", path=f"coco17/person_keypoints_{part}.json", images="coco17/images",
        crop="thesis",
    )  # fmt: skip
    source = data.open_source(section, root=data_root, skeleton="coco")
    dropped = source.dropped[NOT_CENTRED] + source.dropped[NOT_CONTAINED]
    assert len(source) + dropped == people
    assert 0.75 < len(source) / people < 0.85
    assert 0.12 < source.dropped[NOT_CENTRED] / people < 0.22
    assert 0.005 < source.dropped[NOT_CONTAINED] / people < 0.05


# Configurations


@pytest.fixture(scope="module")
def hourglass(repository):
    path = repository / "configs" / "hourglass.py"
    spec = importlib.util.spec_from_file_location("hourglass_configs", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda name: module.get_config(name)


def changed(a, b):
    """Keys that differ, with the value in b (None where it has none)."""
    a, b = config.flatten(config.to_plain(a)), config.flatten(config.to_plain(b))
    return {k: b.get(k) for k in {*a, *b} if k not in a or k not in b or a[k] != b[k]}


def test_faithful_runs_start_and_are_judged_as_the_thesis(hourglass):
    for name in ("thesis", "thesis-small", "thesis-visible"):
        c = hourglass(name)
        assert c.model.init == "pytorch" and c.train.select == "heatmap_pck"
        assert c.evaluate.checkpoint == c.analyse.checkpoint == "best"
    for name in ("thesis-repaired", "thesis-stacked-ae", "thesis-small-repaired"):
        assert "init" not in hourglass(name).model
    assert hourglass("thesis-small-repaired").evaluate.checkpoint == "last"


def test_what_the_variants_of_a_run_change(hourglass):
    repaired = hourglass("thesis-repaired")
    assert changed(repaired, hourglass("thesis-repaired-leaky")) == {
        "data.train.source.holdout_unit": "person",
        "data.eval.holdout_unit": "person",
        "evaluate.name": "thesis-repaired-leaky-test",
    }
    for name in ("thesis", "thesis-small-repaired"):
        assert changed(hourglass(name), hourglass(f"{name}-visible")) == {
            "data.train.source.labels": "visible",
            "data.select.labels": "visible",
        }


def test_analyses_belong_to_the_run_they_name(hourglass):
    base, c = hourglass("thesis-small-repaired"), hourglass("thesis-small-analyse")
    assert config.identity(c) == config.identity(base)
    # An hourglass has no attention to study.
    assert set(c.analyse.studies) == set(STUDIES) - {"attention"}
    assert all(key.startswith("analyse.") or key == "tasks" for key in changed(base, c))
    for title, run in c.analyse.controls.items():
        control = hourglass(run.removeprefix("runs/"))
        levels = [] if title == "no skips" else [int(title[len("skip")])]
        assert changed(base, control) == {"model.skips": levels}
    assert len(c.analyse.controls) == 5


# Targets and loss


def test_keypoints_are_whole_crop_pixels():
    """Fractions are cut off: 130.9 / 4 rounds to cell 33, 130 / 4 (half to even) to 32."""
    codec = Codec("thesis", "argmax", sigma_px=1.0)

    def cell(x, y):
        point, visible = jnp.array([[x, y]]), jnp.array([2])
        maps = heatmaps.render(point, visible, codec, (256, 256), (64, 64))
        np.testing.assert_allclose(maps.sum(), 1, rtol=1e-6)
        return heatmaps.argmax(maps)[0].tolist()

    assert cell(130.9, 134.99) == [32, 34] and cell(131.0, 134.0) == [33, 34]


@pytest.mark.parametrize("visible,loss", [(2, 1.0042e-4), (1, 1.9432e-5), (0, 0.0)])
def test_loss_of_the_answer_nothing(visible, loss):
    """One joint of a 64 x 64 map, supervised by the mean over pixels."""
    objective = HeatmapObjective(
        module=nn.Module(), spec=InputSpec(size=(256, 256)), codec=Codec("thesis", "argmax"),
        unlabelled_as_empty=True,
    )  # fmt: skip
    batch = {
        "keypoints": jnp.array([[[100.0, 140.0]]]),
        "visible": jnp.array([[visible]]),
        "weight": jnp.array([[float(visible > 0)]]),
        "mask": jnp.array([True]),
    }
    outputs = Outputs(heatmaps=jnp.zeros((1, 1, 64, 64, 1)))
    found, zero = objective.supervise(outputs, batch)
    np.testing.assert_allclose(found.compute(), loss, rtol=5e-5)
    np.testing.assert_allclose(zero.compute(), found.compute())


# Optimiser


def gradients():
    """Twenty gradients per weight over eight orders of magnitude, zeros among them."""
    generator = np.random.default_rng(3)
    scale = 10.0 ** np.array([-10, -9, -8, -7, -6, -4, -2, 0])
    values = generator.normal(size=(20, 8)) * scale
    values[generator.random((20, 8)) < 0.1] = 0
    return generator.normal(size=8), values


def ours(start, values):
    section = config.default().optimiser
    section.update(name="rmsprop", learning_rate=2.5e-4, decay=0.99)
    rule, _ = optimiser.make_optimiser(section, 20, lambda _: True)
    params = {"w": jnp.asarray(start)}
    state, steps = rule.init(params), []
    for g in values:
        updates, state = rule.update({"w": jnp.asarray(g)}, state, params)
        params = optax.apply_updates(params, updates)
        steps.append(np.asarray(params["w"]))
    return np.stack(steps)


def by_hand(start, values):
    """PyTorch's documented rule, float64: v from zero, w -= lr g / (sqrt(v) + eps)."""
    w, v, steps = start.copy(), np.zeros_like(start), []
    for g in values:
        v = 0.99 * v + 0.01 * g**2
        w = w - 2.5e-4 * g / (np.sqrt(v) + 1e-8)
        steps.append(w)
    return np.stack(steps)


def test_rmsprop_is_pytorchs_over_twenty_steps(x64):
    start, values = gradients()
    expected = by_hand(start, values)
    assert np.abs(expected[-1] - start).min() > 1e-6  # Every weight moves by more.
    np.testing.assert_allclose(ours(start, values), expected, rtol=0, atol=1e-12)


def test_rmsprop_in_single_precision():
    start, values = (x.astype(np.float32) for x in gradients())
    expected = by_hand(start.astype(float), values.astype(float))
    np.testing.assert_allclose(ours(start, values), expected, rtol=0, atol=1e-6)


@pytest.mark.parity
def test_rmsprop_and_plateau_against_pytorch(x64):
    torch = pytest.importorskip("torch")
    start, values = gradients()
    weight = torch.tensor(start, requires_grad=True)
    rule = torch.optim.RMSprop([weight], lr=2.5e-4, alpha=0.99, eps=1e-8)
    steps = []
    for g in values:
        weight.grad = torch.tensor(g)
        rule.step()
        steps.append(weight.detach().numpy().copy())
    np.testing.assert_allclose(ours(start, values), np.stack(steps), atol=1e-12)

    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        rule, mode="max", factor=0.2, patience=5, min_lr=5e-5
    )
    plateau = state_.plateau_start()
    # Rises below the relative threshold of 1e-4 count as none.
    readings = [0.1, 0.4, *[0.4 * (1 + 0.9e-4)] * 5, 0.39, 0.2, 0.5, *[0.3] * 14]
    scales = []
    for reading in readings:
        schedule.step(reading)
        plateau = state_.plateau_update(
            plateau, reading, factor=0.2, patience=5, floor_scale=5e-5 / 2.5e-4
        )
        scales.append(float(plateau.scale))
        assert 2.5e-4 * scales[-1] == pytest.approx(rule.param_groups[0]["lr"])
    assert scales[6] == 1 and scales[7] == pytest.approx(0.2) == scales[-1]


# Resuming


TINY = dict(features=8, stem=(4, 4, 8), depth=1, bottleneck_residuals=1)


def faithful():
    c = tiny_config(steps=6, save_every=3, eval_every=6, ema=0.0)
    c.codec.update(encode="thesis", decode="argmax", activation="none", flip="none")
    c.objective.update(loss="mse", unlabelled_as_empty=True)
    c.optimiser.update(
        name="rmsprop", learning_rate=2.5e-4, schedule="plateau", factor=0.2,
        patience=5, floor=5e-5,
    )  # fmt: skip
    c.model = ConfigDict(dict(name="hourglass", **{**THESIS, **TINY}))
    c.train.select = "heatmap_pck"
    return c


def leaves(workdir, step):
    tree, _ = checkpoint.load_variables(workdir, step)
    return flat_names(tree)


def test_a_resumed_run_really_moves(tmp_path):
    """The thesis's resumed runs trained a copy of the weights (its defect D1): here every
    parameter moves on after the stop, to where an uninterrupted run takes it."""
    from pose_jax.tasks import train

    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    train.run(faithful(), str(straight))
    loop = train.Loop(faithful(), str(stopped))
    step, count = loop.train_step, 0

    def interrupted(state, batch):
        nonlocal count
        count += 1
        if count == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(state, batch)

    loop.train_step = interrupted
    with pytest.raises(UserError, match="stopped by SIGINT at step 3"):
        loop.run()
    before = leaves(stopped, 3)
    train.run(faithful(), str(stopped))
    after, whole = leaves(stopped, 6), leaves(straight, 6)
    assert before.keys() == after.keys() == whole.keys() and len(after) > 50
    for name in after:
        assert not np.array_equal(before[name], after[name]), f"{name} stands still"
        np.testing.assert_array_equal(after[name], whole[name], err_msg=name)
    rows = (stopped / "metrics.jsonl").read_text().splitlines()
    assert any("train/zero_map_loss" in json.loads(row) for row in rows)
