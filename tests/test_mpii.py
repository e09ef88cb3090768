"""MPII: two formats give the same people; the real validation set; faults."""

import json
import math

import h5py
import numpy as np
import pytest
from folders import jpeg, picture
from scipy.io import loadmat

from pose_jax import config, data, geometry, skeletons
from pose_jax.data.checks import DataError
from pose_jax.data.mpii import mpii
from pose_jax.data.sources import Filters


def people(count=6, *, seed=0):
    """Columns of an original annotation: MATLAB pixels, untouched centre and scale."""
    generator = np.random.default_rng(seed)
    centre = np.round(generator.uniform(200, 600, (count, 2)))
    scale = generator.uniform(0.8, 3.0, count)
    joints = np.round(centre[:, None] + generator.normal(0, 60, (count, 16, 2)))
    seen = generator.random((count, 16)) < 0.7
    labelled = generator.random((count, 16)) < 0.9
    labelled[:, 0] = True
    names = [f"{1000 + n // 2:09d}.jpg" for n in range(count)]
    head = generator.uniform(20, 90, count)
    return dict(
        names=names, centre=centre, scale=scale, joints=joints, seen=seen,
        labelled=labelled, head=head,
    )  # fmt: skip


def write_h5(path, p, **changes):
    """As Newell's scripts: centre moved down, scale padded, zeros where unlabelled."""
    columns = {
        "imgname": np.array(p["names"], "S"),
        "center": p["centre"] + np.stack([0 * p["scale"], 15 * p["scale"]], 1),
        "scale": p["scale"] * 1.25,
        "part": np.where(p["labelled"][..., None], p["joints"], 0),
        "visible": (p["seen"] & p["labelled"]).astype(float),
        "normalize": p["head"],
        **changes,
    }
    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            if column is not None:
                file[name] = column
    return path


def json_rows(p):
    """As HRNet's: raw centre and scale, -1 where unlabelled."""
    return [
        {
            "image": name,
            "center": centre.tolist(),
            "scale": float(scale),
            "joints": np.where(labelled[:, None], joints, -1).tolist(),
            "joints_vis": labelled.astype(int).tolist(),
        }
        for name, centre, scale, joints, labelled in zip(
            p["names"], p["centre"], p["scale"], p["joints"], p["labelled"]
        )
    ]


def write_json(path, rows):
    path.write_text(json.dumps(rows))
    return path


def test_both_formats_give_the_same_people(tmp_path):
    p = people()
    h5 = mpii(write_h5(tmp_path / "a.h5", p), tmp_path)
    js = mpii(write_json(tmp_path / "a.json", json_rows(p)), tmp_path)
    assert len(h5) == len(js) == 6
    for a, b in zip(h5.people, js.people):
        np.testing.assert_allclose(a.box, b.box, atol=1e-9)
        np.testing.assert_array_equal(a.keypoints, b.keypoints)
        np.testing.assert_array_equal(a.visible > 0, b.visible > 0)
        assert (a.id, a.image_id, a.file_name) == (b.id, b.image_id, b.file_name)
        assert a.area == b.area and math.isnan(b.head_size)
    assert [a.head_size for a in h5.people] == p["head"].tolist()
    assert [a.image_id for a in h5.people] == [1000, 1000, 1001, 1001, 1002, 1002]
    assert h5.skeleton is skeletons.MPII


def test_pixels_count_from_zero_and_flags_are_kept(tmp_path):
    p = people()
    source = mpii(write_h5(tmp_path / "a.h5", p), tmp_path)
    for n, person in enumerate(source.people):
        lab = p["labelled"][n]
        np.testing.assert_array_equal(person.keypoints[lab], p["joints"][n][lab] - 1)
        assert (person.keypoints[~lab] == 0).all()
        flags = np.where(lab, np.where(p["seen"][n], 2, 1), 0)
        np.testing.assert_array_equal(person.visible, flags)


def test_padding_gives_the_usual_crop(tmp_path):
    """HRNet: y + 15 scale, scale x 1.25, 200 px per scale, square; x at the left is 0."""
    p = people()
    source = mpii(write_json(tmp_path / "a.json", json_rows(p)), tmp_path)
    for n, person in enumerate(source.people):
        matrix = geometry.crop_matrix(person.box, (256, 256), padding=1.25)
        side = 200 * 1.25 * p["scale"][n]
        centre = p["centre"][n] - 1 + (0, 15 * p["scale"][n])
        corners = np.stack([centre - side / 2, centre + side / 2])
        np.testing.assert_allclose(
            geometry.transform(corners, matrix), [[0, 0], [256, 256]], atol=1e-9
        )


def test_a_joint_at_the_left_border_is_labelled(tmp_path):
    """Newell's rule "x = 0 is missing" loses it; only (0, 0) is missing."""
    p = people(1)
    p["joints"][0, 3] = 0, 121
    p["labelled"][0, 3] = p["seen"][0, 3] = True
    person = mpii(write_h5(tmp_path / "a.h5", p), tmp_path).person(0)
    assert person.visible[3] == 2
    np.testing.assert_array_equal(person.keypoints[3], [-1, 120])


def test_people_without_position_or_labels_are_dropped(tmp_path):
    p = people(4)
    p["centre"][1] = -1
    p["labelled"][2] = False
    source = mpii(write_json(tmp_path / "a.json", json_rows(p)), tmp_path)
    assert [a.id for a in source.people] == [1, 4]
    assert source.dropped == {
        "without a position": 1,
        "without labelled keypoints": 1,
    }


