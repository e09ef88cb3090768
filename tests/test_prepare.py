"""The task `prepare`: once, whole or not at all, with every loss named and counted."""

import json
import math

import jax
import pytest
from folders import dataset, same_person, write_coco

from pose_jax import config
from pose_jax.config import UserError
from pose_jax.data.checks import DataError
from pose_jax.data.crops import CropsSource
from pose_jax.tasks import TASKS, crops_store, prepare

PEOPLE, PICTURES = 24, 8


def prepare_config(**fields):
    c = config.default()
    c.input.size = (64, 64)
    c.prepare.source = config.source("coco", path="people.json", images="images")
    c.prepare.update(path="store", **fields)
    return c


def by_id(source):
    return {source.person(row).id: row for row in range(len(source))}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_coco(folder, dataset(PICTURES, 3))
    return folder


@pytest.fixture
def home(root, tmp_path, monkeypatch):
    """A fresh folder of data sets with the same files."""
    for name in ("people.json", "images"):
        (tmp_path / name).symlink_to(root / name)
    monkeypatch.setenv("POSE_JAX_DATA", str(tmp_path))
    return tmp_path


def test_the_same_settings_again_do_nothing(home, capsys):
    c = prepare_config(crop_side_px=120)
    prepare.run(c, "")
    output = capsys.readouterr().out
    assert "prepared: 24 people" in output and "prepare 8/8" in output
    assert sorted(p.name for p in (home / "store").iterdir()) == [
        "index.json", "people.array_record", "people.npy",
    ]  # fmt: skip
    assert not (home / "store.partial").exists()
    written = {p.name: p.stat().st_mtime_ns for p in (home / "store").iterdir()}
    prepare.run(c, "")
    assert "already prepared: 24 people" in capsys.readouterr().out
    assert written == {p.name: p.stat().st_mtime_ns for p in (home / "store").iterdir()}


