"""COCO-format sources: filters, skeletons, every fault named; decoding pictures strictly."""

import copy
import dataclasses
import io
import json
import math

import numpy as np
import pytest
from folders import annotation, dataset, jpeg, picture, same_person, write_coco
from PIL import Image as PillowImage

from pose_jax import config, data, skeletons
from pose_jax.data import images, sources
from pose_jax.data.checks import DataError, check_unreadable, require_some
from pose_jax.data.images import ImageError, decode_image, read_image
from pose_jax.data.sources import Filters, Source


@pytest.fixture(scope="module")
def content():
    return dataset(pictures=6, people=2)


@pytest.fixture
def opened(tmp_path, content):
    """A function that writes a (changed) data set and opens it."""

    def make(change=lambda d: None, **options):
        changed = copy.deepcopy(content)
        changed = change(changed) or changed
        path = tmp_path / "people.json"
        path.write_text(json.dumps(changed))
        return sources.coco(path, tmp_path / "images", **options)

    return make


# The source


def test_people_and_pictures_by_row(tmp_path, content):
    path = write_coco(tmp_path, content)
    source = sources.coco(path, tmp_path / "images")
    assert isinstance(source, Source) and len(source) == 12
    assert source.skeleton is skeletons.COCO and source.name == str(path)
    for row, truth in enumerate(content["annotations"]):
        person = source.person(row)
        numbers = np.reshape(truth["keypoints"], (17, 3))
        np.testing.assert_array_equal(person.keypoints, numbers[:, :2])
        np.testing.assert_array_equal(person.visible, numbers[:, 2])
        np.testing.assert_array_equal(person.box, truth["bbox"])
        assert person.id == truth["id"] and person.image_id == truth["image_id"]
        assert person.area == truth["area"]
        assert math.isnan(person.head_size) and person.box_score == 1
        assert source.image(row).shape == (240, 320, 3)
        assert source.path(row) == tmp_path / "images" / person.file_name
    assert source.ground_truth == content


def test_unlabelled_keypoints_are_zero_whatever_the_file_says(opened):
    def rubbish(d):
        d["annotations"][0]["keypoints"][3:6] = [77, 88, 0]

    person = opened(rubbish).person(0)
    assert person.visible[1] == 0 and (person.keypoints[1] == 0).all()


def test_crowds_and_people_without_labels_are_dropped_and_counted(opened):
    def change(d):
        d["annotations"][0]["iscrowd"] = 1
        d["annotations"][1]["keypoints"][2::3] = [0] * 17
        d["annotations"][2]["keypoints"] = []

    source = opened(change)
    assert [p.id for p in source.people] == list(range(4, 13))
    assert source.dropped == {"crowd": 1, "without labelled keypoints": 2}


def test_areas(opened):
    def change(d):
        del d["annotations"][0]["area"]
        d["annotations"][1]["area"] = float("nan")

    source, boxes = opened(change), opened(area_source="box")
    for row in (0, 1):  # Missing: 0.53 of the box.
        box = source.person(row).box
        assert source.person(row).area == pytest.approx(0.53 * box[2] * box[3])
    assert source.person(2).area == pytest.approx(
        0.4 * np.prod(source.person(2).box[2:])
    )
    for person in boxes.people:
        assert person.area == pytest.approx(0.53 * np.prod(person.box[2:]))


def test_filters_drop_by_keypoints_and_size(opened):
    full = opened()
    labels = [int((p.visible > 0).sum()) for p in full.people]
    sides = [float(p.box[2:].max()) for p in full.people]
    least, side = sorted(labels)[4], sorted(sides)[5]
    source = opened(filters=Filters(min_keypoints=least))
    assert len(source) == sum(n >= least for n in labels) < 12
    assert source.dropped == {f"with fewer than {least} keypoints": 12 - len(source)}
    source = opened(filters=Filters(min_side_px=side))
    assert len(source) == 7
    assert source.dropped == {f"smaller than {side:g} px": 5}
    assert [p.id for p in opened(filters=Filters(limit=5)).people] == [1, 2, 3, 4, 5]


