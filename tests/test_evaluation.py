"""`evaluate` end to end on a small COCO-format set: one AP by three ways, detections, refusals."""

import dataclasses
import hashlib
import json

import cv2
import jax
import numpy as np
import pytest
from tiny import tiny_config

from pose_jax import checkpoint, data, evaluation, skeletons
from pose_jax.config import UserError, source, to_plain
from pose_jax.data.checks import DataError
from pose_jax.data.figures import FigureSource
from pose_jax.estimator import Estimator
from pose_jax.inference import Predictions
from pose_jax.metrics.coco_ap import coco_ap
from pose_jax.recipe import recipe
from pose_jax.skeletons import COCO, get
from pose_jax.tasks import evaluate, predict
from pose_jax.tasks.workdir import claim


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Twelve figures as PNG files and a COCO file; picture 12 has nobody."""
    folder = tmp_path_factory.mktemp("set")
    figures = FigureSource(11, seed=5, size=(160, 128))
    images, annotations = [], []
    for n in range(11):
        figure = figures.render(n)
        cv2.imwrite(str(folder / f"{n}.png"), figure.image[:, :, ::-1])
        images.append(dict(id=n + 100, file_name=f"{n}.png", height=160, width=128))
        keypoints = np.concatenate([figure.keypoints, figure.visible[:, None]], 1)
        annotations.append(
            dict(
                id=n + 1, image_id=n + 100, category_id=1, iscrowd=0,
                bbox=figure.box.tolist(), area=float(figure.area),
                keypoints=keypoints.ravel().tolist(),
                num_keypoints=int((figure.visible > 0).sum()),
            )
        )  # fmt: skip
    cv2.imwrite(str(folder / "nobody.png"), np.full((60, 60, 3), 90, np.uint8))
    images.append(dict(id=111, file_name="nobody.png", height=60, width=60))
    category = dict(id=1, name="person", keypoints=list(COCO.keypoints), skeleton=[])
    content = dict(images=images, annotations=annotations, categories=[category])
    (folder / "people.json").write_text(json.dumps(content))
    return folder


def make_run(workdir, dataset, skeleton="coco"):
    """A converted-model-like workdir with random weights."""
    c = tiny_config()
    c.skeleton = skeleton
    c.data.eval = source("coco", path=str(dataset / "people.json"), images=str(dataset))
    c.data.train.source = c.data.eval.copy_and_resolve_references()
    c.evaluate.update(metrics=("pck", "pck_torso", "pck_crop", "ap"), overlays=4)
    claim(c, str(workdir))
    described = recipe(c)
    images = np.zeros((1, 32, 32, 3), np.float32)
    init = jax.jit(lambda k: described.module.init(k, images, train=True))
    variables = init(jax.random.key(1, impl="unsafe_rbg"))
    checkpoint.save_variables(workdir, variables, info={})
    return c


@pytest.fixture(scope="module")
def run(tmp_path_factory, dataset):
    workdir = tmp_path_factory.mktemp("run")
    c = make_run(workdir, dataset)
    evaluate.run(c, str(workdir))
    return c, workdir


def pycocotools_ap(truth, rows):
    from pycocotools.coco import COCO as Api
    from pycocotools.cocoeval import COCOeval

    api = Api()
    api.dataset = json.loads(json.dumps(truth))
    api.createIndex()
    judged = COCOeval(api, api.loadRes(json.loads(json.dumps(rows))), "keypoints")
    judged.evaluate(), judged.accumulate(), judged.summarize()
    return judged.stats


def test_one_ap_by_three_ways(run, dataset):
    """The task, the Estimator by hand, and pycocotools on the saved rows."""
    _, workdir = run
    record = json.loads((workdir / "results.json").read_text())["val-gt-flip-0"]
    truth = json.loads((dataset / "people.json").read_text())
    rows = json.loads((workdir / "predictions.json").read_text())
    np.testing.assert_allclose(
        record["ap"]["AP"], pycocotools_ap(truth, rows)[0], atol=1e-9
    )
    estimator = Estimator.load(workdir)
    by_hand = []
    for annotation in truth["annotations"]:
        name = {i["id"]: i["file_name"] for i in truth["images"]}[
            annotation["image_id"]
        ]
        pose = estimator.predict(str(dataset / name), boxes=[annotation["bbox"]])
        row = np.concatenate([pose.keypoints[0], pose.keypoint_scores[0][:, None]], 1)
        by_hand.append(
            dict(
                image_id=annotation["image_id"], category_id=1,
                keypoints=row.ravel().tolist(), score=float(pose.score[0]),
            )
        )  # fmt: skip
    stored = {r["image_id"]: r["keypoints"] for r in rows}
    for row in by_hand:
        np.testing.assert_allclose(row["keypoints"], stored[row["image_id"]], atol=2e-3)
    found = coco_ap(truth, by_hand, sigmas=np.asarray(COCO.sigmas))
    np.testing.assert_allclose(found["AP"], record["ap"]["AP"], atol=1e-6)


def test_jittered_truth_scores_high_and_alike(dataset):
    """Ground truth displaced by a pixel or two: a high AP, equal in both libraries."""
    generator = np.random.default_rng(0)
    truth = json.loads((dataset / "people.json").read_text())
    rows = []
    for annotation in truth["annotations"]:
        points = np.array(annotation["keypoints"]).reshape(-1, 3)
        points[:, :2] += generator.normal(0, 1.0, (17, 2))
        rows.append(
            dict(
                image_id=annotation["image_id"], category_id=1, score=0.9,
                keypoints=points.ravel().tolist(),
            )
        )  # fmt: skip
    ours = coco_ap(truth, rows, sigmas=np.asarray(COCO.sigmas))
    assert ours["AP"] > 0.8
    np.testing.assert_allclose(ours["AP"], pycocotools_ap(truth, rows)[0], atol=1e-9)


def test_record_and_files(run):
    c, workdir = run
    record = json.loads((workdir / "results.json").read_text())["val-gt-flip-0"]
    for part in ("boxes: ground truth", "11 people", "flip test on", "decode udp"):
        assert part in record["protocol"]
    assert record["ap"]["area_source"] == "annotation"
    assert set(record) >= {"pck", "mean_pose", "pck_torso", "pck_crop", "ap"}
    low, high = record["pck"]["interval_95"][1]
    assert low <= record["pck"]["micro"][1] <= high
    assert (workdir / "figures" / "val-gt-flip-0.png").exists()
    assert (workdir / "predictions" / "val-gt-flip-0.json").exists()


def test_padding_of_the_last_batch_changes_nothing(run, dataset, tmp_path):
    """Eleven people in batches of 8, 11 and 4: the same rows, each once."""
    from pose_jax import inference, sharding

    c, workdir = run
    described = recipe(c)
    tree, _ = checkpoint.load_variables(workdir)
    opened = data.open_source(c.data.eval, root=None, skeleton="coco")
    results = [
        inference.predict_source(
            described, tree, opened, mesh=sharding.make_mesh(), batch=b, flip_test=False
        )
        for b in (8, 11, 4)
    ]
    for found in results:
        assert found.rows.tolist() == list(range(11))
        np.testing.assert_allclose(found.keypoints, results[0].keypoints, atol=1e-2)


def test_detections_are_rescored_and_thinned(run, dataset, tmp_path):
    """Every box twice, one of them with a low score: OKS-NMS keeps one person each."""
    c, workdir = run
    truth = json.loads((dataset / "people.json").read_text())
    boxes = [
        dict(image_id=a["image_id"], category_id=1, bbox=a["bbox"], score=s)
        for a in truth["annotations"]
        for s in (0.9, 0.3)
    ]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(boxes))
    d = c.copy_and_resolve_references()
    d.evaluate.update(boxes=str(path), metrics=("ap",), overlays=0, score_threshold=0.0)
    evaluate.run(d, str(workdir))
    name = f"val-boxes_{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}-flip-0"
    record = json.loads((workdir / "results.json").read_text())[name]
    rows = json.loads((workdir / "predictions" / f"{name}.json").read_text())
    assert record["people"] == 22 and len(rows) == 11
    assert str(path) in record["protocol"] and len(record["boxes_sha256"]) == 64
    gt = json.loads((workdir / "predictions" / "val-gt-flip-0.json").read_text())
    means = {r["image_id"]: r["score"] for r in gt}
    for row in rows:
        np.testing.assert_allclose(
            row["score"], 0.9 * means[row["image_id"]], rtol=1e-3
        )
    d.evaluate.metrics = ("pck",)
    with pytest.raises(UserError, match="no labels of their own"):
        evaluate.run(d, str(workdir))
    d.evaluate.update(boxes=str(tmp_path / "none.json"), metrics=("ap",))
    with pytest.raises(UserError, match="no such file"):
        evaluate.run(d, str(workdir))
    path.write_text(json.dumps([dict(image_id=7, bbox=[0, 0, 5, 5], score=1)]))
    d.evaluate.boxes = str(path)
    with pytest.raises(DataError, match="image 7"):
        evaluate.run(d, str(workdir))


def test_a_model_of_another_skeleton(dataset, tmp_path):
    """An LSP-14 model on COCO-17 people: twelve shared joints, listed; the others are not
    asked for."""
    c = make_run(tmp_path, dataset, "lsp")
    evaluate.run(c, str(tmp_path))
    record = json.loads((tmp_path / "results.json").read_text())["val-gt-flip-0"]
    assert "12 shared joints" in record["protocol"]
    counted = [n for n, j in record["pck"]["joints"].items() if j["count"]]
    assert len(counted) == 12 and "head_top" not in counted
    rows = json.loads((tmp_path / "predictions.json").read_text())
    nose = np.array(rows[0]["keypoints"]).reshape(17, 3)[0]
    assert nose[2] == 0
    dataset_ = json.loads((dataset / "people.json").read_text())
    shared = [COCO.index(n) for n in get("lsp").keypoints if n in COCO.keypoints]
    thin = evaluation._only(dataset_, np.array(shared))
    assert all(
        np.array(a["keypoints"]).reshape(17, 3)[0, 2] == 0 for a in thin["annotations"]
    )


def test_people_left_out_by_filters_are_ignored_not_missed(run, dataset):
    """With a limit of four, perfect predictions of those four score 1."""
    c, _ = run
    d = c.copy_and_resolve_references()
    d.data.eval.limit = 4
    opened = data.open_source(d.data.eval, root=None, skeleton="coco")
    rows = []
    for n in range(4):
        person = opened.person(n)
        points = np.concatenate([person.keypoints, np.ones((17, 1))], 1)
        rows.append(
            dict(image_id=person.image_id, category_id=1, score=0.9,
                 keypoints=points.ravel().tolist())
        )  # fmt: skip
    result = evaluation.average_precision(opened, rows, recipe(c), "annotation")
    np.testing.assert_allclose(result["AP"], 1.0, atol=1e-6)
    assert result["counts"]["persons"] == 4


def test_nan_weights_are_refused(run, dataset, tmp_path):
    c, workdir = run
    tree, _ = checkpoint.load_variables(workdir)
    tree["params"]["stack0_heatmaps"]["bias"] = np.full(17, np.nan, np.float32)
    claim(c, str(tmp_path))
    checkpoint.save_variables(tmp_path, tree, info={})
    with pytest.raises(ValueError, match="is not finite"):
        evaluate.run(c, str(tmp_path))
    assert not (tmp_path / "results.json").exists()


def test_area_box_and_missing_area(run, dataset, tmp_path):
    c, workdir = run
    truth = json.loads((dataset / "people.json").read_text())
    truth["annotations"][3]["area"] = 0
    (tmp_path / "people.json").write_text(json.dumps(truth))
    d = c.copy_and_resolve_references()
    d.data.eval.path = str(tmp_path / "people.json")
    with pytest.raises(DataError, match="annotation 4 has area 0.*area_source='box'"):
        evaluate.run(d, str(workdir))
    d.evaluate.update(area_source="box", name="box", overlays=0)
    evaluate.run(d, str(workdir))
    record = json.loads((workdir / "results.json").read_text())["box-gt-flip-0"]
    assert record["ap"]["area_source"] == "box"


def test_unreadable_pictures_are_named(run, dataset, tmp_path):
    c, workdir = run
    for path in dataset.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "4.png").write_bytes((dataset / "4.png").read_bytes()[:200])
    d = c.copy_and_resolve_references()
    d.data.eval.images = str(tmp_path)
    with pytest.raises(Exception, match="4.png: not a readable picture"):
        evaluate.run(d, str(workdir))
    (tmp_path / "4.png").unlink()
    with pytest.raises(Exception, match="4.png: No such file"):
        evaluate.run(d, str(workdir))


def test_unknown_metric(run):
    c, workdir = run
    d = c.copy_and_resolve_references()
    d.evaluate.metrics = ("pkc",)
    with pytest.raises(ValueError, match="unknown metric 'pkc'"):
        evaluate.run(d, str(workdir))
    d.evaluate.metrics = ("pckh",)
    with pytest.raises(ValueError, match="no head boxes"):
        evaluate.run(d, str(workdir))


# --- predict ----------------------------------------------------------------------------


def test_predict_folder_glob_and_boxes(run, dataset, capsys):
    c, workdir = run
    d = c.copy_and_resolve_references()
    pictures = str(dataset / "*.png")
    d.predict.update(inputs=(pictures,), boxes=str(dataset / "people.json"))
    predict.run(d, str(workdir))
    found = json.loads((workdir / "predict" / "poses.json").read_text())
    assert found["skeleton"] == list(COCO.keypoints)
    files = {f["file"].rsplit("/", 1)[1]: f for f in found["files"]}
    assert len(files) == 12
    assert files["nobody.png"]["people"] == []  # Nobody is a normal result.
    assert len(files["0.png"]["people"]) == 1
    assert (workdir / "predict" / "nobody.png").exists()
    d.predict.update(inputs=(str(dataset / "0.png"),), boxes="", name="whole")
    predict.run(d, str(workdir))
    assert "one person filling" in capsys.readouterr().out
    found = json.loads((workdir / "whole" / "poses.json").read_text())
    assert found["files"][0]["whole_image"] is True
    assert found["files"][0]["people"][0]["box"] == [0, 0, 128, 160]


def test_predict_video(run, dataset, tmp_path):
    from pose_jax import video

    c, workdir = run
    frames = [cv2.imread(str(dataset / f"{n}.png"))[:, :, ::-1] for n in range(5)]
    video.write_frames(tmp_path / "clip.mp4", frames, rate=10)
    d = c.copy_and_resolve_references()
    d.predict.update(inputs=(str(tmp_path / "clip.mp4"),), name="clip")
    predict.run(d, str(workdir))
    found = json.loads((workdir / "clip" / "poses.json").read_text())["files"][0]
    assert len(found["frames"]) == 5
    np.testing.assert_allclose([f["time"] for f in found["frames"]], np.arange(5) / 10)
    drawn = list(video.read_frames(workdir / "clip" / "clip.mp4"))
    assert len(drawn) == 5 and drawn[0].image.shape == (160, 128, 3)


@pytest.mark.parametrize("name,content,message", [
    ("no.png", None, "does not exist"),
    ("cut.jpg", b"\xff\xd8\xff\xe0", "not a readable picture"),
    ("bad.mp4", b"nothing", "not a readable video"),
    ("empty", "folder", "holds no pictures"),
])  # fmt: skip
def test_predict_names_what_it_cannot_use(run, tmp_path, name, content, message):
    c, workdir = run
    if content == "folder":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    d = c.copy_and_resolve_references()
    d.predict.inputs = (str(tmp_path / name),)
    with pytest.raises(Exception, match=message):
        predict.run(d, str(workdir))


# --- Estimator --------------------------------------------------------------------------


def test_estimator_inputs(run, dataset):
    _, workdir = run
    estimator = Estimator.load(workdir, flip_test=False)
    image = cv2.imread(str(dataset / "0.png"))[:, :, ::-1]
    whole = estimator.predict(image)
    assert whole.whole_image and len(whole) == 1
    assert whole.keypoints.shape == (1, 17, 2) and whole.skeleton is COCO
    three = np.array([[10, 10, 60, 100], [0, 0, 128, 160], [30, 20, 40, 90.0]])
    many = estimator.predict(image, boxes=three)
    assert len(many) == 3 and not many.whole_image
    np.testing.assert_allclose(many.keypoints[1], whole.keypoints[0], atol=1e-3)
    assert ((many.keypoint_scores >= 0) & (many.keypoint_scores <= 1)).all()
    np.testing.assert_allclose(many.score, many.keypoint_scores.mean(1))
    both = estimator.predict([image, str(dataset / "1.png")], boxes=[three, []])
    assert [len(p) for p in both] == [3, 0]
    found = estimator.predict(image, detector=lambda picture: three[:2])
    np.testing.assert_allclose(found.keypoints, many.keypoints[:2], atol=1e-3)
    step = Estimator.load(workdir / "checkpoints" / "0")
    assert step.step == 0


def test_estimator_refusals(run, dataset, tmp_path):
    _, workdir = run
    estimator = Estimator.load(workdir, flip_test=False)
    image = np.zeros((50, 40, 3), np.uint8)
    with pytest.raises(ValueError, match="positive width and height"):
        estimator.predict(image, boxes=[[10, 10, 5, 0]])
    with pytest.raises(ValueError, match=r"\[n, 4\] xywh"):
        estimator.predict(image, boxes=[[1, 2, 3]])
    with pytest.raises(ValueError, match="uint8 RGB"):
        estimator.predict(image.astype(np.float32))
    with pytest.raises(ValueError, match="2 pictures but 1"):
        estimator.predict([image, image], boxes=[[[0, 0, 5, 5]]])
    with pytest.raises(FileNotFoundError, match="no config.json"):
        Estimator.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(to_plain(tiny_config())))
    with pytest.raises(checkpoint.CheckpointError, match="holds no checkpoint"):
        Estimator.load(tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="no step 9"):
        Estimator.load(workdir, checkpoint_name=9)


def test_weights_of_another_network_are_listed(run, dataset, tmp_path):
    c, workdir = run
    tree, _ = checkpoint.load_variables(workdir)
    plain = to_plain(c)
    plain["model"]["features"] = 16
    (tmp_path / "config.json").write_text(json.dumps(plain))
    checkpoint.save_variables(tmp_path, tree, info={})
    with pytest.raises(checkpoint.CheckpointError, match="other shape.*config.model"):
        Estimator.load(tmp_path)


def test_heatmap_pck_stands_with_both_denominators(run, dataset):
    """One joint per person at the true cell, all others far off; one person unlabelled."""
    c, _ = run
    c = c.copy_and_resolve_references()
    c.evaluate.metrics = ("heatmap_pck",)
    described = recipe(c)
    source = data.open_source(c.data.eval, root=None, skeleton="coco")
    _, true, visible = evaluation.people_arrays(source, range(len(source)), described)
    grid = np.full(visible.shape + (2,), 4)
    guess = grid.copy()
    guess[:, 1:] = 0
    drawn = visible > 0
    drawn[0] = False
    predictions = Predictions(
        rows=np.arange(len(source)), keypoints=true, scores=np.ones(visible.shape),
        grid=guess, true_grid=grid, drawn=drawn, map_side=8,
    )  # fmt: skip
    result = evaluation.score(predictions, source, described, c.evaluate)
    assert json.loads(json.dumps(result)) == result
    for variant, kept in (("labelled", visible > 0), ("visible", visible == 2)):
        found = result[f"heatmap_pck_{variant}"]
        kept = kept & drawn
        some = kept.any(1)
        rates = kept[some, 0] / kept[some].sum(1)
        assert 0 < some.sum() < len(source) == found["images"]
        np.testing.assert_allclose(found["macro"], rates.mean())
        np.testing.assert_allclose(found["macro_over_all"], rates.sum() / len(source))
    assert result["heatmap_pck_limbs"]["macro_over_all"] == [0.0]


def test_heatmap_pck_of_a_body_without_limbs(run, dataset):
    """The variants that the body has are scored, whatever joints it lacks."""
    c, _ = run
    c = c.copy_and_resolve_references()
    c.evaluate.metrics = ("heatmap_pck", "pck")
    head = skeletons.from_names(("nose", "left_eye", "right_eye"), name="head")
    described = dataclasses.replace(recipe(c), skeleton=head)
    source = data.open_source(c.data.eval, root=None, skeleton="coco")
    _, true, visible = evaluation.people_arrays(source, range(len(source)), described)
    grid = np.full(visible.shape + (2,), 4)
    predictions = Predictions(
        rows=np.arange(len(source)), keypoints=true, scores=np.ones(visible.shape),
        grid=grid, true_grid=grid, drawn=visible > 0, map_side=8,
    )  # fmt: skip
    result = evaluation.score(predictions, source, described, c.evaluate)
    assert result["heatmap_pck_labelled"]["macro"] == [1.0]
    assert result["heatmap_pck_visible"]["macro"] == [1.0]
    assert "heatmap_pck_limbs" not in result and result["pck"]["micro"]