def test_other_settings_at_the_same_path_are_refused(home):
    prepare.run(prepare_config(crop_side_px=120), "")
    c = prepare_config(crop_side_px=100, margin=2.0)
    c.prepare.source.min_side_px = 40.0
    with pytest.raises(UserError) as caught:
        prepare.run(c, "")
    lines = str(caught.value).splitlines()[1:4]
    assert lines == [
        "  crop_side_px: stored 120, asked for 100",
        "  margin: stored 1.8, asked for 2.0",
        "  source.min_side_px: stored 0.0, asked for 40.0",
    ]
    content = json.loads((home / "people.json").read_text())
    content["annotations"].pop()
    (home / "people.json").unlink()
    (home / "people.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="annotations_sha256: stored"):
        prepare.run(prepare_config(crop_side_px=120), "")


@pytest.fixture
def interrupted(home, monkeypatch):
    """An unfinished store of which one part of three is complete; the list of pictures
    that are cut from now on; and the finished store it should become."""
    monkeypatch.setattr(crops_store, "_PART", 3)
    monkeypatch.setattr(crops_store.os, "cpu_count", lambda: 1)
    reference = prepare_config(crop_side_px=120)
    reference.prepare.path = "reference"
    prepare.run(reference, "")
    cut, calls = crops_store._cut_picture, []

    def counting(source, rows, cutting):
        calls.append(rows[0])
        if len(calls) == 5:
            raise KeyboardInterrupt
        return cut(source, rows, cutting)

    monkeypatch.setattr(crops_store, "_cut_picture", counting)
    with pytest.raises(KeyboardInterrupt):
        prepare.run(prepare_config(crop_side_px=120), "")
    assert not (home / "store").exists() and (home / "store.partial").exists()
    calls[:] = [None] * 5
    return home, calls


def same_files(a, b):
    names = ("people.array_record", "people.npy")
    return all((a / n).read_bytes() == (b / n).read_bytes() for n in names)


def test_an_interrupted_run_continues(interrupted):
    home, calls = interrupted
    prepare.run(prepare_config(crop_side_px=120), "")
    assert len(calls) - 5 == PICTURES - 3  # The first part was taken over.
    assert same_files(home / "store", home / "reference")
    assert not (home / "store.partial").exists()


def test_unfinished_work_of_other_settings_is_thrown_away(interrupted):
    home, calls = interrupted
    prepare.run(prepare_config(crop_side_px=100), "")
    assert len(calls) - 5 == PICTURES
    again = prepare_config(crop_side_px=100)
    again.prepare.path = "again"
    prepare.run(again, "")
    assert same_files(home / "store", home / "again")


def test_a_foreign_partial_folder_is_left_alone(home):
    (home / "store.partial").mkdir()
    (home / "store.partial/precious").write_text("x")
    with pytest.raises(UserError, match="in the way and not ours"):
        prepare.run(prepare_config(), "")
    assert (home / "store.partial/precious").exists()
    (home / "store").mkdir()
    with pytest.raises(DataError, match="is no crops store"):
        prepare.run(prepare_config(), "")


@pytest.fixture
def damaged(tmp_path, monkeypatch):
    """120 small pictures, so that one unreadable is less than 1 %."""
    monkeypatch.setenv("POSE_JAX_DATA", str(tmp_path))
    content = dataset(120, 1, size=(210, 210))
    for a in content["annotations"]:
        a["bbox"][2:] = [30, 30]
    write_coco(tmp_path, content)
    return tmp_path


def test_unreadable_pictures_are_named_and_counted(damaged, capsys):
    (damaged / "images/0005.jpg").write_bytes(b"rubbish")
    c = prepare_config()
    prepare.run(c, "")
    assert "left out:" in (output := capsys.readouterr().out)
    assert "0005.jpg: not a readable picture" in output
    source = CropsSource(damaged / "store")
    assert len(source) == 119 and 5 not in by_id(source)
    assert source.dropped == {"with unreadable pictures": 1}
    assert len(source.index["unreadable"]) == 1


def test_too_many_unreadable_pictures_are_refused(damaged):
    (damaged / "images/0005.jpg").write_bytes(b"rubbish")
    good = (damaged / "images/0006.jpg").read_bytes()
    (damaged / "images/0006.jpg").unlink()
    with pytest.raises(DataError, match="2 of 120 pictures") as caught:
        prepare.run(prepare_config(), "")
    assert "0005.jpg" in str(caught.value) and "0006.jpg" in str(caught.value)
    assert not (damaged / "store").exists()
    (damaged / "images/0006.jpg").write_bytes(good)
    prepare.run(prepare_config(), "")
    assert len(CropsSource(damaged / "store")) == 119


def test_people_outside_of_their_picture_are_counted(damaged):
    content = json.loads((damaged / "people.json").read_text())
    content["annotations"][3]["bbox"] = [5000, 10, 20, 20]
    (damaged / "people.json").write_text(json.dumps(content))
    prepare.run(prepare_config(), "")
    source = CropsSource(damaged / "store")
    assert len(source) == 119
    assert source.dropped == {"outside of their picture": 1}


def test_any_source_can_be_prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("POSE_JAX_DATA", str(tmp_path))
    c = prepare_config(crop_side_px=64)
    c.prepare.source = config.source(count=5, size=(96, 80), seed=3)
    prepare.run(c, "")
    source = CropsSource(tmp_path / "store")
    assert len(source) == 5 and source.name == "crops of figures(seed=3, count=5)"
    c.skeleton = "lsp"
    with pytest.raises(UserError, match="skeleton: stored 'coco', asked for 'lsp'"):
        prepare.run(c, "")
    c.prepare.source = config.source("crops", path="store")
    c.prepare.path = "again"
    prepare.run(c, "")
    twice = CropsSource(tmp_path / "again")
    same_person(twice.person(4), source.person(4), exact=False)


@pytest.mark.parametrize(
    "fields,message",
    [
        (dict(format="zip"), "prepare.format is 'zip'; use crops or tfds"),
        (dict(path=""), "set config.prepare.path"),
        (dict(format="tfds", path="x"), "packs a COCO-format data set, not 'figures'"),
    ],
)
def test_impossible_sections_are_refused(fields, message):
    c = config.default()
    c.prepare.path = "somewhere"
    c.prepare.update(fields)
    with pytest.raises(UserError, match=message):
        prepare.run(c, "")


def test_several_processes_are_refused(home, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="in one process"):
        prepare.run(prepare_config(), "")


def test_lost_detail_is_told(home, capsys):
    c = prepare_config(crop_side_px=100)
    c.input.size = (128, 96)
    prepare.run(c, "")
    needed = math.ceil(128 * 1.8 / 1.25)
    assert f"prepare.crop_side_px={needed} keeps all" in capsys.readouterr().out
    c.prepare.update(crop_side_px=needed, path="full")
    prepare.run(c, "")
    assert "note:" not in capsys.readouterr().out


def test_the_task_is_known_by_its_name(home):
    TASKS["prepare"](prepare_config(), str(home / "run"))
    assert len(CropsSource(home / "store")) == PEOPLE