def test_parts_split_by_picture_and_are_complementary(tmp_path):
    write_coco(tmp_path, dataset(pictures=60, people=2))
    path = tmp_path / "people.json"

    def part(name):
        filters = Filters(part=name, holdout=0.3)
        return sources.coco(path, tmp_path / "images", filters=filters)

    train, held = part("train"), part("held_out")
    pictures = [{p.image_id for p in s.people} for s in (train, held)]
    assert not pictures[0] & pictures[1]
    assert len(pictures[0] | pictures[1]) == 60
    assert 8 <= len(pictures[1]) <= 28
    assert {p.image_id for p in part("held_out").people} == pictures[1]
    truth = held.ground_truth
    assert {row["id"] for row in truth["images"]} == pictures[1]
    assert {a["image_id"] for a in truth["annotations"]} == pictures[1]


def test_a_split_by_person_shares_pictures(tmp_path):
    content = dataset(pictures=30, people=4)
    path = write_coco(tmp_path, content)

    def part(name):
        filters = Filters(part=name, holdout=0.3, holdout_unit="person")
        return sources.coco(path, tmp_path / "images", filters=filters)

    train, held = part("train"), part("held_out")
    ids = [{p.id for p in s.people} for s in (train, held)]
    assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == 120
    assert 20 < len(ids[1]) < 52
    pictures = [{p.image_id for p in s.people} for s in (train, held)]
    assert len(pictures[0] & pictures[1]) > 10
    # Scores of a part see all people of its pictures and ignore the others.
    truth = held.ground_truth
    assert {row["id"] for row in truth["images"]} == pictures[1]
    listed = {a["id"] for a in content["annotations"] if a["image_id"] in pictures[1]}
    assert {a["id"] for a in truth["annotations"]} == listed > ids[1]


def test_occluded_joints_may_count_as_unlabelled(opened, content):
    def change(d):
        for position, v in enumerate(d["annotations"][2]["keypoints"][2::3]):
            d["annotations"][2]["keypoints"][3 * position + 2] = min(v, 1)

    full, seen = opened(change), opened(change, filters=Filters(labels="visible"))
    assert len(full) == 12 and len(seen) == 11
    assert seen.dropped == {"without visible keypoints": 1}
    people, hidden = {p.id: p for p in full.people}, 0
    for person in seen.people:
        before = people[person.id]
        kept = before.visible == 2
        hidden += (before.visible == 1).sum()
        np.testing.assert_array_equal(person.visible, np.where(kept, 2, 0))
        np.testing.assert_array_equal(person.keypoints[kept], before.keypoints[kept])
        assert not person.keypoints[~kept].any()
    assert hidden > 10
    for a in seen.ground_truth["annotations"]:
        visible = np.array(a["keypoints"][2::3])
        assert set(visible) <= {0, 2} and a["num_keypoints"] == (visible == 2).sum()
    least = sorted(int((p.visible == 2).sum()) for p in full.people)[6]
    few = opened(change, filters=Filters(labels="visible", min_keypoints=least))
    assert len(few) == sum((p.visible == 2).sum() >= least for p in full.people) < 11


def test_an_opened_source_is_narrowed(opened, content):
    """As if it had been opened so; counts of who is left out add up, boxes stay."""
    full = opened()
    filters = Filters(
        labels="visible", min_keypoints=9, limit=4, part="train", holdout=0.5
    )
    found = sources.narrow(full, filters)
    wanted = opened(filters=Filters(labels="visible", min_keypoints=9, limit=4))
    assert [p.id for p in found.people] == [p.id for p in wanted.people]
    assert found.dropped == wanted.dropped and full.dropped == {}
    assert found.ground_truth == wanted.ground_truth and full.ground_truth == content
    for one, other in zip(found.people, wanted.people, strict=True):
        same_person(one, other)
    counts = [int((p.visible > 0).sum()) for p in found.people]
    again = sources.narrow(found, Filters(min_keypoints=max(counts)))
    left = counts.count(max(counts))
    assert len(again) == left < 4
    reason = f"with fewer than {max(counts)} keypoints"
    assert again.dropped == {**found.dropped, reason: 4 - left}
    bare = sources.narrow(dataclasses.replace(full, ground_truth=None), filters)
    assert bare.ground_truth is None and len(bare) == 4
    with pytest.raises(DataError, match="no usable person .*fewer than 99"):
        sources.narrow(full, Filters(min_keypoints=99))


