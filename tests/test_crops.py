"""The crops store: exact geometry, the same numbers as the original, atomic preparation."""

import json
import os
import pickle
import time
from collections import Counter

import cv2
import numpy as np
import pytest
from folders import dataset, same_person, write_coco

from pose_jax import config, data, geometry, skeletons
from pose_jax.data import crops, people_table, pipeline
from pose_jax.data.augment import Augment
from pose_jax.data.checks import DataError
from pose_jax.data.crops import CropSettings, CropsSource
from pose_jax.data.images import ImageError
from pose_jax.data.sources import Filters, Person, Source
from pose_jax.metrics.similarity import oks
from pose_jax.pixels import InputSpec
from pose_jax.tasks import prepare

PEOPLE, PICTURES = 24, 8


def prepare_config(**fields):
    c = config.default()
    c.input.size = (64, 64)
    c.prepare.source = config.source("coco", path="people.json", images="images")
    c.prepare.update(path="store", **fields)
    return c


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A COCO folder; every person is larger than the crops are."""
    folder = tmp_path_factory.mktemp("data")
    write_coco(folder, dataset(PICTURES, 3))
    return folder


@pytest.fixture(scope="module")
def store(root):
    """A store of small crops beside its data set, and the two sources."""
    old = os.environ.get("POSE_JAX_DATA")
    os.environ["POSE_JAX_DATA"] = str(root)
    prepare.run(prepare_config(crop_side_px=120, quality=95), "")
    os.environ.pop("POSE_JAX_DATA")
    if old is not None:
        os.environ["POSE_JAX_DATA"] = old
    original = data.open_source(
        config.source("coco", path="people.json", images="images"),
        root=root, skeleton="coco",
    )  # fmt: skip
    return CropsSource(root / "store"), original


def by_id(source):
    return {source.person(row).id: row for row in range(len(source))}


# Geometry


def blob(size, centre, sigma=9.0):
    y, x = np.mgrid[: size[0], : size[1]]
    square = (x - centre[0]) ** 2 + (y - centre[1]) ** 2
    grey = (250 * np.exp(-square / (2 * sigma**2))).astype(np.uint8)
    return np.repeat(grey[..., None], 3, 2)


def centroid(image):
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    weight = image[..., 0].astype(float)
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


@pytest.mark.parametrize("side_px", [61, 97, 150, 228, 1000])
def test_a_point_of_the_picture_lies_where_the_matrix_says(side_px, generator):
    settings = CropSettings(side_px=side_px, margin=1.5)
    for _ in range(8):
        size = generator.integers(250, 400, 2)
        centre = generator.uniform(100, 150, 2)
        image = blob(size, centre)
        sides = generator.uniform(110, 190, 2)
        box = np.r_[centre - sides * generator.uniform(0.3, 0.7, 2), sides]
        crop, matrix = crops.cut(image, box, settings)
        found = geometry.transform(centroid(image)[None], matrix)[0]
        np.testing.assert_allclose(centroid(crop), found, atol=0.02)


def test_the_matrix_is_a_whole_translation_and_one_factor(generator):
    image = np.zeros((300, 400, 3), np.uint8)
    for _ in range(20):
        sides = generator.uniform(20, 300, 2)
        box = np.r_[generator.uniform(0, (400, 300) - sides), sides]
        crop, matrix = crops.cut(image, box, CropSettings(side_px=100))
        scale = matrix[0, 0]
        assert matrix[1, 1] == scale <= 1 and matrix[0, 1] == matrix[1, 0] == 0
        assert scale == pytest.approx(min(1, 100 / (1.8 * sides.max())))
        # The upper left pixel corner of the crop is a pixel corner of the picture.
        corner = (np.array([-0.5, -0.5]) - matrix[:2, 2]) / scale
        np.testing.assert_allclose(corner + 0.5, np.rint(corner + 0.5), atol=1e-9)
        assert max(crop.shape[:2]) <= 102
        low, high = box[:2], box[:2] + box[2:]
        inside = geometry.transform(np.stack([low, high]), matrix)
        assert (inside >= -1).all() and (inside <= np.array(crop.shape[1::-1])).all()


def test_small_people_are_not_enlarged():
    image = blob((100, 100), (50, 50))
    crop, matrix = crops.cut(image, np.array([40.0, 35, 20, 30]), CropSettings())
    assert matrix[0, 0] == 1 and crop.shape == (54, 54, 3)
    np.testing.assert_array_equal(crop, image[23:77, 23:77])


def test_a_box_outside_of_the_picture_has_no_crop():
    image = np.zeros((50, 60, 3), np.uint8)
    settings = CropSettings(side_px=16)
    for box in ([200, 10, 20, 20], [10, -90, 20, 20], [-400.0, 0, 250, 250]):
        assert crops.cut(image, np.array(box, float), settings) is None
    # A sliver that would scale to less than a pixel.
    assert crops.cut(image, np.array([59.0 + 400, 0, 1000, 1000]), settings) is None


def test_records_survive_the_round_trip(generator):
    person = Person(
        7, 70, "ü.jpg", np.array([1.5, 2, 30, 40]), generator.random((17, 2)),
        np.arange(17) % 3, 55.5, head_size=9.25,
    )  # fmt: skip
    matrix = np.array([[0.5, 0, 3], [0, 0.5, 4], [0, 0, 1]])
    fields = crops.unpack(crops.pack(blob((40, 50), (20, 20)), person, matrix, 90))
    same_person(crops.person_of(fields), person)
    np.testing.assert_array_equal(fields["matrix"], matrix)
    assert cv2.imdecode(np.frombuffer(fields["jpeg"], np.uint8), 1).shape == (40, 50, 3)


@pytest.mark.parametrize(
    "fields", [dict(side_px=5), dict(margin=0.9), dict(quality=0), dict(quality=101)]
)
def test_impossible_settings_are_refused(fields):
    with pytest.raises(ValueError, match="give side_px of 16 or more"):
        CropSettings(**fields)


# The store as a source


def test_every_person_is_there_in_crop_pixels(store):
    source, original = store
    assert isinstance(source, Source)
    assert len(source) == len(original) == PEOPLE
    assert source.skeleton is skeletons.COCO
    rows = by_id(source)
    for row in range(PEOPLE):
        truth = original.person(row)
        there = rows[truth.id]
        record, person = source.record(there), source.person(there)
        same_person(person, crops.move(truth, record["matrix"]))
        same_person(person, crops.person_of(record))
        image = source.image(there)
        assert image.shape[2] == 3 and max(image.shape) <= 122
        back = geometry.invert(person.keypoints, record["matrix"])
        labelled = person.visible > 0
        np.testing.assert_allclose(back[labelled], truth.keypoints[labelled], atol=1e-9)


def test_training_samples_are_those_of_the_original(store):
    """The same person and the same draws give the same keypoints and (nearly) pixels."""
    source, original = store
    view = pipeline.View(InputSpec(size=(64, 64)), True, skeletons.COCO)
    augment = Augment(flip=0.5, rotation_deg=20, scale=0.2, shift=0.05, half_body=0.3)
    rows = by_id(source)
    differences = []
    for row in range(PEOPLE):
        there = rows[original.person(row).id]
        for draw in range(2):
            a = pipeline.make_sample(
                original, row, view, augment, np.random.default_rng(draw)
            )
            b = pipeline.make_sample(
                source, there, view, augment, np.random.default_rng(draw)
            )
            np.testing.assert_allclose(a["keypoints"], b["keypoints"], atol=1e-4)
            np.testing.assert_array_equal(a["visible"], b["visible"])
            inner = np.s_[8:-8, 8:-8]
            difference = a["image"][inner].astype(int) - b["image"][inner]
            differences.append(np.abs(difference).mean())
    # The pictures are smooth, so a shift by one crop pixel costs more than this.
    assert np.median(differences) < 2.5


def test_scores_do_not_depend_on_the_scale(store, generator):
    """OKS and PCK of the same relative error are equal in both frames."""
    source, original = store
    sigmas = np.array(skeletons.COCO.sigmas)
    rows = by_id(source)
    for row in range(6):
        truth = original.person(row)
        there = rows[truth.id]
        stored, matrix = source.person(there), source.record(there)["matrix"]
        guess = truth.keypoints + generator.normal(0, 8, (17, 2))
        moved = geometry.transform(guess, matrix)
        labelled = truth.visible > 0
        a = oks(guess, truth.keypoints, labelled, truth.area, sigmas)
        b = oks(moved, stored.keypoints, labelled, stored.area, sigmas)
        assert 0 < float(a) < 1
        assert float(a) == pytest.approx(float(b), rel=1e-4)
        far = np.linalg.norm(guess - truth.keypoints, axis=1) / truth.box[2:].max()
        near = np.linalg.norm(moved - stored.keypoints, axis=1) / stored.box[2:].max()
        np.testing.assert_allclose(far[labelled], near[labelled], rtol=1e-9)


def test_head_sizes_scale_too():
    person = Person(
        1, 1, "a", np.array([0.0, 0, 10, 10]), np.ones((17, 2)), np.full(17, 2), 50.0,
        head_size=8.0,
    )  # fmt: skip
    moved = crops.move(person, np.diag([0.25, 0.25, 1]))
    assert moved.head_size == 2 and moved.area == pytest.approx(50 / 16)


def test_coco_ap_is_refused(store, root):
    source, _ = store
    with pytest.raises(DataError, match="COCO AP needs every person of a picture"):
        source.ground_truth  # noqa: B018
    section = config.source("crops", path="store")
    with pytest.raises(DataError, match="original annotation file"):
        data.open_source(section, root=root, skeleton="coco", need_area=True)
    boxes = data.open_source(section, root=root, skeleton="coco", area_source="box")
    person = boxes.person(3)
    assert person.area == pytest.approx(0.53 * person.box[2] * person.box[3])


def test_filters_count_original_pixels_and_pictures(store, root):
    source, original = store
    sides = sorted(float(p.box[2:].max()) for p in original.people)
    labels = sorted(int((p.visible > 0).sum()) for p in original.people)
    side, least = (sides[7] + sides[8]) / 2, labels[10]
    large = CropsSource(root / "store", Filters(min_side_px=side))
    assert len(large) == PEOPLE - 8
    assert large.dropped == {f"smaller than {side:g} px": 8}
    many = CropsSource(root / "store", Filters(min_keypoints=least))
    assert len(many) == sum(n >= least for n in labels)
    assert len(CropsSource(root / "store", Filters(limit=5))) == 5
    parts = [
        CropsSource(root / "store", Filters(part=part, holdout=0.4))
        for part in ("train", "held_out")
    ]
    ids = [{p.person(row).image_id for row in range(len(p))} for p in parts]
    assert ids[0] and ids[1] and not ids[0] & ids[1]
    assert ids[0] == {
        p.image_id
        for p in original.people
        if Filters(part="train", holdout=0.4).in_part(p.image_id)
    }
    with pytest.raises(DataError, match="no usable person.*24 smaller than 9999 px"):
        CropsSource(root / "store", Filters(min_side_px=9999))


def test_splits_by_person_and_visible_labels(store, root):
    source, original = store
    everyone = {p.id for p in original.people}
    fields = dict(holdout=0.4, holdout_unit="person")
    parts = [
        CropsSource(root / "store", Filters(part=part, **fields))
        for part in ("train", "held_out")
    ]
    people = [[p.person(row) for row in range(len(p))] for p in parts]
    ids = [{p.id for p in half} for half in people]
    assert ids[0] | ids[1] == everyone and not ids[0] & ids[1]
    assert {p.image_id for p in people[0]} & {p.image_id for p in people[1]}
    wanted = Filters(part="held_out", **fields)
    assert ids[1] == {p.id for p in original.people if wanted.in_part(p.image_id, p.id)}
    least = sorted(int((p.visible == 2).sum()) for p in original.people)[9]
    seen = CropsSource(root / "store", Filters(labels="visible", min_keypoints=least))
    assert len(seen) == sum((p.visible == 2).sum() >= least for p in original.people)
    hidden = 0
    for row in range(len(seen)):
        person = seen.person(row)
        full = source.person(int(seen.rows[row]))
        hidden += (full.visible == 1).sum()
        np.testing.assert_array_equal(person.visible, full.visible * (full.visible > 1))
        assert not person.keypoints[person.visible == 0].any()
    assert hidden and len(pickle.loads(pickle.dumps(seen))) == len(seen)


def test_tables_count_people_without_visible_joints(store):
    source, _ = store
    table = source._table.copy()
    table["visible"][:3] = np.minimum(table["visible"][:3], 1)
    table["visible"][3, 2:] = np.minimum(table["visible"][3, 2:], 1)
    table["visible"][3, :2] = 2
    dropped = Counter()
    rows = people_table.select_rows(
        table, Filters(labels="visible", min_keypoints=3), dropped, "people"
    )
    assert dropped["without visible keypoints"] == 3
    assert dropped["with fewer than 3 keypoints"] >= 1
    assert len(rows) == len(table) - sum(dropped.values())


def test_thesis_crops_come_from_whole_pictures(root, store):
    section = config.source("crops", path="store", crop="thesis")
    with pytest.raises(DataError, match="'crops' lacks; use coco, mpii or lsp"):
        data.open_source(section, root=root, skeleton="coco")


def test_weights_of_a_store(root, store):
    ids = [store[0].person(row).id for row in (4, 7)]
    np.savez(root / "weights.npz", id=ids, weight=[0.5, 3.0])
    section = config.source("crops", path="store", weights="weights.npz")
    source = data.open_source(section, root=root, skeleton="coco")
    source = pickle.loads(pickle.dumps(source))
    weights = [source.person(row).weight for row in range(len(source))]
    expected = np.ones(PEOPLE)
    expected[[4, 7]] = 0.5, 3.0
    assert weights == expected.tolist() and len(source) == PEOPLE
    np.testing.assert_array_equal(source.image(4), store[0].image(4))
    assert source.name == store[0].name and source.dropped == store[0].dropped
    with pytest.raises(DataError, match="COCO AP"):
        _ = source.ground_truth


def test_sources_travel_to_worker_processes(store, root):
    source = CropsSource(root / "store", Filters(limit=7))
    source.image(2)  # An open reader must not hinder.
    sent = pickle.dumps(source)
    assert len(sent) < 2000  # Paths, not tables.
    twin = pickle.loads(sent)
    assert len(twin) == 7
    np.testing.assert_array_equal(twin.image(2), source.image(2))
    same_person(twin.person(2), source.person(2))


def test_the_training_iterator_reads_it(store):
    source, _ = store
    view = pipeline.View(InputSpec(size=(32, 32)), True, skeletons.COCO)
    batches = pipeline.train_iterator(source, view, Augment(), batch=8, seed=0)
    seen = np.concatenate([next(batches)["id"] for _ in range(3)])
    assert sorted(seen) == list(range(PEOPLE))


def test_a_large_table_opens_quickly(tmp_path):
    count = 150_000
    person = Person(
        1, 1, "000000000001.jpg", np.array([0.0, 0, 100, 200]), np.ones((17, 2)),
        np.full(17, 2), 50.0,
    )  # fmt: skip
    row = people_table.to_table([person], [0], [1.0])
    table = np.repeat(row, count)
    table["image_id"] = np.arange(count) // 3
    np.save(tmp_path / "people.npy", table)
    start = time.process_time()
    opened = people_table.load_table(tmp_path / "people.npy")
    filters = Filters(part="train", holdout=0.1, min_side_px=32)
    rows = people_table.select_rows(opened, filters, Counter(), "t")
    assert 0.89 * count < len(rows) < 0.91 * count
    assert people_table.person_at(opened, int(rows[-1])).file_name == person.file_name
    assert time.process_time() - start < 2


# Damage


def copied(store_folder, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in store_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_damaged_stores_are_refused(store, root, tmp_path):
    with pytest.raises(DataError, match="nowhere is no crops store; make one"):
        CropsSource(tmp_path / "nowhere")
    folder = copied(root / "store", tmp_path)
    index = json.loads((folder / "index.json").read_text())

    def rewrite(**fields):
        (folder / "index.json").write_text(json.dumps({**index, **fields}))

    rewrite(version=99)
    with pytest.raises(DataError, match="format version 99, this program reads 1"):
        CropsSource(folder)
    rewrite(people=3)
    with pytest.raises(
        DataError, match="damaged: 3 people are promised, the table holds 24"
    ):
        CropsSource(folder)
    rewrite()
    (folder / "people.npy").write_bytes(b"rubbish")
    with pytest.raises(DataError, match="people.npy cannot be read"):
        CropsSource(folder)
    (folder / "people.npy").unlink()
    with pytest.raises(DataError, match="people.npy cannot be read"):
        CropsSource(folder)
    (folder / "people.npy").write_bytes((root / "store/people.npy").read_bytes())
    whole = (folder / "people.array_record").read_bytes()
    (folder / "people.array_record").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="people.array_record cannot be read"):
        CropsSource(folder)


def test_a_damaged_record_is_an_unreadable_picture(store, root, tmp_path):
    folder = copied(root / "store", tmp_path)
    content = bytearray((folder / "people.array_record").read_bytes())
    jpegs = [store[0].record(row)["jpeg"] for row in range(PEOPLE)]
    content[content.index(jpegs[0]) + 200] ^= 255
    (folder / "people.array_record").write_bytes(content)
    source = CropsSource(folder)
    with pytest.raises(ImageError, match="row 0: damaged"):
        source.image(0)
    same_person(source.person(0), store[0].person(0))
