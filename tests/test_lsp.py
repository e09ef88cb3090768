"""LSP and LSPET: two layouts, two meanings of the third number, boxes from joints."""

import json
import re

import numpy as np
import pytest
from folders import jpeg, picture
from scipy.io import savemat

from pose_jax import config, data, skeletons
from pose_jax.data.checks import DataError
from pose_jax.data.images import ImageError, read_image
from pose_jax.data.lsp import lsp, read_joints
from pose_jax.data.sources import Filters

COUNT = 8


@pytest.fixture(scope="module")
def truth():
    """Points `[n, 14, 2]` and a flag `[n, 14]` of the third number."""
    generator = np.random.default_rng(0)
    points = generator.uniform(15, 65, (COUNT, 14, 2))
    flags = generator.random((COUNT, 14)) < 0.3
    return points, flags.astype(float)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, truth):
    """Both layouts of the same numbers, and pictures of 100 x 90 pixels."""
    root = tmp_path_factory.mktemp("lsp")
    joints = np.concatenate([truth[0], truth[1][..., None]], axis=2)
    savemat(root / "lsp.mat", {"joints": joints.transpose(2, 1, 0)})
    savemat(root / "lspet.mat", {"joints": joints.transpose(1, 2, 0)})
    for name, digits in (("images", 4), ("extended", 5)):
        (root / name).mkdir()
        for n in range(1, COUNT + 1):
            image = picture(np.random.default_rng(n), (90, 100))
            (root / name / f"im{n:0{digits}d}.jpg").write_bytes(jpeg(image))
    return root


def test_lsp_marks_occluded_joints(folder, truth):
    points, flags = truth
    source = lsp(str(folder / "lsp.mat"), folder / "images")
    assert len(source) == COUNT and source.skeleton is skeletons.LSP
    for n, person in enumerate(source.people):
        np.testing.assert_array_equal(person.keypoints, points[n])
        np.testing.assert_array_equal(person.visible, np.where(flags[n] > 0, 1, 2))
        assert (person.id, person.image_id) == (n + 1, n + 1)
        assert person.file_name == f"im{n + 1:04d}.jpg"
        image = read_image(folder / "images" / person.file_name)
        np.testing.assert_array_equal(source.image(n), image)


def test_lspet_marks_labelled_joints(folder, truth):
    points, flags = truth
    source = lsp(str(folder / "lspet.mat"), folder / "extended")
    for person in source.people:
        n = person.id - 1
        labelled = flags[n] > 0
        np.testing.assert_array_equal(person.visible, np.where(labelled, 2, 0))
        np.testing.assert_array_equal(person.keypoints[labelled], points[n][labelled])
        assert (person.keypoints[~labelled] == 0).all()
        assert person.file_name == f"im{person.id:05d}.jpg"


@pytest.mark.parametrize("size", [(100, 90), (66, 68)])
def test_boxes_are_the_joints_with_a_margin_inside_the_picture(
    folder, truth, tmp_path, size
):
    for n in range(1, COUNT + 1):
        image = picture(np.random.default_rng(n), size[::-1])
        (tmp_path / f"im{n:04d}.jpg").write_bytes(jpeg(image))
    source = lsp(str(folder / "lsp.mat"), tmp_path)
    for n, person in enumerate(source.people):
        low, high = truth[0][n].min(0), truth[0][n].max(0)
        margin = 0.12 * (high - low).max()
        low = np.maximum(low - margin, 0)
        high = np.minimum(high + margin, size)
        np.testing.assert_allclose(person.box, [*low, *(high - low)], atol=1e-9)
        assert person.area == pytest.approx(0.53 * person.box[2] * person.box[3])


def test_ranges_select_the_official_halves(folder):
    def ids(path, **fields):
        filters = Filters(**fields)
        source = lsp(str(folder / path), folder / "images", filters=filters)
        return [p.id for p in source.people]

    assert ids("lsp.mat[:3]") == [1, 2, 3]
    assert ids("lsp.mat[3:]") == [4, 5, 6, 7, 8]
    assert ids("lsp.mat[2:5]") == [3, 4, 5]
    assert ids("lsp.mat", limit=2) == [1, 2]
    train = ids("lsp.mat", part="train", holdout=0.5)
    held = ids("lsp.mat", part="held_out", holdout=0.5)
    assert sorted(train + held) == list(range(1, 9)) and train and held


def test_pictures_that_are_not_there_are_counted(folder, tmp_path):
    for n in (2, 5):
        name = f"im{n:04d}.jpg"
        (tmp_path / name).write_bytes((folder / "images" / name).read_bytes())
    (tmp_path / "notes.txt").write_text("none of them")
    source = lsp(str(folder / "lsp.mat"), tmp_path)
    assert [p.id for p in source.people] == [2, 5]
    assert source.dropped == {"without a picture in the folder": 6}