# Weights


def test_weights_come_from_a_file(tmp_path, content):
    write_coco(tmp_path, content)

    def people(ids, weights, **fields):
        np.savez(tmp_path / "weights.npz", id=ids, weight=weights)
        section = config.source(
            "coco", path="people.json", weights="weights.npz", **fields
        )
        source = data.open_source(section, root=tmp_path, skeleton="coco")
        assert isinstance(source, sources.PeopleSource)
        return [p.weight for p in source.people]

    assert people([2, 12], [0.5, 4]) == [1, 0.5, *[1] * 9, 4]
    assert people(["2", "12"], [0.0, 4.0]) == [1, 0, *[1] * 9, 4]
    assert people(np.zeros(0, int), np.zeros(0)) == [1] * 12
    for ids, weights, message in [
        ([2, 99, 98], [1, 1, 1], "2 of 3 ids are not in .* first is 99"),
        ([2, 3], [1, -0.1], "1 weights are negative or not finite .* id 3"),
        ([2, 3], [np.nan, np.inf], "2 weights are negative or not finite"),
        ([2, 3], [1], r"id has shape \(2,\), weight \(1,\)"),
        ([2, 2], [1, 1], "1 ids are listed twice"),
    ]:
        with pytest.raises(DataError, match=message):
            people(ids, weights)
    with pytest.raises(DataError, match="1 of 1 ids are not in"):
        people([12], [1.0], limit=3)


def test_files_that_hold_no_weights(tmp_path, content):
    write_coco(tmp_path, content)
    np.savez(tmp_path / "other.npz", id=[1], factor=[1.0])
    np.savez(tmp_path / "words.npz", id=[1], weight=["much"])
    np.save(tmp_path / "plain.npy", np.ones(3))
    (tmp_path / "text.npz").write_text("PK hello")
    for name, message in [
        ("nowhere.npz", "nowhere.npz does not exist; give a path under POSE_JAX_DATA"),
        ("other.npz", "is no .npz with the arrays 'id' and 'weight'"),
        ("words.npz", "is no .npz with the arrays"),
        ("plain.npy", "is no .npz with the arrays"),
        ("text.npz", "is no .npz with the arrays"),
    ]:
        section = config.source("coco", path="people.json", weights=name)
        with pytest.raises(DataError, match=message):
            data.open_source(section, root=tmp_path, skeleton="coco")


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"part": "test"}, "use all, train or held_out"),
        ({"part": "train"}, "needs 0 < holdout < 1"),
        ({"part": "held_out", "holdout": 1.0}, "needs 0 < holdout < 1"),
        ({"holdout_unit": "crop"}, "holdout_unit is 'crop'; use image or person"),
        ({"labels": "occluded"}, "labels is 'occluded'; use all or visible"),
    ],
)
def test_impossible_filters_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Filters(**fields)


# Skeletons of files


def test_registered_skeletons_are_known_by_their_names(opened):
    def aic(d):
        names = [k.replace("_", " ").title() for k in skeletons.AIC.keypoints]
        d["categories"][0]["keypoints"] = names
        for a in d["annotations"]:
            a["keypoints"] = a["keypoints"][: 3 * 14]

    assert opened(aic).skeleton is skeletons.AIC


