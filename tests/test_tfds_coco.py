"""COCO keypoints through TensorFlow Datasets, without TensorFlow."""

import ast
import json
import pickle
import re
import sys

import numpy as np
import pytest
from folders import dataset, same_person, write_coco

from pose_jax import config, data, skeletons
from pose_jax.config import UserError
from pose_jax.data import pipeline
from pose_jax.data.augment import Augment
from pose_jax.data.checks import DataError
from pose_jax.data.images import ImageError
from pose_jax.data.sources import Filters, Source, coco
from pose_jax.pixels import InputSpec
from pose_jax.tasks import prepare


@pytest.fixture(scope="module")
def tfds_coco():
    from pose_jax.data import tfds_coco

    return tfds_coco


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    content = dataset(7, 2)
    # People of a picture need not stand together in the file.
    content["annotations"] = content["annotations"][::2] + content["annotations"][1::2]
    content["annotations"][0]["iscrowd"] = 1
    write_coco(folder, content)
    return folder


@pytest.fixture(scope="module")
def prepared(root, tfds_coco):
    builder = tfds_coco.CocoKeypoints(
        root / "people.json", root / "images", data_dir=str(root / "prepared")
    )
    builder.download_and_prepare()
    return builder


@pytest.fixture(scope="module")
def original(root):
    return coco(root / "people.json", root / "images")


def test_examples_hold_pictures_and_their_people(prepared, original, root):
    examples = prepared.as_data_source("people")
    assert len(examples) == 7 and prepared.info.splits["people"].num_examples == 7
    people = {p.id: p for p in original.people}
    seen = []
    for example in examples:
        name = example["file_name"].decode()
        assert example["jpeg"] == (root / "images" / name).read_bytes()
        group = example["people"]
        for n, number in enumerate(group["id"]):
            person = people[number]
            assert (person.image_id, person.file_name) == (example["image_id"], name)
            np.testing.assert_allclose(
                group["keypoints"][n], person.keypoints, rtol=1e-6
            )
            np.testing.assert_array_equal(group["visible"][n], person.visible)
            np.testing.assert_allclose(group["box"][n], person.box, rtol=1e-6)
            assert group["area"][n] == pytest.approx(person.area, rel=1e-6)
            seen.append(number)
    assert sorted(seen) == sorted(people) and len(seen) == 13


def test_the_source_is_the_original(prepared, original, root, tfds_coco):
    source = tfds_coco.TfdsSource(root / "prepared")
    assert isinstance(source, Source) and len(source) == len(original) == 13
    assert source.skeleton is skeletons.COCO
    assert source.name == f"tfds {original.name}"
    assert source.dropped == original.dropped == {"crowd": 1}
    rows = {original.person(row).id: row for row in range(13)}
    for row in range(13):
        there = rows[source.person(row).id]
        same_person(source.person(row), original.person(there))
        np.testing.assert_array_equal(source.image(row), original.image(there))
    assert source.person(0).area != source.person(0).box[2:].prod() * 0.53
    boxes = tfds_coco.TfdsSource(root / "prepared", area_source="box")
    person = boxes.person(0)
    assert person.area == pytest.approx(0.53 * person.box[2] * person.box[3])


def test_sections_filters_and_workers(prepared, original, root):
    section = config.source("tfds", path="prepared", part="train", holdout=0.4)
    source = data.open_source(section, root=root, skeleton="coco")
    filters = Filters(part="train", holdout=0.4)
    wanted = {p.id for p in original.people if filters.in_part(p.image_id)}
    assert {source.person(row).id for row in range(len(source))} == wanted
    assert 0 < len(wanted) < 13
    source.image(0)
    twin = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(twin.image(1), source.image(1))
    same_person(twin.person(1), source.person(1))
    view = pipeline.View(InputSpec(size=(32, 32)), True, skeletons.COCO)
    batches = pipeline.train_iterator(source, view, Augment(), batch=2, seed=0)
    batch = next(batches)
    assert batch["mask"].all() and batch["image"].shape == (2, 32, 32, 3)
    with pytest.raises(DataError, match="COCO AP needs every person"):
        data.open_source(section, root=root, skeleton="coco", need_area=True)


def test_tensorflow_is_never_imported(prepared, root, tfds_coco):
    """Neither by preparing nor by reading."""
    source = tfds_coco.TfdsSource(root / "prepared")
    assert source.image(12).shape == (240, 320, 3)
    assert "tensorflow" not in sys.modules and "tensorflow_datasets" in sys.modules


def test_only_the_builder_imports_tfds(repository):
    """Everybody else imports it inside of functions: it costs a second."""
    for path in (repository / "pose_jax").rglob("*.py"):
        tree = ast.parse(path.read_text())
        lines = [ast.unparse(n) for n in tree.body if "Import" in type(n).__name__]
        if path.name != "tfds_coco.py":
            assert not any(re.search("tensorflow|tfds", line) for line in lines), path


