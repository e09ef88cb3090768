"""The task `explain` on synthetic figures: files, numbers, resuming, studies, mistakes."""

import json

import cv2
import jax
import numpy as np
import pytest
from scipy import stats
from tiny import tiny_config

from pose_jax import checkpoint, data, partitions, skeletons
from pose_jax.config import UserError
from pose_jax.explain.explainer import Explainer
from pose_jax.explain.interdependence import affinity
from pose_jax.explain.perturbation import hidden_scores
from pose_jax.recipe import recipe
from pose_jax.tasks import explain, explain_studies, train
from pose_jax.tasks.arrays import load_arrays, plain, save_arrays
from pose_jax.tasks.explain_people import open_people
from pose_jax.tasks.removal import load_partition, make_removal
from pose_jax.tasks.workdir import claim

LSP = skeletons.get("lsp")
K = 14


def config(**changes):
    c = tiny_config()
    c.skeleton = "lsp"
    c.data.eval.count = 6
    c.explain.update(
        count=6, batch=2, figures=2, masks=2, check_people=3, reference="predicted",
    )  # fmt: skip
    c.explain.update(changes)
    return c


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run with random weights, sharp enough that hiding a joint moves an answer."""
    folder = tmp_path_factory.mktemp("run")
    c = config()
    claim(c, str(folder))
    described = recipe(c)
    images = np.zeros((1, 32, 32, 3), np.float32)
    init = jax.jit(lambda k: described.module.init(k, images, train=True))
    variables = jax.device_get(init(jax.random.key(2, impl="unsafe_rbg")))
    head = variables["params"]["stack0_heatmaps"]
    head["kernel"] = head["kernel"] * 8
    checkpoint.save_variables(folder, variables, info={})
    return folder


@pytest.fixture(scope="module", autouse=True)
def drawn():
    """Figures have tests of their own; here it counts that they are asked for. Few partitions:
    their errors have tests, too."""
    folders = []
    patch = pytest.MonkeyPatch()
    patch.setattr(explain, "_draw", folders.append)
    few = {name: partitions.PARTITIONS[name] for name in ("limbs-v1", "joints-v1")}
    patch.setattr(partitions, "PARTITIONS", few | {"halves-v1": partitions._halves})
    yield folders
    patch.undo()


LIMBS = partitions.get("limbs-v1", LSP)


def limbs_hang_together(*args, **kwargs):
    """The real scores of people with hidden boxes, but for the drops: an untrained network
    knows no limbs, and clusters must not depend on its random weights."""
    clean, masked = hidden_scores(*args, **kwargs)
    together = LIMBS.owner[:, None] == LIMBS.owner
    drop = np.where(np.eye(K, dtype=bool), 0.8, np.where(together, 0.4, 0.02))
    planted = clean[:, None, None] - drop[:, None]
    return clean, np.where(np.isnan(masked), np.nan, planted).astype(np.float32)


@pytest.fixture(scope="module")
def folder(workdir, drawn):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explain_studies, "hidden_scores", limbs_hang_together)
        explain.run(config(exact_people=1), str(workdir))
    return workdir / "explain" / "group_shapley-gsv-val"


def read(path):
    return json.loads(path.read_text())


@pytest.fixture
def asked(monkeypatch):
    """How many people the explainer was asked about, call by call."""
    calls, original = [], Explainer.__call__

    def call(self, crops, *, room=0):
        calls.append(len(crops.images))
        return original(self, crops, room=room)

    monkeypatch.setattr(Explainer, "__call__", call)
    return calls


# --- files and numbers ------------------------------------------------------------------


def test_files_and_shapes(folder, drawn):
    assert drawn and drawn[0] == folder
    names = {p.name for p in folder.iterdir()}
    assert names >= {
        "index.json", "part-0000.npz", "part-0002.npz", "explanations.npz",
        "pictures.npz", "explanations.json", "interdependence.json", "clusters.json",
        "removals.json", "grouping_error.json", "influence", "exact", "removal-blur",
    }  # fmt: skip
    assert not [n for n in names if n.endswith(".partial")]
    arrays = load_arrays(folder / "explanations.npz")
    assert arrays["influence"].shape == (6, K, K)
    assert arrays["table"].shape == (6, 448, K)
    assert arrays["cluster_values"].shape == (6, 5, K)
    assert arrays["id"].tolist() == ["1", "2", "3", "4", "5", "6"]
    assert "image" not in arrays
    # People 0 and 5: the middle part holds no picture, the last one that of its second.
    pictures = load_arrays(folder / "pictures.npz")
    assert pictures["of"].tolist() == [0, 5]
    described = recipe(config())
    crops = open_people(config(), described).crops([0, 5])
    np.testing.assert_array_equal(pictures["image"], crops.images)
    assert pictures["image"].shape == pictures["fill"].shape == (2, 32, 32, 3)
    assert pictures["owners"].shape == (2, 32, 32)


def test_numbers_of_the_record_equal_recomputation(folder):
    record = read(folder / "explanations.json")
    arrays = load_arrays(folder / "explanations.npz")
    source = data.open_source(config().data.eval, root=None, skeleton="lsp")
    people = [source.person(n) for n in range(6)]
    labelled = np.stack([p.visible for p in people]) > 0
    np.testing.assert_array_equal(arrays["target_valid"], labelled)
    for name in ("empty", "full", "gap"):
        values = arrays["full"] - arrays["empty"] if name == "gap" else arrays[name]
        for t in range(K):
            there = values[labelled[:, t], t]
            assert record[name]["counts"][t] == len(there)
            if len(there):
                assert record[name]["mean"][t] == pytest.approx(there.mean(), abs=1e-5)
    some_missing = False
    for t in range(K):
        for j in range(K):
            both = labelled[:, t] & arrays["present"][:, j]
            some_missing |= not both.all()
            assert record["influence"]["counts"][t][j] == both.sum()
            mean = record["influence"]["mean"][t][j]
            if not both.any():
                assert mean is None
                continue
            expected = arrays["influence"][both, j, t].mean()
            assert mean == pytest.approx(expected, abs=1e-5)
            low, high = (record["influence"][e][t][j] for e in ("low", "high"))
            if both.sum() > 1:
                assert low - 1e-6 <= mean <= high + 1e-6
    assert some_missing  # Otherwise nothing was tested about people without a joint.
    assert record["evaluations"] == arrays["evaluations"].sum() <= 6 * 448
    assert record["rows"] == 448 and record["people"] == 6
    assert record["largest_residual"] == pytest.approx(
        np.abs(arrays["residual"]).max(), rel=1e-5
    )
    assert record["largest_residual"] < 1e-5
    error = (
        np.linalg.norm(
            arrays["keypoints"] - np.stack([p.keypoints for p in people]), axis=-1
        )
        / np.array([max(p.box[2:]) for p in people])[:, None]
    )
    assert record["quality"]["pck@0.1"] == pytest.approx((error[labelled] < 0.1).mean())
    assert record["quality"]["joints"] == labelled.sum()
    for part in ("6 people", "limbs-v1", "similarity against predicted", "removal mean",
                 "no flip test", "disc regions of 0.12", "centres labels"):  # fmt: skip
        assert part in record["protocol"]
    assert record["partition"]["clusters"]["head"] == ["neck", "head_top"]


def test_values_add_up_in_the_file(folder):
    arrays = load_arrays(folder / "explanations.npz")
    gap = arrays["full"] - arrays["empty"]
    valid = arrays["target_valid"]
    np.testing.assert_allclose(arrays["influence"].sum(1)[valid], gap[valid], atol=1e-5)
    total = arrays["member_values"].sum(1) + arrays["cluster_values"].sum(1)
    np.testing.assert_allclose(total[valid], gap[valid], atol=1e-5)
    assert np.abs(gap[valid]).max() > 0.01


def test_json_has_no_nan():
    assert plain(np.array([[1.0, np.nan], [np.nan, 0.1234567]])) == [
        [1.0, None], [None, 0.123457],
    ]  # fmt: skip
    assert plain(np.array(np.nan)) is None and plain(np.array(0.5)) == 0.5


# --- resuming ---------------------------------------------------------------------------


def test_only_the_missing_part_is_made_again(folder, workdir, asked):
    before = load_arrays(folder / "explanations.npz")
    explain.run(config(exact_people=1), str(workdir))
    assert asked == []
    (folder / "part-0001.npz").unlink()
    (folder / "removal-blur" / "part-0001.npz").unlink()
    explain.run(config(exact_people=1), str(workdir))
    assert asked == [2, 1]  # The part; the third person under the other fill.
    after = load_arrays(folder / "explanations.npz")
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


@pytest.mark.parametrize(
    "field,value",
    [("score", "value"), ("removal", "blur"), ("batch", 3), ("clusters", "halves-v1"),
     ("side", 0.2), ("count", 4), ("figures", 3), ("reference", "labels")],
)  # fmt: skip
def test_another_question_is_refused(folder, workdir, field, value):
    message = f"answers another question .*{field}.*choose another explain.split"
    with pytest.raises(UserError, match=message):
        explain.run(config(**{field: value}), str(workdir))


def test_other_settings_of_a_study_are_refused(folder, workdir):
    with pytest.raises(UserError, match="influence was made with other settings"):
        explain.run(config(masks=3), str(workdir))


def test_a_damaged_part_is_named(folder, workdir, tmp_path):
    path = folder / "part-0001.npz"
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[len(whole) // 2 : len(whole) // 2 + 40] = bytes(40)
    for content in (whole[:300], b"", bytes(broken)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="part-0001.npz is damaged.*delete it"):
            explain.run(config(exact_people=1), str(workdir))
    path.write_bytes(whole)
    save_arrays(tmp_path / "deep" / "x.npz", {"a": np.arange(3)})
    assert load_arrays(tmp_path / "deep" / "x.npz")["a"].tolist() == [0, 1, 2]


# --- studies ----------------------------------------------------------------------------


def test_interdependence_equals_its_parts(folder):
    record = read(folder / "interdependence.json")
    parts = [load_arrays(p) for p in sorted((folder / "influence").glob("part-*.npz"))]
    drop = np.concatenate([p["influence"] for p in parts])
    assert drop.shape == (6, K, K) and len(parts) == 3
    counts = (~np.isnan(drop)).sum(0)
    assert record["counts"] == counts.tolist()
    mean = np.nansum(drop, 0, dtype=float) / np.maximum(counts, 1)
    found = np.array(record["influence"], float)
    np.testing.assert_allclose(found[counts > 0], mean[counts > 0], atol=1e-5)
    assert np.isnan(found[counts == 0]).all()
    valid = load_arrays(folder / "explanations.npz")["target_valid"]
    clean = np.concatenate([p["clean"] for p in parts])
    np.testing.assert_array_equal(~np.isnan(clean), valid)
    for t in range(K):  # The clean answer agrees with itself, where there is a target.
        assert record["clean"][t] == (1.0 if valid[:, t].any() else None)
    normalised = np.nan_to_num(np.array(record["normalised"], float))
    np.testing.assert_allclose(
        record["affinity"], affinity(normalised, LSP.mirrored), atol=1e-4
    )
    limbs = {frozenset(c) for c in LIMBS.record(LSP)["clusters"].values()}
    assert {frozenset(c) for c in record["clusters"].values()} == limbs
    assert record["adjusted_rand"] == {"spectral": 1.0, "limbs-v1": 1.0}


def test_clusters_and_influence_serve_keypoint_removal(folder, tmp_path):
    """Measured, then trained with: the files of `explain` are those of the augmentation."""
    path = str(folder / "clusters.json")
    found = load_partition(path, LSP)
    assert found.name == "found-val"
    c = config()
    c.train.update(steps=1, eval_every=0, save_every=0)
    c.data.train.removal.update(
        kind="gkr_value_weighted", clusters=path, probability=1.0,
        influence=str(folder / "interdependence.json"),
    )  # fmt: skip
    removal = make_removal(c.data.train.removal, LSP, 0)
    assert removal.clusters == found.clusters
    # Limbs of three have two partners, the head has one.
    expected = [1.05 if len(LIMBS.clusters[g]) == 3 else 0.55 for g in LIMBS.owner]
    np.testing.assert_allclose(removal.weights, expected, atol=1e-3)
    train.run(c, str(tmp_path))
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert any(json.loads(row).get("train/removed_area", 0) > 0 for row in rows)


def test_grouping_error(folder):
    record = read(folder / "grouping_error.json")
    assert record["exact_evaluations"] == 2**K
    kinds = record["clusterings"]["limbs-v1"]["kinds"]
    assert {k: v["evaluations"] for k, v in kinds.items()} == {
        "gsv": 448, "owen": 448, "decoupled": 32 + 4 * 6 + 2,
    }  # fmt: skip
    assert "found-val" in record["clusterings"]
    assert "joints-v1" not in record["clusterings"]
    for clustering in record["clusterings"].values():
        for kind, found in clustering["kinds"].items():
            assert found["member_error"]["mean"] >= 0
            assert ("player_error" in found) == (kind == "owen")
            # One person: no interval, and JSON knows no NaN.
            assert found["member_error"]["low"] is None
    # The rows of the full table are those of the grouped game.
    (part,) = (folder / "exact").glob("part-*.npz")
    table = load_arrays(part)["table"][0]
    arrays = load_arrays(folder / "explanations.npz")
    players = read(folder / "explanations.json")["players"]
    from pose_jax.explain.shapley import grouped_coalitions

    rows = grouped_coalitions(tuple(map(tuple, players["clusters"])), "gsv")
    valid = arrays["target_valid"][0]
    np.testing.assert_allclose(
        table[rows @ (1 << np.arange(K))][:, valid], arrays["table"][0][:, valid],
        atol=1e-4,
    )  # fmt: skip


def test_removals(folder, workdir):
    record = read(folder / "removals.json")
    assert record["removal"] == "mean" and set(record["against"]) == {"blur"}
    found = record["against"]["blur"]
    parts = sorted((folder / "removal-blur").glob("part-*.npz"))
    taus = np.concatenate([load_arrays(p)["tau"] for p in parts])
    assert taus.shape == (3, K) and found["people"] == 3
    assert found["mean"] == pytest.approx(np.nanmean(np.nanmean(taus, 1)), abs=1e-5)
    assert -1 <= found["low"] <= found["mean"] <= found["high"] <= 1
    assert found["agree"] == (found["mean"] >= 0.8)
    # Tau of the first person by hand.
    explainer = explain.make_explainer(
        config().explain, model_of(workdir), partitions.get("limbs-v1", LSP)
    )
    people = open_people(config(), explainer.recipe)
    crops = people.crops([0])
    (a,), (b,) = explainer(crops), explainer.with_removal("blur")(crops)
    for t in range(K):
        if not a.target_valid[t]:
            assert np.isnan(taus[0, t])
            continue
        there = a.present
        tau = stats.kendalltau(a.influence[there, t], b.influence[there, t]).statistic
        np.testing.assert_allclose(taus[0, t], tau, atol=0.1)


def model_of(workdir):
    from pose_jax.estimator import Estimator

    return Estimator.load(workdir).inference


# --- pictures ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        small = generator.integers(0, 256, (10, 9, 3)).astype(np.uint8)
        large = cv2.resize(small, (50, 60), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{name}.png"), large)
    (folder / "notes.txt").write_text("no picture")
    return folder


def unlabelled(name, inputs, **changes):
    return config(
        split=name,
        inputs=inputs,
        masks=0,
        check_removals=(),
        reference="auto",
        **changes,
    )


def test_pictures_with_and_without_boxes(workdir, pictures, tmp_path):
    explain.run(unlabelled("whole", (str(pictures),)), str(workdir))
    folder = workdir / "explain" / "group_shapley-gsv-whole"
    record = read(folder / "explanations.json")
    assert record["people"] == 2 and record["score"] == "value"
    assert record["reference"] == "predicted" and "quality" not in record
    assert "centres predicted" in record["protocol"]
    assert not (folder / "interdependence.json").exists()
    arrays = load_arrays(folder / "explanations.npz")
    np.testing.assert_array_equal(arrays["box"], [[0, 0, 50, 60]] * 2)
    assert [i.rpartition("/")[2] for i in arrays["id"]] == ["a.png#0", "b.png#0"]
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"b.png": [[2, 3, 30, 40], [10, 5, 30, 50]]}))
    c = unlabelled("boxed", (str(pictures / "*.png"),), boxes=str(boxes))
    explain.run(c, str(workdir))
    arrays = load_arrays(
        workdir / "explain" / "group_shapley-gsv-boxed" / "explanations.npz"
    )
    np.testing.assert_array_equal(arrays["box"], [[2, 3, 30, 40], [10, 5, 30, 50]])
    assert len(set(arrays["id"])) == 2 and len(set(arrays["image_id"])) == 1


@pytest.mark.parametrize(
    "name,content,message",
    [
        ("empty", None, "holds no pictures"),
        ("no.png", None, "explain.inputs: .*no.png does not exist"),
        ("cut.png", b"\x89PNG\r\n", "cut.png: not a readable picture"),
        ("clip.mp4", b"nothing", "clip.mp4 is a video; name pictures"),
    ],
)
def test_inputs_that_cannot_be_explained(workdir, tmp_path, name, content, message):
    path = tmp_path / name
    if name == "empty":
        path.mkdir()
    elif content:
        path.write_bytes(content)
    with pytest.raises(Exception, match=message):
        explain.run(unlabelled(f"bad-{name}", (str(path),)), str(workdir))


@pytest.mark.parametrize(
    "content,message",
    [
        (None, "explain.boxes=.*: no such file"),
        ("{", "is not valid JSON"),
        ("[1]", "must be an object"),
        ('{"c.png": [[1, 2, 3, 4]]}', "names nobody in these pictures"),
        ('{"a.png": [[1, 2, -3, 4]]}', "boxes of a.png: boxes need finite"),
        ('{"a.png": [["x", 2, 3, 4]]}', "boxes of a.png"),
        ('{"annotations": [{"image_id": 3, "bbox": [1, 2, 3, 4]}], "images": []}',
         "no COCO annotation file: an entry lacks 3"),
        ('{"annotations": []}', "an entry lacks 'images'"),
    ],
)  # fmt: skip
def test_boxes_that_cannot_be_read(workdir, pictures, tmp_path, content, message):
    path = tmp_path / "boxes.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        explain.run(
            unlabelled("bad-boxes", (str(pictures),), boxes=str(path)), str(workdir)
        )


# --- mistakes are found before the work -------------------------------------------------


@pytest.mark.parametrize(
    "changes,message",
    [
        (dict(batch=0), "explain.batch=0"),
        (dict(count=-1), "explain.count=-1"),
        (dict(masks=-2), "explain.masks=-2"),
        (
            dict(check_removals=("blurr",)),
            "explain.check_removals holds 'blurr'; use mean",
        ),
        (dict(players="masks"), "which a config cannot hold"),
        (dict(players="discs"), "'discs' are unknown"),
        (dict(clusters="limb"), "'limb' is unknown; use one of limbs-v1"),
        (dict(clusters="nowhere.json"), "no such clusters file"),
        (dict(kind="gvs"), "kind 'gvs' is unknown"),
        (dict(method="lime"), "method 'lime' is unknown"),
        (dict(score="simlarity"), "score 'simlarity' is unknown"),
        (dict(removal="black"), "removal 'black' is unknown"),
        (dict(reference="truth"), "reference='truth'; use one of auto"),
        (dict(side=1.5), "side=1.5 is a share"),
        (dict(removal="other", count=1), "takes its pixels from somebody else"),
    ],
)
def test_impossible_questions(workdir, asked, changes, message):
    with pytest.raises((UserError, ValueError), match=message):
        explain.run(config(split="bad", **changes), str(workdir))
    assert asked == []


def test_too_many_joints_for_the_exact_study(tmp_path, asked):
    c = tiny_config()
    c.explain.exact_people = 2
    claim(c, str(tmp_path))
    described = recipe(c)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), described.shapes())
    checkpoint.save_variables(tmp_path, zeros, info={})
    with pytest.raises(
        UserError, match=r"exact_people needs 2\*\*17 = 131,072 forward"
    ):
        explain.run(c, str(tmp_path))
    assert asked == []


def test_limbs_and_somebody_elses_pixels(workdir):
    """Players that are no joints: no studies of joints; the fill is another person's crop."""
    c = config(split="limbs", players="limbs", removal="other", count=2, kind="owen")
    explain.run(c, str(workdir))
    folder = workdir / "explain" / "group_shapley-owen-limbs"
    record = read(folder / "explanations.json")
    assert record["players"]["cluster_names"][-1] == "trunk"
    assert record["influence"]["counts"] != []
    assert not (folder / "interdependence.json").exists()
    pictures = load_arrays(folder / "pictures.npz")
    np.testing.assert_array_equal(pictures["fill"][0], pictures["image"][1])
    np.testing.assert_array_equal(pictures["fill"][1], pictures["image"][0])