def test_other_bodies_get_their_own_skeleton(opened):
    def cat(d):
        d["categories"][0]["keypoints"] = ["nose", "left_paw", "right_paw", "tail"]
        d["categories"][0]["skeleton"] = [[1, 4], [2, 4]]
        for a in d["annotations"]:
            a["keypoints"] = a["keypoints"][: 3 * 4]

    skeleton = opened(cat).skeleton
    assert skeleton.keypoints == ("nose", "left_paw", "right_paw", "tail")
    assert skeleton.limbs == (("nose", "tail"), ("left_paw", "tail"))
    assert skeleton.mirrored.tolist() == [0, 2, 1, 3]

    def copied_limbs(d):  # As in CrowdPose's file: those of another body.
        cat(d)
        d["categories"][0]["skeleton"] = [[1, 4], [17, 15]]

    assert opened(copied_limbs).skeleton.limbs == ()


@pytest.mark.parametrize(
    "path,skeleton,people",
    [
        ("format_samples/crowdpose/test_crowdpose.json", "crowdpose", 4),
        ("format_samples/aic/test_aic.json", "aic", 9),
        ("format_samples/ochuman/test_ochuman.json", "coco", 5),
        ("format_samples/coco_mmpose/test_coco.json", "coco", 12),
        ("lspet/lspet_val.json", "lsp", 451),
        ("coco17/person_keypoints_val.json", "coco", 170),
    ],
)
def test_real_files_of_many_data_sets(data_root, path, skeleton, people):
    source = sources.coco(data_root / path, data_root)
    assert source.skeleton is skeletons.get(skeleton)
    assert len(source) == people
    for person in source.people:
        low, high = person.box[:2], person.box[:2] + person.box[2:]
        points = person.keypoints[person.visible > 0]
        inside = ((points >= low - 0.2 * (high - low)) & (points <= high * 1.2)).all(1)
        assert inside.mean() > 0.5, person


# Faults of files


def first(**fields):
    """A change of the first annotation; None removes a key."""

    def change(d):
        for name, value in fields.items():
            d["annotations"][0][name] = value
            if value is None:
                del d["annotations"][0][name]

    return change


def number(position, value):
    def change(d):
        d["annotations"][0]["keypoints"][position] = value

    return change


def twice(key):
    def change(d):
        d[key].append(copy.deepcopy(d[key][0]))

    return change


FAULTS = [
    (lambda d: [1, 2], "holds no JSON object; a COCO file is an object"),
    (lambda d: {"images": []}, "no list 'annotations'"),
    (lambda d: d.pop("images") and None, "no list 'images'"),
    (lambda d: d.update(categories={}), "no list 'categories'"),
    (lambda d: d["annotations"][3].pop("id") and None, "1 annotations have no id"),
    (lambda d: d["images"][3].pop("id") and None, "1 images have no id"),
    (first(id="a"), r"1 ids in annotations are no integers \(a\); number them"),
    (lambda d: d["images"][0].update(id=1.5), r"1 ids in images are no integers"),
    (twice("annotations"), r"1 duplicate ids in annotations \(1\)"),
    (twice("images"), r"1 duplicate ids in images \(10\)"),
    (lambda d: d["images"][1].pop("file_name") and None, r"no file_name \(ids 20\)"),
    (first(image_id=99), r"not listed \(annotation ids 1\)"),
    (lambda d: d["categories"][0].pop("keypoints") and None, "no category lists"),
    (lambda d: d.update(categories=[]), "no category lists keypoint names"),
    (first(keypoints=[1, 1, 2] * 16), "annotation 1 has 48 .* needs 3 x 17"),
    (first(bbox=None), "annotation 1 has no bbox"),
    (first(bbox=[1, 2, 3]), "annotation 1 has no bbox"),
    (first(bbox=[1, 2, 0, 5]), "box of size 0 x 5; sides must be > 0"),
    (first(bbox=[1, 2, 5, -5]), "box of size 5 x -5"),
    (first(bbox=[1, float("nan"), 5, 5]), "annotation 1 .* no finite numbers"),
    (number(0, float("inf")), "annotation 1 .* no finite numbers"),
    (number(0, "12"), "annotation 1 .* no finite numbers"),
    (number(2, 3), "annotation 1 has visibility 3; use 0"),
]