def test_parts_go_by_picture(tmp_path):
    path = write_h5(tmp_path / "a.h5", people(80))
    train, held = (
        mpii(path, tmp_path, filters=Filters(part=part, holdout=0.4))
        for part in ("train", "held_out")
    )
    ids = [{a.image_id for a in s.people} for s in (train, held)]
    assert len(train) + len(held) == 80 and not ids[0] & ids[1]
    assert 10 < len(held) < 54


def test_pictures_with_other_names_are_told_apart(tmp_path):
    p = people(4)
    p["names"] = ["a.jpg", "b.jpg", "a.jpg", "007.jpg"]
    source = mpii(write_h5(tmp_path / "a.h5", p), tmp_path)
    ids = [a.image_id for a in source.people]
    assert ids[0] == ids[2] != ids[1] and ids[3] == 7


def test_names_as_character_codes(tmp_path):
    p = people(2)
    codes = np.array([[float(ord(c)) for c in name] + [0.0] for name in p["names"]])
    source = mpii(write_h5(tmp_path / "a.h5", p, imgname=codes), tmp_path)
    assert [a.file_name for a in source.people] == p["names"]


def test_pictures_and_sections(tmp_path):
    p = people(2)
    write_h5(tmp_path / "valid.h5", p)
    image = picture(np.random.default_rng(0))
    (tmp_path / p["names"][0]).write_bytes(jpeg(image))
    section = config.source("mpii", path="valid.h5", images=".", limit=1)
    source = data.open_source(section, root=tmp_path, skeleton="mpii")
    assert len(source) == 1 and source.image(0).shape == (240, 320, 3)


def row(**fields):
    return [{**json_rows(people(1))[0], **fields}]


@pytest.mark.parametrize(
    "rows,message",
    [
        ({"images": []}, "holds no JSON list; COCO-format files need name='coco'"),
        ([{"image": "a.jpg"}], "row 0 has no usable 'joints'; needed are image"),
        (row(scale=None), "row 0 has no usable"),
        (row(joints=[[1, 2]] * 14), r"row 0 has \(14, 2\) joints, not \[16, 2\]"),
        (row(scale=0), "person 0 .* scale 0.0"),
        (row(joints=[[float("nan"), 2]] * 16), "joints that are not finite"),
        (row(center=[5, float("inf")]), "centre"),
        ([], "no usable person"),
    ],
)
def test_faults_of_json_are_named(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        mpii(write_json(tmp_path / "a.json", rows), tmp_path)


def test_faults_of_files_are_named(tmp_path):
    p = people(2)
    with pytest.raises(DataError, match="a.h5 does not exist; set POSE_JAX_DATA"):
        mpii(tmp_path / "a.h5", tmp_path)
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(DataError, match="text.h5 is not an HDF5 file"):
        mpii(tmp_path / "text.h5", tmp_path)
    with pytest.raises(DataError, match="has no 'normalize'"):
        mpii(write_h5(tmp_path / "b.h5", p, normalize=None), tmp_path)
    with pytest.raises(DataError, match=r"\(2, 14, 2\), not \[n, 16, 2\]"):
        mpii(write_h5(tmp_path / "c.h5", p, part=np.ones((2, 14, 2))), tmp_path)
    (tmp_path / "d.json").write_text("[")
    with pytest.raises(DataError, match="d.json is not valid JSON"):
        mpii(tmp_path / "d.json", tmp_path)
    with pytest.raises(DataError, match="no person areas.*pckh"):
        mpii(write_h5(tmp_path / "e.h5", p), tmp_path, need_area=True)


# Real data


@pytest.fixture(scope="module")
def validation(data_root):
    return mpii(data_root / "mpii/valid.h5", data_root / "format_samples/mpii")


def test_the_validation_set(validation, data_root):
    """Newell's split has 2,958 people; joints agree with the official evaluation file."""
    assert len(validation) == 2958 and not validation.dropped
    official = loadmat(data_root / "mpii/detections_our_format.mat")
    missing = official["jnt_missing"].T.astype(bool)
    visible = np.stack([p.visible for p in validation.people])
    np.testing.assert_array_equal(visible == 0, missing)
    points = np.stack([p.keypoints for p in validation.people])
    error = official["pos_gt_src"].transpose(2, 0, 1) - 1 - points
    far = (np.abs(error) >= 1).any(-1) & ~missing
    assert far.sum() == 13  # The two releases disagree there, in 10 people.
    head = np.zeros_like(missing)
    head[:, [8, 9]] = True  # The h5 cut the fraction off neck and head top.
    assert np.abs(error[~missing & ~far & ~head]).max() < 1e-3
    assert 0.4 < error[~missing & ~far & head].mean() < 0.5
    heads = official["headboxes_src"]
    diagonal = np.linalg.norm(heads[1] - heads[0], axis=0)
    sizes = [p.head_size for p in validation.people]
    np.testing.assert_allclose(sizes, 0.6 * diagonal, rtol=1e-5)


def test_the_same_people_in_hrnets_json(validation, data_root):
    """The five people of the sample are rows 0 to 4 of valid.h5: one index base, one box."""
    folder = data_root / "format_samples/mpii"
    source = mpii(folder / "test_mpii.json", folder)
    for n, person in enumerate(source.people):
        twin = validation.person(n)
        assert person.file_name == twin.file_name and person.image_id == twin.image_id
        np.testing.assert_allclose(person.box, twin.box, atol=1e-3)
        np.testing.assert_array_equal(person.visible > 0, twin.visible > 0)
        body = [k for k in range(16) if k not in (8, 9)]
        np.testing.assert_array_equal(person.keypoints[body], twin.keypoints[body])
        assert np.abs(person.keypoints - twin.keypoints).max() < 1
        height, width = source.image(n).shape[:2]
        points = person.keypoints[person.visible > 0]
        assert (points >= -1).all() and (points < (width, height)).all()