def test_a_damaged_picture_is_told_when_it_is_read(folder, tmp_path):
    for n in (1, 2):
        name = f"im{n:04d}.jpg"
        (tmp_path / name).write_bytes((folder / "images" / name).read_bytes())
    (tmp_path / "im0002.jpg").write_bytes(b"rubbish")
    source = lsp(str(folder / "lsp.mat"), tmp_path)
    assert len(source) == 2 and np.isfinite(source.person(1).box).all()
    with pytest.raises(ImageError, match="im0002.jpg"):
        source.image(1)


def test_people_without_labels_are_dropped(tmp_path, folder):
    joints = np.ones((14, 3, 3))
    joints[:, 2, 1] = 0
    joints[:, :2] = 30 + 5 * np.arange(14)[:, None, None]
    savemat(tmp_path / "joints.mat", {"joints": joints})
    source = lsp(str(tmp_path / "joints.mat"), folder / "images")
    assert [p.id for p in source.people] == [1, 3]
    assert source.dropped == {"without labelled keypoints": 1}


def test_sections(folder):
    section = config.source("lsp", path="lsp.mat[:4]", images="images")
    assert len(data.open_source(section, root=folder, skeleton="lsp")) == 4


def test_faults_are_named(tmp_path, folder):
    images = folder / "images"
    with pytest.raises(DataError, match="joints.mat does not exist; set POSE_JAX_DATA"):
        lsp(str(tmp_path / "joints.mat"), images)
    (tmp_path / "text.mat").write_text("hello")
    with pytest.raises(DataError, match="text.mat is not a MATLAB file"):
        lsp(str(tmp_path / "text.mat"), images)
    savemat(tmp_path / "other.mat", {"points": np.ones(3)})
    with pytest.raises(DataError, match="other.mat .* the variable 'joints'"):
        lsp(str(tmp_path / "other.mat"), images)
    savemat(tmp_path / "shape.mat", {"joints": np.ones((5, 14, 3))})
    with pytest.raises(DataError, match=r"shape \(5, 14, 3\); LSP has \(3, 14, n\)"):
        lsp(str(tmp_path / "shape.mat"), images)
    bad = np.ones((3, 14, 2))
    bad[0, 3, 1] = np.nan
    savemat(tmp_path / "nan.mat", {"joints": bad})
    with pytest.raises(DataError, match="labelled joints are not finite"):
        lsp(str(tmp_path / "nan.mat"), images)
    with pytest.raises(DataError, match="holds no pictures"):
        lsp(str(folder / "lsp.mat"), tmp_path)
    with pytest.raises(DataError, match="holds no pictures"):
        lsp(str(folder / "lsp.mat"), tmp_path / "nowhere")
    with pytest.raises(DataError, match="no person areas"):
        section = config.source("lsp", path=str(folder / "lsp.mat"), images="images")
        data.open_source(section, root=folder, skeleton="lsp", need_area=True)
    opened = data.open_source(
        section, root=folder, skeleton="lsp", need_area=True, area_source="box"
    )
    assert len(opened) == COUNT


def test_real_pictures_give_the_boxes_of_the_derived_file(data_root, tmp_path):
    """LSPET's numbers, put back into their MATLAB layout, give the boxes and areas of
    lspet_val.json, which were derived independently."""
    truth = json.loads((data_root / "lspet/lspet_val.json").read_text())
    names = {row["id"]: row["file_name"] for row in truth["images"]}
    numbers = {i: int(re.sub(r"\D", "", name)) for i, name in names.items()}
    joints = np.zeros((14, 3, max(numbers.values())))
    for a in truth["annotations"]:
        keypoints = np.reshape(a["keypoints"], (14, 3))
        joints[:, :2, numbers[a["image_id"]] - 1] = keypoints[:, :2]
        joints[:, 2, numbers[a["image_id"]] - 1] = keypoints[:, 2] > 0
    savemat(tmp_path / "joints.mat", {"joints": joints})
    points, visible = read_joints(tmp_path / "joints.mat")
    assert points.shape[0] == visible.shape[0] == max(numbers.values())
    source = lsp(str(tmp_path / "joints.mat"), data_root / "lspet/images")
    people = {p.id: p for p in source.people}
    assert len(people) == len(truth["annotations"]) == 451
    for a in truth["annotations"]:
        person = people[numbers[a["image_id"]]]
        assert person.file_name == names[a["image_id"]]
        np.testing.assert_allclose(person.box, a["bbox"], atol=0.011)
        assert person.area == pytest.approx(a["area"], rel=1e-3)
        assert (person.visible > 0).sum() == a["num_keypoints"]