@pytest.mark.parametrize("change,message", FAULTS)
def test_faults_are_named(opened, change, message):
    with pytest.raises(DataError, match=message):
        opened(change)


@pytest.mark.parametrize("area", [None, 0, -3.0, float("nan")])
def test_areas_are_demanded_only_where_they_are_used(opened, area):
    change = first(area=area)
    with pytest.raises(DataError, match="annotation 1 .*area_source='box'"):
        opened(change, need_area=True)
    assert len(opened(change)) == 12
    assert len(opened(change, need_area=True, area_source="box")) == 12


def test_files_that_are_missing_or_not_json(tmp_path):
    with pytest.raises(
        DataError, match="nowhere.json does not exist; set POSE_JAX_DATA"
    ):
        sources.coco(tmp_path / "nowhere.json", tmp_path)
    (tmp_path / "bad.json").write_text('{"images": [')
    with pytest.raises(DataError, match="bad.json is not valid JSON"):
        sources.coco(tmp_path / "bad.json", tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="binary.json is not valid JSON"):
        sources.coco(tmp_path / "binary.json", tmp_path)


def test_nobody_left_says_why(opened):
    def crowd(d):
        for a in d["annotations"]:
            a["iscrowd"] = 1

    with pytest.raises(DataError, match=r"no usable person \(dropped: 12 crowd\)"):
        opened(crowd)
    with pytest.raises(DataError, match=r"dropped: 12 smaller than 999 px"):
        opened(filters=Filters(min_side_px=999))
    with pytest.raises(DataError, match="dropped: none listed"):
        require_some(0, {}, "nothing")


def test_many_unreadable_pictures_are_refused():
    check_unreadable(["a", "b"], 200, "data")
    with pytest.raises(DataError, match="3 of 200 pictures of data .* 1%.*\n  a\n  b"):
        check_unreadable(["a", "b", "c"], 200, "data")


# Detections