def test_other_skeletons_come_back_from_the_metadata(tmp_path, tfds_coco):
    content = dataset(2, 1)
    names = ["nose", "left_paw", "right_paw"]
    content["categories"][0] |= {"keypoints": names, "skeleton": [[1, 2], [1, 3]]}
    for a in content["annotations"]:
        a["keypoints"] = a["keypoints"][:9]
    path = write_coco(tmp_path, content)
    tfds_coco.CocoKeypoints(
        path, tmp_path / "images", data_dir=str(tmp_path)
    ).download_and_prepare()
    skeleton = tfds_coco.TfdsSource(tmp_path).skeleton
    assert skeleton.keypoints == tuple(names)
    assert skeleton.limbs == (("nose", "left_paw"), ("nose", "right_paw"))


# The task


@pytest.fixture
def home(root, tmp_path, monkeypatch):
    for name in ("people.json", "images"):
        (tmp_path / name).symlink_to(root / name)
    monkeypatch.setenv("POSE_JAX_DATA", str(tmp_path))
    return tmp_path


def prepare_config(**fields):
    c = config.default()
    c.prepare.source = config.source("coco", path="people.json", images="images")
    c.prepare.update(path="store", format="tfds", **fields)
    return c


def test_the_task_prepares_once(home, tfds_coco, capsys):
    c = prepare_config()
    c.prepare.source.limit = 9
    prepare.run(c, "")
    output = capsys.readouterr().out
    assert "prepared: 9 people" in output and "prepare 7/7" in output
    folder = tfds_coco.dataset_folder(home / "store")
    written = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    prepare.run(c, "")
    assert "already prepared: 9 people" in capsys.readouterr().out
    assert written == {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    c.prepare.source.limit = 5
    with pytest.raises(UserError, match="source.limit: stored 9, asked for 5"):
        prepare.run(c, "")
    source = tfds_coco.TfdsSource(home / "store")
    assert len(source) == 9 and source.image(8).shape == (240, 320, 3)


def test_unreadable_pictures_are_left_out_up_to_one_percent(
    tmp_path, monkeypatch, tfds_coco, capsys
):
    monkeypatch.setenv("POSE_JAX_DATA", str(tmp_path))
    write_coco(tmp_path, dataset(101, 1, size=(210, 210)))
    (tmp_path / "images/0005.jpg").write_bytes(b"rubbish")
    prepare.run(prepare_config(), "")
    assert "left out: 0005.jpg: not a readable" in capsys.readouterr().out
    source = tfds_coco.TfdsSource(tmp_path / "store")
    ids = [source.person(row).id for row in range(len(source))]
    assert ids == [n for n in range(1, 102) if n != 5]
    assert source.dropped == {"with unreadable pictures": 1}
    truth = coco(tmp_path / "people.json", tmp_path / "images")
    for row in (0, 3, 4, 99):  # Before and behind the gap.
        np.testing.assert_array_equal(
            source.image(row), truth.image(source.person(row).id - 1)
        )
    (tmp_path / "images/0006.jpg").unlink()
    c = prepare_config()
    c.prepare.path = "other"
    with pytest.raises(
        DataError, match="2 of 101 pictures .* cannot be read"
    ) as caught:
        prepare.run(c, "")
    assert "0005.jpg" in str(caught.value) and "0006.jpg" in str(caught.value)
    assert not tfds_coco.dataset_folder(tmp_path / "other").exists()


def test_faults_are_named(tmp_path, tfds_coco):
    with pytest.raises(DataError, match="holds no coco_keypoints; make it with"):
        tfds_coco.TfdsSource(tmp_path)
    with pytest.raises(DataError, match="people.json does not exist"):
        tfds_coco.CocoKeypoints(
            tmp_path / "people.json", tmp_path, data_dir=str(tmp_path)
        )


def test_a_damaged_picture_is_named(root, tmp_path, tfds_coco):
    """The bytes are stored as they are; what is damaged later is found when decoded."""
    path = write_coco(tmp_path, dataset(2, 1))
    builder = tfds_coco.CocoKeypoints(path, tmp_path / "images", data_dir=str(tmp_path))
    builder.download_and_prepare()
    source = tfds_coco.TfdsSource(tmp_path)
    source._examples = [{"jpeg": b"rubbish"}] * 2
    with pytest.raises(ImageError, match="0002.jpg: not a readable picture"):
        source.image(1)


def test_metadata_is_json_that_says_what_it_is(prepared, root, tfds_coco):
    folder = tfds_coco.dataset_folder(root / "prepared")
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["source"] == str(root / "people.json")
    assert metadata["skeleton"]["keypoints"] == list(skeletons.COCO.keypoints)
    assert metadata["dropped"] == {"crowd": 1} and metadata["unreadable"] == {}