def test_detections_replace_people(opened):
    source = opened()
    rows = [
        {"image_id": 10, "category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.7},
        {"image_id": 10, "category_id": 2, "bbox": [1, 2, 30, 40], "score": 0.7},
        {"image_id": 20, "category_id": 1, "bbox": [1, 2, 0, 40], "score": 0.7},
        {"image_id": 20, "bbox": [5, 6, 7, 8]},
    ]
    found = source.with_detections(rows)
    assert [p.image_id for p in found.people] == [10, 20]
    assert [p.box_score for p in found.people] == [0.7, 1.0]
    assert not found.person(0).visible.any()
    assert found.path(1).name == "0002.jpg"
    for row, message in [
        ({"image_id": 10}, "detection 0 has no finite bbox"),
        ({"image_id": 10, "bbox": [1, 2, 3, math.inf]}, "no finite bbox"),
        ({"image_id": 5, "bbox": [1, 2, 3, 4]}, "is of image 5, which"),
        ({"image_id": 10, "category_id": 9, "bbox": [1, 2, 3, 4]}, "no usable person"),
    ]:
        with pytest.raises(DataError, match=message):
            source.with_detections([row])


# The config's way in


def test_sections_open_by_name(tmp_path, content):
    write_coco(tmp_path, content)
    section = config.source("coco", path="people.json", images="images", limit=3)
    source = data.open_source(section, root=tmp_path, skeleton="coco")
    assert len(source) == 3
    absolute = config.source("coco", path=str(tmp_path / "people.json"))
    assert len(data.open_source(absolute, root=None, skeleton="coco")) == 12
    with pytest.raises(ValueError, match="unknown data source 'voc'.*tfds"):
        data.open_source(config.source("voc"), root=None, skeleton="coco")


# Decoding


@pytest.fixture(scope="module")
def encoded():
    return jpeg(picture(np.random.default_rng(1), (60, 80)))


def as_bytes(image, kind, **options):
    file = io.BytesIO()
    PillowImage.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def test_jpeg_decodes_to_rgb(encoded):
    image = decode_image(encoded)
    truth = picture(np.random.default_rng(1), (60, 80)).astype(int)
    assert image.shape == (60, 80, 3) and image.dtype == np.uint8
    assert np.abs(image - truth).mean() < 4
    assert (
        np.abs(image[..., ::-1] - truth).mean() > 20
    )  # The check sees swapped channels.


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_are_exact(kind):
    truth = picture(np.random.default_rng(2), (30, 40))
    np.testing.assert_array_equal(decode_image(as_bytes(truth, kind)), truth)


def test_grey_transparent_and_palette_pictures_become_rgb():
    grey = picture(np.random.default_rng(3), (30, 40))[..., 0]
    three = np.repeat(grey[..., None], 3, 2)
    np.testing.assert_array_equal(decode_image(as_bytes(grey, "PNG")), three)
    from_jpeg = decode_image(as_bytes(grey, "JPEG", quality=95))
    assert from_jpeg.shape == (30, 40, 3)
    assert np.abs(from_jpeg.astype(int) - three).mean() < 3
    clear = np.dstack([three, np.full_like(grey, 100)])
    np.testing.assert_array_equal(decode_image(as_bytes(clear, "PNG")), three)
    palette = PillowImage.fromarray(three).convert("P")
    file = io.BytesIO()
    palette.save(file, "PNG")
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(decode_image(file.getvalue()), expected)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("lenient", [False, True])
def test_truncated_jpegs_are_refused(encoded, share, lenient, monkeypatch):
    cut = encoded[: int(share * len(encoded))]
    if lenient:  # OpenCV 4 fills what is missing with grey.
        grey = np.full((60, 80, 3), 128, np.uint8)
        monkeypatch.setattr(images.cv2, "imdecode", lambda data, flags: grey)
    with pytest.raises(ImageError, match="half.jpg: not a readable picture"):
        decode_image(cut, "half.jpg")


def test_padding_after_the_end_of_a_jpeg_is_harmless(encoded):
    np.testing.assert_array_equal(
        decode_image(encoded + bytes(40)), decode_image(encoded)
    )


@pytest.mark.parametrize(
    "content,message",
    [
        (b"", "x.jpg: the file is empty"),
        (b"hello, I am no picture", "x.jpg: not a readable picture"),
        (b"\xff\xd8\xff\xd9", "x.jpg: not a readable picture"),
    ],
)
def test_other_rubbish_is_refused(content, message):
    with pytest.raises(ImageError, match=message):
        decode_image(content, "x.jpg")


def test_truncated_png_is_refused():
    content = as_bytes(picture(np.random.default_rng(4)), "PNG")
    with pytest.raises(ImageError, match="not a readable picture"):
        decode_image(content[: len(content) // 2])


def test_orientation_is_ignored_unless_asked_for():
    image = picture(np.random.default_rng(5), (30, 50))
    exif = PillowImage.Exif()
    exif[0x0112] = 6  # Stored lying; a viewer turns it clockwise.
    content = as_bytes(image, "JPEG", quality=95, exif=exif)
    stored, turned = decode_image(content), decode_image(content, honour_exif=True)
    assert stored.shape == (30, 50, 3) and turned.shape == (50, 30, 3)
    expected = np.rot90(stored, -1).astype(int)
    assert np.abs(turned - expected).mean() < 2


def test_files(tmp_path, encoded):
    (tmp_path / "a.jpg").write_bytes(encoded)
    assert read_image(tmp_path / "a.jpg").shape == (60, 80, 3)
    with pytest.raises(ImageError, match="b.jpg: No such file"):
        read_image(tmp_path / "b.jpg")
    with pytest.raises(ImageError, match="Is a directory"):
        read_image(tmp_path)


def test_a_person_with_two_rows_of_the_same_picture(opened):
    """Annotations keep their order even when pictures are mixed."""

    def mix(d):
        box, points, visible = [1, 1, 9, 9], np.ones((17, 2)), [2] * 17
        d["annotations"].append(annotation(50, 10, box, points, visible))

    assert opened(mix).person(12).image_id == 10
